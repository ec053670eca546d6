"""The tables of a search: all trials, the Pareto front, how much each parameter matters.

Figures are drawn from these files alone (``paper_figures/merge_search.py``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from evlgen.runtime.files import write_atomic

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
FACTS = (
    *("schedule", "tokens_out", "macs", "val_loss", "gap"),
    *("last_loss", "last_update", "seconds", "run", "in_force", "reason"),
)
_SHOWN_IN_MARKDOWN = ("schedule", "tokens_out", "macs", "val_loss", "gap", "last_update", "seconds", "run")


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Attributes:
        part: what was searched.
        parameters: their names.
        trials: those that ended: complete, pruned or failed.
        front: numbers of the trials that no other one is better than in one objective without being worse in
            the other; with one objective, of the best.
        importance: objective -> parameter -> share.
        lost: trials whose worker died and that were given out again; they are in no table.
    """

    part: str
    parameters: Sequence[str]
    trials: Sequence[FrozenTrial]
    front: Sequence[int]
    importance: Mapping[str, Mapping[str, float]]
    lost: int


def write_search(
    title: str,
    ranges: Mapping[str, str],
    objectives: Sequence[str],
    outcomes: Sequence[Outcome],
    folder: Path,
) -> None:
    """Write ``trials.csv``, ``pareto.csv``, ``importance.csv`` and ``trials.md`` into ``folder``.

    Raises:
        UserError: a file cannot be written; the old one is kept.
    """
    columns = ("part", "trial", "state", *ranges, *FACTS)
    rows = [trial_row(outcome.part, trial) for outcome in outcomes for trial in outcome.trials]
    front = [row for outcome in outcomes for row in front_rows(outcome)]
    importance = [
        {"part": outcome.part, "objective": objective, "parameter": name, "importance": share}
        for outcome in outcomes
        for objective, shares in outcome.importance.items()
        for name, share in shares.items()
    ]
    write_atomic(folder / "trials.csv", _csv(columns, rows))
    write_atomic(folder / "pareto.csv", _csv(columns, front))
    write_atomic(
        folder / "importance.csv", _csv(("part", "objective", "parameter", "importance"), importance)
    )
    write_atomic(folder / "trials.md", _markdown(title, ranges, objectives, outcomes).encode())


def trial_row(part: str, trial: FrozenTrial) -> dict[str, Any]:
    """A trial as a row; ``val_loss`` is that of a complete run, ``last_loss`` the last that was measured."""
    facts = trial.user_attrs
    validation = facts.get("validation", {})
    last = max(validation, key=int, default=None)
    return {
        **trial.params,
        **{
            name: facts[name]
            for name in ("tokens_out", "macs", "gap", "seconds", "run", "reason")
            if name in facts
        },
        "part": part,
        "trial": trial.number,
        "state": STATES[trial.state],
        "schedule": " ".join(map(str, facts.get("schedule", ()))),
        "val_loss": trial.values[0] if trial.state == TrialState.COMPLETE else None,
        "last_loss": None if last is None else validation[last],
        "last_update": last,
        "in_force": "yes" if facts.get("in_force") else "",
    }


def front_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """The front, cheapest first; a run that was suggested twice is named once."""
    rows = [trial_row(outcome.part, trial) for trial in outcome.trials if trial.number in set(outcome.front)]
    once = {row["run"]: row for row in reversed(rows)}
    return sorted(once.values(), key=lambda row: (row.get("macs", 0), row["trial"]))


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _markdown(
    title: str, ranges: Mapping[str, str], objectives: Sequence[str], outcomes: Sequence[Outcome]
) -> str:
    lines = [f"# {title}", "", f"Minimised: {', '.join(objectives)}. Searched:", ""]
    lines += [f"- `{name}`: {text}" for name, text in ranges.items()]
    lines += [
        "",
        "`val_loss` is the loss on `coco_val` (nats a token) at the end of a run with one seed; `macs` are "
        "those of the connector's linear layers for one image. A pruned trial has no `val_loss`: it ended at "
        "`last_update`. No test set is looked at.",
    ]
    for outcome in outcomes:
        states = [STATES[trial.state] for trial in outcome.trials]
        counts = ", ".join(f"{states.count(name)} {name}" for name in STATES.values())
        lost = f"; {outcome.lost} were lost with their workers and given out again" if outcome.lost else ""
        lines += ["", f"## {outcome.part}", "", f"{len(states)} trials: {counts}{lost}.", ""]
        lines += ["Pareto front:" if len(objectives) > 1 else "Best:", ""]
        lines += _table(outcome.parameters, front_rows(outcome))
        for objective, shares in outcome.importance.items():
            text = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
            lines += ["", f"Importance for {objective} (PED-ANOVA): {text}."]
        lines += ["", "All trials:", ""]
        lines += _table(outcome.parameters, [trial_row(outcome.part, trial) for trial in outcome.trials])
    return "\n".join(lines) + "\n"


def _table(parameters: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    facts = [name for name in _SHOWN_IN_MARKDOWN if any(row.get(name) not in (None, "") for row in rows)]
    # The shares of a free list say less than the list.
    columns = ["trial", *(name for name in parameters if not name.startswith("merge_")), *facts]
    lines = ["| " + " | ".join(columns) + " | state |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [_cell(name, row.get(name)) for name in columns]
        state = row["state"] + (", in force" if row["in_force"] else "")
        lines.append("| " + " | ".join(cells) + f" | {state} |")
    return lines


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "macs":
        return f"{value / 1e6:.3f} M"
    if name in ("val_loss", "gap"):
        return f"{value:.4f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
