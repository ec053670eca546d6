"""A run that is killed at any moment and resumed ends as one that was not."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from evlgen.config import RunConfig, to_json
from evlgen.runs import folder as files
from evlgen.runs import identity
from experiments.scales import evlgen
from sweeps import leases, worker

KILLS = 30
TIMES = ("train_seconds", "resumed_from", "peak_memory_gib")

pytestmark = pytest.mark.xdist_group("sweeps")


def config() -> RunConfig:
    base = evlgen("smoke")
    optim = dataclasses.replace(base.optim, steps=12, eval_every=6, checkpoint_every=3)
    evaluation = dataclasses.replace(base.evaluation, sets=(), validation=8)
    return dataclasses.replace(base, optim=optim, evaluation=evaluation)


def place(parent: Path) -> Path:
    """Folder of the run, which goes by its id."""
    return parent / identity.run_id(config())


def work(folder: str, cache: str) -> None:
    os.environ["EVLGEN_CACHE"] = cache
    worker.execute_run(lambda _: None, folder, None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the features; everything is imported for the processes, so that they begin at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.sweeps.test_kills", "evlgen.evaluation.decoding", "evlgen.data.pairs"]
    )
    return tmp_path_factory.mktemp("cache")


def start(folder: Path, cache: Path) -> Any:
    """A process that executes the run of this file in a folder."""
    files.write_json(folder / "config.json", to_json(config()))
    process = multiprocessing.get_context("forkserver").Process(target=work, args=(str(folder), str(cache)))
    process.start()
    return process


def finish(folder: Path, cache: Path) -> None:
    process = start(folder, cache)
    process.join(120)
    assert process.exitcode == 0


def learned(folder: Path) -> tuple[dict[str, Any], bytes]:
    outcome = files.read_outcome(folder)
    assert outcome is not None
    kept = {name: value for name, value in outcome["metrics"].items() if name not in TIMES}
    return kept, (folder / "connector.safetensors").read_bytes()


@pytest.mark.slow
def test_kills_at_thirty_random_moments(cache: Path, tmp_path: Path) -> None:
    finish(place(tmp_path / "features"), cache)  # makes them, for all
    began = time.monotonic()
    calm = place(tmp_path / "calm")
    finish(calm, cache)
    seconds = time.monotonic() - began
    usual = {path.name for path in calm.iterdir()} | {"checkpoint.prev.pt"}
    moments = random.Random(0)
    killed = resumed = 0
    for number in range(KILLS):
        folder = place(tmp_path / str(number))
        process = start(folder, cache)
        time.sleep(moments.uniform(0.0, seconds))
        process.kill()  # it may have ended in time
        process.join(30)
        killed += not (folder / "outcome.json").exists()
        finish(folder, cache)
        assert learned(folder) == learned(calm)
        resumed += (files.read_outcome(folder) or {})["metrics"]["resumed_from"] > 0
        last = leases.last_claim(os.listdir(folder))
        owners = {f"{kind}-{n}.json" for kind in ("claim", "beat") for n in range(1, last + 1)}
        assert {path.name for path in folder.iterdir()} <= usual | owners  # nothing temporary
        beat = leases.read_beat(folder, last)
        assert beat is not None
        assert beat["ended"] == "done"
    assert killed > KILLS / 3
    assert resumed > 0
