"""Text and JSON that people bring: any byte order mark or end of line; errors name file and place."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from evlgen.errors import UserError

_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(content: bytes, where: str | Path) -> str:
    """Bytes as text: UTF-8, or what a byte order mark says (Windows' editors and PowerShell write them).

    JSON is read as UTF-16 without a mark as well, by its zero bytes; see `parse_json`.

    Args:
        where: they are from, for the message.

    Raises:
        UserError: they are no such text.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: is not {encoding.removesuffix('-sig').upper()} at byte {error.start}; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{where}: has zero bytes where text should be; save it as UTF-8, or fetch it again")
    return text


def has_mark(path: Path) -> bool:
    """Whether a file begins with a byte order mark."""
    with path.open("rb") as file:
        start = file.read(4)
    return any(start.startswith(mark) for mark, _ in _MARKS)


def read_text(path: Path) -> str:
    """Content of a text file, as `decode_text`; ends of lines are ``\\n``.

    Raises:
        UserError: it is missing or no text.
    """
    return decode_text(_read(path), path).replace("\r\n", "\n")


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise UserError(f"{path}: is no ordinary file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_json(content: bytes | str, where: str | Path) -> Any:
    """The value of a JSON text. A key that an object has twice is an error: nobody knows which was meant.

    Raises:
        UserError: it is no JSON.
    """
    try:
        if isinstance(content, bytes):
            if not content.startswith(codecs.BOM_UTF8) and b"\0" in content[:4]:
                content = content.decode(json.detect_encoding(content))
            else:
                content = decode_text(content, where)
        return json.loads(content, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is no text ({error}); save it as UTF-8") from None
    except RecursionError:
        raise UserError(f"{where}: damaged: lists within lists, too deep to be read") from None
    except ValueError as error:
        raise UserError(f"{where}: damaged: not JSON ({error}); mend it or fetch it again") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: it is missing or damaged.
    """
    return parse_json(_read(path), path)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found
