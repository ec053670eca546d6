"""The time that is left is that of what is left to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from evlgen.runs import folder as files
from experiments.scales import evlgen
from sweeps import plan
from sweeps.forecast import Forecast, Work


def test_before_anything_has_begun_it_is_the_time_of_everything() -> None:
    works = {str(i): Work(f"run {i}", 100.0, 60.0) for i in range(4)}
    assert Forecast(works, 2).left(0.0) == pytest.approx(120.0)
    assert Forecast(works, 8).left(0.0) == pytest.approx(60.0)
    works["4"] = Work("stage 2", 100.0, 60.0, needs=("0",))
    assert Forecast(works, 8).left(0.0) == pytest.approx(120.0)  # one after the other


def test_features_that_are_done_say_nothing_of_the_training() -> None:
    """The first tasks take a second each; the hours of training are still to come."""
    works = {"features": Work("features", 20.0, 1.0), "run": Work("run", 1000.0, 3600.0, needs=("features",))}
    forecast = Forecast(works, 2)
    forecast.begin("features", 0.0)
    forecast.end("features", 1.0)
    left = forecast.left(1.0)
    assert left is not None
    assert left > 3000


def test_where_nothing_was_measured_the_pace_of_this_sweep_counts() -> None:
    works = {"a": Work("a", 100.0), "b": Work("b", 300.0)}
    forecast = Forecast(works, 1)
    assert forecast.left(0.0) is None
    forecast.begin("a", 0.0)
    assert forecast.left(5.0) is None
    forecast.reach("a", 0.0, 5.0)
    forecast.reach("a", 0.5, 10.0)
    assert forecast.left(10.0) == pytest.approx(70.0)  # 50 samples took 10 s; 350 are left
    forecast.end("a", 20.0)
    assert forecast.left(20.0) == pytest.approx(60.0)
    forecast.begin("b", 20.0)
    forecast.end("b", 80.0)
    assert forecast.left(80.0) == 0.0


def test_a_resumed_run_is_as_fast_as_what_it_has_done_now() -> None:
    forecast = Forecast({"a": Work("a", 100.0)}, 1)
    forecast.begin("a", 0.0)
    forecast.reach("a", 0.8, 0.0)
    forecast.reach("a", 0.9, 10.0)
    assert forecast.left(10.0) == pytest.approx(10.0)


def test_a_slower_machine_than_expected_is_noticed_and_failures_are_not_work() -> None:
    works = {str(i): Work(f"run {i}", 100.0, 60.0) for i in range(3)}
    forecast = Forecast(works, 1)
    forecast.begin("0", 0.0)
    forecast.end("0", 600.0)
    left = forecast.left(600.0)
    assert left is not None
    assert left > 800
    forecast.begin("1", 600.0)
    forecast.end("1", 601.0, done=False)
    after = forecast.left(601.0)
    assert after is not None
    assert after == pytest.approx(left / 2, rel=0.01)


def test_tasks_without_names_yet_are_expected_to_be_like_the_others() -> None:
    forecast = Forecast({}, 2, unnamed=4, each=30.0)
    assert forecast.left(0.0) == pytest.approx(60.0)
    forecast.begin("trial 0", 0.0)
    forecast.end("trial 0", 30.0)
    left = forecast.left(30.0)
    assert left == pytest.approx(45.0)


def test_a_smoke_run_says_nothing_of_a_long_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of its time is start-up; the longest run of a shape is the one to go by."""
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path))
    long = evlgen("mini")

    def finished(steps: int, seconds: float) -> None:
        config = dataclasses.replace(long, optim=dataclasses.replace(long.optim, steps=steps))
        folder = files.prepare(config)
        samples = steps * config.optim.batch_size
        files.write_result(folder, {"train_seconds": seconds, "samples": samples}, {})

    finished(12, 30.0)
    assert plan.expected_seconds(long, plan.measured_rates()) is None
    finished(250, 50.0)
    assert plan.expected_seconds(long, plan.measured_rates()) == pytest.approx(100.0)
