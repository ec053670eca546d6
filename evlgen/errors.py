"""The one exception type whose message is meant for the user, and what a command makes of it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake the user can correct.

    The message is one line that names the file, field or value and says what to do. Commands print it
    without a traceback and exit with code 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean KNOWN?`` for the end of an error about an unknown word; empty if none is like it."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def exit_code(action: Callable[[], int | None]) -> int:
    """A command's exit code: that of the action, None being 0; 2 after a `UserError`, printed on stderr."""
    try:
        return action() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
