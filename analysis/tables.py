"""The table of an experiment as CSV, Markdown and LaTeX: means over seeds, with the paper's numbers beside;
and the differences between its rows, corrected for how many there are.

A number of the paper is always marked as the paper's, one that the paper does not give (or that could not be
confirmed) as unknown, and a row that lacks seeds as incomplete.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.statistics import Difference, Interval, holm, mean_interval, paired_difference
from evlgen.collapse import CollapseThresholds
from evlgen.runtime.files import write_atomic
from experiments.base import Experiment

COLUMNS = ("row", "metric", "mean", "ci_low", "ci_high", "n_seeds", "paper")
DIFFERENCES = (
    *("row", "minus", "metric", "mean", "ci_low", "ci_high", "n_seeds"),
    *("verdict", "p_sign_flip", "p_t", "p_holm"),
)
LEVEL = 0.05  # of the corrected p values
TITLES = {
    "vqav2": "VQAv2",
    "gqa": "GQA",
    "okvqa": "OK-VQA",
    "easy_vqa": "easy-VQA",
    "easy_captions": "easy-VQA's shapes",
    "coco": "COCO",
    "nocaps_in": "NoCaps in-domain",
    "nocaps_near": "NoCaps near-domain",
    "nocaps_out": "NoCaps out-of-domain",
    "nocaps": "NoCaps, all",
    "flickr": "Flickr30K",
    "val_loss": "validation loss",
    "gap": "loss gap, shuffled images",
    "distinct_captions": "distinct captions, %",
    "objects_right": "objects right, %",
    "colours_right": "colours right, %",
    "cosine": "cosine over images",
    "effective_rank": "effective rank",
    "attention_entropy": "attention entropy",
    "train_seconds": "training, s",
    "total_seconds": "training with stage 1, s",
    "peak_memory_gib": "peak memory of a run, GiB",
    "hours": "hours, 8 x A100",
    "connector_gmacs": "MACs of the connector, G",
    "purity": "purity of merged groups",
    "purity_untrained": "purity, untrained",
    "purity_random": "purity, random groups",
    "purity_untrained_random": "purity, random groups of the untrained sizes",
    "purity_grid": "purity, grid",
    "purity_untrained_grid": "purity, grid, of the tokens merged untrained",
    "purity_objects": "purity for objects",
    "purity_objects_untrained": "purity for objects, untrained",
    "purity_objects_random": "purity for objects, random groups",
    "purity_objects_untrained_random": "purity for objects, random groups of the untrained sizes",
    "purity_objects_grid": "purity for objects, grid",
    "purity_objects_untrained_grid": "purity for objects, grid, of the tokens merged untrained",
    "merge_ari": "adjusted Rand index of merged groups",
    "merge_ari_untrained": "adjusted Rand index, untrained",
    "merge_ari_grid": "adjusted Rand index, grid",
    "merge_ari_untrained_grid": "adjusted Rand index, grid of the untrained number",
}
# What tells a collapsed run from a sound one, and what a run costs: shown below the table where measured.
DETAILS = (
    "val_loss",
    "gap",
    "coco/objects_right",
    "coco/colours_right",
    "distinct_captions",
    "cosine",
    "effective_rank",
    "attention_entropy",
    "train_seconds",
    "total_seconds",
    "peak_memory_gib",
    "hours",
)
# The words of `evlgen.collapse.classify`, as a reader of a table needs them.
STATES = {
    "conditioned": "used",
    "plateau": "not yet used",
    "collapsed": "not used",
    "undecided": "undecided",
}
DECIMALS = {
    "val_loss": 3,
    "gap": 3,
    "cosine": 3,
    "attention_entropy": 2,
    "connector_gmacs": 3,
} | {name: 3 for name in TITLES if name.startswith(("purity", "merge_ari"))}  # all others have one
_MANY_ROWS = 6  # up to so many, every row is compared with every other, else each with its `Row.against`
# Shown, but no part of Holm's family: they are known beforehand, or measure the machine as much as the row.
COSTS = ("connector_gmacs", "train_seconds", "total_seconds", "peak_memory_gib", "hours")

Results = Mapping[str, Sequence[Mapping[str, Any] | None]]


@dataclass(frozen=True)
class Cell:
    """One metric of one row.

    Attributes:
        values: one a seed, None where the run or the metric is missing.
        interval: None where no seed has the metric.
        paper: the paper's number, a word of the paper's ("collapse"), or None if unknown.
    """

    values: tuple[float | None, ...]
    interval: Interval | None
    paper: float | str | None


def write_tables(
    experiment: Experiment, scale: str, results: Results, out_dir: Path, seeds: int | None = None
) -> list[Path]:
    """Write ``table.csv``, ``table.md``, ``table.tex`` and ``differences.csv`` into ``out_dir``.

    Each is written whole or not at all.

    Args:
        experiment: the rows and the paper's numbers.
        scale: name of the scale.
        results: row label -> content of ``result.json`` of each seed, in the order of the seeds, None where a
            run is not complete. Rows that are missing altogether have no seeds.
        seeds: how many seeds a complete row has; by default as many as the experiment says.

    Returns:
        The paths of the files.

    Raises:
        UserError: a file cannot be written; the old one is kept.
    """
    expected = experiment.seeds if seeds is None else seeds
    cells = _collect(experiment, results, expected)
    compared = _compare(experiment, cells)
    paths = []
    for name, text in (
        ("table.csv", _csv(cells)),
        ("table.md", _markdown(experiment, scale, results, cells, compared, expected)),
        ("table.tex", _latex(experiment, scale, results, cells, expected)),
        ("differences.csv", _differences_csv(compared)),
    ):
        paths.append(out_dir / name)
        write_atomic(paths[-1], text.encode())
    return paths


Cells = dict[str, dict[str, Cell]]  # row label -> metric -> cell


def _collect(experiment: Experiment, results: Results, expected: int) -> Cells:
    """The cells of all rows, with every metric that the experiment names, the paper has or a run gives."""
    found = [run["metrics"] for runs in results.values() for run in runs if run]
    given = sorted({name for run in found for name, value in run.items() if not isinstance(value, str)})
    of_paper = [name for row in experiment.rows for name in row.paper]
    metrics = list(dict.fromkeys((*experiment.metrics, *of_paper, *given)))
    cells: Cells = {}
    for row in experiment.rows:
        runs = list(results.get(row.label, ()))
        runs += [None] * (expected - len(runs))
        cells[row.label] = {}
        for metric in metrics:
            values = tuple(number(run["metrics"].get(metric)) if run else None for run in runs)
            present = [value for value in values if value is not None]
            interval = mean_interval(present) if present else None
            cells[row.label][metric] = Cell(values, interval, row.paper.get(metric))
    return cells


def number(value: object) -> float | None:
    """A finite number, else None: a loss that is not a number is no result."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


# -------------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Compared:
    """``first - second`` in one metric, paired by seed; ``corrected``: the t test's p after Holm, None for
    a cost."""

    first: str
    second: str
    metric: str
    difference: Difference
    corrected: float | None


def _compare(experiment: Experiment, cells: Cells) -> list[Compared]:
    """Every row less every earlier one, or where there are many each less the row that it names, in the
    table's own metrics.

    All differences of a table but those of costs are one family for the correction.
    """
    labels = list(cells)
    pairs = list(itertools.combinations(labels, 2))
    if len(labels) > _MANY_ROWS:
        pairs = [(row.against or labels[0], row.label) for row in experiment.rows]
        # One that is its own reference is compared with none, nor is one whose reference was left out.
        pairs = [(first, second) for first, second in pairs if first != second and first in cells]
    found = [
        (second, first, metric, difference)
        for first, second in pairs
        for metric in experiment.metrics
        if (difference := _difference(cells[second][metric], cells[first][metric])) is not None
    ]
    family = [one for one in found if one[2] not in COSTS]
    corrected = dict(zip(family, holm([difference.t_p for *_, difference in family]), strict=True))
    return [Compared(*one, corrected.get(one)) for one in found]


def _difference(first: Cell, second: Cell) -> Difference | None:
    """``first - second``, or None where no seed has both."""
    pairs = list(itertools.zip_longest(first.values, second.values))
    if not any(None not in pair for pair in pairs):
        return None
    return paired_difference([pair[0] for pair in pairs], [pair[1] for pair in pairs])


# ------------------------------------------------------------------------------------------------ CSV


def _csv(cells: Cells) -> str:
    rows = [
        (
            label,
            metric,
            _exact(cell.interval.mean if cell.interval else None),
            _exact(cell.interval.low if cell.interval else None),
            _exact(cell.interval.high if cell.interval else None),
            cell.interval.n if cell.interval else 0,
            "" if cell.paper is None else cell.paper,
        )
        for label, metrics in cells.items()
        for metric, cell in metrics.items()
    ]
    return csv_text(COLUMNS, rows)


def _differences_csv(compared: Sequence[Compared]) -> str:
    rows = [
        (
            one.first,
            one.second,
            one.metric,
            *map(_exact, (one.difference.mean, one.difference.low, one.difference.high)),
            one.difference.n,
            one.difference.verdict,
            *map(_exact, (one.difference.p_value, one.difference.t_p, one.corrected)),
        )
        for one in compared
    ]
    return csv_text(DIFFERENCES, rows)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV file with a head, lines ended by a line feed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


# ------------------------------------------------------------------------------------------- Markdown


def _markdown(
    experiment: Experiment,
    scale: str,
    results: Results,
    cells: Cells,
    compared: Sequence[Compared],
    expected: int,
) -> str:
    metrics = list(experiment.metrics)
    rows = _rows(cells, metrics, _ours_beside_paper if _has_paper(experiment) else _ours)
    for row, label in zip(rows, cells, strict=True):
        row.append(_seeds_text(label, results, expected))
    lines = [f"# {experiment.title} (scale `{scale}`)", ""]
    lines += _grid(["row", *map(title, metrics), "seeds"], rows)
    lines += ["", *_notes(experiment, scale, results, cells, expected), ""]

    known = {name for row in cells.values() for name, cell in row.items() if cell.interval or cell.paper}
    details = [name for name in DETAILS if name in known and name not in metrics]
    if details:
        lines += ["## Is the image used, and what did it cost", ""]
        rows = _rows(cells, details, _ours_or_paper)
        for row, label in zip(rows, cells, strict=True):
            row.insert(1, _states(results.get(label, ())))
        lines += _grid(["row", "the image is", *map(title, details)], rows)
        lines += ["", _states_note(), ""]
    lines += _comparisons(experiment, compared)
    lines += ["## Every seed", ""]
    lines += _grid(["row", *map(title, metrics)], _rows(cells, metrics, _every_seed))
    return "\n".join(lines) + "\n"


def _rows(cells: Cells, metrics: Sequence[str], text: Callable[[Cell, str], str]) -> list[list[str]]:
    """For each row its label and the text of each metric's cell."""
    return [
        [_escaped(label), *(text(row[metric], metric) for metric in metrics)] for label, row in cells.items()
    ]


def _ours(cell: Cell, metric: str) -> str:
    if cell.interval is None:
        return "–"
    return _rounded(cell.interval.mean, metric) + _range_text(cell.interval.low, cell.interval.high, metric)


def _paper(cell: Cell) -> str:
    return f"paper: {'?' if cell.paper is None else cell.paper}"


def _has_paper(experiment: Experiment) -> bool:
    """Whether the paper made this experiment and gives at least one of its numbers."""
    return any(row.paper for row in experiment.rows)


def _ours_beside_paper(cell: Cell, metric: str) -> str:
    return f"{_ours(cell, metric)} ({_paper(cell)})"


def _ours_or_paper(cell: Cell, metric: str) -> str:
    return _ours(cell, metric) + (f" ({_paper(cell)})" if cell.paper is not None else "")


def _states_note() -> str:
    least = CollapseThresholds().conditioned
    return (
        f'The image is "used" where the loss gap is at least {least:g} nats at the end, '
        '"not yet used" where the run ended on the plateau before that, loss or gap still moving, '
        '"not used" where nothing moves any more: collapse.'
    )


def _states(runs: Sequence[Mapping[str, Any] | None]) -> str:
    """What the diagnostics say of a row's runs: ``used`` or ``used / plateau / used``, one a seed."""
    said = [STATES.get(str(run["metrics"].get("state")), "?") for run in runs if run]
    return (said[0] if len(set(said)) == 1 else " / ".join(said)) if said else "?"


def _every_seed(cell: Cell, metric: str) -> str:
    return " / ".join(_rounded(value, metric) for value in cell.values)


def _comparisons(experiment: Experiment, compared: Sequence[Compared]) -> list[str]:
    """Paired differences between rows, as lines of Markdown; none of a single seed, which shows nothing."""
    most = max((one.difference.n for one in compared), default=0)
    if most < 2:
        return []
    found = {(one.first, one.second, one.metric): one for one in compared}
    rows = []
    for first, second in dict.fromkeys((one.first, one.second) for one in compared):
        of_pair = [found.get((first, second, metric)) for metric in experiment.metrics]
        texts = map(_compared_text, of_pair, experiment.metrics)
        rows.append([f"{_escaped(first)} *minus* {_escaped(second)}", *texts])
    family = sum(one.corrected is not None for one in compared)
    costs = ", costs left out" if family < len(compared) else ""
    lines = ["## Differences between rows, paired by seed", ""]
    lines += _grid(["rows", *map(title, experiment.metrics)], rows)
    lines += [
        "",
        'A difference is called "higher" or "lower" if its 95% bootstrap interval over seeds does not hold '
        f'zero, else "undecided"; with {_count(most, "seed")} such a verdict alone proves little (no '
        f"sign-flip test can give a p below {2 / 2**most:.2g}). A star marks those that stay corrected "
        f"for their number: p of the paired t test at most {LEVEL:g} by Holm's method over the "
        f"{_count(family, 'difference')} of this table{costs} ([differences.csv](differences.csv)).",
        "",
    ]
    return lines


def _compared_text(compared: Compared | None, metric: str) -> str:
    if compared is None:
        return "–"
    holds = compared.corrected is not None and compared.corrected <= LEVEL
    star = "*" if compared.difference.verdict != "undecided" and holds else ""
    return _difference_text(compared.difference, metric) + star.replace("*", "\\*")


def _difference_text(difference: Difference, metric: str) -> str:
    """One decimal more than scores have: an interval that just misses zero must not look as if it held it."""
    interval = _range_text(difference.low, difference.high, metric, "+", 1)
    return f"{_rounded(difference.mean, metric, '+', 1)}{interval} {difference.verdict}"


def _seeds_text(label: str, results: Results, expected: int) -> str:
    there = sum(run is not None for run in results.get(label, ()))
    return str(there) if there >= expected else f"{there} of {expected} (incomplete)"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


# ---------------------------------------------------------------------------------------------- LaTeX

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would belong to the line break before it
    "–": "--",
} | {mark: f"\\{mark}" for mark in "&%$#_{}"}


def latex_escaped(text: str) -> str:
    """``text`` with the characters that mean something to LaTeX replaced by what prints them."""
    return "".join(_LATEX.get(mark, mark) for mark in text)


def _latex_cell(cell: Cell, metric: str) -> str:
    if cell.interval is None:
        return "--"
    interval = _range_text(cell.interval.low, cell.interval.high, metric)
    return _rounded(cell.interval.mean, metric) + (f" {{\\scriptsize{interval}}}" if interval else "")


def _latex(experiment: Experiment, scale: str, results: Results, cells: Cells, expected: int) -> str:
    notes = " ".join(_notes(experiment, scale, results, cells, expected)).replace("`", "")
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering\\small\\setlength{\\tabcolsep}{4pt}",
        f"  \\caption{{{latex_escaped(experiment.title)}. {latex_escaped(notes)}}}",
        f"  \\begin{{tabular}}{{l{'r' * len(experiment.metrics)}}}",
        "    \\toprule",
        "    " + " & ".join(["row", *(latex_escaped(title(name)) for name in experiment.metrics)]) + r" \\",
        "    \\midrule",
    ]
    for label, row in cells.items():
        seeds = _seeds_text(label, results, expected)
        name = latex_escaped(label) + (f" \\emph{{[seeds: {seeds}]}}" if "incomplete" in seeds else "")
        ours = [_latex_cell(row[metric], metric) for metric in experiment.metrics]
        lines.append("    " + " & ".join([name, *ours]) + r" \\")
        if _has_paper(experiment):
            papers = [latex_escaped(_paper(row[metric])) for metric in experiment.metrics]
            lines.append("    " + " & ".join(["", *(f"\\emph{{{text}}}" for text in papers)]) + r" \\")
    lines += ["    \\bottomrule", "  \\end{tabular}", "\\end{table}"]
    return "\n".join(lines) + "\n"


# ----------------------------------------------------------------------------------------------- both


def title(metric: str) -> str:
    """What a metric is called in a head of a table."""
    place, _, measure = metric.partition("/")
    return f"{TITLES.get(place, place)} {TITLES.get(measure, measure)}".strip()


def _notes(experiment: Experiment, scale: str, results: Results, cells: Cells, expected: int) -> list[str]:
    """What must be known to read the numbers, a sentence a line."""
    intervals = " with 95% bootstrap intervals" if expected > 1 else ""
    notes = [f"Scale {scale}; means over {_count(expected, 'seed')}{intervals}."]
    sizes = {row.config.evaluation.sets for row in experiment.rows}
    if len(sizes) == 1:
        counts = dict(next(iter(sizes)))
        parts = [name for name in ("nocaps_in", "nocaps_near", "nocaps_out") if counts.get(name)]
        if parts and "nocaps" not in counts:
            counts["nocaps"] = sum(counts[name] for name in parts)
        said = [
            _count(counts[name], "question" if name in ("vqav2", "gqa", "okvqa", "easy_vqa") else "image")
            + f" of {title(name)}"
            for name in dict.fromkeys(metric.partition("/")[0] for metric in experiment.metrics)
            if counts.get(name)
        ]
        if said:
            notes.append(f"Evaluated on {', '.join(said)}.")
    if any(row.config.data.world == "miniworld" for row in experiment.rows):
        notes.append(
            "The sets are the miniworld's, in the roles of those they are named after: what compares with "
            "the paper is the order of the rows, not the numbers."
        )
    notes.append(
        "Numbers of the paper are marked as such; a question mark stands for an unknown one."
        if _has_paper(experiment)
        else "No number of the paper is known for these rows."
    )
    missing = [label for label in cells if sum(run is not None for run in results.get(label, ())) < expected]
    if missing:
        notes.append(f"Incomplete, some seeds missing: {'; '.join(missing)}.")
    runs = [run for row in results.values() for run in row if run]
    if any(run["metrics"].get("ptb_tokenizer") == 0 for run in runs):
        notes.append(
            "Some captions were scored without Java, by another tokenizer: their scores differ slightly."
        )
    if experiment.notes:
        notes.append(experiment.notes)
    return notes


def _rounded(value: float | None, metric: str, sign: str = "", more: int = 0) -> str:
    """The number with as many decimals as its metric has and ``more``; ``sign="+"`` shows a plus, too."""
    if value is None:
        return "–"
    text = f"{value:{sign}.{DECIMALS.get(metric, 1) + more}f}"
    return text if text.strip("+-0.") else text.lstrip("+-")  # no negative zeros


def _range_text(low: float | None, high: float | None, metric: str, sign: str = "", more: int = 0) -> str:
    if low is None or high is None:
        return ""
    return f" [{_rounded(low, metric, sign, more)}, {_rounded(high, metric, sign, more)}]"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
