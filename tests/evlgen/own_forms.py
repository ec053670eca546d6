"""Folders of one's own images with captions in each of the forms that people have."""

from __future__ import annotations

from pathlib import Path

from tests.evlgen import real_sets

SIZE = 10


def images(place: Path, size: int = SIZE) -> None:
    for number in range(size):
        real_sets.save(place / f"{number}.png", real_sets.jpeg(number, "PNG"))


def as_lines(place: Path) -> None:
    images(place)
    real_sets.lines(
        place / "captions.jsonl",
        [{"file": f"{n}.png", "caption": real_sets.caption(n)} for n in range(SIZE)],
    )


def as_csv(place: Path) -> None:
    """As a spreadsheet of Windows writes it."""
    images(place)
    rows = [f'{n}.png,"{real_sets.caption(n)}"' for n in range(SIZE)]
    real_sets.save(place / "captions.csv", ("\ufeff" + "\r\n".join(["Filename,Caption", *rows])).encode())


def as_semicolons(place: Path) -> None:
    images(place)
    rows = [f"1;{n}.png;{real_sets.caption(n)}" for n in range(SIZE)]
    real_sets.save(place / "table.csv", "\n".join(["id;image;text", *rows, ""]).encode("utf-16"))


def as_texts(place: Path) -> None:
    images(place / "deep/er")
    for number in range(SIZE):
        real_sets.save(place / f"deep/er/{number}.txt", f"{real_sets.caption(number)}\r\n\r\n".encode())


def as_coco(place: Path) -> None:
    images(place / "images")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(SIZE)],
        "annotations": [{"id": n, "image_id": n, "caption": real_sets.caption(n)} for n in range(SIZE)],
    }
    real_sets.dump(place / "annotations/all.json", content)
    real_sets.dump(place / "annotations/other.json", {"categories": []})


FORMS = {
    "jsonl": as_lines,
    "csv": as_csv,
    "semicolons": as_semicolons,
    "texts": as_texts,
    "coco": as_coco,
}
