"""What ``--set`` and ``--rows`` leave in titles, notes, labels and names of folders."""

from __future__ import annotations

import re

import pytest

from evlgen.errors import UserError
from experiments import EXPERIMENTS, load
from experiments.base import seeded
from experiments.overrides import name_of


def labels(name: str, *changes: str) -> list[str]:
    return [row.label for row in load(name, "smoke", changes).rows]


def test_a_label_says_the_change_and_nothing_against_it() -> None:
    most = load("merge_schedules", "smoke").rows[-1].label
    assert re.match(r"r = \d+, weighted mean", most)
    found = labels("merge_schedules", "connector.r=1")
    assert "connector.r=1" in found
    assert "by features (connector.r=1)" in found
    said = [int(number) for label in found for number in re.findall(r"\br = (\d+)", label)]
    assert set(said) <= {1}
    assert not any("merged" in label or "layer" in label for label in found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("name", "change", "gone"),
    [
        ("table1", "optim.steps=4", r"\d+K"),
        ("table1", 'data.pools=[["coco", 8]]', r"\d+M"),
        ("table2", "language=mini-llama", r"OPT"),
        ("budgets", "optim.steps=4", r"\d+K"),
        ("collapse", "optim.lr=1e-4", r"\blr 0|default"),
        ("collapse", "connector.init=random", "mini-bert"),
        ("learning_rates", "optim.warmup_steps=1", "warm-up"),
        ("encoders", "vision=mini-vit", "mini-clip"),
        ("initialisation", "connector.init=random", "mini-bert"),
    ],
)
def test_what_is_contradicted_is_gone_from_labels(name: str, change: str, gone: str) -> None:
    fitting = ("connector.input_width=96",) if change.startswith("vision") else ()
    before, after = load(name, "smoke"), load(name, "smoke", (change, *fitting))
    assert change in after.title
    assert change in after.notes
    for row in after.rows:
        unchanged = [one.label for one in before.rows if one.config == row.config]
        if row.label not in unchanged:
            assert change in row.label
            assert not re.search(gone, row.label.replace(change, ""))


@pytest.mark.parametrize("name", [one for one in EXPERIMENTS if one != "table5"])
def test_rows_stay_apart_and_know_what_they_are_compared_with(name: str) -> None:
    experiment = load(name, "", ("optim.steps=7", "optim.warmup_steps=1", "evaluation.validation=4"))
    found = [row.label for row in experiment.rows]
    assert len(found) == len(set(found))
    assert all(row.against in ("", *found) for row in experiment.rows)
    assert all(label.count("\n") == 0 for label in found)


def test_without_changes_everything_stays() -> None:
    assert load("table1", "smoke", ()) == load("table1", "smoke")
    assert load("table1", "smoke", (), "evlgen").rows == load("table1", "smoke").rows[2:]


def test_every_set_of_changes_has_a_name_that_is_safe_in_a_path() -> None:
    names = {
        name_of(changes, rows)
        for changes in (
            ("connector.r=6",),
            ("connector.r=8",),
            ("connector.r=[1,2]",),
            ("connector.r=[1, 2]",),
        )
        for rows in ("", "EVLGen", "BLIP")
    }
    assert len(names) == 12
    assert name_of(("connector.r=6",), "") == "connector.r=6"
    assert name_of(("b=1", "a=2"), "") == name_of(("a=2", "b=1"), "")
    odd = name_of(("language=/models/../x y\n", "data.pools=[[" + "x" * 300 + "]]"), "EVLGen, 104M")
    assert re.fullmatch(r"[A-Za-z0-9.=+_-]+", odd)
    assert len(odd) < 80


def test_a_key_that_only_some_rows_have_is_refused_with_the_rows_name() -> None:
    with pytest.raises(UserError) as error:
        load("table1", "smoke", ("connector.r=2",))
    assert "no such key in the row 'BLIP-2, two stages, 104M" in str(error.value)
    assert "only in others such as 'EVLGen, 104M, 150K'" in str(error.value)
    rows = load("table1", "smoke", ("connector.r=2",), "EVLGen").rows
    assert all(seeded(row.config, 1).connector.r == 2 for row in rows)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("vision=", "--set vision: is empty"),
        ("language= ", "--set language: is empty"),
        ("connector.init=", "--set connector.init: is empty"),
        ("stage1.connector.init=", "--set stage1.connector.init: is empty"),
        ('evaluation.sets=[["coco", 0]]', "evaluation.sets: coco is 0: nothing to evaluate on"),
        ("connector.num_layers=1000000000", "connector.num_layers is 1000000000: it must be 1 to 10,000"),
        ("stage1.nothing=1", "--set stage1.nothing: no such key"),
        ("stage1.optim.lr=x", "--set stage1.optim.lr: 'x' is not a number"),
        ('objectives=["itc"]', "--set objectives: they are the losses of stage 1"),
    ],
)
def test_what_changes_nothing_or_cannot_be_is_refused_as_it_was_typed(change: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load("table1", "smoke", (change,), "BLIP-2, two")
    assert str(error.value).startswith(message)
