"""The miniworld's pools: endless sequences of pairs, and the documents that language models learn from."""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evlgen.conventions import PROMPT
from evlgen.errors import UserError, nearest
from evlgen.miniworld.captions import caption, choose_noun, note
from evlgen.miniworld.drawing import render
from evlgen.miniworld.questions import QUESTION_KINDS, ask, drawn_question, question, with_article
from evlgen.miniworld.scenes import Scene, random_stream, sample_scene
from evlgen.miniworld.vocabulary import FACTS, IRRELEVANT, SHAPES

# Share of captions that belong to another image ("wrong") or say nothing about any ("irrelevant").
NOISE = {"web": {"wrong": 0.20, "irrelevant": 0.10}, "ccs": {"wrong": 0.05, "irrelevant": 0.03}}
POOLS = (
    *("web", "ccs", "coco", "coco_val", "coco_test", "nocaps_in", "nocaps_near", "nocaps_out", "flickr"),
    *QUESTION_KINDS,
    "foundation",
    "probe",
)


@dataclass(frozen=True)
class Pool:
    """An endless sequence of image-text pairs; the pair ``index`` is the same on every machine."""

    name: str

    def scene(self, index: int) -> Scene:
        if self.name in QUESTION_KINDS:
            return drawn_question(self.name, index)[0]
        return sample_scene(random_stream(self.name, index), self.name)

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """(64, 64, 3) uint8."""
        return render(self.scene(index))

    def captions(self, index: int) -> list[str]:
        """One caption (``web``, ``ccs``) or five; only those of ``web`` and ``ccs`` can be wrong."""
        rng = random_stream(self.name, index, "captions")
        if self.name in NOISE:
            draw, noise = rng.random(), NOISE[self.name]
            if draw < noise["irrelevant"]:
                return [rng.choice(IRRELEVANT)]
            wrong = draw < noise["irrelevant"] + noise["wrong"]
            return [caption(self.scene(index + 1_000_003 if wrong else index), rng)]
        return [caption(self.scene(index), rng) for _ in range(5)]


def pool(name: str) -> Pool:
    """The pool called ``name``.

    Raises:
        UserError: no pool has that name.
    """
    if name not in POOLS:
        there = ", ".join(POOLS) + nearest(name, POOLS)
        raise UserError(f"no pool {name!r} in the miniworld; there are: {there}")
    return Pool(name)


@functools.cache
def version() -> str:
    """Fingerprint of images, captions, questions and documents; it is part of every cache of features."""
    digest = hashlib.sha256()
    for name in POOLS:
        for index in range(4):
            digest.update(pool(name).image(index).tobytes())
            digest.update("\n".join(pool(name).captions(index)).encode())
    for kind in QUESTION_KINDS:
        for index in range(12):
            digest.update(repr(question(kind, index)).encode())
    for index in range(24):
        digest.update("".join(document(index)).encode())
    return digest.hexdigest()[:16]


def document(index: int) -> tuple[str, str]:
    """A text of the language models' own pre-training: people who talk about one scene, and about facts.

    First comes what there is to know (notes or captions), then captions that repeat some of it, then
    questions with their short answers. So a prefix is worth reading, as in any real text.

    Returns:
        The first part, which nothing predicts, and the rest.
    """
    rng = random_stream("document", index)
    if rng.random() < 0.06:
        return "", "\n".join(_fact(rng) for _ in range(6)) + "\n"
    scene = sample_scene(rng, "foundation")
    notes = rng.random() < 0.7
    head = note(scene, rng) if notes else "\n".join(caption(scene, rng) for _ in range(rng.randint(1, 3)))
    separator = rng.choices(("\n", " . ", " "), (0.5, 0.2, 0.3))[0]
    lines = [caption(scene, rng) for _ in range(rng.randint(1, 3))]
    for _ in range(rng.randint(1, 5) if notes else rng.randint(0, 1)):
        asked = ask(rng.choice(QUESTION_KINDS), scene, rng)
        if asked is not None:
            lines.append(PROMPT.format(asked.text) + " " + asked.answer)
    if rng.random() < 0.1:
        lines.append(_fact(rng) if rng.random() < 0.7 else rng.choice(IRRELEVANT))
    return head + separator, "\n".join(lines) + "\n"


def _fact(rng: random.Random) -> str:
    shape, fact = rng.choice(SHAPES), rng.choice(tuple(FACTS))
    right, noun = FACTS[fact][shape], choose_noun(rng, shape)
    answer = rng.choice(right)
    if rng.random() < 0.4:
        asked = {
            "used for": f"what is {with_article(noun)} used for?",
            "found": f"where is {with_article(noun)} usually found?",
            "made of": f"what is {with_article(noun)} made of?",
        }[fact]
        return PROMPT.format(asked) + " " + right[0]
    return {
        "used for": f"{with_article(noun)} is used for {answer}",
        "found": f"{with_article(noun)} is usually found in the {answer}",
        "made of": f"{with_article(noun)} is made of {answer}",
    }[fact]
