"""Progress of a sweep that runs on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from analysis.terminal import console
from sweeps.forecast import Forecast, Work

_PHASES = {"train": "training", "validate": "validating", "evaluate": "evaluating"}
_QUIET_SECONDS = 10.0  # between two lines on the same task, where there is no terminal
_NARROW = 70  # columns, below which nothing is on one line
_SWEEP_SECONDS = 0.5  # between two estimates of the time left, on a terminal


class Display:
    """Progress of a sweep: bars on a terminal, else a line now and then.

    Args:
        works: the tasks by key.
        workers: processes side by side.
        unnamed, each: see `Forecast`.
    """

    def __init__(
        self, works: Mapping[str, Work], workers: int = 1, unnamed: int = 0, each: float | None = None
    ) -> None:
        self.works = works
        self.total, self.done = len(works) + unnamed, 0
        self.forecast = Forecast(works, workers, unnamed, each)
        self._shown: dict[str, float] = {}  # when a line was last printed on each
        self._bars: dict[str, TaskID] = {}
        # The label gives way first; on a terminal that is narrower still, these wrap between words.
        fixed = Column(no_wrap=console.width >= _NARROW, overflow="fold")
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(overflow="fold")),
            BarColumn(8),
            TextColumn("{task.fields[count]}", table_column=fixed, justify="right"),
            TextColumn("{task.fields[note]}", table_column=fixed),
            console=console,
        )

    def __enter__(self) -> Display:
        self._started = self._estimated = time.monotonic()
        if console.is_terminal:
            self._progress.start()
            if self.total:
                self._sweep = self._progress.add_task("sweep", total=self.total, count="", note="")
                self._show_sweep()
        return self

    def __exit__(self, *exc: object) -> None:
        if console.is_terminal:
            self._progress.stop()

    def label(self, key: str) -> str:
        """What a person calls a task."""
        return self.works[key].label if key in self.works else key

    def event(self, kind: str, key: str, detail: Any) -> None:
        """See `local.Event`."""
        now = time.monotonic()
        if kind in ("done", "failed", "blocked", "stopped"):
            self.forecast.end(key, now, kind == "done")
            self.done += kind != "stopped"
            self._show_end(kind, key)
            return
        self.forecast.begin(key, now)
        if detail is not None:
            self.forecast.reach(key, self._share(key, detail), now)
        if console.is_terminal:
            self._show_bar(key, detail)
        elif detail is not None and now - self._shown.get(key, float("-inf")) > _QUIET_SECONDS:
            self._shown[key] = now
            self._print(f"{self.label(key)}: {_phase(detail)} {detail.step}/{detail.steps}{_pace(detail)}")

    def _share(self, key: str, detail: Any) -> float:
        training = self.works[key].training if key in self.works else 1.0
        part = detail.step / max(1, detail.steps)
        return training + (1.0 - training) * part if detail.phase == "evaluate" else training * part

    def _show_end(self, kind: str, key: str) -> None:
        if console.is_terminal:
            if key in self._bars:
                self._progress.remove_task(self._bars.pop(key))
            self._show_sweep()
        elif kind == "done":
            self._print(f"{self.label(key)}: done")
        if kind in ("failed", "blocked"):
            console.print(f"[red]{escape(self.label(key))}: {kind}[/]")

    def _show_bar(self, key: str, detail: Any) -> None:
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(escape(self.label(key)), total=None, count="", note="")
        if detail is not None:
            self._progress.update(
                self._bars[key],
                total=detail.steps,
                completed=detail.step,
                count=f"{detail.step}/{detail.steps}",
                note=f"{_phase(detail)}{_pace(detail)}",
            )
        if time.monotonic() - self._estimated > _SWEEP_SECONDS:
            self._show_sweep()

    def _show_sweep(self) -> None:
        self._estimated = time.monotonic()
        if self.total:
            note = self._left()
            count = f"{self.done}/{self.total}"
            self._progress.update(self._sweep, completed=self.done, count=count, note=note)

    def _print(self, text: str) -> None:
        seconds = int(time.monotonic() - self._started)
        whole = f" (sweep: {self.done} of {self.total}, {self._left()})" if self.total else ""
        print(f"[{seconds // 60:02d}:{seconds % 60:02d}] {text}{whole}", flush=True)

    def _left(self) -> str:
        seconds = self.forecast.left(time.monotonic())
        return "time left unknown" if seconds is None else f"about {in_words(seconds)} left"


def in_words(seconds: float) -> str:
    """``12 s``, ``5 min`` or ``3.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _phase(detail: Any) -> str:
    return _PHASES.get(detail.phase, detail.phase)


def _pace(detail: Any) -> str:
    loss = "" if detail.loss is None else f", loss {detail.loss:.3f}"
    return f"{loss}, {detail.rate:.0f} samples/s"
