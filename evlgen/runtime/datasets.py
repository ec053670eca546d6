"""Where the files of data sets lie: below ``EVLGEN_DATA``, in one of the layouts that people have, or where
``data.toml`` says. docs/DATA.md shows the layouts.

``EVLGEN_DATA`` names a folder, in which there may be a ``data.toml``, or such a file itself. Torch-free.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from evlgen.errors import UserError, nearest
from evlgen.runtime import paths
from evlgen.runtime.text import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VARIABLE, TOML = "EVLGEN_DATA", "data.toml"
NOT_SET = f"{VARIABLE} is not set: set it to the folder of the data sets (docs/DATA.md)"
CAPTIONS_FILE, QUESTIONS_FILE = "captions.jsonl", "questions.jsonl"  # of one's own images


@dataclass(frozen=True)
class Part:
    """A file or folder of a data set.

    Attributes:
        name: where it lies below ``EVLGEN_DATA`` in the layout that docs/DATA.md shows first. The ids of runs
            know it by this name, wherever it lies.
        key: of data.toml.
        origin: where a user gets it.
        places: where else below ``EVLGEN_DATA`` it is looked for.
        inside: names of a folder in this one that is taken instead, if it is there: some archives have one.
    """

    name: str
    key: str
    origin: str
    places: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()


Need = tuple[Part, ...]  # alternatives, of which one is enough


@dataclass(frozen=True)
class Found:
    """A part and where it was found, or where data.toml says that it is."""

    part: Part
    path: Path


NO_NAMES = ("", ".", "..", "~")  # of folders: these would be another folder, with all that is in it


# ------------------------------------------------------------------------------------------ data sets


def _in(folders: Iterable[str], *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}".lstrip("/") for name in names for folder in folders)


_KARPATHY = "Karpathy's caption_datasets.zip (cs.stanford.edu/people/karpathy/deepimagesent)"
_GQA = "cs.stanford.edu/people/dorarad/gqa/download.html"
_LAVIS = "github.com/salesforce/LAVIS"
_COCO_FOLDERS = ("coco/annotations", "annotations", "")

COCO = Part(
    "coco/dataset_coco.json",
    "coco.annotations",
    f"{_KARPATHY}, or take the coco_karpathy_*.json of {_LAVIS}",
    (*_in(("", "caption_datasets", *_COCO_FOLDERS), "dataset_coco.json"), "coco/dataset.json"),
)
_COCO_SPLITS = {
    split: Part(
        f"coco/coco_karpathy_{split}.json",
        f"coco.{split}",
        f"{_LAVIS} (coco_karpathy_{split}.json)",
        _in(_COCO_FOLDERS, f"coco_karpathy_{split}.json"),
    )
    for split in ("train", "val", "test")
}
_COCO_IMAGES = {
    name: Part(
        f"coco/{name}",
        "coco.images",
        f"{name}.zip of cocodataset.org",
        (f"coco/images/{name}", name, f"images/{name}"),
        (name, f"images/{name}"),
    )
    for name in ("train2014", "val2014")
}
_VQA_FOLDERS = ("vqav2/annotations", "vqa", "vqa_v2", "VQAv2", "vqa/annotations", *_COCO_FOLDERS)
VQAV2 = tuple(
    Part(
        f"vqav2/{name}",
        f"vqav2.{key}",
        "visualqa.org/download.html, VQA v2 validation",
        _in(_VQA_FOLDERS, name),
    )
    for key, name in (
        ("questions", "v2_OpenEnded_mscoco_val2014_questions.json"),
        ("annotations", "v2_mscoco_val2014_annotations.json"),
    )
)
OKVQA = tuple(
    Part(
        f"okvqa/{name}",
        f"okvqa.{key}",
        "okvqa.allenai.org/download.html, v1.1 testing",
        _in(("okvqa/annotations", "ok-vqa", "OKVQA", "OK-VQA"), name),
    )
    for key, name in (
        ("questions", "OpenEnded_mscoco_val2014_questions.json"),
        ("annotations", "mscoco_val2014_annotations.json"),
    )
)
VQAV2_TEST = {
    split: Part(
        f"vqav2/v2_OpenEnded_mscoco_{split}2015_questions.json",
        f"vqav2.{split}",
        "visualqa.org/download.html, VQA v2 test",
        _in(_VQA_FOLDERS, f"v2_OpenEnded_mscoco_{split}2015_questions.json"),
    )
    for split in ("test-dev", "test")
}
_COCO_TEST_IMAGES = Part(
    "coco/test2015",
    "coco.test_images",
    "test2015.zip of cocodataset.org",
    ("coco/images/test2015", "test2015", "images/test2015"),
    ("test2015",),
)
GQA = Part(
    "gqa/testdev_balanced_questions.json",
    "gqa.questions",
    f"questions1.2.zip of {_GQA}",
    _in(
        ("gqa/annotations", "gqa/questions", "gqa/questions1.2", "GQA", "questions1.2", ""),
        "testdev_balanced_questions.json",
    ),
)
_GQA_IMAGES = Part("gqa/images", "gqa.images", f"images.zip of {_GQA}", ("GQA/images",), ("images",))
NOCAPS = Part(
    "nocaps/nocaps_val_4500_captions.json",
    "nocaps.annotations",
    "nocaps.org/download, validation captions",
    _in(("nocaps/annotations", "nocap/annotations", "annotations", ""), "nocaps_val_4500_captions.json"),
)
_NOCAPS_IMAGES = Part(
    "nocaps/images",
    "nocaps.images",
    "the validation images of nocaps.org/download (Open Images)",
    ("nocaps/val", "nocaps/validation", "nocap/images", "nocap/val"),
    ("images/val", "images", "val", "validation"),
)
NOCAPS_TEST = Part(
    "nocaps/nocaps_test_image_info.json",
    "nocaps.test",
    "nocaps.org/download, test images",
    _in(("nocaps/annotations", "nocap/annotations", "annotations", ""), "nocaps_test_image_info.json"),
)
_NOCAPS_TEST_IMAGES = Part(
    "nocaps/test",
    "nocaps.test_images",
    "the test images of nocaps.org/download (Open Images)",
    ("nocap/test", "nocaps/images", "nocap/images"),
    ("test",),
)
FLICKR = Part(
    "flickr30k/dataset_flickr30k.json",
    "flickr30k.annotations",
    f"{_KARPATHY}, or take the flickr30k_test.json of {_LAVIS}",
    (
        *_in(("", "caption_datasets", "flickr30k/annotations"), "dataset_flickr30k.json"),
        "flickr30k/dataset.json",
    ),
)
_FLICKR_TEST = Part(
    "flickr30k/flickr30k_test.json",
    "flickr30k.test",
    f"{_LAVIS} (flickr30k_test.json)",
    (
        *_in(("flickr30k/annotations", "annotations", ""), "flickr30k_test.json"),
        *_in(("flickr30k/annotations", "flickr30k"), "test.json"),
    ),
)
_FLICKR_IMAGES = Part(
    "flickr30k/images",
    "flickr30k.images",
    "shannon.cs.illinois.edu/DenotationGraph (on request)",
    ("flickr30k/flickr30k-images", "flickr30k/flickr30k_images", "flickr30k-images", "flickr30k_images"),
    ("images/flickr30k-images", "flickr30k-images", "flickr30k_images", "images"),
)


def _web(name: str, list_name: str, *others: str) -> Part:
    return Part(
        name,
        f"pools.{name}",
        f"BLIP's {list_name}.json, its images fetched with img2dataset",
        (*others, list_name, f"{list_name}.json"),
    )


_WEB = {
    "laion-115m": _web("laion-115m", "laion_synthetic_filtered_large", "laion115m", "laion"),
    "ccs-14m": _web("ccs-14m", "ccs_synthetic_filtered_large", "ccs14m", "ccs", "capfilt14m"),
}
WEB_POOLS = tuple(_WEB)

# Pool of the world ``capfilt`` -> what it is read from: its lists first, its folders of images behind.
_LISTS: dict[str, tuple[Need, ...]] = {
    "coco": ((COCO, _COCO_SPLITS["train"]),),
    "coco_val": ((COCO, _COCO_SPLITS["val"]),),
    "coco_test": ((COCO, _COCO_SPLITS["test"]),),
    **{f"nocaps_{domain}": ((NOCAPS,),) for domain in ("in", "near", "out")},
    "flickr": ((FLICKR, _FLICKR_TEST),),
    "vqav2": tuple((part,) for part in VQAV2),
    "okvqa": tuple((part,) for part in OKVQA),
    "gqa": ((GQA,),),
    "nocaps_test": ((NOCAPS_TEST,),),
    "vqav2_testdev": ((VQAV2_TEST["test-dev"],),),
    "vqav2_test": ((VQAV2_TEST["test"],),),
    **{name: ((part,),) for name, part in _WEB.items()},
}
_VAL2014 = ((_COCO_IMAGES["val2014"],),)
_IMAGES: dict[str, tuple[Need, ...]] = {
    "coco": ((_COCO_IMAGES["train2014"],), *_VAL2014),
    **dict.fromkeys(("coco_val", "coco_test", "vqav2", "okvqa"), _VAL2014),
    **{f"nocaps_{domain}": ((_NOCAPS_IMAGES,),) for domain in ("in", "near", "out")},
    "flickr": ((_FLICKR_IMAGES,),),
    "gqa": ((_GQA_IMAGES,),),
    "nocaps_test": ((_NOCAPS_TEST_IMAGES,),),
    **dict.fromkeys(("vqav2_testdev", "vqav2_test"), ((_COCO_TEST_IMAGES,),)),
}

# Of pools and evaluation sets: as many images or questions as were published.
PUBLISHED = {
    "coco": 113_287,
    "coco_val": 5000,
    "coco_test": 5000,
    "nocaps_in": 648,
    "nocaps_near": 2938,
    "nocaps_out": 914,
    "flickr": 1000,
    "vqav2": 214_354,
    "okvqa": 5046,
    "gqa": 12_578,
    "nocaps_test": 10_600,
    "vqav2_testdev": 107_394,
    "vqav2_test": 447_793,
    "laion-115m": 115_000_000,
    "ccs-14m": 14_000_000,
}
ABOUT = frozenset(WEB_POOLS)  # of which the published number is rounded, and part of the addresses is dead


def _parts() -> list[Part]:
    needs = [need for table in (_LISTS, _IMAGES) for pool in table.values() for need in pool]
    return list(dict.fromkeys(part for need in needs for part in need))


# Each file or folder of the layout that docs/DATA.md shows first -> where a user gets it.
ORIGINS = {
    need[0].name: need[0].origin for table in (_LISTS, _IMAGES) for pool in table.values() for need in pool
}


def pools() -> list[str]:
    """All pools of the world ``capfilt``, those that data.toml adds as well."""
    return list(dict.fromkeys((*_LISTS, *settings().pools)))


def web_pools() -> list[str]:
    """The pools of image-text pairs, too many for memory."""
    return list(dict.fromkeys((*_WEB, *settings().pools)))


def lists_of(pool: str) -> tuple[Need, ...]:
    """What a pool's pairs, references or questions are read from; empty for an unknown pool."""
    if pool not in _LISTS and pool in settings().pools:
        return ((Part(pool, f"pools.{pool}", "where you have it from: data.toml names it"),),)
    return _LISTS.get(pool, ())


def images_of(pool: str) -> tuple[Need, ...]:
    """The folders of a pool's images, for pools that have lists beside them."""
    return _IMAGES.get(pool, ())


# ---------------------------------------------------------------------------------------------- finding


def root() -> Path | None:
    """The folder that ``EVLGEN_DATA`` names, or that its data.toml is in; None if it is not set."""
    path = paths.of_variable(VARIABLE)
    if path is None:
        return None
    return path.parent if _is_toml(path) else path


def data_folder() -> Path:
    """As `root`.

    Raises:
        UserError: ``EVLGEN_DATA`` is not set, or no folder.
    """
    path = paths.of_variable(VARIABLE)
    if path is None:
        raise UserError(NOT_SET)
    text = os.environ[VARIABLE]
    if _is_toml(path):
        if not path.is_file():
            raise UserError(f"{VARIABLE} is {text!r}: no such file")
        return path.parent
    if not path.is_dir():
        what = "a file; give a folder, or a data.toml" if path.exists() else "no such folder"
        raise UserError(f"{VARIABLE} is {text!r}: {what}")
    return path


def _is_toml(path: Path) -> bool:
    return path.suffix == ".toml" and not path.is_dir()


def find(need: Need) -> Found | None:
    """What is there of a need; a path of data.toml counts before all others, and need not exist."""
    given = settings().parts
    for part in need:
        if part.key in given:
            return Found(part, _inner(part, given[part.key]))
    folder = root()
    if folder is not None:
        for part in need:
            for place in (part.name, *part.places):
                if (path := folder / place).exists():
                    return Found(part, _inner(part, path))
    return None


def _inner(part: Part, path: Path) -> Path:
    for name in part.inside:
        if (path / name).is_dir():
            return path / name
    return path


def path_of(need: Need) -> Path:
    """Where a need lies.

    Raises:
        UserError: it is not there; the message says where to get it.
    """
    if line := missing(need):
        raise UserError(line)
    found = find(need)
    assert found is not None
    return found.path


def missing(need: Need) -> str:
    """What to say where a need is not there; empty if it is."""
    first = need[0]
    folder = root()
    found = find(need)
    if found is not None:
        if found.path.is_dir():
            with os.scandir(found.path) as entries:  # of a hundred thousand, the first
                if next(entries, None) is None:
                    return f"{found.path}: empty; get it from {found.part.origin}"
        if found.path.exists():
            return ""
        return (
            f"{found.path}: missing ({found.part.key} in {settings().file} names it); "
            f"get it from {found.part.origin}"
        )
    if folder is None or not folder.is_dir():
        return f"{first.name}: is not in EVLGEN_DATA; get it from {first.origin}"
    return f"{folder / first.name}: missing; get it from {first.origin}"


def folders() -> list[Path]:
    """All folders that may hold data: that of ``EVLGEN_DATA``, and those that data.toml names."""
    folder, given = root(), settings()
    named = [*given.parts.values(), *given.pools.values(), *given.folders.values()]
    inner = [_inner(part, given.parts[part.key]) for part in _parts() if part.key in given.parts]
    places = [path if path.is_dir() else path.parent for path in (*named, *inner)]
    return list(dict.fromkeys([*([] if folder is None else [folder]), *places]))


def below_root(path: Path) -> str:
    """A path as lists of images keep it: relative to `root` if it is below it, else whole."""
    folder = root()
    if folder is not None and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return path.as_posix()


def own_folder(name: str) -> Path | None:
    """The folder of one's own images called ``name``; None for no name, or without ``EVLGEN_DATA``."""
    folder = root()
    if name in NO_NAMES:
        return None
    if name in settings().folders:
        return settings().folders[name]
    return None if folder is None else folder / name


def own_folders() -> list[str]:
    """Names that may be meant by one: folders of ``EVLGEN_DATA`` and those of data.toml."""
    folder = root()
    there = [] if folder is None or not folder.is_dir() else [p.name for p in folder.iterdir() if p.is_dir()]
    return sorted({*there, *settings().folders})


# ------------------------------------------------------------------------------------------ data.toml


@dataclass(frozen=True)
class Settings:
    """What data.toml says; all paths are absolute.

    Attributes:
        file: it was read from; None if there is none.
        parts: ``coco.images`` -> path.
        pools: of image-text pairs: name -> folder of shards, of img2dataset's files or of lists, or a list.
        folders: of one's own images: name -> folder.
    """

    file: Path | None = None
    parts: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    pools: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    folders: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))


_NOTHING = Settings()


def settings() -> Settings:
    """What the data.toml says that ``EVLGEN_DATA`` names or holds.

    Raises:
        UserError: it is not as docs/DATA.md says.
    """
    path = paths.of_variable(VARIABLE)
    if path is None:
        return _NOTHING
    file = path if _is_toml(path) else path / TOML
    try:
        status = file.stat()
    except OSError:
        return _NOTHING
    return _read(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=16)
def _read(file: Path, mtime_ns: int, size: int) -> Settings:
    try:
        values = tomllib.loads(read_text(file))
    except ValueError as error:
        raise UserError(f"{file}: not TOML ({error}); docs/DATA.md shows one") from error
    known: dict[str, list[str]] = {"pools": [], "folders": []}
    for part in _parts():
        table, _, key = part.key.partition(".")
        if table != "pools" and key not in known.setdefault(table, []):
            known[table].append(key)
    parts: dict[str, Path] = {}
    free: dict[str, dict[str, Path]] = {"pools": {}, "folders": {}}
    for table, entries in values.items():
        if table not in known:
            there = ", ".join(f"[{name}]" for name in known)
            raise UserError(f"{file}: {table}: no such table; there are: {there}{nearest(table, known)}")
        if not isinstance(entries, dict):
            raise UserError(f"{file}: {table}: must be a table, [{table}], with a path under each key")
        for key, value in entries.items():
            if table not in free and key not in known[table]:
                there = ", ".join(known[table])
                raise UserError(
                    f"{file}: {table}.{key}: no such key; there are: {there}{nearest(key, known[table])}"
                )
            path = _path(file, f"{table}.{key}", value)
            if table in free:
                _check_name(file, table, key)
                free[table][key] = path
            if table != "folders":
                parts[f"{table}.{key}"] = path
    return Settings(file, MappingProxyType(parts), *(MappingProxyType(free[name]) for name in free))


def _check_name(file: Path, table: str, key: str) -> None:
    if not key or "/" in key or "\\" in key or key.startswith("."):
        raise UserError(f"{file}: {table}.{key}: a name must not be empty, begin with a dot or have a slash")
    if table == "pools" and key in _LISTS and key not in _WEB:
        raise UserError(f"{file}: pools.{key}: is the name of a published set; choose another")


def _path(file: Path, key: str, value: Any) -> Path:
    """The absolute path of a value; relative ones begin in the file's own folder."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{file}: {key} is {value!r}: must be a path, in quotation marks")
    return paths.absolute(value, f"{file}: {key}", file.parent)
