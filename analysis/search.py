"""The tables of a search: all trials, the Pareto front, how much each parameter matters.

Figures (``paper_figures/merge_search.py``) and the report are made from the CSV files alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.table import Cell, Column, Page, Row, Section, Table, page_markdown
from evlgen.errors import UserError
from evlgen.runtime.files import write_atomic

if TYPE_CHECKING:  # not everybody who makes the report has Optuna
    from optuna.trial import FrozenTrial

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}  # by the names of Optuna's
FACTS = (
    *("schedule", "tokens_out", "macs", "val_loss", "gap"),
    *("last_loss", "last_update", "seconds", "run", "in_force", "reason"),
)
_SHOWN = ("schedule", "tokens_out", "macs", "val_loss", "gap", "last_update", "seconds", "run")
_WHAT_IS_WHAT = (
    "`val_loss` is the loss on `coco_val` (nats a token) at the end of a run with one seed; `macs` are "
    "those of "
    "the connector's linear layers for one image. A pruned trial has no `val_loss`: it ended at "
    "`last_update`. No "
    "test set is looked at."
)


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
    trials = [trial_row(outcome.part, trial) for outcome in outcomes for trial in outcome.trials]
    front = [row for outcome in outcomes for row in front_rows(outcome)]
    importance = [
        {"part": outcome.part, "objective": objective, "parameter": name, "importance": share}
        for outcome in outcomes
        for objective, shares in outcome.importance.items()
        for name, share in shares.items()
    ]
    write_atomic(folder / "trials.csv", _csv(columns, trials))
    write_atomic(folder / "pareto.csv", _csv(columns, front))
    write_atomic(
        folder / "importance.csv", _csv(("part", "objective", "parameter", "importance"), importance)
    )
    intro = [f"Minimised: {', '.join(objectives)}.", *(f"`{name}`: {text}." for name, text in ranges.items())]
    lost = {outcome.part: outcome.lost for outcome in outcomes}
    page = _page(title, intro, trials, front, importance, len(objectives) > 1, lost)
    write_atomic(folder / "trials.md", page_markdown(page).encode())


def read_search(folder: Path) -> Page:
    """The page of a search from its CSV files.

    Raises:
        UserError: one of them is missing or damaged.
    """
    name, scale = folder.parent.name, folder.name
    try:
        trials, front, importance = (
            pd.read_csv(folder / f"{file}.csv", dtype=object, keep_default_na=False).to_dict("records")
            for file in ("trials", "pareto", "importance")
        )
        columns = list(pd.read_csv(folder / "trials.csv", nrows=0).columns)
        searched = columns[columns.index("state") + 1 : columns.index("schedule")]
        has_macs = any(row["macs"] for row in front)
        trials, front, importance = ([_parsed(row) for row in table] for table in (trials, front, importance))
        intro = [f"Searched: {', '.join(f'`{name}`' for name in searched)}."]
        return _page(f"Search {name} (scale `{scale}`)", intro, trials, front, importance, has_macs, {})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: a file is missing or damaged ({type(error).__name__}: {error}); make the search's "
            "tables "
            "again with `python sweeps/merge_search.py`"
        ) from error


def _parsed(row: Mapping[str, str]) -> dict[str, Any]:
    """A line of a CSV file with its numbers as numbers, and None where it has nothing."""
    parsed: dict[str, Any] = {}
    for name, text in row.items():
        parsed[name] = text or None
        if text and name not in ("run", "schedule", "part"):
            for kind in (int, float):
                try:
                    parsed[name] = kind(text)
                    break
                except ValueError:
                    continue
    return parsed


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
        "state": STATES[trial.state.name],
        "schedule": " ".join(map(str, facts.get("schedule", ()))),
        "val_loss": trial.values[0] if trial.state.name == "COMPLETE" else None,
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


def _page(
    title: str,
    intro: Sequence[str],
    trials: Sequence[Mapping[str, Any]],
    front: Sequence[Mapping[str, Any]],
    importance: Sequence[Mapping[str, Any]],
    has_front: bool,
    lost: Mapping[str, int],
) -> Page:
    """A section for each part that was searched: its front, its importances, all its trials.

    Args:
        trials, front, importance: rows of the CSV files.
        has_front: whether more than one objective was minimised.
        lost: part -> trials whose worker died and that were given out again.
    """
    sections = [Section("", ("  \n".join(intro), _WHAT_IS_WHAT))]
    for part in dict.fromkeys(row["part"] for row in trials):
        own = [row for row in trials if row["part"] == part]
        states = [row["state"] for row in own]
        text = f"{len(states)} trials: {', '.join(f'{states.count(one)} {one}' for one in STATES.values())}"
        if lost.get(part):
            text += f"; {lost[part]} were lost with their workers and given out again"
        shares: dict[str, list[str]] = {}
        for row in importance:
            if row["part"] == part:
                shares.setdefault(row["objective"], []).append(f"{row['parameter']} {row['importance']:.2f}")
        best = [row for row in front if row["part"] == part]
        blocks: tuple[Table | str, ...] = (
            f"{text}. {'Pareto front' if has_front else 'Best'}:",
            _table("Pareto front" if has_front else "Best", best),
            *(f"Importance for {name} (PED-ANOVA): {', '.join(each)}." for name, each in shares.items()),
            "All trials:",
            _table("All trials", own),
        )
        sections.append(Section(part, blocks))
    return Page(title, tuple(sections))


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    known = dict.fromkeys(name for row in rows for name, value in row.items() if value not in (None, ""))
    searched = [name for name in known if name not in ("part", "trial", "state", *FACTS)]
    facts = [name for name in _SHOWN if name in known]
    # The shares of a free list say less than the list.
    columns = [*(name for name in searched if not name.startswith("merge_")), *facts]
    return Table(
        title,
        (*map(Column, columns), Column("state")),
        tuple(
            Row(
                str(row["trial"]),
                (
                    *(_cell(name, row.get(name)) for name in columns),
                    Cell(row["state"] + (", default" if row["in_force"] else "")),
                ),
            )
            for row in rows
        ),
        corner="trial",
    )


def _cell(name: str, value: Any) -> Cell:
    if value is None:
        return Cell("")
    if name == "macs":
        return Cell(f"{value / 1e6:.3f} M", value)
    if name in ("val_loss", "gap"):
        return Cell(f"{value:.4f}", value)
    if isinstance(value, float):
        return Cell(f"{value:.3g}", value)
    return Cell(str(value), float(value) if isinstance(value, int) else None)
