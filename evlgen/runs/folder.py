"""The folder of a run: its files, verified wherever they are read.

JSON files carry a checksum of themselves. ``outcome.json``, written when training and evaluation are over,
lists the checksums of all other files that the run made. ``result.json`` comes last and makes the run
complete.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from evlgen.config import RunConfig, from_json, to_json
from evlgen.errors import UserError
from evlgen.runs.identity import identify, run_folder, run_id
from evlgen.runtime.files import sha256_of, write_atomic

CONFIG, IDENTITY = "config.json", "identity.json"
METRICS, OUTCOME, RESULT, PROVENANCE = "metrics.jsonl", "outcome.json", "result.json", "provenance.json"
PREDICTIONS, SOFT_PROMPTS, MERGE_MAPS = "predictions.json", "soft_prompts.npz", "merge_maps.npz"
CONNECTOR = "connector.safetensors"  # the trained parts
CHECKPOINT, ERROR, LOG = "checkpoint.pt", "error.json", "log.txt"
MADE = (METRICS, PREDICTIONS, SOFT_PROMPTS, MERGE_MAPS, CONNECTOR, PROVENANCE)  # listed in the outcome


class Damaged(UserError):
    """A file is not what was written into it."""


# ---------------------------------------------------------------------------------------------- JSON


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically, with a checksum of it under ``sha256``."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: dict[str, Any]) -> bytes:
    """What `write_json` writes."""
    value = {**value, "sha256": _checksum(value)}
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def read_json(path: Path) -> dict[str, Any] | None:
    """An object that `write_json` wrote; None if there is none.

    Raises:
        Damaged: no JSON, or not what its checksum promises.
        UserError: it cannot be read, which does not mean that it is damaged.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    return parse_json(data, path)


def parse_json(data: bytes, path: Path | str) -> dict[str, Any]:
    """The object in the bytes that `write_json` wrote.

    Args:
        path: where they come from, for the message.

    Raises:
        Damaged: no JSON, or not what its checksum promises.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Damaged(f"{path}: damaged ({error})") from error
    if not isinstance(value, dict) or value.pop("sha256", None) != _checksum(value):
        raise Damaged(f"{path}: damaged (does not match its checksum)")
    return value


def read_if_whole(path: Path) -> dict[str, Any] | None:
    """As `read_json`, but a damaged file is named, put aside as ``*.damaged``, and counts as missing."""
    try:
        return read_json(path)
    except Damaged as error:
        put_aside(path, error)
        return None


def put_aside(path: Path, error: Exception) -> None:
    """Name a damaged file and move it out of the way, so that it is made again."""
    print(f"{error}: put aside as {path.name}.damaged, to be made again", file=sys.stderr, flush=True)
    with contextlib.suppress(FileNotFoundError):  # another process has put it aside
        os.replace(path, path.with_name(path.name + ".damaged"))


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------- a run's files


def prepare(config: RunConfig) -> Path:
    """Folder of a run with its configuration and identity; traces of an earlier failure are removed."""
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    _describe(folder, config)
    return folder


def _describe(folder: Path, config: RunConfig) -> None:
    """Configuration and identity of a run, written anew where they are missing, damaged or another run's."""
    for name, value in ((CONFIG, to_json(config)), (IDENTITY, identify(config).versions)):
        stored = read_if_whole(folder / name)
        if stored is not None and stored != value:
            print(f"{folder / name}: is another run's; written anew", file=sys.stderr, flush=True)
        if stored != value:
            write_json(folder / name, value)


def read_config(folder: Path) -> RunConfig | None:
    """The configuration of a run; None if there is none.

    Raises:
        Damaged: it is not what was written.
        UserError: it cannot be read, or is of a version of this project that knew other fields.
    """
    stored = read_json(folder / CONFIG)
    if stored is None:
        return None
    try:
        return from_json(stored)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error


def write_outcome(folder: Path, metrics: dict[str, Any]) -> None:
    """Write what training and evaluation have measured, and the checksums of the files that they made."""
    files = {name: sha256_of(folder / name) for name in MADE if (folder / name).exists()}
    write_json(folder / OUTCOME, {"id": folder.name, "metrics": metrics, "files": files})


def write_result(folder: Path, metrics: dict[str, Any], scorers: dict[str, int]) -> None:
    """Write the result, which makes a run complete.

    Args:
        metrics: of the outcome, and all scores.
        scorers: scorer -> its version, of those that gave the scores.
    """
    write_json(folder / RESULT, {"id": folder.name, "metrics": metrics, "scorers": scorers})


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """``outcome.json``: ``id``, ``metrics`` and ``files`` (name -> SHA-256); None if there is none.

    Raises:
        Damaged: it is not what was written, or another run's.
    """
    return _of_this_run(folder / OUTCOME, "metrics", "files")


def read_result(folder: Path) -> dict[str, Any] | None:
    """``result.json``: ``id``, ``metrics`` and ``scorers`` (name -> version); None if there is none.

    Raises:
        Damaged: it is not what was written, or another run's.
    """
    return _of_this_run(folder / RESULT, "metrics", "scorers")


def _of_this_run(path: Path, *keys: str) -> dict[str, Any] | None:
    value = read_json(path)
    if value is None:
        return None
    if not all(isinstance(value.get(key), dict) for key in keys):
        raise Damaged(f"{path}: damaged (has no {' or no '.join(keys)})")
    if value.get("id") != path.parent.name:
        raise Damaged(f"{path}: is of the run {value.get('id')}, not of this one")
    return value


def outcome_if_whole(folder: Path) -> dict[str, Any] | None:
    """As `read_outcome`, but a damaged one is named, put aside, and counts as missing."""
    try:
        return read_outcome(folder)
    except Damaged as error:
        put_aside(folder / OUTCOME, error)
        return None


def same_training(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two outcomes of a run are of the same training: on another processor its numbers are others.

    One may list files that were not kept of the other.
    """
    both = first["files"].keys() & second["files"]
    return bool(
        first["metrics"] == second["metrics"]
        and all(first["files"][name] == second["files"][name] for name in both)
    )


def is_complete(folder: Path) -> bool:
    """Whether the run has a whole result; a damaged one is named, put aside and counts as missing."""
    try:
        return read_result(folder) is not None
    except Damaged as error:
        put_aside(folder / RESULT, error)
        return False


_NEEDED = (METRICS, PROVENANCE)  # of a complete run; others are not kept everywhere


def is_complete_and_whole(folder: Path, config: RunConfig) -> bool:
    """Whether the run is complete and each of its files is what was written into it.

    What is damaged is named. Configuration and identity are written anew. Predictions and what pictures are
    drawn from are put aside: scores and measurements do not need them any more. Without its outcome, its
    history or its provenance the run has to be made again.

    Args:
        config: of the run with the id that is the folder's name.
    """
    if not is_complete(folder):
        return False
    _describe(folder, config)
    outcome = outcome_if_whole(folder)
    if outcome is None:
        return _has_to_be_made_again(folder, OUTCOME)
    for name in outcome["files"]:
        if name == CONNECTOR:  # verified by whoever starts from it
            continue
        try:
            verified(folder, name)
        except FileNotFoundError:
            if name in _NEEDED:
                return _has_to_be_made_again(folder, name)
        except Damaged as error:
            put_aside(folder / name, error)
            if name in _NEEDED:
                return _has_to_be_made_again(folder, name)
    return True


def _has_to_be_made_again(folder: Path, name: str) -> bool:
    """Take back what makes a run complete, since one of its files is gone."""
    print(f"{folder / name}: is gone; the run is made again", file=sys.stderr, flush=True)
    for made in (RESULT, OUTCOME):
        (folder / made).unlink(missing_ok=True)
    if name == METRICS:  # a training that resumes would not write the lines before its checkpoint again
        for checkpoint in folder.glob("checkpoint.*"):
            checkpoint.unlink(missing_ok=True)
    return False


def verified(folder: Path, name: str) -> Path:
    """Path of a file that the run made, whose bytes are those that its outcome lists.

    Raises:
        Damaged: they are not, or there is no outcome that lists them.
        FileNotFoundError: the file is not there.
    """
    path = folder / name
    status = path.stat()
    outcome = read_outcome(folder)
    promised = None if outcome is None else outcome["files"].get(name)
    if promised is None:
        raise Damaged(f"{path}: {OUTCOME} does not list it")
    if _sha256_of_version(path, status.st_size, status.st_mtime_ns) != promised:
        raise Damaged(f"{path}: damaged (its bytes do not match the checksum in {OUTCOME})")
    return path


@functools.lru_cache(maxsize=4096)
def _sha256_of_version(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_of(path)


def verified_if_there(folder: Path, name: str) -> Path | None:
    """As `verified`; None where the file is missing, or damaged: then it is named on stderr."""
    try:
        return verified(folder, name)
    except FileNotFoundError:
        return None
    except UserError as error:
        print(f"{error}: skipped", file=sys.stderr, flush=True)
        return None


def lacks_weights(folder: Path, config: RunConfig, put_aside_damage: bool = True) -> bool:
    """Whether it is a stage 1 without whole weights: other runs cannot start from it.

    Args:
        put_aside_damage: a damaged file is named and put aside; otherwise it is only named.
    """
    if config.stage == "caption":
        return False
    path = folder / OUTCOME
    try:
        if read_outcome(folder) is None:  # nothing says what the weights have to be
            return True
        path = folder / CONNECTOR
        verified(folder, CONNECTOR)
    except FileNotFoundError:
        return True
    except Damaged as error:
        if put_aside_damage:
            put_aside(path, error)
        else:
            print(error, file=sys.stderr, flush=True)
        return True
    return False


def parse_metrics(text: str) -> list[dict[str, float]]:
    """The lines of a ``metrics.jsonl``; a line that a kill has cut short is left out."""
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of the ``metrics.jsonl`` of a run that may still be training; empty if there is none."""
    try:
        return parse_metrics((folder / METRICS).read_text("utf-8"))
    except FileNotFoundError:
        return []


def check_id(folder: Path, config: RunConfig) -> None:
    """Refuse to execute a run whose configuration, data, weights or behaviour are no longer those of its id.

    Raises:
        UserError: with both ids.
    """
    if (now := run_id(config)) != folder.name:
        raise UserError(
            f"{folder.name}: is {now} by now: data, weights or the behaviour of the code have changed since "
            "this run was planned; type the command again"
        )
