"""The end of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from evlgen.config import to_json
from evlgen.errors import UserError
from experiments.scales import evlgen
from sweeps import reporting, slurm, store, sweep
from sweeps.planning import load
from sweeps.sweep import Sweep, conclude


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))


def test_without_any_run_the_table_that_is_there_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "results" / "table2" / "smoke" / "table.csv"
    table.parent.mkdir(parents=True)
    table.write_text("came with the checkout")
    assert conclude(Sweep(load("table2", "smoke"), "smoke", 1)) == 1
    assert table.read_text() == "came with the checkout"
    assert "no table written" in capsys.readouterr().out


def test_who_waits_outlives_a_restart_of_the_controller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = {"some run": slurm.Job("7", "RUNNING")}
    answers: list[dict[str, slurm.Job] | None] = [busy, None, None, {}]

    def queue() -> dict[str, slurm.Job]:
        answer = answers.pop(0)
        if answer is None:
            raise UserError("squeue: Unable to contact slurm controller; is the SLURM controller up?")
        return answer

    monkeypatch.setattr(slurm, "queue", queue)
    monkeypatch.setattr(slurm, "submitted", lambda found: {"some run"})
    monkeypatch.setattr(sweep, "_POLL_SECONDS", (0.0, 0.0))
    small = Sweep(load("table2", "smoke"), "smoke", 1)
    assert sweep.wait(small, None) == 1
    assert not answers
    assert capsys.readouterr().out.count("asked again") == 2
    answers.append(None)
    with pytest.raises(UserError, match="Unable to contact"):  # who was never answered is told at once
        sweep.wait(small, None)


def test_a_run_is_found_by_its_beginning_and_by_its_folder(tmp_path: Path) -> None:
    config = evlgen("smoke")
    run = store.run_id(config)
    store.write_json(tmp_path / "runs" / run / "config.json", to_json(config))
    (tmp_path / "runs" / "studies").mkdir()
    for prefix in (run[:6], run, str(tmp_path / "runs" / run), f"runs/{run}/"):
        assert reporting.find_run("show", prefix).name == run
    for prefix in ("*", "[", "studies", "../runs/none"):
        with pytest.raises(UserError, match="no run in"):
            reporting.find_run("show", prefix)
