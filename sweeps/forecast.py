"""How long the rest of a sweep will take."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

_TRUST = 0.05  # share of all work after which measured time counts as much as what was expected


@dataclass(frozen=True)
class Work:
    """A task of a sweep, as its progress is shown.

    Attributes:
        label: what a person calls it: ``EVLGen, OPT-2.7B, seed 2``.
        size: samples, or another measure that cost grows with.
        seconds: what a process should need, None if nothing like it was ever measured.
        training: share of the time that goes to training, the rest to evaluation.
        needs: keys of the tasks before it.
    """

    label: str
    size: float = 1.0
    seconds: float | None = None
    training: float = 1.0
    needs: tuple[str, ...] = ()


@dataclass
class _Part:
    """Of a task that has begun: when, how far it was then (it may have been resumed), and how far it is."""

    began: float
    start: float | None = None  # None: its progress is not known yet
    share: float = 0.0
    ended: float | None = None


@dataclass
class Forecast:
    """Time left, from what the tasks should cost and from how fast they have been.

    Attributes:
        works: the tasks by key.
        workers: processes side by side.
        unnamed: further tasks whose keys are not known yet.
        each: seconds that a process should need for each of these; None: as long as the others on average.
    """

    works: Mapping[str, Work]
    workers: int
    unnamed: int = 0
    each: float | None = None
    _parts: dict[str, _Part] = field(default_factory=dict)

    def begin(self, key: str, now: float) -> None:
        """A task has begun.

        Args:
            now: seconds of a clock, here and below.
        """
        self._parts.setdefault(key, _Part(now))

    def reach(self, key: str, share: float, now: float) -> None:
        """A task that has begun has done a share of its work."""
        self.begin(key, now)
        part = self._parts[key]
        if part.start is None:
            part.start = share
        part.share = max(share, part.share)

    def end(self, key: str, now: float, done: bool = True) -> None:
        """A task is over; one that was not ``done`` says nothing about how long the others take."""
        if not done or key not in self._parts:
            self._parts[key] = _Part(now, 1.0, 1.0, now)
        else:
            self._parts[key].share, self._parts[key].ended = 1.0, now

    def left(self, now: float) -> float | None:
        """Seconds until all is done; None if nothing is known yet."""
        weights = self._weights()
        pace = self._pace(weights, self._average * self._unnamed_left(), now)
        rest = {key: weight * (1.0 - self._share(key)) for key, weight in weights.items()}
        unnamed = [self._average] * self._unnamed_left()
        todo = [weight for weight in (*rest.values(), *unnamed) if weight > 0.0]
        if not todo:
            return 0.0
        if pace is None:
            return None

        @functools.cache
        def chain(key: str) -> float:  # what must be done one after the other, ending with this task
            needs = self.works[key].needs if key in self.works else ()
            return rest[key] + max((chain(need) for need in needs if need in rest), default=0.0)

        longest = max(map(chain, rest), default=0.0)
        return pace * max(sum(todo) / min(self.workers, len(todo)), longest)

    @functools.cached_property
    def _known(self) -> bool:
        return self.each is not None or any(work.seconds is not None for work in self.works.values())

    @functools.cached_property
    def _expected(self) -> dict[str, float]:
        """Seconds of each task, or sizes where the seconds of none are known."""
        known = [work for work in self.works.values() if work.seconds is not None]
        each = sum(work.seconds or 0.0 for work in known) / sum(work.size for work in known) if known else 1.0
        return {
            key: work.size * each if work.seconds is None else work.seconds
            for key, work in self.works.items()
        }

    @functools.cached_property
    def _average(self) -> float:
        if self.each is not None:
            return self.each
        return sum(self._expected.values()) / len(self._expected) if self._expected else 1.0

    def _weights(self) -> dict[str, float]:
        return self._expected | {key: self._average for key in self._parts if key not in self._expected}

    def _unnamed_left(self) -> int:
        """How many of the unnamed tasks have not begun."""
        return max(0, self.unnamed - sum(key not in self.works for key in self._parts))

    def _share(self, key: str) -> float:
        return self._parts[key].share if key in self._parts else 0.0

    def _pace(self, weights: Mapping[str, float], unnamed: float, now: float) -> float | None:
        """Seconds of a process for a unit of weight."""
        seconds = done = 0.0
        for key, part in self._parts.items():
            step = part.share - (part.start or 0.0)
            if step > 0.0:
                seconds += (now if part.ended is None else part.ended) - part.began
                done += weights[key] * step
        before = _TRUST * (sum(weights.values()) + unnamed) if self._known else 0.0
        return (seconds + before) / (done + before) if done + before > 0.0 else None
