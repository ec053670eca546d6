"""Progress of a sweep that runs on this machine."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console()


class Display:
    """Progress of a sweep: bars on a terminal, else a line now and then."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.shown: dict[str, float] = {}  # when a line was last printed on each
        self.bars: dict[str, Any] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> Display:
        self.started = time.monotonic()
        if console.is_terminal:
            self.progress.start()
            self.sweep = self.progress.add_task("sweep", total=self.total, note="")
        return self

    def __exit__(self, *exc: object) -> None:
        if console.is_terminal:
            self.progress.stop()

    def event(self, kind: str, key: str, detail: Any) -> None:
        """See `local.Event`."""
        if kind in ("done", "failed", "blocked"):
            self.done += 1
            if console.is_terminal:
                self.progress.update(self.sweep, completed=self.done)
                if key in self.bars:
                    self.progress.remove_task(self.bars.pop(key))
            if kind != "done":
                console.print(f"[red]{key} {kind}[/]")
            elif not console.is_terminal:
                print(f"[{self._clock()}] {key} done ({self.done} of {self.total})", flush=True)
            return
        if console.is_terminal:
            if key not in self.bars:
                self.bars[key] = self.progress.add_task(key, total=None, note="")
            if detail is not None:
                note = f"{detail.phase}{_pace(detail)}"
                self.progress.update(self.bars[key], total=detail.steps, completed=detail.step, note=note)
        elif detail is not None and time.monotonic() - self.shown.get(key, 0.0) > 10:
            self.shown[key] = time.monotonic()
            where = f"{detail.phase} {detail.step}/{detail.steps}"
            print(f"[{self._clock()}] {key} {where}{_pace(detail)}", flush=True)

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"


def _pace(detail: Any) -> str:
    loss = "" if detail.loss is None else f", loss {detail.loss:.3f}"
    return f"{loss}, {detail.rate:.0f}/s"
