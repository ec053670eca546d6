"""The one exception type whose message is meant for the user, and what a command makes of it."""

from __future__ import annotations

import difflib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable

# A disk that is full, a place that may not be written to or read.
_OF_THE_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


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
    """A command's exit code: that of the action, None being 0; 2 after a `UserError`, printed on stderr.

    What the locale cannot write, such as a dash in ISO 8859-1, is written as a question mark; what a closed
    stream (``>&-``, some daemons) cannot, nowhere.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (as long as we run)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return action() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # elsewhere than where `evlgen.runtime.files.disk_errors` names it
        if error.errno not in _OF_THE_PLACE:
            raise
        print(
            f"error: {error.filename or 'a file'}: {error.strerror}; finished work is kept", file=sys.stderr
        )
        return 2
