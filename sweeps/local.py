"""A pool of warm processes on this machine: torch is imported once in each, and one that dies is replaced.

A worker that gets SIGTERM or SIGUSR2 ends at its next good moment (`stopping`): SLURM sends these before it
takes a node away.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any


@dataclass(frozen=True)
class Task:
    """Something for a worker to do.

    Attributes:
        function: a top-level function of a module, ``"package.module:name"``; called with ``arguments`` and a
            function that reports progress.
        needs: keys of tasks that must have succeeded before.
        cost: expected seconds; the longest go first.
    """

    key: str
    function: str
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    cost: float = 0.0


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    number: int
    task: Task | None = None


# kind ("start", "progress", "done", "failed", "stopped", "blocked"), key, detail
Event = Callable[[str, str, Any], None]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
_stopping = threading.Event()
_number = 0


class Stopped(Exception):
    """A task ended because it was told to; it can be taken up again."""


def stopping() -> bool:
    """Whether this worker was told to stop: save what there is and raise `Stopped`."""
    return _stopping.is_set()


def number() -> int:
    """This worker's in its pool, from 0; also of the one that replaces a worker that has died."""
    return _number


def execute(tasks: list[Task], workers: int, event: Event) -> dict[str, str]:
    """Execute all tasks; a failure stops only those that need it.

    Returns:
        For each key ``done``, ``failed``, ``stopped`` or ``blocked``.
    """
    unknown = {need for task in tasks for need in task.needs} - {task.key for task in tasks}
    if unknown:
        raise ValueError(f"tasks need what nobody does: {', '.join(sorted(unknown))}")
    outcome: dict[str, str] = {}
    waiting = sorted(tasks, key=lambda t: -t.cost)
    pool = [_start(number) for number in range(min(workers, max(1, len(tasks))))]
    try:
        while len(outcome) < len(tasks):
            for task in list(waiting):
                if any(outcome.get(need) in ("failed", "stopped", "blocked") for need in task.needs):
                    waiting.remove(task)
                    outcome[task.key] = "blocked"
                    event("blocked", task.key, None)
            for worker in pool:
                if worker.task is not None:
                    continue
                ready = (t for t in waiting if all(outcome.get(need) == "done" for need in t.needs))
                worker.task = next(ready, None)
                if worker.task is not None:
                    waiting.remove(worker.task)
                    with contextlib.suppress(OSError):  # it has just ended, as will be seen below
                        worker.pipe.send((worker.task.function, worker.task.arguments))
                    event("start", worker.task.key, None)
            busy = [w for w in pool if w.task is not None]
            if not busy:
                continue
            for pipe in wait([w.pipe for w in busy], timeout=0.5):
                worker = next(w for w in pool if w.pipe is pipe)
                assert worker.task is not None
                try:
                    kind, detail = worker.pipe.recv()
                except (EOFError, OSError):  # OSError if it died before it had read its task
                    worker.process.join()
                    code = worker.process.exitcode or 0
                    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    kind, detail = ("failed", f"its process died ({name})") if code else ("stopped", None)
                    if code:
                        pool[pool.index(worker)] = replacement = _start(worker.number)
                        replacement.task, worker = worker.task, replacement
                assert worker.task is not None
                event(kind, worker.task.key, detail)
                if kind in ("done", "failed", "stopped"):
                    outcome[worker.task.key] = kind
                    worker.task = None
                if kind == "stopped":  # who stops one means all: begin nothing more
                    outcome |= {task.key: "stopped" for task in waiting}
                    waiting.clear()
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()
    return outcome


def _start(number: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, os.getpid(), number), daemon=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # inherited: none may kill it before it can listen
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    theirs.close()
    return _Worker(process, ours, number)


def _serve(pipe: Connection, parent: int, number: int) -> None:
    """Life of a worker: import torch, then one task after the other until the launcher is gone."""
    global _number
    _number = number
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which ends its workers
    for number in STOP_SIGNALS:
        # Of the ranks of one run the first decides where all of them stop.
        first = os.environ.get("RANK", "0") == "0"
        signal.signal(number, (lambda *_: _stopping.set()) if first else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    while not stopping():
        if not pipe.poll(0.2):
            continue
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        module, _, name = function.partition(":")
        try:
            getattr(importlib.import_module(module), name)(
                lambda detail: pipe.send(("progress", detail)), *arguments
            )
            pipe.send(("done", None))
        except Stopped:
            pipe.send(("stopped", None))
        except Exception:
            pipe.send(("failed", traceback.format_exc()))


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
