"""What the readers of real data sets share: the folder ``EVLGEN_DATA``, JSON files, images, captions.

Paths are relative to that folder; docs/DATA.md says which file goes where.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from evlgen.data.base import Question
from evlgen.data.images import DECODING, Pixels, UnreadableImage, check_ordinary, decode
from evlgen.errors import UserError
from evlgen.runtime import text
from evlgen.runtime.annotations import LeftOut, clean_caption, entries, has_words, is_text, json_field
from evlgen.runtime.datasets import data_folder

__all__ = ["clean_caption", "data_folder", "entries", "json_field"]  # the readers have them from here, too

MISSING = (FileNotFoundError, NotADirectoryError)
_ASKING = 16  # threads
_PAUSES = (1.0, 5.0, 25.0)  # seconds before a file that could not be read is tried again


class UnreadableCaption(UserError):
    """A pair without a caption; among millions of pairs of the web it is replaced, as a damaged image is."""


def read_json(name: str) -> Any:
    """Content of a JSON file below ``EVLGEN_DATA``.

    Raises:
        UserError: it is missing or damaged.
    """
    return text.read_json(data_folder() / name)


def other_type(wanted: object, known: Collection[object]) -> str:
    """A clause for a message where an unknown id would be known as a text, or as a number; else nothing."""
    same = next((one for one in known if str(one) == str(wanted)), None)
    if same is None:
        return ""
    kinds: dict[type, str] = {str: "a text", int: "a number"}
    this, that = (kinds.get(type(one), "of another type") for one in (wanted, same))
    return f": {wanted!r} is {this}, {same!r} {that}"


def file_version(*names: str) -> str:
    """16 hex digits that stand for the bytes of files."""
    digest = hashlib.sha256()
    for name in names:
        digest.update((data_folder() / name).read_bytes())
    return digest.hexdigest()[:16]


def read_bytes(path: Path, offset: int = 0, size: int = -1) -> bytes:
    """Bytes of a file, from ``offset`` to its end if there is no ``size``.

    An error of the system (a network that is away, too many open files) may pass: the file is tried again a
    few times. It must never look like a damaged file, or a resumed training would see other data.

    Raises:
        FileNotFoundError, NotADirectoryError: it is missing.
        UserError: it cannot be read.
    """
    for pause in (*_PAUSES, None):
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except MISSING:  # noqa: PERF203
            raise
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # it will not pass
                raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
            if pause is None:
                raise UserError(
                    f"{path}: cannot be read ({error.strerror or error}), {len(_PAUSES) + 1} times in a row; "
                    "check the file system and start again"
                ) from error
            time.sleep(pause)
    raise AssertionError


def read_image(path: Path, *folders: Path) -> Pixels:
    """(H, W, 3) uint8, RGB.

    Args:
        folders: that links may lead to; to any place if there are none.

    Raises:
        UnreadableImage: it is missing or damaged, or a link leads out of the folders.
        UserError: the file system fails; see `read_bytes`.
    """
    try:
        found = _followed(path, folders) if folders else path
        with contextlib.suppress(OSError):  # `read_bytes` tries it again
            check_ordinary(found)
        content = read_bytes(found)
    except MISSING as error:
        raise UnreadableImage(f"{path}: {error.strerror}") from error
    return decode(content, str(path))


def _followed(path: Path, folders: Sequence[Path]) -> Path:
    """Where links lead from ``path``, as long as that is in one of the folders, which may be links."""
    parent = _real(str(path.parent))
    found = os.path.join(parent, path.name)
    if os.path.islink(found):
        found = os.path.realpath(found)
    for place in folders:
        if found.startswith(_real(str(place)).rstrip(os.sep) + os.sep):
            return Path(found)
    raise UnreadableImage(
        f"{path}: a link leads out of {folders[0]}; put the file itself there, or name its folder "
        "in data.toml"
    )


@functools.lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def nonempty_captions(captions: object, where: str) -> list[str]:
    """The captions in a text or a list of texts, without empty ones.

    Args:
        where: they are from, for the message.

    Raises:
        UnreadableCaption: there are none.
    """
    texts = captions if isinstance(captions, list) else [captions]
    found = [one for one in texts if isinstance(one, str) and is_text(one) and has_words(one)]
    if not found:
        raise UnreadableCaption(f"{where}: no caption")
    return found


# ---------------------------------------------------------------------------------------------- pools


class Reader(Protocol):
    """Images with captions, or with questions."""

    @property
    def version(self) -> str:
        """What changes whenever the images do."""

    @property
    def left_out(self) -> LeftOut:
        """What is in the files and not in the pool."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Pixels:
        """Raises `UnreadableImage` if it is missing or damaged, `UserError` if the file system fails."""

    def captions(self, index: int) -> list[str]:
        """As they were written, at least one; raises `UnreadableCaption`."""


def _files_version(root: Path, files: Sequence[str]) -> str:
    """Stands for names, sizes and times of files; they need not be there.

    Several threads ask: over a network an answer takes its time, and COCO has 118K images.
    """
    different = list(dict.fromkeys(files))  # many questions are on one image

    def digest(some: Sequence[str]) -> str:
        found = hashlib.sha256()
        for file in some:
            try:
                status = os.stat(root / file)
                found.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:  # noqa: PERF203
                found.update(f"{file} missing\n".encode())
        return found.hexdigest()

    with ThreadPoolExecutor(_ASKING) as threads:
        return " ".join(threads.map(digest, [different[i::_ASKING] for i in range(_ASKING)]))


@dataclass(frozen=True, eq=False)
class ImageList:
    """A pool whose entries fit into memory.

    Attributes:
        list_version: hash of the files that say which images there are (`file_version`).
        files: of the images, one for each entry, relative to ``EVLGEN_DATA``.
        image_captions: captions of each image, of a captioning set.
        questions: the question on each image, of a question set.
        folders: that the images lie in, links among them; nothing outside of these is opened.
        left_out: what the lists have that is in no pool.
        image_ids, question_ids: as the data set gives them; by these the makers of the sets and their servers
            know predictions. Where a set has none, files and positions stand for them.
    """

    list_version: str
    files: tuple[str, ...]
    image_captions: tuple[tuple[str, ...], ...] = ()
    questions: tuple[Question, ...] = ()
    folders: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    image_ids: tuple[int | str, ...] = ()
    question_ids: tuple[int | str, ...] = ()

    @functools.cached_property
    def version(self) -> str:
        """See `Reader`: by the lists, and by sizes and times of all images."""
        return hashlib.sha256(
            f"{DECODING} {self.list_version} {_files_version(data_folder(), self.files)}".encode()
        ).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.files)

    def ids(self, index: int) -> dict[str, int | str]:
        """``image_id`` of an entry and, in a question set, ``question_id``."""
        image = self.image_ids[index] if self.image_ids else self.files[index]
        if not self.questions:
            return {"image_id": image}
        return {"question_id": self.question_ids[index] if self.question_ids else index, "image_id": image}

    def image(self, index: int) -> Pixels:
        """See `Reader`."""
        root = data_folder()
        return read_image(root / self.files[index], *(root / folder for folder in (*self.folders, "")))

    def captions(self, index: int) -> list[str]:
        """See `Reader`."""
        return list(self.image_captions[index])
