"""Does it work on this GPU, and how fast: ``make gpu-check``, or ``python benchmarks/gpu_check.py --help``.

Each part runs in a process of its own with a limit to its time; one that fails, hangs or dies is recorded,
and the others go on. JSON and a page in Markdown are written after each part. The same command goes on with
the parts that have not passed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from benchmarks.gpu_page import PARTS, page
from evlgen.errors import UserError, exit_code, nearest
from evlgen.runs.checkout import code_state
from evlgen.runtime import paths
from evlgen.runtime.files import write_atomic

PAGES = Path(__file__).resolve().parent / "gpu"
PASSED, FAILED, TIMEOUT, LEFT = "passed", "failed", "out of time", "not begun"


@dataclass(frozen=True)
class Arguments:
    """Check a GPU: correctness, resumption, speed and memory, in under 8 minutes. No network is needed."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    tiny: bool = False
    """tiny shapes, for tests: half a minute on a CPU"""
    batch: int = 0
    """samples of a step in the paper's shapes; 0: 200, a GPU's share of the paper's batch"""
    only: tuple[str, ...] = ()
    """only these parts: smoke, parity, precision, resume, generate, graphs, connectors, captioners,
    connectors_compiled, captioners_compiled"""
    again: bool = False
    """do the parts again that have passed"""
    minutes: float = 7.75
    """for all parts; what is left then is left for the next time"""
    limit: float = 0
    """seconds for each part; 0: each has its own"""
    out: str = ""
    """folder for the JSON and the page; default: benchmarks/gpu, without a GPU the cache"""


def main(argv: list[str]) -> int:
    """Exit code: 0 if all parts have passed, 1 if one has not, 2 after a user's mistake."""
    return exit_code(lambda: _main(argv))


def _main(argv: list[str]) -> int:
    arguments = tyro.cli(Arguments, args=argv, prog="make gpu-check", description=__doc__)
    if arguments.batch < 0 or arguments.minutes <= 0 or arguments.limit < 0:
        raise UserError("--batch, --minutes, --limit: must be above 0")
    for part in arguments.only:
        if part not in PARTS:
            raise UserError(
                f"--only {part}: no such part; there are: {', '.join(PARTS)}{nearest(part, PARTS)}"
            )
    if arguments.tiny:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # more would only wait for each other
    ends = time.monotonic() + 60 * arguments.minutes
    server = _Server()
    machine = server.run("machine", arguments.device, 60)
    if machine["outcome"] != PASSED:
        raise UserError(machine["line"])
    device = machine.pop("type")
    about = machine.pop("machine")
    name = _slug(about["device"]) + ("-tiny" if arguments.tiny else "")
    own = paths.cache_folder() / "gpu-check" / name
    folder = Path(arguments.out) if arguments.out else (own if device == "cpu" else PAGES)
    path = (folder / name).with_suffix(".json")
    record = _record(path, about, arguments)
    if arguments.again and not arguments.only:
        shutil.rmtree(own / "work", ignore_errors=True)
    for part in arguments.only or PARTS:
        if record["parts"][part]["outcome"] == PASSED and not arguments.again:
            print(f"{part}: has passed before ({record['parts'][part]['line']})")
            continue
        left = ends - time.monotonic()
        if left < 1:
            record["parts"][part] = _left()
            continue
        own_limit = PARTS[part][1] * (4 if device == "cpu" else 1)
        seconds = min(arguments.limit or own_limit, left)
        settings = {
            "device": device,
            "tiny": arguments.tiny,
            "batch": arguments.batch or (2 if arguments.tiny else 200),
            "work": str(own / "work"),
            "seconds": seconds,
        }
        started = time.monotonic()
        found = server.run(part, settings, seconds)
        found["seconds"] = round(time.monotonic() - started, 1)
        record["parts"][part] = found
        _write(path, record)
        print(f"{part}: {found['outcome']}: {found['line']} ({found['seconds']:.0f} s)", flush=True)
    _write(path, record)
    print(f"{path.with_suffix('.md')}")
    return 0 if all(record["parts"][p]["outcome"] == PASSED for p in arguments.only or PARTS) else 1


def _slug(device: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-") or "unknown"


def _left() -> dict[str, Any]:
    return {"outcome": LEFT, "line": "the same command does it the next time", "seconds": None}


def _record(path: Path, machine: dict[str, Any], arguments: Arguments) -> dict[str, Any]:
    """What has been found so far: of this checkout, on this machine, with these shapes; else nothing."""
    code = code_state()
    made_by = {
        "commit": code.commit,
        "difference": hashlib.sha256(code.difference).hexdigest()[:12] if code.difference else "",
        "tiny": arguments.tiny,
        "batch": arguments.batch,
    }
    record: dict[str, Any] = {**made_by, "machine": machine, "parts": {part: _left() for part in PARTS}}
    try:
        before = json.loads(path.read_text())
        kept = {name: before[name] for name in made_by} == made_by
        if kept and before["machine"]["torch"] == machine["torch"]:
            record["machine"] = before["machine"]
            record["parts"] |= {name: before["parts"][name] for name in PARTS if name in before["parts"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return record


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())
    write_atomic(path.with_suffix(".md"), page(record).encode())


# ------------------------------------------------------------------------------------- processes of parts


class _Server:
    """Starts a process for each part. Torch is imported once, in the process that these are forked from."""

    def __init__(self) -> None:
        # the preloading process looks for modules below its working folder alone
        path = [str(paths.ROOT), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["benchmarks.gpu_parts"])

    def run(self, part: str, settings: Any, seconds: float) -> dict[str, Any]:
        """What the part has found, or why there is nothing.

        Args:
            seconds: after which the process and all that it has started are killed.
        """
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_do, args=(theirs, part, settings))
        process.start()
        theirs.close()
        try:
            found: dict[str, Any] | None = ours.recv() if ours.poll(seconds) else None
        except EOFError:
            process.join(10)
            code = process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return {"outcome": FAILED, "line": f"its process died ({name})"}
        finally:
            _end(process)
        return found or {"outcome": TIMEOUT, "line": f"was ended after {seconds:.0f} s"}


def _end(process: Any) -> None:
    """End a part's process and those that it has started: it leads a group of its own."""
    process.join(0.5)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # nothing is left of it
        process.kill()
    process.join()


def _do(pipe: Any, part: str, settings: Any) -> None:
    """In the process of a part: do it, and send what it has found."""
    os.setpgrp()
    try:
        found = _machine(settings) if part == "machine" else _found(part, settings)
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        found = {"outcome": FAILED, "line": f"{kind}{text}"[:400]}
    with contextlib.suppress(BrokenPipeError):  # its time was over just now
        pipe.send(found)


def _machine(device: str) -> dict[str, Any]:
    # Imported in the process of a part: whoever forks from a process that has used a GPU cannot use it
    import torch

    from benchmarks.machine import describe
    from evlgen.runtime.device import device_called

    place = device_called(device)
    about = describe(place)
    if place.type == "cuda":
        properties = torch.cuda.get_device_properties(place)
        about |= {"memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    else:
        about["device"] = f"cpu {about['processor']}"
    return {"outcome": PASSED, "line": "", "type": place.type, "machine": about}


def _found(part: str, given: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.gpu_found import Failed, Settings
    from benchmarks.gpu_parts import FUNCTIONS

    work = Path(given["work"])
    work.mkdir(parents=True, exist_ok=True)
    own = {"EVLGEN_DEVICE": given["device"], "HF_HUB_OFFLINE": "1"}
    own |= {f"EVLGEN_{name.upper()}": str(work / name) for name in ("runs", "results", "cache")}
    os.environ.update(own)
    try:
        found, outcome = FUNCTIONS[part](Settings(**given)), PASSED
    except Failed as error:
        found, outcome = error.found, FAILED
    return {"outcome": outcome, "line": found.line, "rows": found.rows, "notes": found.notes}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
