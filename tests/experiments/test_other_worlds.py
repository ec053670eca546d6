"""Experiments on data that they were not made for."""

import pytest

from evlgen.data import worlds
from experiments import load, table1, table2
from tests.evlgen import real_sets

FOLDER = ("data.world=folder", 'data.pools=[["mine", 20]]')


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_DATA", str(tmp_path))
    real_sets.own_folder(tmp_path / "mine", 24)
    return tmp_path / "mine"


def test_own_sets_take_the_place_of_the_paper_s(own):
    experiment = load("table1", "mini", FOLDER)
    assert experiment.metrics == ("questions", "captions/CIDEr")  # in the order of VQAv2 and COCO
    for row in experiment.rows:
        assert row.config.evaluation.sets == (("captions", 250), ("questions", 400))
        assert row.paper == {}
        assert worlds.problems(row.config) == []
    before = table1.build("mini").rows[:4]  # the last, 11M, is what 104M is with other pools: one row
    assert [row.config.optim for row in experiment.rows] == [row.config.optim for row in before]


def test_other_columns_stay(own):
    metrics = load("baselines", "mini", FOLDER).metrics
    assert metrics == (
        *("captions/CIDEr", "questions", "val_loss", "gap", "connector_gmacs", "train_seconds"),
    )


def test_without_questions_captions_alone_are_scored(own):
    (own / "questions.jsonl").unlink()
    experiment = load("table1", "mini", FOLDER)
    assert experiment.metrics == ("captions/CIDEr",)
    assert experiment.rows[0].config.evaluation.sets == (("captions", 250),)


def test_a_table_without_questions_gets_no_column_of_them(own):
    assert load("table2", "mini", FOLDER).metrics == ("captions/CIDEr",)


def test_sets_that_were_chosen_stay_and_a_wrong_one_is_named(own):
    experiment = load("table1", "mini", (*FOLDER, 'evaluation.sets=[["coco", 5], ["questions", 3]]'))
    config = experiment.rows[0].config
    assert config.evaluation.sets == (("coco", 5), ("questions", 3))
    assert experiment.metrics == ("questions",)
    assert worlds.problems(config) == [
        "evaluation.sets: no set 'coco' in the world 'folder'; there are: captions, questions"
    ]


def test_easy_vqa_has_sets_of_its_own():
    experiment = load("table1", "mini", ("data.world=easy-vqa", 'data.pools=[["easy_train", 20]]'))
    assert experiment.metrics == ("easy_vqa", "easy_captions/CIDEr")


@pytest.mark.parametrize("module", [table1, table2])
def test_a_world_with_the_paper_s_sets_changes_nothing(module):
    before = module.build("paper")
    after = load(before.name, "paper", ("data.world=capfilt",))
    assert [(row.config, row.paper) for row in after.rows] == [(row.config, row.paper) for row in before.rows]
    assert after.metrics == before.metrics
