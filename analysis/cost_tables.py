"""Tables of exact figures as CSV, Markdown and LaTeX, in the form of those that have seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis.tables import COLUMNS, _escaped, _exact, _grid, csv_text, latex_escaped
from evlgen.runtime.files import write_atomic
from experiments.cost_tables import Counted, Figures, Part, Sheet


def write_counts(counted: Counted, out_dir: Path, measured: Sequence[Part] = ()) -> list[Path]:
    """Write ``table.csv``, ``table.md``, ``table.tex`` and the sheets into ``out_dir``.

    A count has no spread: in the CSV both ends of its interval are the figure itself, from one "seed".

    Args:
        measured: parts that come behind those counted.

    Returns:
        The paths of the files.

    Raises:
        UserError: a file cannot be written; the old one is kept.
    """
    parts = (*counted.parts, *measured)
    files = {
        "table.csv": csv_text(COLUMNS, (line for part in parts for line in _lines(part))),
        "table.md": _markdown(counted, measured),
        "table.tex": "\n".join(_latex(counted.title, part) for part in parts),
        **{sheet.name: csv_text(sheet.columns, sheet.rows) for sheet in counted.sheets},
    }
    paths = []
    for name, text in files.items():
        paths.append(out_dir / name)
        write_atomic(paths[-1], text.encode())
    return paths


def _lines(part: Part) -> Iterable[Sequence[object]]:
    for row in part.rows:
        for metric in part.columns:
            value, paper = row.values.get(metric), row.paper.get(metric)
            figure = _exact(value)
            yield (
                row.label,
                metric,
                *(figure, figure, figure),
                int(value is not None),
                "" if paper is None else f"{paper:g}",
            )


def _markdown(counted: Counted, measured: Sequence[Part]) -> str:
    lines = [f"# {counted.title}", ""]
    how = "Counted; the last part is measured" if measured else "Counted, not measured"
    lines += [f"{how}; numbers of the paper are marked as such, `?` is an unknown one.", ""]
    for part in (*counted.parts, *measured):
        rows = [
            [_escaped(row.label), *(_cell(part, row, metric) for metric in part.columns)] for row in part.rows
        ]
        lines += [f"## {part.title}", "", *_grid(["row", *part.columns.values()], rows), ""]
        lines += _paragraphs(part.notes)
    for sheet in counted.sheets:
        lines += [f"## {sheet.title}", "", *_grid(sheet.shown, _shown(sheet)), ""]
        lines += _paragraphs((*sheet.notes, f"More columns: [{sheet.name}]({sheet.name})."))
    return "\n".join(lines).rstrip() + "\n"


def _paragraphs(notes: Sequence[str]) -> list[str]:
    return [line for note in notes for line in (note, "")]


def _shown(sheet: Sheet) -> list[list[str]]:
    places = [sheet.columns.index(name) for name in sheet.shown]
    return [[_escaped(row[place]) for place in places] for row in sheet.rows]


def _cell(part: Part, row: Figures, metric: str) -> str:
    """The figure, and the paper's where the column has any."""
    text = figure_text(row.values.get(metric))
    if not any(metric in other.paper for other in part.rows):
        return text
    paper = f"{row.paper[metric]:g}" if metric in row.paper else "?"
    return f"{text} (paper: {paper})"


def figure_text(value: float | None) -> str:
    """Three decimals, none for a whole number or a large one; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 10_000 else f"{value:,.3f}"


def _latex(title: str, part: Part) -> str:
    caption = latex_escaped(f"{title}. {part.title}. {' '.join(part.notes)}".replace("`", ""))
    rows = [
        " & ".join(latex_escaped(text) for text in [row.label, *(_cell(part, row, m) for m in part.columns)])
        for row in part.rows
    ]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering\\small\\setlength{\\tabcolsep}{4pt}",
            f"  \\caption{{{caption}}}",
            f"  \\begin{{tabular}}{{l{'r' * len(part.columns)}}}",
            "    \\toprule",
            "    " + " & ".join(["row", *(latex_escaped(name) for name in part.columns.values())]) + r" \\",
            "    \\midrule",
            *(f"    {row} \\\\" for row in rows),
            "    \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}",
            "",
        ]
    )
