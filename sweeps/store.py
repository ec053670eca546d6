"""The run store: a folder a run, named by a hash of its configuration and of the code that decides it.

What state a run is in follows from the files of its folder alone.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from evlgen.config import RunConfig, to_json
from evlgen.errors import UserError
from evlgen.files import write_atomic

ROOT = Path(__file__).parents[1]
# These decide how a run is scored, described or reported, not what it learns.
_NOT_DECISIVE = {"metrics.py", "cost.py", "errors.py", "files.py", "cpu.py", "foundation.py"}


def store_folder() -> Path:
    """``$EVLGEN_RUNS``, or ``runs`` in the project."""
    return Path(os.environ.get("EVLGEN_RUNS") or ROOT / "runs")


def results_folder() -> Path:
    """``$EVLGEN_RESULTS``, or ``results`` in the project: where tables are written."""
    return Path(os.environ.get("EVLGEN_RESULTS") or ROOT / "results")


@functools.cache
def code_version() -> str:
    """Hash of the library's code, without comments, docstrings and layout, and of the shipped weights."""
    digest = hashlib.sha256()
    package = ROOT / "evlgen"
    for path in sorted(package.rglob("*.py")):
        if path.name not in _NOT_DECISIVE:
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(code_fingerprint(path.read_text()).encode())
    for path in sorted((package / "weights").glob("mini-*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


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


def run_id(config: RunConfig) -> str:
    """16 hex digits that stand for the configuration and the code version."""
    text = json.dumps(to_json(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{text}\n{code_version()}".encode()).hexdigest()[:16]


def run_folder(config: RunConfig) -> Path:
    """Folder of a run, whether it exists or not."""
    return store_folder() / run_id(config)


# ------------------------------------------------------------------------------------------- results


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically, with a checksum of it under ``sha256``."""
    value = {**value, "sha256": _checksum(value)}
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """An object that `write_json` wrote; None if there is none.

    Raises:
        UserError: it is damaged (no JSON, or not what its checksum promises).
    """
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    if not isinstance(value, dict) or value.pop("sha256", None) != _checksum(value):
        raise UserError(f"{path}: damaged (does not match its checksum)")
    return value


def read_if_whole(path: Path) -> dict[str, Any] | None:
    """As `read_json`, but a damaged file is named, put aside as ``*.damaged``, and counts as missing."""
    try:
        return read_json(path)
    except UserError as error:
        print(f"{error}: put aside as {path.name}.damaged, to be made again", file=sys.stderr, flush=True)
        os.replace(path, path.with_name(path.name + ".damaged"))
        return None


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Claim:
    """The right to execute a run, held by one process; it ends with the process."""

    path: Path

    def release(self) -> None:
        self.path.unlink(missing_ok=True)


def claim(folder: Path) -> Claim | None:
    """Take a run for this process; None if a living process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "claim.json"
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    for _ in range(3):
        temporary = folder / f".claim.{os.getpid()}"
        temporary.write_text(json.dumps(me))
        try:
            os.link(temporary, path)  # atomic, and fails if it is there: also on NFS
            return Claim(path)
        except FileExistsError:
            if owner_lives(path):
                return None
            path.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)
    return None


def owner_lives(path: Path) -> bool:
    """Whether the process that made a claim still runs (processes of other hosts are taken at their word)."""
    try:
        owner = json.loads(path.read_text())
        if owner["host"] != socket.gethostname():
            return True
        return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < 1
    except (OSError, ValueError, KeyError, psutil.Error):
        return False


def status(folder: Path) -> str:
    """State of a run: complete, running, failed, trained, interrupted or pending."""
    try:
        if read_json(folder / "result.json") is not None:
            return "complete"
    except UserError:
        return "damaged"
    if (folder / "claim.json").exists() and owner_lives(folder / "claim.json"):
        return "running"
    if (folder / "error.json").exists():
        return "failed"
    if (folder / "predictions.json").exists():
        return "trained"
    return "interrupted" if (folder / "checkpoint.pt").exists() else "pending"


def is_complete(folder: Path) -> bool:
    """Whether the run has a whole result; a damaged one is named, put aside and counts as missing."""
    return read_if_whole(folder / "result.json") is not None


def prepare(run: str, config: RunConfig) -> Path:
    """Folder of a run with its ``config.json``; traces of a failure before are removed."""
    folder = store_folder() / run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.json").unlink(missing_ok=True)
    if read_if_whole(folder / "config.json") is None:
        write_json(folder / "config.json", to_json(config))
    return folder
