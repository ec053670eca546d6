"""The password of a search's database: taken out of the command line, and written nowhere.

It lives in the environment variable ``EVLGEN_STORAGE_PASSWORD``: workers and jobs inherit it, and neither a
file, a message nor the list of processes shows it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode

from evlgen.errors import UserError

PASSWORD = "EVLGEN_STORAGE_PASSWORD"
_IN_QUERY = ("password", "passwd", "pwd")
_LIKE_A_PASSWORD = re.compile(r"pass|pwd|secret|token", re.IGNORECASE)


def split(place: str) -> tuple[str, str | None]:
    """A storage's URL without its password, and the password; a path, or a URL without one, as it is.

    Raises:
        UserError: there is a secret in it that has no place elsewhere.
    """
    scheme, separator, rest = place.partition("://")
    if not separator:
        return place, None
    password = None
    user, colon, behind = rest.partition(":")
    if colon and not set("/@?") & set(user) and "@" in behind:
        # To the last @, as one in a password may not be written %40.
        before, mark, query = behind.partition("?")
        if "@" not in before:
            before, mark, query = behind, "", ""
        password, _, host = before.rpartition("@")
        rest, password = f"{user}@{host}{mark}{query}", unquote(password)
    front, mark, query = rest.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, value in pairs:
        if name.lower() in _IN_QUERY:
            password = value
        elif _LIKE_A_PASSWORD.search(name):
            raise UserError(f"--storage {scheme}://...: {name} in it would be seen by others; leave it out")
    kept = [(name, value) for name, value in pairs if name.lower() not in _IN_QUERY]
    if len(kept) < len(pairs):
        query = urlencode(kept)
    return f"{scheme}://{front}{'?' if query else ''}{query}" if mark else f"{scheme}://{rest}", password


def hide_typed(words: Sequence[str]) -> list[str]:
    """What was typed, without the password of a URL in it, which goes into the environment.

    The process starts anew if it was started with these words, so that no list of processes has it.

    Raises:
        UserError: see `split`.
    """
    found: dict[str, str] = {}
    for word in words:
        if "://" in word:
            flag = "--storage=" if word.startswith("--storage=") else ""
            place, password = split(word.removeprefix(flag))
            if password is not None:
                found[word] = f"{flag}{place}"
                os.environ[PASSWORD] = password
    if found and list(words) == sys.argv[1:]:
        sys.stdout.flush()
        started = [sys.executable, *(found.get(word, word) for word in sys.orig_argv[1:])]
        os.execv(sys.executable, started)
    return [found.get(word, word) for word in words]


def hidden(text: str) -> str:
    """The text with stars in place of the password."""
    password = os.environ.get(PASSWORD, "")
    for form in {password, quote(password, safe=""), quote(password), quote_plus(password)} - {""}:
        pattern = re.escape(form) if len(form) > 3 else rf"(?<!\w){re.escape(form)}(?!\w)"
        text = re.sub(pattern, "***", text)
    return text
