"""The run store: a folder a run, named by a hash of its configuration and of the code that decides it.

What state a run is in follows from the files of its folder alone.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evlgen.config import RunConfig, to_json
from evlgen.errors import UserError
from evlgen.runtime.files import write_atomic
from evlgen.runtime.paths import ROOT, runs_folder
from sweeps import leases

WEIGHTS = "connector.safetensors"  # `evlgen.training.CONNECTOR`, without importing torch for it
# These decide how a run is scored, described or reported, not what it learns.
_NOT_DECISIVE = {
    *("metrics.py", "cost.py", "errors.py", "files.py", "cpu.py", "foundation.py"),
    *("convert.py", "throughput.py", "transformers_model.py"),
}
# What no run uses that has the miniworld and the miniature's models.
_NOT_MINIATURE = {
    *("capfilt.py", "easy_vqa.py", "folder.py", "gqa.py", "karpathy.py", "listed.py"),
    *("nocaps.py", "real.py", "stream.py", "vqa.py", "eva.py", "wheels.py"),
}


@functools.cache
def code_version(miniature: bool = False) -> str:
    """Hash of the library's code, without comments, docstrings and layout.

    Args:
        miniature: without what runs in the miniature do not use.
    """
    digest = hashlib.sha256()
    package = ROOT / "evlgen"
    left_out = _NOT_DECISIVE | (_NOT_MINIATURE if miniature else set())
    for path in sorted(package.rglob("*.py")):
        if path.name not in left_out:
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(code_fingerprint(path.read_text()).encode())
    return digest.hexdigest()[:16]


@functools.cache
def weights_version(*names: str) -> str:
    """Hash of those of the shipped weights that have one of the names, and of the miniature's words."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "evlgen" / "miniworld" / "weights").glob("mini-*")):
        if path.stem in (*names, "mini-tokenizer"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def version() -> str:
    """Of everything that may decide a run: code and all shipped weights."""
    names = [path.stem for path in (ROOT / "evlgen" / "miniworld" / "weights").glob("mini-*")]
    return f"{code_version()}-{weights_version(*sorted(names))}"


def code_fingerprint(source: str) -> str:
    """Dump of the syntax tree without docstrings: equal for sources that do the same."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            first = body[0].value if body and isinstance(body[0], ast.Expr) else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                node.body = body[1:]
    return ast.dump(tree)


def is_shipped(name: str) -> bool:
    """Whether a model is one of the miniature's, or none at all: nothing needs to be had for it."""
    return name in ("", "random") or name.startswith("mini-")


def run_id(config: RunConfig) -> str:
    """16 hex digits that stand for the configuration, the code, and the shipped weights that it uses."""
    first = config if config.init_from is None else config.init_from
    models = (config.vision, config.language, config.connector.init, first.connector.init)
    miniature = config.data.world == "miniworld" and all(map(is_shipped, models))
    version = f"{code_version(miniature)}\n{weights_version(*models)}"
    return hashlib.sha256(f"{_text(config)}\n{version}".encode()).hexdigest()[:16]


def _text(config: RunConfig) -> str:
    """JSON of a config, without spaces, keys sorted; parts that thousands of runs share are written once."""
    fields = []
    for name in sorted(RunConfig.__dataclass_fields__):
        value = getattr(config, name)
        if isinstance(value, RunConfig):
            text = _text(value)
        elif dataclasses.is_dataclass(value):
            text = _part(value)
        else:
            text = _scalar(value)
        fields.append(f'"{name}":{text}')
    return "{" + ",".join(fields) + "}"


def _part(part: Any) -> str:
    known = _parts.get(id(part))
    if known is None:  # what is equal may still be written differently (1, 1.0): so by identity
        known = _parts[id(part)] = (part, json.dumps(to_json(part), sort_keys=True, separators=(",", ":")))
    return known[1]


_scalar = functools.lru_cache(maxsize=4096, typed=True)(functools.partial(json.dumps, separators=(",", ":")))
_parts: dict[int, tuple[Any, str]] = {}  # with the part itself, so that its id stays its own


def run_folder(config: RunConfig) -> Path:
    """Folder of a run, whether it exists or not."""
    return runs_folder() / run_id(config)


# ------------------------------------------------------------------------------------------- results


class Damaged(UserError):
    """A file that is not what `write_json` wrote, whoever reads it."""


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically, with a checksum of it under ``sha256``."""
    value = {**value, "sha256": _checksum(value)}
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """An object that `write_json` wrote; None if there is none.

    Raises:
        Damaged: no JSON, or not what its checksum promises.
        UserError: it cannot be read, which does not mean that it is damaged.
    """
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise Damaged(f"{path}: damaged ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not isinstance(value, dict) or value.pop("sha256", None) != _checksum(value):
        raise Damaged(f"{path}: damaged (does not match its checksum)")
    return value


def read_if_whole(path: Path) -> dict[str, Any] | None:
    """As `read_json`, but a damaged file is named, put aside as ``*.damaged``, and counts as missing."""
    try:
        return read_json(path)
    except Damaged as error:
        print(f"{error}: put aside as {path.name}.damaged, to be made again", file=sys.stderr, flush=True)
        with contextlib.suppress(FileNotFoundError):  # another process has put it aside
            os.replace(path, path.with_name(path.name + ".damaged"))
        return None


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------------- states

STATES = ("done", "trained", "running", "queued", "pending", "stopped", "lost", "failed")


@dataclass(frozen=True)
class State:
    """Where a run is, by the files of its folder and by what the queue says.

    Attributes:
        name: ``done``; ``running``; ``queued`` in SLURM; ``failed``; ``lost``, its process or job has ended
            without a word; ``stopped`` on purpose, with a checkpoint; ``trained``, only its scores are
            missing; ``pending``, not begun.
        device_seconds: what it has cost so far, over all attempts.
        samples_per_second, share: pace and progress of one that runs.
    """

    name: str
    device_seconds: float = 0.0
    samples_per_second: float = 0.0
    share: float = 0.0


def state(folder: Path | str, now: float, queued: str | None = None, was_submitted: bool = False) -> State:
    """State of a run. Reads the names of its files and at most one of them, so ten thousand take a moment.

    Args:
        now: from `server_time`.
        queued: what SLURM says of its job, None if there is none.
        was_submitted: it was given to SLURM at some time.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    number = leases.last_claim(names)
    beat = leases.read_beat(folder, number) if number else None
    spent = float((beat or {}).get("device_seconds", 0.0))
    if "result.json" in names:
        return State("done", spent)
    silent = number and (beat is None or beat["ended"] is None)
    if silent and leases.seems_alive(folder, number, now):
        steps = (beat or {}).get("steps") or 1
        return State("running", spent, (beat or {}).get("rate", 0.0), (beat or {}).get("step", 0) / steps)
    if "error.json" in names:
        return State("failed", spent)
    if "outcome.json" in names:
        return State("trained", spent)
    if queued is not None:
        return State("queued", spent)
    if silent or was_submitted:
        return State("lost", spent)
    return State("stopped" if "checkpoint.pt" in names else "pending", spent)


def server_time(root: Path) -> float:
    """The time by the clock of the file server that holds ``root``: that of a file written this moment."""
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".now.{socket.gethostname()}.{os.getpid()}.tmp"
    probe.write_bytes(b"")
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def status(folder: Path) -> str:
    """State of one run as a word; a result is read, and ``damaged`` if it is not whole."""
    try:
        if read_json(folder / "result.json") is not None:
            return "complete"
    except UserError:
        return "damaged"
    return state(folder, time.time()).name


def is_complete(folder: Path) -> bool:
    """Whether the run has a whole result; a damaged one is named, put aside and counts as missing."""
    return read_if_whole(folder / "result.json") is not None


def lacks_weights(folder: Path, config: RunConfig) -> bool:
    """Whether it is a stage 1 of which only the records are there: others cannot start from it."""
    return config.stage == "represent" and not (folder / WEIGHTS).exists()


def prepare(run: str, config: RunConfig) -> Path:
    """Folder of a run with its ``config.json``; traces of a failure before are removed."""
    folder = runs_folder() / run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.json").unlink(missing_ok=True)
    if read_if_whole(folder / "config.json") is None:
        write_json(folder / "config.json", to_json(config))
    return folder
