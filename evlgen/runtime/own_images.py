"""One's own images: a folder with captions in one of four forms, and perhaps questions. Torch-free.

- ``captions.jsonl``: ``{"file": "a.jpg", "caption": "..."}`` in each line, or ``"captions"`` with a list;
- ``captions.csv``, or the only ``*.csv``: a header with a column for the file and one for its caption;
- COCO's form, ``*.json``: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``;
- a ``.txt`` beside each image, of the same name; each line that is not empty is a caption.

The first form that is there is read, in this order. Lines on the same file belong together. Files are
relative to the folder. ``"split"`` (or a column of that name) says what an image is for; so does the name of
a JSON of COCO's form (``captions_val.json``), and for text files a folder ``train``, ``val`` or ``test``.

Questions are in ``questions.jsonl`` or ``questions.csv``: file, question, and answer, or ``"answers"``.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evlgen.errors import UserError
from evlgen.runtime import text
from evlgen.runtime.annotations import (
    LeftOut,
    entries,
    has_words,
    id_field,
    inside,
    object_of,
    text_field,
    texts_field,
    unique,
    walked,
)
from evlgen.runtime.datasets import CAPTIONS_FILE, QUESTIONS_FILE

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CAPTIONS_CSV, QUESTIONS_CSV = "captions.csv", "questions.csv"
FORMS = f"{CAPTIONS_FILE}, {CAPTIONS_CSV}, a JSON of COCO's form, or a .txt beside each image"
_FILE_COLUMNS = ("file", "file_name", "filename", "filepath", "image", "image_path", "path")
_CAPTION_COLUMNS = ("caption", "text", "captions", "sentence", "title")


@dataclass(frozen=True)
class Line:
    """What one line, row, entry or text file says of an image.

    Attributes:
        file: relative to the folder, with ``/``.
        where: file and line, for messages.
        captions: at least one; empty for a question.
        split: one of `SPLITS`, or empty.
    """

    file: str
    where: str
    captions: tuple[str, ...] = ()
    split: str = ""
    question: str = ""
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """All that a folder says of captions, or of questions.

    Attributes:
        form: what it was read from, for a person.
        files: that it was read from.
        lines: in their order.
        left_out: images without a caption.
    """

    form: str
    files: tuple[Path, ...]
    lines: tuple[Line, ...]
    left_out: LeftOut = field(default_factory=LeftOut)


def caption_files(folder: Path) -> list[Path]:
    """The files that captions are read from; empty if there are none."""
    if (path := folder / CAPTIONS_FILE).is_file():
        return [path]
    return _tables(folder) or _coco_files(folder) or [said for _, said in _pairs(folder)[0]]


def question_files(folder: Path) -> list[Path]:
    """The file that questions are read from; empty if there is none."""
    return [path for name in (QUESTIONS_FILE, QUESTIONS_CSV) if (path := folder / name).is_file()][:1]


def captions(folder: Path) -> Listing:
    """The captions of a folder.

    Raises:
        UserError: there are none, or a line is not as it must be.
    """
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "missing"
        raise UserError(f"{folder}: {what}; docs/DATA.md says what is in it")
    left_out = LeftOut()
    if (path := folder / CAPTIONS_FILE).is_file():
        files, form = [path], path.name
        lines = [_caption_line(folder, entry, where) for where, entry in _json_lines(path)]
    elif files := _tables(folder):
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise UserError(f"{folder}: has {names}; call the one with the captions {CAPTIONS_CSV}")
        form = files[0].name
        lines = [_caption_line(folder, entry, where) for where, entry in _rows(files[0], _CAPTION_COLUMNS)]
    elif files := _coco_files(folder):
        form = ", ".join(path.relative_to(folder).as_posix() for path in files)
        lines = [line for path in files for line in _of_coco(folder, path, len(files) > 1, left_out)]
    else:
        pairs, beside = _pairs(folder)
        form, files = "a .txt beside each image", [said for _, said in pairs]
        lines = [_text_line(folder, image, said) for image, said in pairs]
        if not lines:
            raise UserError(f"{folder}: no captions there; it needs {FORMS} (docs/DATA.md)")
        left_out.update(beside)
    if not lines:
        raise UserError(f"{files[0]}: no image with a caption in it")
    return Listing(form, tuple(files), tuple(lines), left_out)


def questions(folder: Path) -> Listing:
    """The questions of a folder.

    Raises:
        UserError: there are none, or a line is not as it must be.
    """
    for path in question_files(folder):
        read = _json_lines(path) if path.suffix == ".jsonl" else _rows(path, ("question",), ("answer",))
        lines = tuple(_question_line(folder, entry, where) for where, entry in read)
        if not lines:
            raise UserError(f"{path}: no question to ask")
        return Listing(path.name, (path,), lines)
    raise UserError(f"{folder / QUESTIONS_FILE}: missing; docs/DATA.md says what is in it")


# --------------------------------------------------------------------------------------------- values


def _caption_line(folder: Path, entry: Mapping[str, Any], where: str) -> Line:
    if "captions" in entry and "caption" in entry:
        raise UserError(f"{where}: has both 'caption' and 'captions'; put all into 'captions'")
    if "captions" in entry:
        said = texts_field(entry, "captions", where)
    elif "caption" in entry:
        said = [text_field(entry, "caption", where)]
    else:
        raise UserError(f"{where}: needs a 'caption', or 'captions' with a list of them")
    for caption in said:
        if not has_words(caption):
            raise UserError(f"{where}: the caption {caption!r} has no words")
    return Line(_file(folder, entry, where), where, tuple(said), _split(entry, where))


def _question_line(folder: Path, entry: Mapping[str, Any], where: str) -> Line:
    if "answers" in entry:
        answers = texts_field(entry, "answers", where)
    elif "answer" in entry:
        answers = [text_field(entry, "answer", where)]
    else:
        raise UserError(f"{where}: needs an 'answer', or 'answers' with a list of them")
    asked = text_field(entry, "question", where)
    return Line(_file(folder, entry, where), where, (), _split(entry, where), asked, tuple(answers))


def _file(folder: Path, entry: Mapping[str, Any], where: str) -> str:
    """The name of an image, relative to the folder."""
    name = text_field(entry, "file", where)
    return os.path.relpath(inside(folder, name, where), os.path.normpath(folder)).replace(os.sep, "/")


def _split(entry: Mapping[str, Any], where: str) -> str:
    split = entry.get("split", "")
    if not isinstance(split, str) or split not in ("", *SPLITS):
        raise UserError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
    return split


# ---------------------------------------------------------------------------------------------- forms


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.read_text(path).split("\n"), 1):  # splitlines breaks at U+2028
        if line.strip():
            where = f"{path}, line {number}"
            yield where, object_of(text.parse_json(line, where), where)


def _rows(path: Path, *columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table, under the names that lines of JSON have.

    Args:
        columns: names that a column may have, the one of JSON first; the file's come by themselves.
    """
    content = text.read_text(path)
    delimiter = max(",\t;", key=content.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        places = {names[0]: _column(path, header, names) for names in (_FILE_COLUMNS, *columns)}
        if "split" in header:
            places["split"] = header.index("split")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(header):
                raise UserError(
                    f"{where}: has {len(row)} cells where the header has {len(header)}: put texts with "
                    f"{delimiter!r} in quotation marks"
                )
            yield where, {key: row[place].strip() for key, place in places.items()}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: no row of a table ({error})") from error


def _column(path: Path, header: list[str], names: tuple[str, ...]) -> int:
    for name in names:
        if header.count(name) > 1:
            raise UserError(
                f"{path}: has two columns called {name!r}; give each a name of its own, or a row to each"
            )
        if name in header:
            return header.index(name)
    raise UserError(
        f"{path}: its first line must name the columns: none of {', '.join(header)} is {' or '.join(names)}"
    )


def _tables(folder: Path) -> list[Path]:
    """``captions.csv``, or all others that might be it."""
    if (path := folder / CAPTIONS_CSV).is_file():
        return [path]
    return [path for path in sorted(folder.glob("[!.]*.csv")) if path.name != QUESTIONS_CSV]


def _coco_files(folder: Path) -> list[Path]:
    """Files of COCO's form: other JSON may lie beside the images, too."""
    found = [*sorted(folder.glob("[!.]*.json")), *sorted((folder / "annotations").glob("[!.]*.json"))]
    return [path for path in found if _is_coco(path)]


def _is_coco(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        content = text.read_json(path)
    except UserError:
        # A damaged one must be named; one that only happens to lie there has not these words in it.
        return all(key in path.read_bytes() for key in (b'"images"', b'"annotations"'))
    return isinstance(content, dict) and "images" in content and "annotations" in content


def _of_coco(folder: Path, path: Path, is_part: bool, left_out: LeftOut) -> Iterator[Line]:
    """Lines of a file of COCO's form; images without an annotation are counted."""
    content = object_of(text.read_json(path), str(path))
    words = re.split(r"[\W_\d]+", path.stem.lower())
    split = next((name for name in SPLITS if is_part and name in words), "")
    images = entries(content.get("images"), f"{path}, 'images'", "id", "file_name")
    numbers = [id_field(image, "id", f"{path}, image {place}") for place, image in enumerate(images)]
    unique(numbers, f"{path}, 'images'", "id")
    files = {
        number: text_field(image, "file_name", f"{path}, image {place}")
        for place, (number, image) in enumerate(zip(numbers, images, strict=True))
    }
    below = _images_folder(folder, next(iter(files.values()), ""))
    without = dict(files)
    for place, entry in enumerate(
        entries(content.get("annotations"), f"{path}, 'annotations'", "image_id", "caption")
    ):
        where = f"{path}, annotation {place}"
        number = id_field(entry, "image_id", where)
        if number not in files:
            raise UserError(f"{where}: no image has the id {number!r}")
        without.pop(number, None)
        line = {"file": below + files[number], "caption": entry["caption"], "split": split}
        yield _caption_line(folder, line, where)
    for name in without.values():
        left_out.add("images without a caption", f"{path}, {name}")


def _images_folder(folder: Path, first: str) -> str:
    """Where COCO's form has its images: in the folder or in ``images/``."""
    in_images = not (folder / first).exists() and (folder / "images" / first).exists()
    return "images/" if in_images else ""


def _pairs(folder: Path) -> tuple[list[tuple[Path, Path]], LeftOut]:
    """Images with text files of their names beside them; and images and texts without."""
    pairs, left_out = [], LeftOut()
    for place, names in walked(folder):
        there, used = set(names), set()
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in IMAGE_SUFFIXES or name.startswith("."):
                continue
            said = next((file for file in (f"{stem}.txt", f"{stem}.TXT", f"{name}.txt") if file in there), "")
            if said:
                pairs.append((place / name, place / said))
                used.add(said)
            else:
                left_out.add("images without a .txt beside them", str(place / name))
        for name in names:
            if name.lower().endswith(".txt") and name not in used:
                left_out.add("texts without an image beside them", str(place / name))
    return pairs, left_out


def _text_line(folder: Path, image: Path, said: Path) -> Line:
    file = image.relative_to(folder)
    captions = [line.strip() for line in text.read_text(said).split("\n") if line.strip()]
    if not captions:
        raise UserError(f"{said}: empty; write the caption of {image.name} into it, or take both away")
    split = file.parts[0] if len(file.parts) > 1 and file.parts[0] in SPLITS else ""
    return _caption_line(folder, {"file": str(file), "captions": captions, "split": split}, str(said))
