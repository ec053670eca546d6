"""The tables of an experiment: means over seeds beside the paper's numbers, and the differences between its
rows, corrected for how many there are.

A number of the paper is always marked as the paper's, one that the paper does not give (or that could not be
confirmed) as unknown, a row that lacks seeds as incomplete, and one whose runs or scores are of an earlier
version of the code with what has changed since.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import gates
from analysis.results import Results, Run, read
from analysis.statistics import Difference, Interval, holm, mean_interval, paired_difference
from analysis.table import (
    Cell,
    Column,
    Page,
    Row,
    Section,
    Table,
    csv_text,
    exact,
    page_markdown,
    to_csv,
    to_latex,
)
from evlgen.collapse import CollapseThresholds
from evlgen.conventions import CONVENTIONS_NOTE
from evlgen.data import worlds
from evlgen.evaluation.metrics import details, examples, metric
from evlgen.runtime.files import write_atomic
from experiments.base import Experiment

DIFFERENCES = (
    *("row", "minus", "metric", "mean", "ci_low", "ci_high", "n_seeds"),
    *("verdict", "p_sign_flip", "p_t", "p_holm"),
)
LEVEL = 0.05  # of the corrected p values
# The words of `evlgen.collapse.classify`, as a reader of a table needs them.
STATES = {
    "conditioned": "used",
    "plateau": "not yet used",
    "collapsed": "not used",
    "undecided": "undecided",
}
_MANY_ROWS = 6  # up to so many, every row is compared with every other, else each with its `Row.against`


def write_tables(results: Results, out_dir: Path) -> list[Path]:
    """Write ``table.csv``, ``table.md``, ``table.tex`` and ``differences.csv`` into ``out_dir``.

    Each is written whole or not at all.

    Returns:
        The paths of the files.

    Raises:
        UserError: a file cannot be written; the old one is kept.
    """
    scores = scores_of(results)
    compared = _compare(results.experiment, scores)
    files = {
        "table.csv": to_csv(all_metrics(results, scores)),
        "table.md": page_markdown(_page(results, scores, compared)),
        "table.tex": to_latex(main_table(results, scores, with_seeds=False)),
        "differences.csv": _differences_csv(compared),
    }
    for name, text in files.items():
        write_atomic(out_dir / name, text.encode())
    return [out_dir / name for name in files]


# ----------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Score:
    """One metric of one row.

    Attributes:
        values: one a seed, None where the run or the metric is missing.
        interval: None where no seed has the metric.
        paper: the paper's number, a word of the paper's ("collapse"), or None if unknown.
    """

    values: tuple[float | None, ...]
    interval: Interval | None
    paper: float | str | None


Scores = dict[str, dict[str, Score]]  # label of a row -> metric -> score


def scores_of(results: Results) -> Scores:
    """All rows, with every metric that the experiment names, the paper has or a run gives."""
    experiment = results.experiment
    measured = [run.record.metrics for run in results.complete() if run.record is not None]
    given = sorted({name for one in measured for name, value in one.items() if not isinstance(value, str)})
    of_paper = [name for row in experiment.rows for name in row.paper]
    metrics = list(dict.fromkeys((*experiment.metrics, *of_paper, *given)))
    scores: Scores = {}
    for row in experiment.rows:
        scores[row.label] = {}
        for name in metrics:
            values = tuple(results.values(row.label, name))
            present = [value for value in values if value is not None]
            interval = mean_interval(present) if present else None
            scores[row.label][name] = Score(values, interval, row.paper.get(name))
    return scores


@dataclass(frozen=True)
class Compared:
    """``first - second`` in one metric, paired by seed; ``corrected``: the t test's p after Holm, None for
    a cost."""

    first: str
    second: str
    metric: str
    difference: Difference
    corrected: float | None

    @property
    def is_starred(self) -> bool:
        """Whether the verdict stays when it is corrected."""
        return (
            self.difference.verdict != "undecided" and self.corrected is not None and self.corrected <= LEVEL
        )


def _compare(experiment: Experiment, scores: Scores) -> list[Compared]:
    """Every row less every earlier one, or where there are many each less the row that it names, in the
    table's own metrics.

    All differences of a table but those of costs are one family for the correction.
    """
    labels = list(scores)
    pairs = list(itertools.combinations(labels, 2))
    if len(labels) > _MANY_ROWS:
        pairs = [(row.against or labels[0], row.label) for row in experiment.rows]
        # One that is its own reference is compared with none, nor is one whose reference was left out.
        pairs = [(first, second) for first, second in pairs if first != second and first in scores]
    found = [
        (second, first, name, difference)
        for first, second in pairs
        for name in experiment.metrics
        if (difference := _difference(scores[second][name], scores[first][name])) is not None
    ]
    family = [one for one in found if not metric(one[2]).is_cost]
    corrected = dict(zip(family, holm([difference.t_p for *_, difference in family]), strict=True))
    return [Compared(*one, corrected.get(one)) for one in found]


def _difference(first: Score, second: Score) -> Difference | None:
    """``first - second``, or None where no seed has both."""
    if not any(None not in pair for pair in zip(first.values, second.values, strict=True)):
        return None
    return paired_difference(first.values, second.values)


def _differences_csv(compared: Sequence[Compared]) -> str:
    rows = [
        (
            one.first,
            one.second,
            one.metric,
            *map(exact, (one.difference.mean, one.difference.low, one.difference.high)),
            one.difference.n,
            one.difference.verdict,
            *map(exact, (one.difference.p_value, one.difference.t_p, one.corrected)),
        )
        for one in compared
    ]
    return csv_text(DIFFERENCES, rows)


# ------------------------------------------------------------------------------------------------ tables


def page(results: Results, scores: Scores | None = None) -> Page:
    """All tables of an experiment, as ``table.md`` and the report show them.

    Args:
        scores: of `scores_of`, where they are there already.
    """
    scores = scores or scores_of(results)
    return _page(results, scores, _compare(results.experiment, scores))


def _page(results: Results, scores: Scores, compared: Sequence[Compared]) -> Page:
    experiment = results.experiment
    sections = [Section("", (main_table(results, scores),))]
    if more := _details_table(results, scores):
        sections.append(Section(more.title, (more,)))
    if differences := _difference_table(experiment, compared):
        sections.append(Section(differences.title, (differences,)))
    every_seed = _table("Every seed", results, scores, experiment.metrics, _every_seed)
    sections.append(Section(every_seed.title, (every_seed,)))
    return Page(f"{experiment.title} (scale `{results.scale}`)", tuple(sections))


def main_table(results: Results, scores: Scores | None = None, with_seeds: bool = True) -> Table:
    """The table that a reader sees first: the experiment's metrics, and the notes.

    Args:
        with_seeds: in a column of their own; else rows that lack seeds say so behind their label.
    """
    scores = scores or scores_of(results)
    experiment = results.experiment
    has_paper = any(row.paper for row in experiment.rows)
    rows = []
    columns = [Column(name, metric(name).title, marks_unknown=has_paper) for name in experiment.metrics]
    if with_seeds:
        columns.append(Column("seeds"))
    for label, row in scores.items():
        cells = [_mean(row[name], name) for name in experiment.metrics]
        mark, seeds = results.mark(label), _seeds_text(results.runs[label])
        if with_seeds:
            cells.append(Cell(seeds, float(len(results.complete(label)))))
        elif "incomplete" in seeds:
            mark = f"{mark} [seeds: {seeds}]".lstrip()
        rows.append(Row(label, tuple(cells), mark))
    return Table(experiment.title, tuple(columns), tuple(rows), tuple(_notes(results, has_paper)))


def all_metrics(results: Results, scores: Scores | None = None) -> Table:
    """Everything that was measured, rows against metrics: what ``table.csv`` has."""
    scores = scores or scores_of(results)
    metrics = next(iter(scores.values()), {})
    return _table("All metrics", results, scores, tuple(metrics), _mean)


def _table(
    title: str, results: Results, scores: Scores, metrics: Sequence[str], cell: Callable[[Score, str], Cell]
) -> Table:
    rows = [
        Row(label, tuple(cell(row[name], name) for name in metrics), results.mark(label))
        for label, row in scores.items()
    ]
    return Table(title, tuple(Column(name, metric(name).title) for name in metrics), tuple(rows))


def _mean(score: Score, name: str) -> Cell:
    """The mean with its interval, and the paper's number."""
    interval = score.interval
    if interval is None:
        return Cell(paper=score.paper)
    return Cell(
        _rounded(interval.mean, name),
        *(interval.mean, interval.low, interval.high, interval.n),
        interval=_range_text(interval.low, interval.high, name),
        paper=score.paper,
    )


def _every_seed(score: Score, name: str) -> Cell:
    first = next((value for value in score.values if value is not None), None)
    return Cell(" / ".join(_rounded(value, name) for value in score.values), first)


def _details_table(results: Results, scores: Scores) -> Table | None:
    """What tells a collapsed run from a sound one, and what a run costs, where that is measured or known."""
    known = {name for row in scores.values() for name, score in row.items() if score.interval or score.paper}
    shown = [name for name in details(known) if name not in results.experiment.metrics]
    if not shown:
        return None
    table = _table("Is the image used, and what did it cost", results, scores, shown, _mean)
    threshold = CollapseThresholds().conditioned
    return Table(
        table.title,
        (Column("state", "the image is"), *table.columns),
        tuple(
            Row(row.label, (Cell(_states(results.states(row.label))), *row.cells), row.mark)
            for row in table.rows
        ),
        (
            f'The image is "used" where the loss gap is at least {threshold:g} nats at the end, "not yet '
            'used" where the run ended on the plateau before that, loss or gap still moving, '
            '"not used" where nothing moves any more: collapse.',
        ),
    )


def _states(states: Sequence[str]) -> str:
    """What is found of a row's runs: ``used`` or ``used / not yet used / used``, one a seed."""
    words = [STATES.get(state, "?") for state in states]
    return (words[0] if len(set(words)) == 1 else " / ".join(words)) if words else "?"


def _difference_table(experiment: Experiment, compared: Sequence[Compared]) -> Table | None:
    """Paired differences between rows; None of a single seed, which shows nothing."""
    most = max((one.difference.n for one in compared), default=0)
    if most < 2:
        return None
    found = {(one.first, one.second, one.metric): one for one in compared}
    rows = [
        Row(
            f"{first} minus {second}",
            tuple(_compared_cell(found.get((first, second, name)), name) for name in experiment.metrics),
        )
        for first, second in dict.fromkeys((one.first, one.second) for one in compared)
    ]
    family = sum(one.corrected is not None for one in compared)
    costs = ", costs left out" if family < len(compared) else ""
    return Table(
        "Differences between rows, paired by seed",
        tuple(Column(name, metric(name).title) for name in experiment.metrics),
        tuple(rows),
        (
            'A difference is called "higher" or "lower" if its 95% bootstrap interval over seeds excludes '
            f'zero, else "undecided"; with {count_text(most, "seed")} such a verdict alone proves little (no '
            f"sign-flip test can give a p below {2 / 2**most:.2g}). A star marks those that stay when "
            "corrected "
            f"for their number: p of the paired t test at most {LEVEL:g} by Holm's method over the "
            f"{count_text(family, 'difference')} of this table{costs} (`differences.csv`).",
        ),
        corner="rows",
    )


def _compared_cell(compared: Compared | None, name: str) -> Cell:
    """One decimal more than scores have: an interval that just misses zero must not look as if it held it."""
    if compared is None:
        return Cell()
    difference = compared.difference
    return Cell(
        _rounded(difference.mean, name, "+", 1),
        *(difference.mean, difference.low, difference.high, difference.n),
        interval=_range_text(difference.low, difference.high, name, "+", 1),
        word=difference.verdict,
        is_starred=compared.is_starred,
    )


# ------------------------------------------------------------------------------------------------- words


def _notes(results: Results, has_paper: bool) -> list[str]:
    """What must be known to read the numbers, a sentence a line."""
    experiment = results.experiment
    intervals = " with 95% bootstrap intervals" if results.seeds > 1 else ""
    notes = [f"Scale {results.scale}; means over {count_text(results.seeds, 'seed')}{intervals}."]
    notes += _sizes(results)
    if any(row.config.data.world == "miniworld" for row in experiment.rows):
        notes.append(
            "The sets are the miniworld's, in the roles of those they are named after: what compares with "
            "the paper is the order of the rows, not the numbers."
        )
    notes.append(
        "Numbers of the paper are marked as such; a question mark stands for an unknown one."
        if has_paper
        else "No number of the paper is known for these rows."
    )
    if theirs := [row.label for row in experiment.rows if row.config.conventions == "authors"]:
        rows = "" if len(theirs) == len(experiment.rows) else f" ({'; '.join(theirs)})"
        notes.append(f"{CONVENTIONS_NOTE}{rows}.")
    if missing := [label for label, runs in results.runs.items() if len(results.complete(label)) < len(runs)]:
        notes.append(f"Incomplete, some seeds missing: {'; '.join(missing)}.")
    if any(run.metric("ptb_tokenizer") == 0 for run in results.complete()):
        notes.append(
            "Some captions were scored without Java, by another tokenizer: their scores differ slightly."
        )
    notes += _lost(results)
    notes += results.warnings()
    notes += gates.stage1_notes(results)
    if (
        experiment.name == "table1"
        and any(run.metric("okvqa") is not None for run in results.complete())
        and (sentence := gates.follows_nothing([results, read("budgets", results.scale)]))
    ):
        notes.append(f"{sentence}.")
    if experiment.notes:
        notes.append(experiment.notes)
    return notes


def _lost(results: Results) -> list[str]:
    """A sentence on what of the data was damaged or left out, a row; nothing where all was whole."""
    said: dict[str, list[str]] = {}
    for label in results.runs:
        for record in results.complete(label):
            damaged, left_out, samples = (
                int(record.metric(key) or 0) for key in ("damaged_pairs", "left_out", "samples")
            )
            parts = []
            if damaged:
                parts.append(f"{damaged:,} of {samples:,} training pairs were damaged and replaced by others")
            if left_out:
                parts.append(f"{left_out:,} things in the data's files are in no pair")
            if parts:
                labels = said.setdefault("; ".join(parts), [])
                labels += [] if label in labels else [label]
    return [
        f"{text} ({'; '.join(labels)}): the run's `log.txt` names them, its `provenance.json` says why."
        for text, labels in said.items()
    ]


def _sizes(results: Results) -> list[str]:
    """A sentence on how many images and questions the experiment's metrics are measured on.

    Records say it: a set may have had fewer than were asked for. Older ones have no count of questions; of a
    drawn world, which has any number, these are as many as were asked for, else nothing is said.
    """
    sets = {one.name: one for one in worlds.all_sets()}
    said = []
    for name in dict.fromkeys(name.partition("/")[0] for name in results.experiment.metrics):
        counts = {_scored(name, run) for run in results.complete()} - {None} if name in sets else set()
        if numbers := sorted(count for count in counts if count):
            noun = "question" if sets[name].kind == "question" else "image"
            text = count_text(numbers[-1], noun)
            said.append(f"{f'{numbers[0]} to ' * (len(numbers) > 1)}{text} of {sets[name].title}")
    return [f"Evaluated on {', '.join(said)}."] if said else []


def _scored(name: str, run: Run) -> int | None:
    """On how many examples of an evaluation set a run was scored; None where that is not known."""
    if run.record is None or not any(key.partition("/")[0] == name for key in run.record.metrics):
        return None
    if (counted := examples(name, run.record.metrics)) is not None:
        return counted[0]
    world = worlds.of(run.config.data)
    asked = dict(run.config.evaluation.sets)
    parts = next((one.parts for one in world.eval_sets if one.name == name), ()) or (name,)
    drawn = [part for part in parts if part in world.sets and world.name == "miniworld"]
    return sum(asked.get(part, 0) for part in drawn) or None


def _seeds_text(runs: Sequence[Run]) -> str:
    there = sum(run.record is not None for run in runs)
    return str(there) if there == len(runs) else f"{there} of {len(runs)} (incomplete)"


def _rounded(value: float | None, name: str, sign: str = "", more: int = 0) -> str:
    """The number with as many decimals as its metric has and ``more``; ``sign="+"`` shows a plus, too."""
    if value is None:
        return "–"
    text = f"{value:{sign}.{metric(name).decimals + more}f}"
    return text if text.strip("+-0.") else text.lstrip("+-")  # no negative zeros


def _range_text(low: float | None, high: float | None, name: str, sign: str = "", more: int = 0) -> str:
    if low is None or high is None:
        return ""
    return f"[{_rounded(low, name, sign, more)}, {_rounded(high, name, sign, more)}]"


def count_text(number: int, noun: str) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
