"""Loading an experiment: its rows, what ``--set`` changes in both stages, mistakes, and that it is quick."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evlgen.errors import UserError
from experiments import load


@pytest.mark.parametrize(
    ("change", "key", "both"),
    [
        ("optim.batch_size=8", "batch_size", True),
        ("optim.accumulate=2", "accumulate", True),
        ("optim.lr=0.5", "lr", False),
        ("optim.steps=7", "steps", False),
    ],
)
def test_changes_of_both_stages(change: str, key: str, both: bool) -> None:
    config, plain = load("table1", "mini", (change,)).rows[0].config, load("table1", "mini").rows[0].config
    first, unchanged = config.init_from, plain.init_from
    assert first is not None
    assert unchanged is not None
    assert getattr(config.optim, key) != getattr(plain.optim, key)
    assert getattr(first.optim, key) == getattr((config if both else unchanged).optim, key)


def test_changes_of_data_and_of_the_validation_reach_both_stages() -> None:
    config = load("table1", "mini", ("evaluation.validation=8",)).rows[0].config
    assert config.init_from is not None
    assert (config.evaluation.validation, config.init_from.evaluation.validation) == (8, 8)
    config = load("table1", "mini", ('data.pools=[["coco", 8]]',)).rows[0].config
    assert config.init_from is not None
    assert config.data.pools == config.init_from.data.pools == (("coco", 8),)


def test_a_stage_1_is_addressed_and_shares_its_connector() -> None:
    first, *others = load("table1", "paper", ("stage1.optim.lr=3e-4", "connector.input_width=32")).rows
    before = load("table1", "paper").rows[0].config
    assert first.config.init_from is not None
    assert (first.config.optim.lr, first.config.init_from.optim.lr) == (before.optim.lr, 3e-4)
    assert {first.config.init_from.connector.input_width, first.config.connector.input_width} == {32}
    assert {row.config.connector.input_width for row in others} == {32}


def test_runs_are_shortened_in_proportion() -> None:
    """Rows that differ by their length still do, in their labels as well; two updates are the least."""
    rows = load("table1", "paper", ("updates=1e-4",)).rows
    assert rows[2].label == "EVLGen, 104M, 150K (updates=1e-4)"
    assert [row.config.optim.steps for row in rows] == [8, 25, 15, 25, 15]
    assert rows[0].config.init_from is not None
    stage1 = rows[0].config.init_from.optim
    assert (stage1.steps, stage1.warmup_steps, stage1.eval_every, stage1.checkpoint_every) == (25, 1, 2, 1)
    assert {row.config.optim.steps for row in load("table1", "paper", ("updates=1e-9",)).rows} == {2}
    assert load("table1", "paper", ("updates=1",)).rows == load("table1", "paper").rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tabel1", "mini"), r"'tabel1': no such experiment; there are: table1, .*; did you mean table1\?"),
        (("table1", "papre"), r"'papre': no such scale; there are: smoke, .*; did you mean paper\?"),
        (("table1", "mini", ("optim.lr",)), "--set optim.lr: give key=value"),
        (("table1", "mini", ("updates=2",)), "--set updates=2: give a share of every run's updates"),
        (("table1", "mini", ("stage1.optim.lr=1",), "EVLGen"), "none of these rows starts from a stage 1"),
        (("table1", "mini", (), "GPT"), "--rows GPT: no row's label contains this; there are: BLIP-2, two"),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(*arguments)


def test_rows_are_chosen_by_what_their_label_contains() -> None:
    assert [row.label for row in load("table1", "mini", rows="evlgen, 11m").rows] == ["EVLGen, 11M, 150K"]


def test_nothing_is_imported_to_list_experiments() -> None:
    """`run.py list` answers in half a second; torch alone takes several."""
    code = """
import sys
from experiments import EXPERIMENTS, load
assert all(load(name).rows for name in EXPERIMENTS)
print([name for name in ("torch", "numpy", "transformers", "pandas") if name in sys.modules])
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
