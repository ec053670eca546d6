"""Plan: what an experiment means in runs, what they need before, and what they will cost."""

from __future__ import annotations

import contextlib
import functools
import glob
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from evlgen.config import Conventions, RunConfig
from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs import results
from evlgen.runs.identity import run_folder, run_id
from evlgen.runtime import paths
from experiments.base import Experiment, seeded, shape
from sweeps import states
from sweeps.forecast import Work
from sweeps.local import Task

_OTHERS = 300  # complete runs of other experiments that are looked at, to learn what runs cost
_TRAINING = 0.8  # share of a run's time that goes to training where there is an evaluation


@dataclass(frozen=True)
class Sweep:
    """Which runs are wanted.

    Attributes:
        changed: by ``--set`` or ``--rows``: its table must not take the place of the experiment's own.
        variant: how, from `experiments.overrides.name_of`: nor that of the table of other changes.
    """

    experiment: Experiment
    scale: str
    seeds: int
    changed: bool = False
    variant: str = ""

    @functools.cached_property
    def runs(self) -> dict[str, RunConfig]:
        """By id; a stage that others start from comes before them."""
        return unique_runs(self.experiment, self.seeds)

    @functools.cached_property
    def labels(self) -> dict[str, str]:
        """What a person calls each run: ``EVLGen, OPT-2.7B, seed 2``, ``stage 1 of BLIP-2, seed 2``."""
        rows: dict[str, list[str]] = {}
        firsts: dict[str, list[str]] = {}
        for row in self.experiment.rows:
            for seed in range(self.seeds):
                config = seeded(row.config, seed)
                rows.setdefault(run_id(config), []).append(row.label)
                if config.init_from is not None:
                    firsts.setdefault(run_id(config.init_from), []).append(row.label)
        labels = {run: f"stage 1 of {_common(names)}" for run, names in firsts.items()}
        labels |= {run: names[0] for run, names in rows.items()}
        return {run: f"{labels[run]}, seed {config.seed}" for run, config in self.runs.items()}

    @property
    def table(self) -> str:
        """Name of the folder of its table in the results."""
        return folder_of(self.experiment.name, self.changed, self.variant)

    @property
    def name(self) -> str:
        """Under which its jobs go in the queue."""
        return f"{self.table}-{self.scale}"


def folder_of(name: str, changed: bool, variant: str) -> str:
    """Name of the folder of an experiment's table, or of a search's: of its own, or with what was changed."""
    return "-".join([name, *(["changed"] if changed else []), *([variant] if changed and variant else [])])


def _common(labels: list[str]) -> str:
    """What several rows' labels have in common: their first parts between commas; else the first label."""
    parts = [label.split(", ") for label in labels]
    shared = [
        pieces[0] for pieces in itertools.takewhile(lambda p: len(set(p)) == 1, zip(*parts, strict=False))
    ]
    return ", ".join(shared) or labels[0]


def unique_runs(experiment: Experiment, seeds: int) -> dict[str, RunConfig]:
    """Runs of an experiment by id, each once; the stages that others start from come first."""
    runs: dict[str, RunConfig] = {}
    for seed in range(seeds):
        for row in experiment.rows:
            config = seeded(row.config, seed)
            if config.init_from is not None:
                runs.setdefault(run_id(config.init_from), config.init_from)
            runs.setdefault(run_id(config), config)
    return runs


def unfinished(runs: Mapping[str, RunConfig]) -> dict[str, RunConfig]:
    """The runs that are not complete, and the stages 1 before them of which only the records are there.

    The latter are trained again, to the same bits on a like machine.
    """
    root = paths.runs_folder()
    missing = {
        run: config for run, config in runs.items() if not files.is_complete_and_whole(root / run, config)
    }
    missing |= stages_without_weights(missing)
    return {run: config for run, config in runs.items() if run in missing}


def stages_without_weights(
    missing: Mapping[str, RunConfig], put_aside_damage: bool = True
) -> dict[str, RunConfig]:
    """The stages 1 that runs start from and of which there are, if anything, only the records.

    Args:
        put_aside_damage: also move damaged weights out of the way; else they are only named.
    """
    by_id = {
        run_id(config.init_from): config.init_from
        for config in missing.values()
        if config.init_from is not None
    }
    root = paths.runs_folder()
    return {
        run: first for run, first in by_id.items() if files.lacks_weights(root / run, first, put_aside_damage)
    }


def first_stages(runs: Mapping[str, RunConfig]) -> dict[str, str]:
    """Run -> the stage 1 that it starts from, of those that start from one."""
    return {run: run_id(config.init_from) for run, config in runs.items() if config.init_from is not None}


# ---------------------------------------------------------------------------------------------- tasks

Need = tuple[str, int, str, int, str, Conventions]


def feature_needs(config: RunConfig) -> list[Need]:
    """Which cached features a run reads: pool, number of images, encoder, views, world."""
    from evlgen.data import worlds  # imports numpy, which a look at the state does not need

    world = worlds.of(config.data)
    rest = (world.name, config.conventions)
    held_out = (world.validation, config.evaluation.validation, config.vision, 1, *rest)
    if not config.data.cache:
        return [held_out]
    pools = [
        (pool, size, config.vision, config.data.views, *rest) for pool, size in config.data.pools if size
    ]
    sets = [
        (world.pool_of(name), size, config.vision, 1, *rest) for name, size in config.evaluation.sets if size
    ]
    return [*pools, held_out, *sets]


def feature_tasks(runs: Iterable[RunConfig]) -> list[Task]:
    """One task for each kind of cached features that runs read, the largest first."""
    features = sorted({need for config in runs for need in feature_needs(config)})
    return [
        Task(_feature_key(need), "sweeps.worker:cache_features", need, cost=1e9 + need[1])
        for need in features
    ]


def missing_features(tasks: Iterable[Task]) -> list[Task]:
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


def run_task(run: str, config: RunConfig) -> Task:
    """The task that executes a run; it needs its features and the run that it starts from."""
    first = None if config.init_from is None else run_id(config.init_from)
    root = paths.runs_folder()
    needs = [_feature_key(need) for need in feature_needs(config)]
    return Task(
        run,
        "sweeps.worker:execute_run",
        (str(root / run), None if first is None else str(root / first)),
        (*needs, *([] if first is None else [first])),
        expected_cost(config),
    )


def _feature_key(need: Need) -> str:
    return "features " + " ".join(map(str, need))


def works(tasks: Iterable[Task], runs: Mapping[str, RunConfig], labels: Mapping[str, str]) -> dict[str, Work]:
    """How the progress of tasks is shown, and what is expected of them."""
    rates, found = measured_rates(runs), {}
    for task in tasks:
        if task.key in runs:
            config = runs[task.key]
            training = _TRAINING if any(size for _, size in config.evaluation.sets) else 1.0
            seconds = expected_seconds(config, rates)
            found[task.key] = Work(labels[task.key], samples(config), seconds, training, task.needs)
        else:
            pool, size, vision, views, *_ = task.arguments
            seconds = feature_seconds(vision, size, views)
            found[task.key] = Work(f"features of {size:,} images of {pool}", float(size * views), seconds)
    return found


# ----------------------------------------------------------------------------------------------- cost


def samples(config: RunConfig) -> int:
    """Samples that a run is trained on."""
    return config.optim.steps * config.optim.batch_size


def expected_cost(config: RunConfig) -> float:
    """Rough cost in samples; a stage that others wait for goes first."""
    return samples(config) * (3.0 if config.stage == "represent" else 1.0)


# Shape of a run -> seconds of a process for a sample, evaluation included; samples of the run measured
Rates = dict[tuple[object, ...], tuple[float, int]]
_SHORTER = 5  # a run so many times shorter says nothing: most of its time is start-up


def measured_rates(runs: Mapping[str, RunConfig] = MappingProxyType({})) -> Rates:
    """What samples have cost, from one complete run of each shape: from the longest.

    Complete runs among ``runs`` are asked first, then some others in the store, then the archives beside the
    tables, whose machine was another.
    """
    rates: Rates = {}
    wanted = {shape(config) for config in runs.values()}
    root = paths.runs_folder()
    for run, config in runs.items():
        if wanted <= rates.keys():
            return rates
        if shape(config) not in rates:
            _measure(root / run, config, rates)
    others = (path.parent for path in root.glob(f"*/{files.RESULT}")) if root.exists() else iter(())
    for folder in itertools.islice(others, _OTHERS):
        with contextlib.suppress(UserError):  # a damaged file
            config_there = files.read_config(folder)
            if config_there is not None:
                _measure(folder, config_there, rates)
    for config in runs.values():
        if shape(config) not in rates and (record := results.find(config)) is not None:
            _measure(record.folder, config, rates)
    return rates


def _measure(folder: Path, config: RunConfig, rates: Rates) -> None:
    _, longest = rates.get(shape(config), (0.0, 0))
    if samples(config) <= longest:
        return
    with contextlib.suppress(UserError):
        result = files.read_result(folder)
        if result is not None:
            spent = states.state(folder, 0.0).device_seconds or result["metrics"]["train_seconds"]
            rates[shape(config)] = (spent / result["metrics"]["samples"], samples(config))


def expected_seconds(config: RunConfig, rates: Rates) -> float | None:
    """Seconds of a process that a run will take, None if no run of its kind and length was measured."""
    rate, measured = rates.get(shape(config), (0.0, 0))
    return rate * samples(config) if measured * _SHORTER > samples(config) else None


def feature_seconds(vision: str, size: int, views: int) -> float | None:
    """Seconds of a process for the features of a pool; None where the encoder is not the miniature's."""
    return 0.01 * size * views if vision.startswith("mini") else None


# --------------------------------------------------------------------------------------------- states


def is_complete(experiment: Experiment, seed: int, or_earlier: bool = False) -> bool:
    """Whether all rows of an experiment have a result for a seed.

    Args:
        or_earlier: results of an earlier behaviour of the code count, too.
    """
    configs = [seeded(row.config, seed) for row in experiment.rows]
    return all(
        files.is_complete(run_folder(config))
        or (or_earlier and results.find(config, archives=False) is not None)
        for config in configs
    )
