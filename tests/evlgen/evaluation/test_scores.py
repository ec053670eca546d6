"""Scores of whole runs, on the sets of their worlds."""

from collections.abc import Iterator

import pytest

from evlgen import miniworld
from evlgen.config import DataConfig, EvalConfig, RunConfig
from evlgen.errors import UserError
from evlgen.evaluation.caption_scores import CaptionScorer
from evlgen.evaluation.scores import RunPredictions, lacking, score_runs, scorers_of
from evlgen.runs.behaviour import SCORERS

# One process of METEOR for all tests that need it: they go to the same worker.
needs_meteor = pytest.mark.xdist_group("meteor")


@pytest.fixture(scope="module")
def scorer() -> Iterator[CaptionScorer]:
    with CaptionScorer() as started:
        started.start()
        yield started


def majority(answers: tuple[str, ...]) -> str:
    return max(answers, key=answers.count)


def perfect(images: int, questions: int) -> RunPredictions:
    pools = {"coco": "coco_test"} | {
        name: name for name in ("nocaps_in", "nocaps_near", "nocaps_out", "flickr")
    }
    return RunPredictions(
        {
            name: {str(i): miniworld.pool(pool).captions(i)[0] for i in range(images)}
            for name, pool in pools.items()
        },
        {
            kind: {str(i): majority(miniworld.question(kind, i).answers) for i in range(questions)}
            for kind in miniworld.QUESTION_KINDS
        },
    )


@needs_meteor
def test_score_runs(scorer: CaptionScorer) -> None:
    good = perfect(12, 60)
    blind = RunPredictions(
        {"coco": dict.fromkeys(good.captions["coco"], "a red ball")},
        {kind: dict.fromkeys(answers, "zebra") for kind, answers in good.answers.items()},
    )
    best, worst, nothing = score_runs([good, blind, RunPredictions()], scorer)
    assert nothing == {}
    assert best["coco/CIDEr"] > 100 > worst["coco/CIDEr"]
    assert best["coco/METEOR"] > worst["coco/METEOR"]
    assert best["gqa"] == 100
    assert best["vqav2"] > 90
    assert best["okvqa"] > 90
    assert (worst["vqav2"], worst["gqa"], worst["okvqa"]) == (0, 0, 0)
    assert worst["distinct_captions"] == pytest.approx(100 / 12)
    assert best["distinct_captions"] == 100
    assert (best["coco/objects_right"], best["coco/colours_right"]) == (100, 100)  # people tell the truth
    scenes = [miniworld.pool("coco_test").scene(i) for i in range(12)]
    red = sum(any((t.shape, t.colour) == ("ball", "red") for t in scene.things) for scene in scenes)
    balls = sum(any(t.shape == "ball" for t in scene.things) for scene in scenes)
    assert worst["coco/objects_right"] == pytest.approx(100 * balls / 12)
    assert worst["coco/colours_right"] == pytest.approx(100 * red / 12)
    assert best["nocaps/images"] == 36
    assert best["coco/images"] == 12
    assert best["ptb_tokenizer"] == 1
    assert "nocaps/CIDEr" not in worst
    assert "flickr/METEOR" not in best
    # Together is not the mean of the parts: document frequencies come from all 36 images.
    parts = [best[f"{name}/CIDEr"] for name in ("nocaps_in", "nocaps_near", "nocaps_out")]
    assert best["nocaps/CIDEr"] != pytest.approx(sum(parts) / 3)
    # Types of answers: their mean, weighted by how many there are, is the whole.
    asked = [miniworld.question("vqav2", i).answer_type.replace("/", "-") for i in range(60)]
    whole = sum(best[f"vqav2/{kind}"] for kind in asked) / 60
    assert best["vqav2"] == pytest.approx(whole)


@pytest.mark.parametrize(
    "prediction",
    [
        RunPredictions({"cocoa": {"0": "a dog"}}),
        RunPredictions({"coco": {"x": "a dog"}}),
        RunPredictions({"coco": {"-1": "a dog"}}),
        RunPredictions(answers={"vqa": {"0": "yes"}}),
    ],
)
def test_predictions_that_do_not_exist(prediction: RunPredictions) -> None:
    with pytest.raises(UserError, match="predictions: "):
        score_runs([prediction])


def test_scorers_are_those_of_the_sets_that_a_run_is_evaluated_on() -> None:
    def scorers(*sets: str, **others: object) -> list[str]:
        evaluation = EvalConfig(sets=tuple((name, 5) for name in sets))
        return list(scorers_of(RunConfig(evaluation=evaluation, **others)))

    assert scorers("coco", "gqa") == ["captions", "distinct", "gqa_accuracy", "scene_truth"]
    assert scorers("coco", data=DataConfig(world="capfilt")) == ["captions", "distinct"]
    assert scorers("flickr", "vqav2", "okvqa") == ["captions", "okvqa_accuracy", "vqa_accuracy"]
    assert scorers("coco", stage="represent") == []
    assert scorers_of(RunConfig(evaluation=EvalConfig(sets=(("coco", 0), ("gqa", 1))))) == {
        "gqa_accuracy": SCORERS["gqa_accuracy"]
    }
    with pytest.raises(UserError, match="no set 'cocoa' in the world 'miniworld'; there are: coco"):
        scorers("cocoa")


@pytest.mark.parametrize(
    ("captions", "answers", "lines"),
    [
        ({"0": "a", "1": "b"}, {"0": "c", "1": "d", "2": "e"}, []),
        ({"0": "a"}, {"0": "c", "1": "d", "2": "e"}, ["coco: 1 of 2 predictions"]),
        ({"0": "a", "2": "b"}, {"0": "c", "1": "d", "2": None}, ["coco: 1 of 2", "gqa: 2 of 3"]),
        ({}, {}, ["coco: 0 of 2", "gqa: 0 of 3"]),
        ({"0": "a", "1": "b", "2": None}, {"0": "c", "1": "d", "2": "e"}, ["coco: 2 of 2"]),
    ],
)
def test_what_is_lacking_of_predictions(
    captions: dict[str, str], answers: dict[str, str], lines: list[str]
) -> None:
    config = RunConfig(evaluation=EvalConfig(sets=(("coco", 2), ("gqa", 3), ("okvqa", 0))))
    found = lacking(RunPredictions({"coco": captions}, {"gqa": answers}), config)
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))
    if answers and not lines:
        shuffled = {"gqa": answers, "gqa_shuffled": {"0": "c"}}
        found = lacking(RunPredictions({"coco": captions}, shuffled), config)
        assert found == ["gqa_shuffled: 1 of 3 predictions"]
