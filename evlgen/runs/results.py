"""The one reader of results: the record of a run, from the run store or from the committed archives.

Where a run is not in the store, its record is looked for beside the tables (``results/*/*/runs.tar.xz``), so
that a fresh checkout shows everything without unpacking. Where only a record of an earlier behaviour is
there, it is given with what has changed since, for whoever shows it to say so.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runs import archive, behaviour
from evlgen.runs import folder as files
from evlgen.runs.identity import config_hash, identify, run_id, weights_of
from evlgen.runtime.paths import results_folder, runs_folder
from evlgen.runtime.sources import MISSING

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class Record:
    """What is kept of a complete run.

    Attributes:
        id: of the run as it was recorded.
        folder: with its files.
        metrics: measurements and scores of ``result.json``.
        scorers: scorer -> version that gave the scores.
        changed: components whose behaviour has changed since: ``merging 1, now 2``; empty if none has.
        unchecked: what is not on this machine, so that it was not compared: ``weights of opt-2.7b``.
        source: where it was found: the run store, or the path of an archive.
        copies: folders of the same record in archives, which may hold predictions and arrays that this one
            lacks: an archive keeps them of some seeds alone.
    """

    id: str
    config: RunConfig
    folder: Path
    metrics: Mapping[str, Any]
    scorers: Mapping[str, int]
    changed: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    source: str = ""
    copies: tuple[Path, ...] = ()

    @property
    def stale_scores(self) -> tuple[str, ...]:
        """Scorers that have changed since the scores were made: ``captions 1, now 2``."""
        return behaviour.changes(
            self.scorers, {name: behaviour.SCORERS.get(name, 1) for name in self.scorers}
        )

    def history(self) -> list[dict[str, float]]:
        """The lines of ``metrics.jsonl``; empty if there is none, or it is damaged (said on stderr)."""
        path = files.verified_if_there(self.folder, files.METRICS)
        return [] if path is None else files.parse_metrics(path.read_text("utf-8"))

    def predictions(self) -> dict[str, dict[str, dict[str, str]]] | None:
        """Captions and answers, as `evlgen.evaluation.decoding` writes them; None if they were not kept."""
        path = self._picture(files.PREDICTIONS)
        return None if path is None else json.loads(path.read_text("utf-8"))

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """Arrays of ``soft_prompts.npz`` or ``merge_maps.npz``; None if they were not kept."""
        import numpy as np  # which lists and states, that read records as well, do not need

        path = self._picture(name)
        if path is None:
            return None
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}

    def _picture(self, name: str) -> Path | None:
        """A verified file of `archive.PICTURED`, from this folder or from a copy."""
        found = (files.verified_if_there(folder, name) for folder in (self.folder, *self.copies))
        return next((path for path in found if path is not None), None)

    def provenance(self) -> dict[str, Any] | None:
        """Where it comes from; None if that is not known."""
        path = files.verified_if_there(self.folder, files.PROVENANCE)
        return None if path is None else files.read_json(path)


def find(config: RunConfig, archives: bool = True) -> Record | None:
    """The record of a run, or else of the same configuration at an earlier behaviour; None if there is none.

    A damaged record is named on stderr and counts as missing. Nothing is changed.

    Args:
        archives: also look into the archives beside the tables.
    """
    wanted, shared = run_id(config), config_hash(config)
    places = [(runs_folder(), str(runs_folder()))]
    if archives:
        places += _extracted_archives()
    places = [place for place in places if shared in _runs_by_config(place[0], _stamp(place[0]))]
    found_in = [place for place in places if wanted in _runs_by_config(place[0], _stamp(place[0]))[shared]]
    # The store's own record comes first: on another processor its numbers are others.
    found_in.sort(key=lambda place: (place[0] != runs_folder(), -_pictures(place[0] / wanted)))
    for root, source in found_in:
        if (record := _read(root / wanted, config, source)) is not None:
            return _with_copies(record, [place[0] / wanted for place in found_in])
    earlier: list[Record] = []
    for root, source in places:
        runs = _runs_by_config(root, _stamp(root))[shared]
        found = (_earlier(root / run, config, source) for run in runs if run != wanted)
        earlier += [record for record in found if record is not None]
    return min(earlier, key=lambda record: (len(record.changed), -_pictures(record.folder)), default=None)


def with_id(prefix: str) -> Record:
    """The complete run whose id begins with ``prefix``, from the run store or else from the archives.

    Args:
        prefix: may also be the path of a run's folder.

    Raises:
        UserError: there is none, or more than one; the record is damaged.
    """
    wanted = prefix.rstrip("/").rpartition("/")[2]
    places: dict[str, list[tuple[Path, str]]] = {}
    for root, source in [(runs_folder(), str(runs_folder())), *_extracted_archives()]:
        for names in _runs_by_config(root, _stamp(root)).values():
            for name in names:
                if name.startswith(wanted) and (root / name / files.RESULT).exists():
                    places.setdefault(name, []).append((root / name, source))
    if len(places) != 1 or not wanted:
        what = f"{len(places)} complete runs begin so" if places else "no complete run begins so"
        raise UserError(f"{prefix}: {what}, in the run store or in an archive beside a table")
    (found,) = places.values()
    folder, source = max(found, key=lambda place: (place[0].parent == runs_folder(), _pictures(place[0])))
    config = files.read_config(folder)
    record = None if config is None else _read(folder, config, source)
    if record is None:
        raise UserError(f"{folder}: its record cannot be read")
    return _with_copies(record, [place[0] for place in found])


def _with_copies(record: Record, folders: Sequence[Path]) -> Record:
    """The record, with those of ``folders`` that are of the same training and hold more of its pictures."""
    kept = _pictures(record.folder)
    fuller = [folder for folder in folders if _pictures(folder) > kept]
    try:
        own = files.read_outcome(record.folder) if fuller else None
        others = [(folder, files.read_outcome(folder)) for folder in fuller]
    except UserError:  # whoever uses one of its files says so
        return record
    if own is None:
        return record
    copies = tuple(
        folder for folder, other in others if other is not None and files.same_training(own, other)
    )
    return dataclasses.replace(record, copies=copies)


def _pictures(folder: Path) -> int:
    """How much is kept of what pictures are drawn from: the archives of two tables may have the same run, one
    with and one without."""
    return sum((folder / name).exists() for name in archive.PICTURED)


def _read(folder: Path, config: RunConfig, source: str) -> Record | None:
    try:
        result = files.read_result(folder)
    except UserError as error:
        print(f"{error}: skipped", file=sys.stderr, flush=True)
        return None
    if result is None:
        return None
    return Record(folder.name, config, folder, result["metrics"], result["scorers"], source=source)


def _earlier(folder: Path, config: RunConfig, source: str) -> Record | None:
    """The record in a folder, if what differs from the run wanted is the behaviour of components alone."""
    try:
        versions = files.read_json(folder / files.IDENTITY)
    except UserError as error:
        print(f"{error}: skipped", file=sys.stderr, flush=True)
        return None
    if versions is None:
        return None
    now, models = identify(config), weights_of(config)
    unchecked: set[str] = set()
    for kind, recorded, current in (
        ("data", versions["data"], now.data),
        ("weights", versions["weights"], now.weights),
    ):
        for name in {*recorded, *current}:
            if current.get(name) == MISSING:
                unchecked.add(f"weights of {models[name]}" if kind == "weights" else f"data {name}")
            elif recorded.get(name) != current.get(name):
                return None  # other data or other weights: another run
    record = _read(folder, config, source)
    if record is None:
        return None
    changed = behaviour.changes(versions["components"], now.components)
    return dataclasses.replace(record, changed=changed, unchecked=tuple(sorted(unchecked)))


_LOOK_SECONDS = 1.0  # between two looks for archives: thousands of runs are asked for in a row


def _extracted_archives() -> list[tuple[Path, str]]:
    """Folder with the records of each archive, and the archive's path."""
    look = int(time.monotonic() / _LOOK_SECONDS)
    return _look_for_archives(results_folder(), look, len(archive.written_here))


@functools.lru_cache(maxsize=1)
def _look_for_archives(results: Path, look: int, written: int) -> list[tuple[Path, str]]:
    places = []
    for path in sorted(results.glob(f"*/*/{archive.ARCHIVE}")):
        try:
            status = path.stat()
            places.append((_extracted(path, status.st_mtime_ns, status.st_size), str(path)))
        except (OSError, UserError) as error:  # noqa: PERF203 (a dozen archives)
            archive.say_once(f"{error}: skipped")
    return places


@functools.lru_cache(maxsize=256)
def _extracted(path: Path, mtime_ns: int, size: int) -> Path:
    return archive.extracted(path)


def _stamp(root: Path) -> int:
    """Changes whenever a run is added to a folder of runs."""
    try:
        return root.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=64)
def _runs_by_config(root: Path, stamp: int) -> dict[str, list[str]]:
    """First part of the id -> runs in a folder of runs that share it."""
    found: dict[str, list[str]] = {}
    try:
        names = os.listdir(root)
    except OSError:
        names = []
    for name in sorted(names):
        if archive.RUN.fullmatch(name):
            found.setdefault(name.partition("-")[0], []).append(name)
    return found
