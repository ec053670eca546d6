"""Who executes a run: claims that a dead owner does not hold for ever, on any shared file system.

A run's folder holds ``claim-1.json``, ``claim-2.json``, ...: the processes that took it up, one after the
other; the last one has it. Beside each lies ``beat-N.json``, which its owner writes anew every few seconds.
A claim is over when its beat says so, when its process is seen to be dead, or when somebody has watched the
beat stand still for several periods. Then the next number may be taken, by the one who succeeds in linking
that file: link(2) fails where a name is there, also on NFS, and numbers never come back, so that of those who
take a dead owner's place only one succeeds. No lock of the file system and no clock of another node counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from evlgen.errors import UserError

_STATED = "EVLGEN_BEAT_SECONDS"


def _period() -> float:
    """Seconds that the variable states; 0 for what is no number above 0."""
    try:
        seconds = float(os.environ.get(_STATED) or 15.0)
    except ValueError:
        return 0.0
    return seconds if 0 < seconds < 86_400 else 0.0


PERIOD = _period() or 15.0  # between two beats
MISSED = 6  # beats, after which an owner counts as dead
_KEPT = 20  # claims of a turn: more than can come between a look into the folder and the claim


def check_period() -> None:
    """Refuse a period that is none; every process that imports this module has one.

    Raises:
        UserError: what the variable states is no number of seconds.
    """
    if not _period():
        raise UserError(f"{_STATED} is {os.environ[_STATED]!r}: give seconds, above 0 and below a day")


@dataclass
class Claim:
    """The right to execute a run, held by this process until it is released.

    Attributes:
        number: of this claim among those of the run.
        before: process seconds that earlier owners have spent.
        devices: GPUs (or processes, without GPUs) that the run occupies; spent time counts so often.
        note: what the beat tells others beside: phase, step, steps, rate.
        lost: another process has taken the run over, because this one seemed dead; stop working on it.
    """

    folder: Path
    number: int
    before: float
    devices: int = 1
    note: dict[str, Any] = field(default_factory=dict)
    lost: bool = False
    _started: float = field(default_factory=time.monotonic)
    _beats: int = 0
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to beat."""
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()

    def release(self, outcome: str = "done") -> None:
        """Let others have the run; ``outcome``: done, failed or stopped."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self._beat(outcome)

    def _keep_beating(self) -> None:
        following = self.folder / f"claim-{self.number + 1}.json"
        while not self._end.wait(PERIOD):
            self.lost = self.lost or following.exists()
            self._beat()

    def _beat(self, ended: str | None = None) -> None:
        self._beats += 1
        seconds = time.monotonic() - self._started
        value = {
            "beats": self._beats,
            "ended": ended,
            "device_seconds": self.before + seconds * self.devices,
            **self.note,
        }
        path = self.folder / f"beat-{self.number}.json"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # a full disk must not end the run; a beat missed is soon made up
            temporary.write_bytes(json.dumps(value).encode())
            os.replace(temporary, path)


def claim(folder: Path, devices: int = 1) -> Claim | None:
    """Take a run for this process; None if another one has it, or was faster."""
    folder.mkdir(parents=True, exist_ok=True)
    number = last_claim(os.listdir(folder))
    before = 0.0
    if number:
        if not is_over(folder, number):
            return None
        before = float((read_beat(folder, number) or {}).get("device_seconds", 0.0))
    temporary = folder / f".claim.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.tmp"
    # One left by a killed process of the same name is another name of that one's claim: not to be written to,
    # nor to be counted as a link that was made.
    temporary.unlink(missing_ok=True)
    try:
        temporary.write_text(json.dumps(_me()), "utf-8")
        try:
            os.link(temporary, folder / f"claim-{number + 1}.json")
        except FileExistsError:
            if temporary.stat().st_nlink != 2:  # it is 2 if the link was made and only NFS's answer was lost
                return None
    finally:
        temporary.unlink(missing_ok=True)
    for leftover in folder.glob(".beat-*.tmp"):  # of owners that were killed
        leftover.unlink(missing_ok=True)
    taken = Claim(folder, number + 1, before, devices)
    taken.start()
    return taken


@contextlib.contextmanager
def turn(folder: Path, wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """For work that processes do one after the other; a process that dies in it holds up nobody for long.

    Args:
        wait: called once if another process is at it.
    """
    held = claim(folder)
    if held is None:
        wait()
    while held is None:
        time.sleep(0.1)
        held = claim(folder)
    try:
        yield
    finally:
        held.release()
        for number in range(1, held.number - _KEPT):  # unlike a run's claims, these would grow for ever
            for kind in ("claim", "beat"):
                (folder / f"{kind}-{number}.json").unlink(missing_ok=True)


def last_claim(names: list[str]) -> int:
    """Highest number of a claim among the names of a run's files; 0 if it was never taken."""
    numbers = [name[6:-5] for name in names if name.startswith("claim-") and name.endswith(".json")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def read_beat(folder: Path | str, number: int) -> dict[str, Any] | None:
    """The latest beat of a claim; None if there is none yet."""
    try:
        with open(f"{folder}/beat-{number}.json", encoding="utf-8") as file:
            value = json.load(file)
        return value if isinstance(value, dict) else None
    except (OSError, ValueError):
        return None


def is_over(folder: Path, number: int) -> bool:
    """Whether the owner of a claim has ended, is seen to be dead, or was watched to be silent for too long.

    Silence is known only to a process that asks again and again: the first question starts the watch.
    """
    beat = read_beat(folder, number)
    if beat is not None and beat["ended"] is not None:
        return True
    alive = owner_lives(folder, number)
    if alive is not None:
        return not alive
    key = (str(folder), number)
    seen, since = _watched.get(key, (None, 0.0))
    count = -1 if beat is None else beat["beats"]
    if seen != count:
        _watched[key] = (count, time.monotonic())
        return False
    return time.monotonic() - since > MISSED * PERIOD


_watched: dict[
    tuple[str, int], tuple[int | None, float]
] = {}  # the last beat seen of a claim, and since when


def owner_lives(folder: Path | str, number: int) -> bool | None:
    """Whether a claim's process runs; None where that cannot be seen from here (another node, container)."""
    try:
        with open(f"{folder}/claim-{number}.json", encoding="utf-8") as file:
            owner = json.load(file)
        if owner["place"] != _place():
            return None
        process = psutil.Process(owner["pid"])
        same = _started(owner["pid"]) == owner["started"]  # a number may be in use again
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    except (OSError, ValueError, KeyError):
        return None


def seems_alive(folder: Path | str, number: int, now: float) -> bool:
    """One look at a claim that has not ended, for display only.

    Args:
        now: modification time of a file just written in the same store, so that both times are told by the
            clock of the file server and not by those of two nodes.
    """
    alive = owner_lives(folder, number)
    if alive is not None:
        return alive
    try:
        return now - os.stat(f"{folder}/beat-{number}.json").st_mtime < MISSED * PERIOD
    except OSError:
        return False


def _me() -> dict[str, Any]:
    return {
        "place": _place(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _started(pid: int) -> float:
    """When a process began, in a measure that no change of the clock touches."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:  # not Linux, or it is gone
        return round(psutil.Process(pid).create_time())
    return float(stat.rpartition(")")[2].split()[19])  # ticks since boot, the 22nd field


def _place() -> str:
    """Where process ids mean the same: this boot of this machine, and this container of it."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with contextlib.suppress(OSError):
            parts.append(read())
    return " ".join(parts)
