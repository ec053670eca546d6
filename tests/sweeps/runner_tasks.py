"""Tasks for the tests of the pool."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweeps import local, worker

Tell = Callable[[Any], None]


def write(tell: Tell, path: str, text: str) -> None:
    tell(text)
    Path(path).write_text(text)


def fail(tell: Tell, message: str) -> None:
    raise ValueError(message)


def die(tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def start_children(tell: Tell, folder: str, then: str) -> None:
    """Starts processes as decoders are started (fork) and as others are (spawn), and says who they are."""
    children = []
    for method in ("fork", "spawn"):
        child = multiprocessing.get_context(method).Process(target=time.sleep, args=(600,))
        child.start()
        children.append(child)
    (Path(folder) / "children.json").write_text(json.dumps([child.pid for child in children]))
    tell("started")
    if then == "die":
        die(tell)
    if then == "stay":
        time.sleep(600)
    for child in children:
        child.terminate()
        child.join(30)
        assert child.exitcode == -signal.SIGTERM


def sleep(tell: Tell, seconds: float) -> None:
    time.sleep(seconds)


def until_stopped(tell: Tell, folder: str) -> None:
    """Works for ever the first time; a second start finds what the first has saved, and is done at once."""
    saved = Path(folder) / "saved"
    if saved.exists():
        (Path(folder) / "finished").touch()
        return
    (Path(folder) / "started").touch()
    tell("started")
    while not local.stopping():
        time.sleep(0.05)
    saved.touch()
    raise local.Stopped


def slow_run(tell: Tell, folder: str) -> None:
    """A real run, slowed down so that there is time to disturb it."""
    worker.execute_run(lambda _: time.sleep(0.25), folder, None)


def add_ranks(tell: Tell, folder: str) -> None:
    """Processes that torch.distributed brings together add up their ranks + 1."""
    import torch
    import torch.distributed as dist

    from evlgen.data.stream import decoders

    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    text = f"{total.item():g} of {dist.get_world_size()}, local rank {os.environ['LOCAL_RANK']}"
    text += f", {decoders()} decoders"
    (Path(folder) / f"rank-{dist.get_rank()}").write_text(text)
    dist.barrier()
    dist.destroy_process_group()


def attempts(tell: Tell, folder: str, index: int) -> None:
    """Notes every execution of a task."""
    with (Path(folder) / f"task-{index}").open("a") as file:
        file.write("x")
