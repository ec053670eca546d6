"""The pool of processes: failures stay where they are."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.local import Task, execute
from tests.sweeps.cluster import until

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))  # workers inherit sys.path
    sys.modules.pop("runner_tasks", None)


def test_failures_and_dead_workers_stop_only_what_needs_them(tmp_path: Path) -> None:
    events: list[tuple[str, str, Any]] = []
    tasks = [
        Task("good", "runner_tasks:write", (str(tmp_path / "good"), "a")),
        Task("bad", "runner_tasks:fail", ("the reason",), cost=9),
        Task("dead", "runner_tasks:die", (), cost=8),
        Task("after good", "runner_tasks:write", (str(tmp_path / "after"), "b"), needs=("good",)),
        Task("after dead", "runner_tasks:write", (str(tmp_path / "never"), "c"), needs=("dead",)),
        Task("after that", "runner_tasks:write", (str(tmp_path / "never"), "c"), needs=("after dead",)),
    ]
    outcome = execute(tasks, 1, lambda *event: events.append(event))
    assert outcome == {
        "good": "done",
        "bad": "failed",
        "dead": "failed",
        "after good": "done",
        "after dead": "blocked",
        "after that": "blocked",
    }
    details = {key: detail for kind, key, detail in events if kind == "failed"}
    assert "ValueError: the reason" in details["bad"]
    assert "SIGKILL" in details["dead"]
    assert ("progress", "good", "a") in events
    assert (tmp_path / "after").read_text() == "b"
    assert not (tmp_path / "never").exists()
    started = [key for kind, key, _ in events if kind == "start"]
    assert started[:3] == ["bad", "dead", "good"]  # the longest first


def test_a_worker_that_dies_before_it_has_read_its_task_is_a_failure_of_that_task(tmp_path: Path) -> None:
    def event(kind: str, key: str, detail: Any) -> None:
        if (kind, key) == ("start", "unlucky"):
            for child in multiprocessing.active_children():
                child.kill()  # it is still starting: its task lies unread in the pipe
                child.join()

    tasks = [
        Task("unlucky", "runner_tasks:write", (str(tmp_path / "never"), "a"), cost=2),
        Task("next", "runner_tasks:write", (str(tmp_path / "next"), "b")),
    ]
    assert execute(tasks, 1, event) == {"unlucky": "failed", "next": "done"}
    assert not (tmp_path / "never").exists()


def test_a_stop_ends_the_running_task_and_begins_nothing_more(tmp_path: Path) -> None:
    tasks = [Task("long", "runner_tasks:until_stopped", (str(tmp_path),), cost=2), Task("next", "x:y", ())]

    def event(kind: str, key: str, detail: Any) -> None:
        if kind == "progress":
            for child in multiprocessing.active_children():
                assert child.pid is not None
                os.kill(child.pid, signal.SIGUSR2)

    assert execute(tasks, 1, event) == {"long": "stopped", "next": "stopped"}
    assert (tmp_path / "saved").exists()


def test_a_need_that_nobody_meets_is_an_error() -> None:
    with pytest.raises(ValueError, match="not given: stage 1"):
        execute([Task("stage 2", "x:y", (), needs=("stage 1",))], 1, lambda *_: None)


def test_no_tasks() -> None:
    assert execute([], 2, lambda *_: None) == {}


def test_a_task_may_start_processes_and_end_them(tmp_path: Path) -> None:
    task = Task("parent", "runner_tasks:start_children", (str(tmp_path), "end them"))
    events: list[Any] = []
    assert execute([task], 1, lambda *event: events.append(event)) == {"parent": "done"}, events
    assert not alive(tmp_path)


def test_the_children_of_a_worker_that_dies_die_with_it(tmp_path: Path) -> None:
    tasks = [
        Task("parent", "runner_tasks:start_children", (str(tmp_path), "die"), cost=2),
        Task("next", "runner_tasks:write", (str(tmp_path / "next"), "b")),
    ]

    def event(kind: str, key: str, detail: Any) -> None:
        if (kind, key) == ("start", "next"):
            until(lambda: not alive(tmp_path), 10)  # a kill takes a moment

    assert execute(tasks, 1, event) == {"parent": "failed", "next": "done"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_and_their_children_die_with_their_launcher(tmp_path: Path, number: int) -> None:
    script = (
        "from sweeps.local import Task, execute\n"
        f"task = Task('parent', 'runner_tasks:start_children', ({str(tmp_path)!r}, 'stay'))\n"
        "if __name__ == '__main__':\n"
        "    execute([task], 1, print)\n"
    )
    (tmp_path / "launcher.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    launcher = subprocess.Popen(
        [sys.executable, str(tmp_path / "launcher.py")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until((tmp_path / "children.json").exists, 60)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert len(family) >= 3  # the worker and its two children
    launcher.send_signal(number)
    launcher.wait(30)
    until(lambda: not alive(tmp_path), 20)
    assert not psutil.wait_procs(family, timeout=20)[1]


def alive(folder: Path) -> list[int]:
    """Those of the processes in ``children.json`` that still run."""
    found = json.loads((folder / "children.json").read_text())
    return [
        pid
        for pid in found
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]
