"""What the figures read of a run store: whole, incomplete, damaged, empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evlgen.errors import UserError
from evlgen.runs import identity
from experiments import two_stage
from experiments.base import seeded
from paper_figures import runs
from tests.paper_figures import made_up


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))


def test_no_runs_names_the_command() -> None:
    with pytest.raises(UserError, match=r"`python sweeps/run.py two_stage --scale smoke`"):
        runs.load("two_stage", "smoke")
    with pytest.raises(UserError, match=r"`python sweeps/run.py two_stage`$"):
        runs.load("two_stage", "mini")


def test_seeds_that_every_row_lacks_take_one_line() -> None:
    made_up.fill("two_stage", seeds=1)
    assert runs.missing(runs.load("two_stage", "mini"), "two_stage") == ["two_stage: every row (seed 1, 2)"]


def test_incomplete_rows_are_there_and_said_to_be_missing() -> None:
    made_up.fill("two_stage", seeds=2, leave_out=("without ITM",))
    found = runs.load("two_stage", "mini")
    assert [run.seed for run in found[:3]] == [0, 1, 2]
    assert found[0].metrics is not None
    assert found[2].metrics is None
    lines = runs.missing(found, "two_stage")
    assert "two_stage: without ITM in stage 1" in lines  # all seeds
    assert "two_stage: without ITC in stage 1 (seed 2)" in lines
    assert runs.missing(runs.load("two_stage", "mini", seeds=1)) == ["without ITM in stage 1"]


def test_more_seeds_than_the_experiment_says_are_taken_and_must_be_everywhere() -> None:
    made_up.fill("two_stage", seeds=3)
    row = two_stage.build("mini").rows[0]
    made_up.write(seeded(row.config, 4))
    found = runs.load("two_stage", "mini")
    assert [run.seed for run in found if run.row.label == row.label] == [0, 1, 2, 3, 4]
    assert f"{row.label} (seed 3)" in runs.missing(found)
    assert {run.seed for run in runs.load("two_stage", "mini", seeds=2)} == {0, 1}


def test_a_damaged_result_is_named_and_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    made_up.fill("two_stage", "smoke")
    row = two_stage.build("smoke").rows[0]
    path = identity.run_folder(row.config) / "result.json"
    path.write_text(path.read_text().replace("val_loss", "val_less"))
    before = path.read_bytes()
    found = runs.load("two_stage", "smoke")
    assert f"{path}: damaged" in capsys.readouterr().err
    assert path.read_bytes() == before  # figures change nothing in the store
    assert runs.missing(found) == [row.label]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[1, 2]\n", b'{"loss": 2}\n'])
def test_a_damaged_course_is_named_and_skipped(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert runs.course(tmp_path) == []
    assert f"{tmp_path / 'metrics.jsonl'}: damaged" in capsys.readouterr().err


def test_validations_are_the_lines_that_have_the_metric(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5, "gap": 0.1}, {"step": 4, "gap": 0.3}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 5, "ga'  # cut short by a kill
    (tmp_path / "metrics.jsonl").write_text(text)
    assert runs.validations(tmp_path, "gap") == ([2, 4], [0.1, 0.3])
    assert runs.validations(tmp_path / "nowhere", "gap") == ([], [])


def test_a_metric_that_is_no_finite_number_is_none() -> None:
    made_up.fill("two_stage", "smoke")
    run = runs.load("two_stage", "smoke")[0]
    assert run.metrics is not None
    run.metrics.update(a=float("nan"), b="word", c=True, d=2)
    assert [runs.value(run, name) for name in ("a", "b", "c", "d", "e")] == [None, None, None, 2.0, None]


def test_several_experiments_of_which_one_is_not_there() -> None:
    made_up.fill("initialisation", "smoke")
    found, missing = runs.either("encoders", "initialisation", scale="smoke")
    assert list(found) == ["initialisation"]
    assert missing == ["encoders (`python sweeps/run.py encoders --scale smoke`)"]
    with pytest.raises(UserError, match="encoders"):
        runs.either("encoders", scale="smoke")
