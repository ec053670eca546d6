"""easy-VQA as a data world: captions out of questions, and what a run reads of it."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from evlgen.config import DataConfig, EvalConfig, RunConfig
from evlgen.data import worlds
from evlgen.data.batches import load_training_data
from evlgen.data.readers import easy_vqa as subject
from evlgen.errors import UserError
from evlgen.evaluation.scores import RunPredictions, score_runs

TOLD = [
    ("what is the blue shape?", "circle", 0),
    ("is there a red shape?", "no", 0),
    ("is there not a triangle in the image?", "no", 1),
    ("is no teal shape present?", "no", 1),
    ("what color is the rectangle?", "gray", 2),
    ("what color is the shape?", "red", 3),  # its shape is never told
    ("is there not a circle?", "yes", 3),
    ("does the image not contain a green shape?", "no", 4),
    ("is a rectangle present?", "yes", 4),
]


def test_captions_are_what_questions_and_answers_tell():
    assert subject.described(TOLD) == {
        0: "a blue circle",
        1: "a teal triangle",
        2: "a gray rectangle",
        4: "a green rectangle",
    }


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package with a few images, in its own layout; the real one may be installed or not."""
    data = tmp_path / "site" / "easy_vqa" / "data"
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        (data / split / "images").mkdir(parents=True)
        asked = [[text, answer, i] for i in range(0, count, 5) for text, answer, image in TOLD if image == 0]
        asked += [[text, answer, image] for text, answer, image in TOLD if image]
        (data / split / "questions.json").write_text(json.dumps(asked))
        for i in range(count):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / split / "images" / f"{i}.png")
    (data.parent / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subject, "_HELD_OUT", 2)
    subject.read.cache_clear()
    yield data
    subject.read.cache_clear()


def test_what_a_run_reads(package):
    world = worlds.get("easy-vqa")
    assert [world.count(pool) for pool in subject.POOLS] == [4, 2, 4, 9]
    assert [world.captions("easy_train", i) for i in range(2)] == [["a blue circle"], ["a teal triangle"]]
    assert [world.captions("easy_val", i)[0] for i in range(2)] == ["a blue circle", "a blue circle"]  # 5, 10
    stored = np.asarray(Image.open(package / "train" / "images" / "5.png"))
    assert np.array_equal(world.image("easy_val", 0), stored)
    for index in range(9):  # each question is on its own image
        question, image = world.question("easy_vqa", index), subject.read("easy_questions").images[index]
        assert (question.text, question.answers[0], int(image.stem)) in TOLD

    config = RunConfig(
        data=DataConfig(world="easy-vqa", pools=(("easy_train", 4),)),
        evaluation=EvalConfig(sets=(("easy_captions", 4), ("easy_vqa", 9)), validation=2),
    )
    assert worlds.problems(config) == []
    data = load_training_data(config)
    assert (len(data.source.pools[0]), len(data.validation)) == (4, 2)
    assert data.source.pools[0].features.shape == (1, 4, 65, 96)


def test_answers_are_scored_by_exact_match(package):
    config = DataConfig(world="easy-vqa")
    right = {str(i): worlds.get("easy-vqa").question("easy_vqa", i).answers[0] for i in range(9)}
    wrong = right | {name: "teal" for name, answer in right.items() if answer in ("yes", "no")}
    predictions = [RunPredictions(answers={"easy_vqa": answers}, data=config) for answers in (right, wrong)]
    whole, part = score_runs(predictions)
    assert (whole["easy_vqa"], part["easy_vqa/yes-no"], part["easy_vqa/other"]) == (100, 0, 100)
    assert part["easy_vqa"] == pytest.approx(100 / 3)


def test_without_the_package_a_user_is_told_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert worlds.get("easy-vqa").missing(["easy_train"]) == [subject.INSTALL]
    with pytest.raises(UserError, match="no such pool in easy-VQA"):
        subject.read("train")
    subject.read.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'evlgen\[bridge\]'"):
        subject.read("easy_test")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("easy_vqa"), reason=subject.INSTALL)
def test_the_real_set_contradicts_itself_nowhere():
    subject.read.cache_clear()
    counts = {pool: len(subject.read(pool).images) for pool in subject.POOLS}
    assert counts == {"easy_train": 3342, "easy_val": 200, "easy_test": 880, "easy_questions": 9673}
