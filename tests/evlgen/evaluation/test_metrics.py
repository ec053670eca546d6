"""Titles and kinds of metrics, of the worlds' own sets as well."""

import subprocess
import sys

import pytest

from evlgen.data import worlds
from evlgen.evaluation.answer_scores import ACCURACY, BESIDE
from evlgen.evaluation.metrics import METRICS, details, examples, metric, set_title
from evlgen.runs.behaviour import SCORERS


@pytest.mark.parametrize(
    ("name", "title", "decimals", "label"),
    [
        ("val_loss", "validation loss", 3, "validation loss (nats a token)"),
        ("coco/CIDEr", "COCO CIDEr", 1, "COCO CIDEr"),
        ("nocaps/CIDEr", "NoCaps, all CIDEr", 1, "NoCaps, all CIDEr"),
        ("coco/objects_right", "COCO objects right, %", 1, "COCO objects right, %"),
        ("vqav2", "VQAv2", 1, "VQAv2 accuracy (%)"),
        ("vqav2/yes-no", "VQAv2 yes-no", 1, "VQAv2 yes-no accuracy (%)"),
        ("gqa_shuffled", "GQA, images shuffled", 1, "GQA, images shuffled accuracy (%)"),
        ("easy_vqa", "easy-VQA", 1, "easy-VQA accuracy (%)"),
        ("questions", "own questions", 1, "own questions accuracy (%)"),
        ("captions/CIDEr", "own images CIDEr", 1, "own images CIDEr"),
        ("purity_untrained", "purity, untrained", 3, "purity, untrained"),
        ("unheard_of", "unheard_of", 1, "unheard_of"),
    ],
)
def test_metrics_are_called_by_set_and_measure(name: str, title: str, decimals: int, label: str) -> None:
    found = metric(name)
    assert (found.name, found.title, found.decimals, found.label) == (name, title, decimals, label)


def test_which_way_is_better() -> None:
    assert metric("coco/CIDEr").higher_is_better is True
    assert metric("okvqa").higher_is_better is True
    assert metric("val_loss").higher_is_better is False
    assert metric("total_seconds").higher_is_better is False
    assert metric("cosine").higher_is_better is None


def test_details_have_the_order_of_their_list() -> None:
    names = ["hours", "coco/CIDEr", "distinct_captions", "coco/objects_right", "val_loss", "gap", "gap"]
    assert details(names) == ["val_loss", "gap", "coco/objects_right", "distinct_captions", "hours"]
    assert len({one.name for one in METRICS}) == len(METRICS)


def test_examples_are_those_that_were_scored() -> None:
    record = {"coco/images": 250.0, "vqav2/questions": 400.0, "vqav2": 30.0}
    assert examples("coco", record) == (250, "image")
    assert examples("vqav2", record) == (400, "question")
    assert examples("gqa", record) is None
    assert set_title("nocaps") == "NoCaps, all"
    assert set_title("unheard_of") == "unheard_of"


def test_a_list_of_metrics_needs_neither_numpy_nor_torch() -> None:
    code = "import sys, evlgen.evaluation.metrics; print({'numpy', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_evaluation_set_names_scorers_that_there_are() -> None:
    sets = worlds.all_sets()
    assert {scorer for one in sets for scorer in one.scorers} == set(SCORERS)
    for one in sets:
        if one.kind == "question":
            assert set(one.scorers) <= set(ACCURACY)
            assert not set(one.scorers[:1]) & set(BESIDE)
            assert set(one.scorers[1:]) <= set(BESIDE)
        else:
            assert not set(one.scorers) & set(ACCURACY)
