"""A pool of warm processes on this machine: torch is imported once in each, and one that dies is replaced.

A worker that gets SIGTERM or SIGUSR2 stops as soon as it can save its work (`stopping`): SLURM sends these
before it takes a node away.

A worker may start processes of its own, to decode images for example. It leads a process group with them, and
the whole group is killed when the worker ends, when the pool is closed, and when the launcher is gone.
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

from evlgen.errors import UserError


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
    """A task was asked to stop and has saved its work; it can be resumed."""


def stopping() -> bool:
    """Whether this worker was asked to stop: save the work and raise `Stopped`."""
    return _stopping.is_set()


def number() -> int:
    """This worker's place in its pool, from 0; a worker that replaces a dead one takes over its place."""
    return _number


def execute(tasks: list[Task], workers: int, event: Event) -> dict[str, str]:
    """Execute all tasks; a failure stops only those that need it.

    Returns:
        For each key ``done``, ``failed``, ``stopped`` or ``blocked``.
    """
    unknown = {need for task in tasks for need in task.needs} - {task.key for task in tasks}
    if unknown:
        raise ValueError(f"tasks need others that are not given: {', '.join(sorted(unknown))}")
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
                possible = (t for t in waiting if all(outcome.get(need) == "done" for need in t.needs))
                worker.task = next(possible, None)
                if worker.task is not None:
                    waiting.remove(worker.task)
                    with contextlib.suppress(OSError):  # it has just ended, as will be seen below
                        worker.pipe.send((worker.task.function, worker.task.arguments))
                    event("start", worker.task.key, None)
            busy = [w for w in pool if w.task is not None]
            if not busy:
                continue
            ready = wait([w.pipe for w in busy], timeout=0.5)
            for worker in busy:
                if worker.pipe not in ready and (worker.process.is_alive() or worker.pipe.poll()):
                    continue
                try:
                    # A child of a dead worker may hold the other end, so that no end of file would come.
                    kind, detail = worker.pipe.recv() if worker.pipe in ready else _ended(worker)
                except (EOFError, OSError):  # OSError if it died before it had read its task
                    kind, detail = _ended(worker)
                if kind == "failed" and worker.process.exitcode is not None:
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
            _close(worker)
    return outcome


def _ended(worker: _Worker) -> tuple[str, str | None]:
    """What became of the task of a worker that is gone, in the form of a worker's message."""
    worker.process.join()
    _kill_group(worker)
    code = worker.process.exitcode or 0
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return ("failed", f"its process died ({name})") if code else ("stopped", None)


def _close(worker: _Worker) -> None:
    """End a worker and all processes that it has started."""
    if worker.process.exitcode is None:  # else its process id may be another's by now
        worker.process.kill()
        worker.process.join()
        _kill_group(worker)


def _kill_group(worker: _Worker) -> None:
    """End the children of a worker that has just ended; its number stays theirs while there are any."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # none are left
        os.killpg(worker.process.pid, signal.SIGKILL)


def _start(number: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    ours, theirs = context.Pipe()
    # Not daemonic: daemonic processes may not have children. `_die_with` and `_close` end it instead.
    process = context.Process(target=_serve, args=(theirs, os.getpid(), number))
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # inherited: none may kill it before it can listen
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    theirs.close()
    return _Worker(process, ours, number)


def _serve(pipe: Connection, launcher: int, number: int) -> None:
    """Life of a worker: one task after the other until the launcher is gone."""
    global _number
    _number = number
    os.setpgrp()  # also keeps Ctrl-C in a terminal from the worker's children: the launcher ends them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for signal_number in STOP_SIGNALS:
        # Of the ranks of one run the first decides where all of them stop.
        first = os.environ.get("RANK", "0") == "0"
        signal.signal(signal_number, (lambda *_: _stopping.set()) if first else signal.SIG_IGN)
    os.register_at_fork(after_in_child=_restore_signals)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_die_with, args=(launcher,), daemon=True).start()
    while not stopping():
        if not pipe.poll(0.2):
            continue
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        module, _, name = function.partition(":")
        try:
            getattr(importlib.import_module(module), name)(
                lambda detail: pipe.send(("progress", detail)), *arguments
            )
            pipe.send(("done", None))
        except Stopped:
            pipe.send(("stopped", None))
        except UserError as error:  # its message says it all
            pipe.send(("failed", str(error)))
        except Exception:
            pipe.send(("failed", traceback.format_exc()))
    for child in multiprocessing.active_children():  # a task may have left some, which must not hold it up
        child.kill()


def _restore_signals() -> None:
    """In a forked child of a worker: SIGTERM ends it as its parent expects."""
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, signal.SIG_DFL)


def _die_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)  # this process and its children
