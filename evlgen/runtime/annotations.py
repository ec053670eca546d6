"""Values inside annotations: each is checked when it is read, and what is left out is counted.

A message names file and entry: the argument ``where`` (``captions.jsonl, line 3``) begins it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evlgen.errors import UserError
from evlgen.runtime.files import write_atomic

MAX_WORDS = 50  # of a caption (PAPER)

log = logging.getLogger(__name__)


# -------------------------------------------------------------------------------------------- fields


def entries(content: Any, where: str | Path, *keys: str) -> list[dict[str, Any]]:
    """A list of objects, each with all the ``keys``.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(content, list):
        raise UserError(f"{where}: unexpected format: no list of objects")
    for place, entry in enumerate(content):
        for key in keys:
            if not isinstance(entry, dict) or key not in entry:
                raise UserError(f"{where}: unexpected format: entry {place} has no {key!r}")
    return content


def json_field(content: Any, where: str | Path, key: str) -> Any:
    """What an object has under ``key``.

    Raises:
        UserError: it has nothing, or is no object.
    """
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"{where}: unexpected format: it has no {key!r}")
    return content[key]


def text_field(entry: Mapping[str, Any], key: str, where: str, empty: bool = False) -> str:
    """The text under ``key``.

    Args:
        empty: whether nothing but spaces will do.

    Raises:
        UserError: there is none, or no text (null, a number, a list), or it cannot be written as UTF-8.
    """
    if key not in entry:
        raise UserError(f"{where}: needs a {key!r}")
    return text(entry[key], f"{where}: {key!r}", empty)


def text(value: Any, what: str, empty: bool = False) -> str:
    """``value``, which must be text; see `text_field`. ``what`` begins the message."""
    if not isinstance(value, str):
        raise UserError(f"{what} must be text, not {_shown(value)}")
    if not is_text(value):
        raise UserError(f"{what} has characters that are no text: {value[:40]!r}")
    if not empty and not value.strip():
        raise UserError(f"{what} is empty")
    return value


def texts_field(entry: Mapping[str, Any], key: str, where: str, empty: bool = False) -> list[str]:
    """The list of texts under ``key``, at least one; raises as `text_field`."""
    values = list_field(entry, key, where)
    return [text(value, f"{where}: {key!r}, number {place}", empty) for place, value in enumerate(values, 1)]


def list_field(entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """The list under ``key``, with something in it.

    Raises:
        UserError: there is none.
    """
    if key not in entry:
        raise UserError(f"{where}: needs {key!r}, a list")
    values = entry[key]
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {key!r} must be a list with something in it, not {_shown(values)}")
    return values


def id_field(entry: Mapping[str, Any], key: str, where: str) -> int | str:
    """The whole number or text under ``key`` that something is known by.

    Raises:
        UserError: there is none, or it is neither.
    """
    if key not in entry:
        raise UserError(f"{where}: needs a {key!r}")
    value = entry[key]
    if isinstance(value, str):
        return text(value, f"{where}: {key!r}")
    return number_field(entry, key, where)


def number_field(entry: Mapping[str, Any], key: str, where: str) -> int:
    """The whole number under ``key``, 0 or more.

    Raises:
        UserError: there is none.
    """
    if key not in entry:
        raise UserError(f"{where}: needs a {key!r}")
    value = entry[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise UserError(f"{where}: {key!r} must be a whole number, not {_shown(value)}")
    return value


def object_of(value: Any, where: str) -> dict[str, Any]:
    """``value``, which must be an object.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be an object, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:37]}..."


def is_text(value: str) -> bool:
    """Whether a string has no zero and no half of a surrogate pair, which JSON can say and no file hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


# -------------------------------------------------------------------------------------------- captions


def clean_caption(text: str) -> str:
    """Lower case, punctuation stripped, at most 50 words (PAPER; the characters are those of BLIP)."""
    words = re.sub(r"[.!\"()*#:;~]", " ", text.lower()).split()
    return " ".join(words[:MAX_WORDS])


def has_words(caption: str) -> bool:
    """Whether a caption has a letter or a digit; one without would teach a model to say nothing."""
    return any(letter.isalnum() for letter in clean_caption(caption))


# ----------------------------------------------------------------------------------------- what is left out


@dataclass
class LeftOut:
    """What a reader leaves out of a file or folder, and why.

    Attributes:
        counts: reason -> number.
        first: reason -> where it was met first.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str, number: int = 1) -> None:
        """Count ``number`` more."""
        self.counts[reason] = self.counts.get(reason, 0) + number
        if reason not in self.first:  # names of files need not be UTF-8, logs are
            self.first[reason] = where.encode(errors="backslashreplace").decode()

    def update(self, other: LeftOut) -> None:
        """Count what another has counted."""
        for reason, number in other.counts.items():
            self.add(reason, other.first[reason], number)

    def lines(self) -> list[str]:
        """One for each reason: ``left out: images without a caption: 3 (the first: list.json, entry 7)``."""
        return [
            f"left out: {reason}: {number:,} (the first: {self.first[reason]})"
            for reason, number in self.counts.items()
        ]

    def save(self, path: Path) -> None:
        """Write it beside the index at ``path``, and before that: where an index is, this is."""
        write_atomic(path.with_suffix(".json"), json.dumps(dataclasses.asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> LeftOut:
        """What `save` has written beside the index at ``path``."""
        return cls(**json.loads(path.with_suffix(".json").read_bytes()))

    def warn(self, source: str | Path) -> None:
        """Say it in the log."""
        for line in self.lines():
            log.warning("%s: %s", source, line)


def with_words(captions: Iterable[str], where: str, left_out: LeftOut) -> list[str]:
    """The captions that have words; the others are counted."""
    kept = []
    for caption in captions:
        if has_words(caption):
            kept.append(caption)
        else:
            left_out.add("captions without words", where)
    return kept


# ------------------------------------------------------------------------------------------- names of files


def inside(folder: Path, name: Any, where: str) -> Path:
    """The path of a file that an annotation names, which must lie in ``folder``; the disk is not looked at.

    Links are looked at when the file is opened, by `evlgen.data.readers.json_lists.read_image`.

    Args:
        folder: that the annotation's names are relative to.
        name: relative, or absolute and below ``folder``.

    Raises:
        UserError: it is no text, or leads out of the folder.
    """
    named = text(name, f"{where}: a file's name")
    path = os.path.normpath(folder / named)
    base = os.path.normpath(folder)
    if path == base or not path.startswith(base.rstrip(os.sep) + os.sep):
        raise UserError(f"{where}: {named!r} leads out of {folder}; give names relative to that folder")
    return Path(path)


def walked(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder below one, itself first, with the names of its files; in the order of names.

    Hidden folders are left out, and links that lead round: to folders inside, or to one that this is in.

    Raises:
        UserError: a link leads out of the folder.
    """
    real = f"{os.path.realpath(folder)}{os.sep}"
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (os.path.join(place, name) for name in folders):
            target = f"{os.path.realpath(path)}{os.sep}"
            if os.path.islink(path) and not target.startswith(real) and not real.startswith(target):
                raise UserError(
                    f"{path}: a link leads out of {folder}; put the folder itself there, or name it in "
                    "data.toml"
                )
        yield Path(place), sorted(names)


def unique(values: Iterable[int | str], where: str, what: str) -> None:
    """Check that no value occurs twice.

    Raises:
        UserError: one does; the message says at which entries.
    """
    seen: dict[int | str, int] = {}
    for place, value in enumerate(values):
        if value in seen:
            raise UserError(f"{where}: entries {seen[value]} and {place} have the same {what}, {value!r}")
        seen[value] = place
