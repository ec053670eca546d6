"""Which trained run a command takes: the one that is named, or else the best finished one. No torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runs import archive, behaviour
from evlgen.runs import folder as files
from evlgen.runtime.paths import absolute, runs_folder

Kind = Literal["caption", "ask"]

HOW_TO_MAKE_ONE = 'python sweeps/run.py table1 --rows "EVLGen, 104M, 150K" --seeds 1'  # a minute


_BEGINNING = re.compile(r"[0-9a-f]{1,12}(-[0-9a-f]{0,8})?")  # of an id


@dataclass(frozen=True)
class Chosen:
    """A run's folder, and why it was taken; empty where the user has named it."""

    folder: Path
    why: str = ""


# ---------------------------------------------------------------------------------------------- by name


def named(name: str) -> Chosen:
    """The run that a user means: a folder, the id of a run in the store, or the beginning of one.

    Raises:
        UserError: there is none, there are several, or the folder is not that of a run.
    """
    path = absolute(name, "--run")
    if path.is_dir():
        if not (path / files.CONFIG).is_file():
            raise UserError(f"--run {name}: is not the folder of a run: it has no {files.CONFIG}")
        return Chosen(path)
    if path.is_file():
        raise UserError(f"--run {name}: is a file; give the folder of a run, or a run's id")
    if not _BEGINNING.fullmatch(path.name):
        raise UserError(f"--run {name}: no such folder, and no run's id")
    found = in_store(path.name)
    if not found:
        raise UserError(
            f"--run {name}: no such run in {runs_folder()}; the archives beside the tables hold no weights, "
            "so a run from there has to be made here: python sweeps/run.py EXPERIMENT"
        )
    if len(found) > 1:
        raise UserError(f"--run {name}: is the beginning of several runs: {', '.join(found[:4])}")
    return Chosen(runs_folder() / found[0])


def in_store(beginning: str) -> list[str]:
    """Ids of the runs in the store that begin so; none if no id does."""
    if not _BEGINNING.fullmatch(beginning):
        return []
    return [run for run in _runs_in_store() if run.startswith(beginning)]


def _runs_in_store() -> list[str]:
    try:
        return sorted(filter(archive.RUN.fullmatch, os.listdir(runs_folder())))
    except OSError:
        return []


# --------------------------------------------------------------------------------------------- the best


@dataclass(frozen=True)
class _Candidate:
    run: str
    config: RunConfig
    metrics: Mapping[str, Any]
    finished: float  # time

    @property
    def data(self) -> tuple[str, ...]:
        """What its scores are comparable with: the world, and of one's own images the folders."""
        data = self.config.data
        own = [name for name, size in data.pools if size] if data.world == "folder" else []
        return (data.world, *own)


@dataclass(frozen=True, order=True)
class _Score:
    """How good a run is: a score on many images says more than one on few, and any more than none."""

    counted: float  # images or questions
    value: float
    name: str


def best(kind: Kind, merging: bool = False) -> Chosen:
    """The best finished run in the store on the data of the one that was finished last.

    For captions that is the highest CIDEr on the first captioning set of a run, for questions the highest
    accuracy on its first question set; of runs that were evaluated on more, where they differ in that. Runs
    without such a score are compared by their validation loss.

    Args:
        merging: only of those whose connector merges tokens.

    Raises:
        UserError: there is none; the message says how to make one.
    """
    without_weights, other_connectors = 0, 0
    candidates: list[_Candidate] = []
    for run in _runs_in_store():
        folder = runs_folder() / run
        if not (folder / files.RESULT).exists():
            continue
        try:
            config, result = files.read_config(folder), files.read_result(folder)
        except UserError as error:
            print(f"{error}: skipped", file=sys.stderr, flush=True)
            continue
        if config is None or result is None or config.stage != "caption":
            continue
        if not (folder / files.CONNECTOR).exists():
            without_weights += 1
        elif merging and config.connector.kind != "tomeformer":
            other_connectors += 1
        else:
            finished = (folder / files.RESULT).stat().st_mtime
            candidates.append(_Candidate(run, config, result["metrics"], finished))
    if not candidates:
        raise UserError(_nothing(without_weights, other_connectors))
    last = max(candidates, key=lambda one: one.finished)
    same = [one for one in candidates if one.data == last.data]
    chosen = max(same, key=lambda one: (_score(one, kind), one.finished))
    score = _score(chosen, kind)
    why = f"the best of {len(same)} finished runs" if len(same) > 1 else "the only finished run"
    why += f" on {' '.join(chosen.data)}"
    if merging:
        why += " with a connector that merges tokens"
    if others := len(candidates) - len(same):
        why += f", where the last one was trained ({others} on other data)"
    why += f": {score.name}"
    return Chosen(runs_folder() / chosen.run, why)


def _score(one: _Candidate, kind: Kind) -> _Score:
    metrics = one.metrics
    for name, _ in one.config.evaluation.sets:
        if kind == "caption" and f"{name}/CIDEr" in metrics:
            count, value = metrics.get(f"{name}/images", 0), metrics[f"{name}/CIDEr"]
            return _Score(count, value, f"CIDEr {value:.1f} on {count:.0f} images of {name}")
        if kind == "ask" and name in metrics:
            count, value = metrics.get(f"{name}/questions", 0), metrics[name]
            return _Score(count, value, f"accuracy {value:.1f} on {count:.0f} questions of {name}")
    loss = metrics.get("val_loss", float("inf"))
    return _Score(-1, -loss, f"validation loss {loss:.3f}")


def _nothing(without_weights: int, other_connectors: int) -> str:
    store = runs_folder()
    if other_connectors:
        return (
            f"--explain: none of the {other_connectors} finished runs in {store} merges tokens; "
            f"make one of EVLGen's: {HOW_TO_MAKE_ONE}"
        )
    if without_weights:
        return (
            f"{store}: {without_weights} finished runs, but none has its weights ({files.CONNECTOR}), which "
            "archives do not hold; remove the folder of one and run its experiment again"
        )
    return (
        f"{store}: no finished run yet (the archives beside the tables hold no weights); make one in a "
        f"minute or two: {HOW_TO_MAKE_ONE}"
    )


# ------------------------------------------------------------------------------------------ its versions


def changed_since(folder: Path, config: RunConfig, fingerprint: Callable[[str], str]) -> tuple[str, ...]:
    """What is not as it was when a run was trained: ``merging 1, now 2``, ``other weights of mini-vit``.

    Args:
        fingerprint: name of a model -> hash of its weights.

    Returns:
        Empty if nothing has changed, or if that is not known (a converted checkpoint).
    """
    versions = files.read_json(folder / files.IDENTITY)
    if versions is None:
        return ()
    changed = behaviour.changes(versions["components"], behaviour.components_of(config))
    models = {"vision": config.vision, "language": config.language}
    weights = tuple(
        f"other weights of {name}"
        for role, name in models.items()
        if role in versions["weights"] and fingerprint(name) != versions["weights"][role]
    )
    return changed + weights
