"""Golden values tie behaviour to numbers: neither may change without the other.

A file of golden values holds for each case what was measured and the numbers of the components (or scorers)
under which that was so. `problems` compares it with what is measured today. Values are compared within
tolerances, for another processor rounds in another way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True)
class Golden:
    """What a case gave, and the numbers of all that it uses."""

    values: Values
    numbers: dict[str, int]


@dataclass(frozen=True)
class Book:
    """A file of golden values.

    Attributes:
        what: what has a number: ``component`` or ``scorer``.
        where: the place of the numbers, for messages.
        renew: the command that writes the file again.
        tolerances: name of a value (or how it begins) -> relative and absolute tolerance; the longest fits.
        reach: of what has a number, that which can change some values only -> how the names of these begin.
        made_by: name of a value -> what alone makes it: where it has changed, this is advised.
    """

    path: Path
    what: str
    where: str
    renew: str
    tolerances: Mapping[str, tuple[float, float]]
    reach: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> dict[str, Golden]:
        """The golden values; none where there is no file yet."""
        if not self.path.exists():
            return {}
        stored = json.loads(self.path.read_text())
        return {name: Golden(case["values"], case["numbers"]) for name, case in stored.items()}

    def write(self, golden: Mapping[str, Golden]) -> None:
        """One line a value, so that a diff shows what has changed."""
        lines = []
        for name, case in golden.items():
            values = [f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in case.values.items()]
            lines.append(
                f' {json.dumps(name)}: {{\n  "numbers": {json.dumps(case.numbers)},\n  "values": {{\n'
                + ",\n".join(values)
                + "\n  }\n }"
            )
        self.path.write_text("{\n" + ",\n".join(lines) + "\n}\n")

    # --------------------------------------------------------------------------------------- values

    def changes(self, recorded: Values, measured: Values) -> dict[str, str]:
        """What has become of each value that has changed by more than its tolerance."""
        found = {}
        for name in dict.fromkeys((*recorded, *measured)):
            if name not in measured or name not in recorded:
                found[name] = "no longer there" if name in recorded else "new"
            elif not same(recorded[name], measured[name], *self._tolerance(name)):
                found[name] = f"{_short(recorded[name])} -> {_short(measured[name])}"
        return found

    def _tolerance(self, name: str) -> tuple[float, float]:
        fitting = [key for key in self.tolerances if name.startswith(key)]
        return self.tolerances[max(fitting, key=len)]

    # ---------------------------------------------------------------------------------------- rules

    def problems(
        self,
        recorded: Mapping[str, Golden],
        measured: Mapping[str, Golden],
        numbers: Mapping[str, int],
    ) -> list[str]:
        """What must be done before values and numbers agree; a sentence each, none if all is well.

        Args:
            recorded: the content of the file.
            measured: today's values and numbers of every case.
            numbers: all numbers of today, those that no case uses among them.
        """
        found = self._before_renewal(recorded, measured, numbers)
        if not found and _stale(recorded, measured):
            found.append(f"{self.path.name} is older than the numbers: renew it with '{self.renew}'")
        return found

    def renewed(
        self,
        recorded: Mapping[str, Golden],
        measured: Mapping[str, Golden],
        numbers: Mapping[str, int],
    ) -> dict[str, Golden]:
        """The new content of the file: values that have not changed stay as they are, to the digit.

        Raises:
            ValueError: the rules are broken; the message says what to do.
        """
        if found := self._before_renewal(recorded, measured, numbers, is_renewal=True):
            raise ValueError("\n".join(found))
        kept = {}
        for name, now in measured.items():
            old = recorded.get(name)
            same_values = old is not None and not self.changes(old.values, now.values)
            kept[name] = Golden(old.values if old is not None and same_values else now.values, now.numbers)
        return kept

    def _before_renewal(
        self,
        recorded: Mapping[str, Golden],
        measured: Mapping[str, Golden],
        numbers: Mapping[str, int],
        is_renewal: bool = False,
    ) -> list[str]:
        used = {name for case in measured.values() for name in case.numbers}
        found = [
            f"the {self.what} {name!r} has no golden case: add one that uses it"
            for name in sorted(numbers.keys() - used)
        ]
        if not is_renewal:
            found += [
                f"the case {name!r} has no golden values: add them with '{self.renew}'"
                for name in measured.keys() - recorded.keys()
            ]
            found += [
                f"the case {name!r} is gone, its golden values are not: renew them with '{self.renew}'"
                for name in recorded.keys() - measured.keys()
            ]
        shared = [name for name in measured if name in recorded]
        changed = {
            name: lines
            for name in shared
            if (lines := self.changes(recorded[name].values, measured[name].values))
        }
        moved: dict[str, tuple[int, int]] = {}  # number of then and now
        for name in shared:
            for part, now in measured[name].numbers.items():
                then = recorded[name].numbers.get(part, now)
                if then != now:
                    moved[part] = (then, now)
        found += self._unchanged(moved, shared, changed, measured)
        unexplained = {}
        for name, values in changed.items():
            risen = moved.keys() & measured[name].numbers.keys()
            left = {value: line for value, line in values.items() if not self._reached(risen, value)}
            if left:
                unexplained[name] = left
        if unexplained:
            found.append(self._unexplained(unexplained, changed, shared, measured))
        return found

    def _unchanged(
        self,
        moved: Mapping[str, tuple[int, int]],
        shared: Iterable[str],
        changed: Mapping[str, dict[str, str]],
        measured: Mapping[str, Golden],
    ) -> list[str]:
        """Numbers that were raised for nothing, or lowered."""
        found = []
        for part, (then, now) in moved.items():
            users = [name for name in shared if part in measured[name].numbers]
            if now < then:
                found.append(f"{part} is lowered from {then} to {now}: numbers only rise ({self.where})")
            elif not any(self._reached([part], value) for name in users for value in changed.get(name, ())):
                found.append(
                    f"{part} is raised to {now}, but none of its golden values has changed (cases: "
                    f"{len(users)}): set it back to {then} in {self.where}"
                )
        return found

    def _unexplained(
        self,
        unexplained: Mapping[str, dict[str, str]],
        changed: Mapping[str, dict[str, str]],
        shared: Iterable[str],
        measured: Mapping[str, Golden],
    ) -> str:
        """What has changed under the same numbers, and which of them that is likely to be."""
        shared = list(shared)
        uses = {name: set(measured[name].numbers) for name in shared}
        for name, values in unexplained.items():
            uses[name] = self._able(uses[name], values)
        parts = likely(uses, unexplained, changed)
        advice = " or ".join(f"{part} to {self._next(part, measured)}" for part in parts)
        lines = [
            f"golden values have changed, but no number of what they depend on ({len(unexplained)} of "
            f"{len(shared)} cases). If this is meant, raise {advice} in {self.where}, then renew the values "
            f"with '{self.renew}'. Changed:"
        ]
        for name, changes in list(unexplained.items())[:6]:
            shown = "; ".join(f"{value}: {change}" for value, change in list(changes.items())[:2])
            lines.append(
                f"  {name}: {shown}" + (f" (and {len(changes) - 2} more)" if len(changes) > 2 else "")
            )
        if len(unexplained) > 6:
            lines.append(f"  and in: {', '.join(list(unexplained)[6:])}")
        return "\n".join(lines)

    def _able(self, parts: Iterable[str], values: Iterable[str]) -> set[str]:
        """Those parts that can change just these values; of them the ones that could change no others."""
        values = list(values)
        if makers := {self.made_by[value] for value in values if value in self.made_by}.intersection(parts):
            return makers
        limited = {part for part in parts if part in self.reach}
        able = {part for part in limited if all(self._reached([part], value) for value in values)}
        return able or set(parts) - limited

    def _reached(self, parts: Iterable[str], value: str) -> bool:
        """Whether one of the parts can change a value of this name."""
        return any(value.startswith(self.reach.get(part, "")) for part in parts)

    def _next(self, part: str, measured: Mapping[str, Golden]) -> int:
        return 1 + max(case.numbers.get(part, 0) for case in measured.values())


def likely(
    uses: Mapping[str, Iterable[str]], unexplained: Iterable[str], changed: Iterable[str]
) -> list[str]:
    """Those parts that may have changed: all that every changed case uses, the likeliest first.

    If all cases that use a part have changed it is likelier than one of which other cases have not. Where no
    part is used by all, these are the ones that explain most, until all is explained.

    Args:
        uses: case -> the parts that it uses.
        unexplained: cases that have changed, of which no number has.
        changed: all cases that have changed.
    """
    left, changed = {name: set(uses[name]) for name in unexplained}, set(changed)
    parts = sorted({part for used in uses.values() for part in used})
    users = {part: {name for name, used in uses.items() if part in used} for part in parts}
    unmoved = {part: len(users[part] - changed) / len(users[part]) for part in parts}
    common = [part for part in parts if all(part in used for used in left.values())]
    if common:
        least = min(unmoved[part] for part in common)
        return [part for part in common if unmoved[part] == least]
    found = []
    while left:
        best = max(parts, key=lambda part: (sum(part in used for used in left.values()), -unmoved[part]))
        found.append(best)
        left = {name: used for name, used in left.items() if best not in used}
    return found


def same(recorded: Any, measured: Any, relative: float, absolute: float) -> bool:
    """Whether two values agree; None stands for any text, where rounding may change it."""
    if recorded is None or measured is None:
        return isinstance(recorded or measured or "", str)
    if isinstance(recorded, dict) and isinstance(measured, dict):
        return recorded.keys() == measured.keys() and all(
            same(value, measured[key], relative, absolute) for key, value in recorded.items()
        )
    if isinstance(recorded, list | tuple) and isinstance(measured, list | tuple):
        return len(recorded) == len(measured) and all(
            same(a, b, relative, absolute) for a, b in zip(recorded, measured, strict=True)
        )
    numbers = (int, float)
    if isinstance(recorded, numbers) and isinstance(measured, numbers) and not isinstance(recorded, bool):
        if math.isnan(recorded) or math.isnan(measured):
            return math.isnan(recorded) and math.isnan(measured)
        return abs(recorded - measured) <= absolute + relative * abs(recorded)
    return bool(recorded == measured)


def rounded(value: Any) -> Any:
    """With seven digits, which is more than any tolerance asks for."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _stale(recorded: Mapping[str, Golden], measured: Mapping[str, Golden]) -> bool:
    return any(case.numbers != recorded[name].numbers for name, case in measured.items())


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
