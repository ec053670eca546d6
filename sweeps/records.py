"""Records of finished runs that come from elsewhere: unpacked from archives, or adopted from earlier ids."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evlgen.config import RunConfig, from_json
from evlgen.errors import UserError
from evlgen.runs import archive, behaviour, identity
from evlgen.runs import folder as files
from evlgen.runs.archive import PICTURED, Files
from evlgen.runtime import paths
from evlgen.runtime.files import disk_errors, sha256_of
from evlgen.runtime.sources import shipped_file
from sweeps import leases

# ----------------------------------------------------------------------------------------- unpacking


@dataclass
class Unpacked:
    """Runs that were put into the run store, and a sentence for each that is damaged in the archive."""

    put: list[str]
    damaged: list[str]


def unpack(path: Path) -> Unpacked:
    """Put the runs of an archive into the run store; those that are complete or being made there stay.

    Runs of which a file is damaged are named on stderr and left out.

    Raises:
        Damaged: the archive is damaged, or holds something else.
        UserError: there is none, or it cannot be read.
    """
    runs, damaged = archive.whole_runs(path)
    for complaint in damaged:
        print(f"{path}: {complaint}", file=sys.stderr, flush=True)
    done = Unpacked([], damaged)
    for run, found in runs.items():
        folder = paths.runs_folder() / run
        if files.is_complete(folder):  # perhaps from another table's file, without its pictures
            _add_pictures(folder, found)
            continue
        lease = leases.claim(folder, devices=0)  # copying costs no device
        if lease is None:
            print(f"{run}: is being made here; left alone", flush=True)
            continue
        archive.put(folder, found)
        lease.release()
        done.put.append(run)
    return done


def _add_pictures(folder: Path, found: Files) -> None:
    """Put what a complete run lacks of its pictures beside its record, if they are of the same training."""
    own, other = files.outcome_if_whole(folder), files.parse_json(found[files.OUTCOME], files.OUTCOME)
    if own is None or not files.same_training(own, other):
        return
    listed = own["files"]
    added = {
        name: found[name]
        for name in PICTURED
        if name in found and (name not in listed or not (folder / name).exists())
    }
    if not added.keys() <= listed.keys():  # records of an earlier form list only what was kept of them
        listed = listed | {name: other["files"][name] for name in added}
        files.write_json(folder / files.OUTCOME, {**own, "files": listed})
    archive.put(folder, added)


# ------------------------------------------------------------------------------------------ adopting

_OLD_ID = re.compile(r"[0-9a-f]{16}")  # of the whole configuration and of the sources
# The sources behind the committed records: what they computed is behaviour 1 of every component.
_ADOPTED_SOURCES = "422e7dd62dd8563f"


@dataclass
class Adopted:
    """What became of records with earlier ids: old id -> new id, and old id -> why it was left out."""

    runs: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def adopt_archive(path: Path) -> Adopted:
    """Give the runs of an archive the ids of today, in place; scores and measurements stay as they are.

    Raises:
        UserError: there is no archive, it is damaged, or holds something else.
    """
    done, kept = Adopted(), {}
    for run, found in archive.contents(path, _OLD_ID, archive.RUN).items():
        if archive.RUN.fullmatch(run):
            kept[run] = found
            continue
        try:
            new, renewed = _renewed(run, found)
        except UserError as error:
            done.refused[run] = str(error)
        else:
            done.runs[run] = new
            kept[new] = renewed
    if done.runs:
        archive.write(path, kept)
    return done


def adopt_store() -> Adopted:
    """Give the finished runs of the run store that have earlier ids those of today; weights go with them.

    The new folder is built under a temporary name and appears by one rename; only then does the old one go.
    After an interruption, adopting again does the rest.
    """
    done, root = Adopted(), paths.runs_folder()
    names = os.listdir(root) if root.exists() else []
    for leftover in filter(_LEFTOVER.fullmatch, names):
        shutil.rmtree(root / leftover, ignore_errors=True)
    for run in sorted(filter(_OLD_ID.fullmatch, names)):
        folder = root / run
        if not any(path.is_file() for path in folder.rglob("[!.]*")):
            _discard(folder)
            continue
        found = {name: (folder / name).read_bytes() for name in archive.NAMES if (folder / name).exists()}
        try:
            connector = folder / files.CONNECTOR
            new, renewed = _renewed(run, found, sha256_of(connector) if connector.exists() else None)
            if _is_adopted(folder, root / new, renewed):
                _discard(folder)
                continue
            with disk_errors(root / new):
                _move(folder, root / new, renewed)
        except UserError as error:
            done.refused[run] = str(error)
        else:
            done.runs[run] = new
    return done


_LEFTOVER = re.compile(r"\.[0-9a-f]{12}-[0-9a-f]{8}\.adopting|\.[0-9a-f-]+\.adopted")


def _is_adopted(folder: Path, target: Path, renewed: Files) -> bool:
    """Whether the store has the run under its new id already, with everything that the old folder has.

    Raises:
        UserError: it is being made there, or there with other results.
    """
    if not target.exists():
        return False
    if not files.is_complete(target):
        lease = leases.claim(target, devices=0)
        if lease is None:
            raise UserError(f"{folder.name}: {target.name} is being made here; adopt it when that is over")
        lease.release()
        return False
    outcome = files.read_outcome(target)
    mine = files.parse_json(renewed[files.OUTCOME], folder / files.OUTCOME)
    if outcome is None or outcome["metrics"] != mine["metrics"]:
        raise UserError(f"{folder.name}: {target.name} is there with other results; delete one of the two")
    # One that was unpacked from an archive lacks the weights.
    return all((target / name).exists() for name in mine["files"])


def _move(folder: Path, target: Path, renewed: Files) -> None:
    """Put the files of an old folder, with new records, where the run belongs."""
    new = target.with_name(f".{target.name}.adopting")
    try:
        shutil.copytree(
            folder, new, copy_function=_link_or_copy, ignore=shutil.ignore_patterns(".*")
        )  # the log and weights; records are replaced
        archive.put(new, renewed)
        _discard(target)  # unfinished, or without weights
        os.rename(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _discard(folder)


def _discard(folder: Path) -> None:
    """Delete a folder, which no longer has its name once some of its files are gone."""
    gone = folder.with_name(f".{folder.name}.adopted")
    if folder.exists():
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _renewed(run: str, found: Mapping[str, bytes], connector: str | None = None) -> tuple[str, Files]:
    """New id and files of a run with an earlier id.

    Args:
        connector: SHA-256 of its trained weights, where they are there.

    Raises:
        UserError: it is not finished, a file is damaged, or it is of other sources or weights.
    """
    # imports the packages that score, which commands that only look do not need
    from evlgen.evaluation.scores import scorers_of

    values = {}
    for name in (files.CONFIG, files.OUTCOME, files.PROVENANCE, files.RESULT):
        if name not in found:
            raise UserError(f"{run}/{name}: missing; the run is not finished")
        values[name] = files.parse_json(found[name], f"{run}/{name}")
    if values[files.RESULT].get("id") != run:
        raise files.Damaged(f"{run}/{files.RESULT}: is of the run {values[files.RESULT].get('id')}")
    config, provenance = from_json(values[files.CONFIG]), values[files.PROVENANCE]
    _check_origin(run, config, provenance, connector)
    versions = {
        **identity.identify(config).versions,
        "components": dict.fromkeys(behaviour.components_of(config), 1),
    }
    new = identity.id_of(config, versions)
    renewed = {name: found[name] for name in (files.METRICS, *PICTURED, files.PROVENANCE) if name in found}
    listed = {name: hashlib.sha256(content).hexdigest() for name, content in renewed.items()}
    if connector is not None:
        listed[files.CONNECTOR] = connector
    result = values[files.RESULT]["metrics"]
    scorers = dict.fromkeys(scorers_of(config), 1)
    for name, value in (
        (files.CONFIG, values[files.CONFIG]),
        (files.IDENTITY, versions),
        (files.OUTCOME, {"id": new, "metrics": values[files.OUTCOME], "files": listed}),
        (files.RESULT, {"id": new, "metrics": result, "scorers": scorers}),
    ):
        renewed[name] = files.json_bytes(value)
    return new, renewed


def _check_origin(run: str, config: RunConfig, provenance: Mapping[str, Any], connector: str | None) -> None:
    """The run was made by the sources of the committed records, with the weights that are shipped."""
    if provenance.get("code_version") != _ADOPTED_SOURCES:
        raise UserError(
            f"{run}: made by sources {provenance.get('code_version')}, of which it is not known that they "
            "computed what the committed records hold; make it again"
        )
    weights = provenance["weights_sha256"]
    for role, name in (("vision", config.vision), ("language", config.language)):
        recorded = weights.get(role)
        if recorded is not None and name.startswith("mini-"):
            now = sha256_of(shipped_file(f"{name}.safetensors"))[:16]
            if now != recorded:
                raise UserError(f"{run}: made with other weights of {name} ({recorded}, now {now})")
    if connector is not None and weights.get("connector") != connector:
        raise files.Damaged(
            f"{run}/{files.CONNECTOR}: damaged (does not match the checksum in its provenance)"
        )


def report(done: Adopted, where: str) -> None:
    """Say what became of records with earlier ids."""
    print(f"{where}: {len(done.runs)} runs have new ids, {len(done.refused)} were left out", flush=True)
    for run, reason in done.refused.items():
        print(f"  {run}: {reason}", file=sys.stderr, flush=True)
