"""The end of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis.claims import judging
from evlgen.config import to_json
from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs import identity
from experiments import load
from experiments.base import Experiment, Row, seeded
from experiments.scales import blip2, evlgen, get
from sweeps import conclude, run, show, states
from sweeps.plan import Sweep
from sweeps.slurm import launch, queue


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
    assert conclude.conclude(Sweep(load("table2", "smoke"), "smoke", 1)) == 1
    assert table.read_text() == "came with the checkout"
    assert "no table written" in capsys.readouterr().out


def test_who_waits_outlives_a_restart_of_the_controller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = {"some run": queue.Job("7", "RUNNING")}
    answers: list[dict[str, queue.Job] | None] = [busy, None, None, {}]

    def jobs() -> dict[str, queue.Job]:
        answer = answers.pop(0)
        if answer is None:
            raise UserError("squeue: Unable to contact slurm controller; is the SLURM controller up?")
        return answer

    monkeypatch.setattr(queue, "jobs", jobs)
    monkeypatch.setattr(queue, "submitted", lambda found: {"some run"})
    monkeypatch.setattr(launch, "_POLL_SECONDS", (0.0, 0.0))
    small = Sweep(load("table2", "smoke"), "smoke", 1)
    assert launch.wait(small, None) == 1
    assert not answers
    assert capsys.readouterr().out.count("asked again") == 2
    answers.append(None)
    with pytest.raises(UserError, match="Unable to contact"):  # who was never answered gets an error at once
        launch.wait(small, None)


@pytest.mark.parametrize(
    ("flags", "judged"),
    [
        (["all"], [("smoke", None)]),
        (["all", "--seeds", "7"], [("smoke", 7)]),
        (["wait", "all", "--seeds", "2"], [("smoke", 2)]),
        (["all", "--rows", "EVLGen"], []),
        (["all", "--set", "optim.lr=1e-3"], []),
        (["all", "--dry-run"], []),
        (["status", "all"], []),
        (["wait", "table1"], []),
        (["table1"], []),
    ],
)
def test_claims_are_judged_at_the_end_of_everything(
    flags: list[str],
    judged: list[tuple[str, int | None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the seeds that were run, and not where the runs are others than the claims are about."""
    asked: list[tuple[str, int | None]] = []
    monkeypatch.setattr(judging, "judge", lambda scale, seeds=None: asked.append((scale, seeds)) or [])
    monkeypatch.setattr(run, "_names", lambda arguments: ("table1", "budgets"))
    monkeypatch.setattr(run, "_carry_out", lambda sweep, arguments, profile: 0)
    assert run.main([*flags, "--scale", "smoke"]) == 0
    assert asked == judged
    assert ("claims not judged" in capsys.readouterr().out) == bool({"--rows", "--set"} & set(flags))


def test_a_table_keeps_the_seeds_that_are_there() -> None:
    """`all` makes 5 seeds, the experiment alone 3: its table must stay that of the claims and the figures."""
    experiment = load("table1", "mini")
    assert (experiment.seeds, get("mini").claim_seeds) == (3, 5)

    def table_of(seeds: int, changed: bool = False) -> int:
        return conclude.table_seeds(Sweep(experiment, "mini", seeds, changed))

    def put(seed: int, rows: Sequence[Row]) -> None:
        for row in rows:
            folder = identity.run_folder(seeded(row.config, seed))
            files.write_result(folder, {}, {})

    for seed in range(4):
        put(seed, experiment.rows)
    put(4, experiment.rows[1:])
    assert table_of(3) == 4  # the fifth lacks a row
    put(4, experiment.rows[:1])
    put(5, experiment.rows)
    assert table_of(3) == 5  # no more than the claims take
    assert table_of(7) == 7  # those that were asked for, complete or not
    assert table_of(3, changed=True) == 3


def test_a_job_is_queued_only_where_its_stage_1_will_be(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it is there, in the queue, or queued with it; `retry` brings what it needs."""
    config = blip2("smoke")
    assert config.init_from is not None
    first, second = identity.run_id(config.init_from), identity.run_id(config)
    asked = Sweep(Experiment("some", "Some", (Row("x", config),), ("val_loss",), 1), "smoke", 1)
    usual, retry = ("pending", "stopped", "lost"), ("failed", "lost")

    def queued(of_first: str, of_second: str, wanted: tuple[str, ...], in_queue: bool = False) -> list[str]:
        now = {first: states.State(of_first), second: states.State(of_second)}
        jobs = {first: queue.Job("1", "running")} if in_queue else {}
        return list(launch._ready_to_queue(asked, now, jobs, wanted))

    assert queued("pending", "pending", usual) == [first, second]
    assert queued("done", "pending", usual) == [first, second]  # records alone, without weights
    folder = files.prepare(config.init_from)
    (folder / files.CONNECTOR).touch()
    files.write_outcome(folder, {})
    assert queued("done", "pending", usual) == [second]
    assert queued("trained", "failed", retry) == [second]
    assert queued("running", "pending", usual, in_queue=True) == [second]
    assert queued("running", "pending", usual) == []  # by a launcher outside the queue
    assert queued("failed", "pending", usual) == []
    assert "is left out: its stage 1" in capsys.readouterr().out
    assert queued("stopped", "failed", retry) == [first, second]
    assert queued("failed", "failed", retry) == [first, second]


def test_a_run_is_found_by_its_beginning_and_by_its_folder(tmp_path: Path) -> None:
    config = evlgen("smoke")
    name = identity.run_id(config)
    files.write_json(tmp_path / "runs" / name / "config.json", to_json(config))
    (tmp_path / "runs" / "studies").mkdir()
    for prefix in (name[:6], name, str(tmp_path / "runs" / name), f"runs/{name}/"):
        assert show.find_run("show", prefix).name == name
    for prefix in ("*", "[", "studies", "../runs/none"):
        with pytest.raises(UserError, match="no run in"):
            show.find_run("show", prefix)
