"""What data sets hold, seen before a run: how many examples, which, how fast, their lengths, sizes, words."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evlgen.config import RunConfig
from evlgen.data import worlds
from evlgen.data.base import ENDLESS, Question, World
from evlgen.data.images import Pixels, UnreadableImage, augmented
from evlgen.data.readers import capfilt, folder, json_lists, real
from evlgen.errors import UserError
from evlgen.runtime import datasets, pair_files
from evlgen.runtime.paths import cache_folder
from evlgen.runtime.text import read_json

PAPER_PACE = (
    1600 / 1.915 / 8
)  # images a second for each of the 8 GPUs (PAPER: batch and seconds of an update)
_SMALL = 2**30  # bytes of a pool of pairs that is indexed at once, since it takes seconds
_DRAWN = 1000  # images of a drawn pool that are looked at


@dataclass(frozen=True)
class Use:
    """A pool, and what runs want of it.

    Attributes:
        eval_set: name of the evaluation set, or empty.
        asked: pairs, images or questions, the most that a run asks for.
    """

    world: World
    pool: str
    role: str
    asked: int
    eval_set: str = ""

    @property
    def is_questions(self) -> bool:
        """Whether it is asked questions of."""
        return bool(self.eval_set) and self.world.eval_set(self.eval_set).kind == "question"


def uses(configs: Iterable[RunConfig]) -> list[Use]:
    """The pools that runs read, those of training first."""
    found: dict[tuple[str, str, str, str], Use] = {}
    for config in configs:
        world = worlds.of(config.data)
        wanted = [Use(world, name, "training", size) for name, size in config.data.pools if size]
        if config.evaluation.validation:
            wanted.append(Use(world, world.validation, "validation", config.evaluation.validation))
        wanted += [
            Use(world, world.pool_of(name), "evaluation", size, name)
            for name, size in config.evaluation.sets
            if size and name in world.sets
        ]
        for use in wanted:
            key = (world.name, use.role, use.pool, use.eval_set)
            if key not in found or found[key].asked < use.asked:
                found[key] = use
    order = ("training", "validation", "evaluation")
    return sorted(found.values(), key=lambda use: order.index(use.role))


def places(use: Use) -> list[Path]:
    """The files and folders that a pool is read from."""
    if use.world.name == "capfilt":
        needs = (*datasets.lists_of(use.pool), *datasets.images_of(use.pool))
        return [found.path for need in needs if (found := datasets.find(need)) is not None]
    if use.world.name == "folder":
        folder = datasets.own_folder(use.pool.partition("/")[0])
        return [] if folder is None else [folder]
    return []


# ------------------------------------------------------------------------------------------- counting


@dataclass(frozen=True)
class Count:
    """How many examples a pool has.

    Attributes:
        number: None: that takes an index, which the first run makes.
        source: ``""`` counted, or where the number is from.
    """

    number: int | None
    source: str = ""


def count(use: Use, thorough: bool = False) -> Count:
    """How many examples a pool has; one of millions of pairs is counted if it is small or ``thorough``.

    Raises:
        UserError: a file is missing or damaged.
    """
    if thorough or not use.world.is_indexed(use.pool) or _size(places(use)) < _SMALL:
        return Count(use.world.count(use.pool))
    reported = [_reported(path) for path in places(use)]
    if reported and reported[0]:
        return Count(reported[0], "as img2dataset reports")
    return Count(None)


def _size(paths: Sequence[Path]) -> int:
    """Bytes of shards, lists, or (guessed) of single files."""
    total = 0
    for path in paths:
        if path.is_file():
            total += path.stat().st_size
            continue
        shards = [*path.rglob("*.tar")]
        total += sum(file.stat().st_size for file in (*shards, *path.glob("*.json")))
        if not shards:
            total += len(pair_files.folders(path)) * 2**27  # 10,000 pairs of 13 KiB
    return total


def _reported(folder: Path) -> int:
    """Images that img2dataset says it has fetched, in the reports beside its shards."""
    total = 0
    for path in folder.rglob(f"*{pair_files.STATS}") if folder.is_dir() else ():
        try:
            report = read_json(path)
        except UserError:
            continue
        number = report.get("successes", 0) if isinstance(report, dict) else 0
        total += number if isinstance(number, int) else 0
    return total


def left_out(use: Use, counted: Count) -> list[str]:
    """What the lists or shards of a pool have that no run reads, a line for each reason."""
    if use.world.name == "folder":
        return folder.read(use.pool).left_out.lines()
    if use.world.name == "capfilt" and counted.number is not None and not counted.source:
        return real.pool(use.pool).left_out.lines()
    return []


# --------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True, eq=False)
class Sample:
    """One example.

    Attributes:
        problem: why there is no image or caption; empty if there are.
        image: (H, W, 3) uint8, RGB.
        texts: captions as they were written.
        trained: the captions as a training reads them; empty where none is trained on.
    """

    index: int
    problem: str = ""
    image: Pixels | None = None
    texts: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    question: Question | None = None


def spread(total: int, number: int) -> list[int]:
    """Up to ``number`` indices, evenly spread over ``range(total)``."""
    number = min(number, total)
    return [(2 * i + 1) * total // (2 * number) for i in range(number)]


def samples(use: Use, number: int, counted: Count, with_images: bool = True) -> list[Sample]:
    """Examples from all over a pool; of one that is not counted, from its first file.

    Raises:
        UserError: a file is missing or damaged.
    """
    if use.world.is_indexed(use.pool) and (counted.number is None or counted.source):
        reader = capfilt.sample(datasets.path_of(datasets.lists_of(use.pool)[0]), cache_folder() / "pairs")
        return [_of_reader(reader, index, with_images) for index in spread(len(reader), number)]
    total = min(counted.number or 0, _DRAWN if counted.number == ENDLESS else ENDLESS)
    return [_sample(use, index, with_images) for index in spread(total, number)]


def _sample(use: Use, index: int, with_image: bool) -> Sample:
    try:
        image = use.world.image(use.pool, index) if with_image else None
        if use.is_questions:
            return Sample(index, image=image, question=use.world.question(use.eval_set, index))
        texts = tuple(use.world.references(use.pool, index))
        trained = () if use.eval_set else tuple(use.world.captions(use.pool, index))
        return Sample(index, "", image, texts, trained)
    except (UnreadableImage, UserError) as error:
        return Sample(index, str(error))


def _of_reader(reader: json_lists.Reader, index: int, with_image: bool) -> Sample:
    try:
        texts = tuple(reader.captions(index))
        trained = tuple(map(json_lists.clean_caption, texts))
        return Sample(index, "", reader.image(index) if with_image else None, texts, trained)
    except (UnreadableImage, UserError) as error:
        return Sample(index, str(error))


def unreadable(use: Use, total: int) -> list[str]:
    """What is wrong with each image of an evaluation set that cannot be decoded; each image once."""
    seen: set[str] = set()
    found = []
    for index in range(total):
        if use.world.name == "capfilt":
            reader = real.pool(use.pool)
            file = reader.files[index] if isinstance(reader, json_lists.ImageList) else str(index)
            if file in seen:
                continue
            seen.add(file)
        try:
            use.world.image(use.pool, index)
        except (UnreadableImage, UserError) as error:
            found.append(str(error))
    return found


def images_per_second(use: Use, number: int, counted: Count, side: int = 224) -> float:
    """How many images of a pool one process reads, decodes and crops in a second; 0 if it can read none."""
    started, done = time.perf_counter(), 0
    for one in samples(use, number, counted):
        if one.image is not None:
            augmented(one.image, side, use.world.flips, 0, one.index)
            done += 1
    return done / (time.perf_counter() - started)


# --------------------------------------------------------------------------------------- descriptions


@dataclass(frozen=True)
class Spread:
    """How numbers are distributed."""

    least: int
    median: int
    mean: float
    most_of: int  # 95% have no more
    largest: int

    def __str__(self) -> str:
        return (
            f"{self.least:,} to {self.largest:,}, median {self.median:,}, mean {self.mean:,.1f}, "
            f"95% up to {self.most_of:,}"
        )


def spread_of(values: Sequence[int]) -> Spread:
    """The distribution of some numbers, at least one."""
    array = np.asarray(values)
    median, most = np.percentile(array, (50, 95), method="lower")
    return Spread(int(array.min()), int(median), float(array.mean()), int(most), int(array.max()))


@dataclass(frozen=True)
class Description:
    """What some examples of a pool are like.

    Attributes:
        texts: kind (``captions``, ``questions``, ``answers``) -> words of each.
        words: kind -> the most frequent words and how often.
        sizes: widths and heights of the images.
        problems: examples that could not be read.
    """

    examples: int
    texts: dict[str, Spread]
    words: dict[str, list[tuple[str, int]]]
    widths: Spread | None
    heights: Spread | None
    problems: list[str]


def describe(use: Use, number: int, images: int, counted: Count, words: int = 20) -> Description:
    """Lengths of texts and the most frequent words of ``number`` examples, and sizes of ``images`` images."""
    found = samples(use, number, counted, with_images=False)
    pictures = samples(use, images, counted)
    said: dict[str, list[str]] = {}
    own = use.world.name == "folder"
    for one in found:
        if one.texts:
            said.setdefault("captions", []).extend(one.texts)
        if one.question is not None:
            said.setdefault("questions", []).append(one.question.text)
            # In your own folder an answer may stand for ten equal ones, which nobody wrote.
            answers = one.question.answers
            said.setdefault("answers", []).extend(dict.fromkeys(answers) if own else answers)
    split = {kind: [text.lower().split() for text in texts] for kind, texts in said.items()}
    counted_words = {
        kind: _frequent(said[kind] if kind == "answers" else (word for row in rows for word in row), words)
        for kind, rows in split.items()
    }
    shapes = [one.image.shape for one in pictures if one.image is not None]
    return Description(
        len(found),
        {kind: spread_of([len(row) for row in rows]) for kind, rows in split.items()},
        counted_words,
        spread_of([shape[1] for shape in shapes]) if shapes else None,
        spread_of([shape[0] for shape in shapes]) if shapes else None,
        [one.problem for one in (*found, *pictures) if one.problem],
    )


def _frequent(texts: Iterable[str], number: int) -> list[tuple[str, int]]:
    stripped = (text.strip(".,;:!?\"'()").lower() for text in texts)
    return Counter(text for text in stripped if text).most_common(number)
