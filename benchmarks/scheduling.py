"""What scheduling costs: ``python benchmarks/scheduling.py``; a few minutes, and a temporary folder for runs.

Three figures, and what is aimed at: the local pool's overhead for a run beyond its training (50 ms), a dry
run of 10,000 runs (5 s) and the status of 10,000 runs (1 s), these two as whole commands.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evlgen.config import RunConfig, to_json
from evlgen.runs import folder as files
from evlgen.runs import identity
from evlgen.runtime import paths
from experiments import load
from experiments.base import seeded
from experiments.scales import evlgen
from sweeps import local
from sweeps.plan import feature_tasks, run_task, unique_runs

ROOT = Path(__file__).resolve().parents[1]
MANY = 10_000


def overhead(runs: int = 30) -> tuple[float, float]:
    """Milliseconds for a run in a warm worker: all told, and without what training and validation take."""
    base = evlgen("smoke")
    optim = dataclasses.replace(base.optim, steps=2, eval_every=2, checkpoint_every=2)
    evaluation = dataclasses.replace(base.evaluation, sets=(), validation=8)
    config = dataclasses.replace(base, optim=optim, evaluation=evaluation)
    wanted = {identity.run_id(one): one for one in (seeded(config, seed) for seed in range(runs + 1))}
    tasks = feature_tasks([config])
    for run, one in wanted.items():
        files.prepare(one)
        task = run_task(run, one)
        tasks.append(dataclasses.replace(task, cost=0.0))
    ended: list[float] = []

    def event(kind: str, key: str, detail: object) -> None:
        if kind == "done" and key in wanted:
            ended.append(time.perf_counter())
        assert kind != "failed", detail

    local.execute(tasks, 1, event)
    inside = sum(_inside(paths.runs_folder() / run) for run in list(wanted)[1:])  # the first one warms up
    total = ended[-1] - ended[0]
    return 1e3 * total / runs, 1e3 * (total - inside) / runs


def _inside(folder: Path) -> float:
    """Seconds between the beginning of a run's work and its end, as its provenance has them."""
    provenance = files.read_json(folder / "provenance.json")
    assert provenance is not None
    return float(provenance["wall_seconds"])


def fill(runs: dict[str, RunConfig]) -> None:
    """Folders as 10,000 runs leave them: a third done, the rest in all states."""
    result: dict[str, Any] = {"id": "", "metrics": {"train_seconds": 60.0, "samples": 12_800}}
    for number, (run, config) in enumerate(runs.items()):
        folder = paths.runs_folder() / run
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(to_json(config)) if number < 30 else "{}")
        for name in ("metrics.jsonl", "checkpoint.pt", "checkpoint.sha256", "log.txt", "claim-1.json"):
            (folder / name).touch()
        beat = {"beats": 9, "ended": "done", "device_seconds": 65.0}
        (folder / "beat-1.json").write_text(json.dumps(beat))
        if number % 3 == 0:
            store_quickly(folder / "result.json", result)
        elif number % 3 == 1:
            (folder / "error.json").write_text("{}")


def store_quickly(path: Path, value: dict[str, Any]) -> None:
    """As `store.write_json`, without waiting for the disk."""
    path.write_text(json.dumps({**value, "sha256": files._checksum(value)}), encoding="utf-8")


def command(*arguments: str) -> float:
    """Seconds that a command takes, start of Python and all."""
    began = time.perf_counter()
    program = [sys.executable, str(ROOT / "sweeps" / "run.py")]
    subprocess.run([*program, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EVLGEN_RUNS"] = f"{folder}/runs"
        total, beyond = overhead()
        print(f"a run of 2 updates in a warm worker: {total:.0f} ms, scheduling {beyond:.1f} ms (aim: < 50)")
        os.environ["EVLGEN_RUNS"] = f"{folder}/many"
        experiment = load("table2", "mini")
        seeds = MANY // len(unique_runs(experiment, 1))
        size = ("table2", "--seeds", str(seeds))
        print(f"dry run of {MANY:,} runs, none begun: {command(*size, '--dry-run'):.2f} s (aim: < 5)")
        fill(unique_runs(experiment, seeds))
        print(f"dry run of {MANY:,} runs, a third done: {command(*size, '--dry-run'):.2f} s (aim: < 5)")
        print(f"status of {MANY:,} runs: {command('status', *size):.2f} s (aim: < 1)")


if __name__ == "__main__":
    main()
