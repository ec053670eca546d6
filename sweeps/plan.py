"""What an experiment means in runs, what they need before, and what they will cost."""

from __future__ import annotations

import contextlib
import glob
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from evlgen.config import RunConfig, from_json
from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs import identity
from evlgen.runtime import paths
from experiments.base import Experiment, seeded, shape
from sweeps import local, states

_OTHERS = 300  # complete runs of other experiments that are looked at, to learn what runs cost


def unique_runs(experiment: Experiment, seeds: int) -> dict[str, RunConfig]:
    """Runs of an experiment by id, each once; the stages that others start from come first."""
    runs: dict[str, RunConfig] = {}
    for seed in range(seeds):
        for row in experiment.rows:
            config = seeded(row.config, seed)
            if config.init_from is not None:
                runs.setdefault(identity.run_id(config.init_from), config.init_from)
            runs.setdefault(identity.run_id(config), config)
    return runs


def stages_without_weights(missing: Mapping[str, RunConfig]) -> dict[str, RunConfig]:
    """The stages 1 that runs start from and of which there are, if anything, only the records."""
    firsts = [config.init_from for config in missing.values() if config.init_from is not None]
    by_id = {identity.run_id(first): first for first in firsts}
    root = paths.runs_folder()
    return {run: first for run, first in by_id.items() if files.lacks_weights(root / run, first)}


Need = tuple[str, int, str, int, str]


def feature_needs(config: RunConfig) -> list[Need]:
    """Which cached features a run reads: pool, number of images, encoder, views, world."""
    from evlgen.data import worlds

    world = worlds.of(config.data)
    held_out = (world.validation, config.evaluation.validation, config.vision, 1, world.name)
    if not config.data.cache:
        return [held_out]
    pools = [
        (pool, size, config.vision, config.data.views, world.name) for pool, size in config.data.pools if size
    ]
    sets = [
        (world.pool_of(name), size, config.vision, 1, world.name)
        for name, size in config.evaluation.sets
        if size
    ]
    return [*pools, held_out, *sets]


def feature_tasks(runs: Iterable[RunConfig]) -> list[local.Task]:
    """One task for each kind of cached features that runs read, the largest first."""
    features = sorted({need for config in runs for need in feature_needs(config)})
    return [
        local.Task(_feature_key(need), "sweeps.worker:cache_features", need, cost=1e9 + need[1])
        for need in features
    ]


def missing_features(tasks: Iterable[local.Task]) -> list[local.Task]:
    """Those of `feature_tasks` that the cache does not seem to have: a guess by names of files.

    A wrong guess costs time at most: a run makes for itself what it does not find.
    """
    from evlgen.data import worlds

    folder = paths.cache_folder() / "features"
    return [
        task
        for task in tasks
        if not any(folder.glob(glob.escape(worlds.cache_prefix(*task.arguments[:4])) + "-*.sha256"))
    ]


def run_task(run: str, config: RunConfig) -> local.Task:
    """The task that executes a run; it needs its features and the run that it starts from."""
    first = None if config.init_from is None else identity.run_id(config.init_from)
    root = paths.runs_folder()
    needs = [_feature_key(need) for need in feature_needs(config)]
    return local.Task(
        run,
        "sweeps.worker:execute_run",
        (str(root / run), None if first is None else str(root / first)),
        (*needs, *([] if first is None else [first])),
        expected_cost(config),
    )


def _feature_key(need: Need) -> str:
    return "features " + " ".join(map(str, need))


def expected_cost(config: RunConfig) -> float:
    """Rough cost in samples; a stage that others wait for goes first."""
    samples = config.optim.steps * config.optim.batch_size
    return samples * (3.0 if config.stage == "represent" else 1.0)


def measured_rates(runs: Mapping[str, RunConfig] = MappingProxyType({})) -> dict[tuple[object, ...], float]:
    """Seconds of a process for a sample, all told, by shape of run: from one complete run of each.

    Complete runs among ``runs`` are asked first, then some others in the store.
    """
    rates: dict[tuple[object, ...], float] = {}
    wanted = {shape(config) for config in runs.values()}
    root = paths.runs_folder()
    for run, config in runs.items():
        if wanted <= rates.keys():
            return rates
        if shape(config) not in rates:
            _measure(root / run, config, rates)
    others = (path.parent for path in root.glob("*/result.json")) if root.exists() else iter(())
    for folder in itertools.islice(others, _OTHERS):
        with contextlib.suppress(UserError):  # a damaged file
            stored = files.read_json(folder / "config.json")
            if stored is not None:
                _measure(folder, from_json(stored), rates)
    return rates


def _measure(folder: Path, config: RunConfig, rates: dict[tuple[object, ...], float]) -> None:
    with contextlib.suppress(UserError):
        result = files.read_json(folder / "result.json")
        if result is not None:
            spent = states.state(folder, 0.0).device_seconds or result["metrics"]["train_seconds"]
            rates.setdefault(shape(config), spent / result["metrics"]["samples"])


def expected_seconds(config: RunConfig, rates: dict[tuple[object, ...], float]) -> float | None:
    """Seconds of a process that a run will take, None if no run of its kind was measured."""
    rate = rates.get(shape(config))
    return None if rate is None else rate * config.optim.steps * config.optim.batch_size
