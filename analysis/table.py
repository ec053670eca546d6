"""One table, and how it is written: CSV, Markdown, LaTeX and HTML.

A `Table` has the numbers in full and the text that a reader sees. Words in titles, labels and notes are plain
text in which `code` stands between backticks; each renderer escapes what means something in its language.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from evlgen.errors import UserError

COLUMNS = ("row", "metric", "mean", "ci_low", "ci_high", "n_seeds", "paper")  # of a table.csv
NOTHING = "–"  # the text of a cell without a number
_EMPTY = (NOTHING, "", "?")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: the figure or the words that are shown.
        mean: the number in full, by which HTML sorts and which CSV gives; None where there is none.
        low, high: ends of its interval, in full.
        n: how many seeds the number is the mean of.
        interval: as shown, ``[65.1, 68.4]``.
        word: a verdict behind the number.
        is_starred: whether a star follows the word.
        paper: the paper's number or word ("collapse"); None if unknown.
    """

    text: str = NOTHING
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    interval: str = ""
    word: str = ""
    is_starred: bool = False
    paper: float | str | None = None


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: the metric, as `table.csv` calls it.
        title: its heading; empty takes the name.
        marks_unknown: show a question mark where the paper's number is unknown. Without it, the paper's
            numbers are shown where they are known.
    """

    name: str
    title: str = ""
    marks_unknown: bool = False

    @property
    def heading(self) -> str:
        return self.title or self.name


@dataclass(frozen=True)
class Row:
    """A row: its label, one cell a column, and a mark behind the label that a note explains (``†``)."""

    label: str
    cells: tuple[Cell, ...]
    mark: str = ""

    @property
    def marked_label(self) -> str:
        return f"{self.label} {self.mark}".rstrip()


@dataclass(frozen=True)
class Table:
    """Rows and columns.

    Attributes:
        notes: what must be known to read the numbers, a sentence or two each.
        corner: heading of the labels.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    corner: str = "row"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{row.label}: {len(row.cells)} cells for {len(self.columns)} columns")


@dataclass(frozen=True)
class Section:
    """A part of a page: tables and paragraphs in their order; ``title`` may be empty."""

    title: str
    blocks: tuple[Table | str, ...]


@dataclass(frozen=True)
class Page:
    """All tables of an experiment or a search. The first section is what a reader sees first."""

    title: str
    sections: tuple[Section, ...]


# ------------------------------------------------------------------------------------------------ CSV


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV file with a head, lines ended by a line feed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def csv_lines(table: Table) -> list[tuple[object, ...]]:
    """Lines of a ``table.csv``, the fields `COLUMNS` each: one for each row and metric."""
    return [
        (
            row.label,
            column.name,
            *map(exact, (cell.mean, cell.low, cell.high)),
            cell.n,
            "" if cell.paper is None else cell.paper,
        )
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
    ]


def to_csv(*tables: Table) -> str:
    """A ``table.csv`` of one or more tables: a line for each row and metric."""
    return csv_text(COLUMNS, (line for table in tables for line in csv_lines(table)))


def read_csv(path: Path) -> list[Table]:
    """The tables of a ``table.csv``: rows against metrics; what has other metrics is a table of its own.

    Raises:
        UserError: the file cannot be read, or is no such file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            lines = list(reader)
            rows: list[tuple[str, dict[str, Cell]]] = []
            for line in lines:  # a row is lines that follow each other, with the same label and other metrics
                label, name = line["row"], line["metric"]
                if not rows or rows[-1][0] != label or name in rows[-1][1]:
                    rows.append((label, {}))
                mean, low, high = (float(line[key]) if line[key] else None for key in COLUMNS[2:5])
                seeds = int(line["n_seeds"] or 0)
                rows[-1][1][name] = Cell(
                    exact(mean) or NOTHING, mean, low, high, seeds, paper=line["paper"] or None
                )
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}); make it again with `python sweeps/run.py`") from error
    tables: list[tuple[tuple[str, ...], dict[str, Row]]] = []
    for label, cells in rows:
        if not tables or tables[-1][0] != tuple(cells) or label in tables[-1][1]:
            tables.append((tuple(cells), {}))
        tables[-1][1][label] = Row(label, tuple(cells.values()))
    return [
        Table("All metrics", tuple(map(Column, names)), tuple(by_label.values()))
        for names, by_label in tables
    ]


def exact(value: float | None) -> str:
    """Six significant digits; empty for None."""
    return "" if value is None else f"{value:.6g}"


# ------------------------------------------------------------------------------------------- Markdown


def to_markdown(table: Table) -> str:
    """The grid, and below it the notes, one a line."""
    head = [table.corner, *(column.heading for column in table.columns)]
    grid = [[row.marked_label, *_texts(table, row, _markdown_cell)] for row in table.rows]
    lines = [
        _markdown_line(head),
        "|" + "---|" * len(head),
        *map(_markdown_line, grid),
    ]
    return "\n".join([*lines, *(["", *table.notes] if table.notes else [])])


def page_markdown(page: Page, level: int = 1) -> str:
    """A page as a file; ``level`` is that of its heading."""
    lines = [f"{'#' * level} {page.title}"]
    for section in page.sections:
        if section.title:
            lines += ["", f"{'#' * (level + 1)} {section.title}"]
        for block in section.blocks:
            lines += ["", block if isinstance(block, str) else to_markdown(block)]
    return "\n".join(lines) + "\n"


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_cell(cell: Cell, paper: str) -> str:
    word = cell.word + ("\\*" if cell.is_starred else "")
    return " ".join(filter(None, (cell.text, cell.interval, word, f"({paper})" if paper else "")))


def _texts(table: Table, row: Row, text: Callable[[Cell, str], str]) -> list[str]:
    """The cells of a row by a renderer, which gets each cell and its ``paper: 44.6``, or an empty string."""
    return [text(cell, _paper(column, cell)) for column, cell in zip(table.columns, row.cells, strict=True)]


def _paper(column: Column, cell: Cell) -> str:
    if cell.paper is None:
        return "paper: ?" if column.marks_unknown else ""
    return f"paper: {cell.paper}"


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
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "§": r"\S{}",
    "`": "",
} | {mark: f"\\{mark}" for mark in "&%$#_{}"}


def latex_escaped(text: str) -> str:
    """``text`` with the characters that mean something to LaTeX replaced by what prints them."""
    return "".join(_LATEX.get(mark, mark) for mark in text)


def to_latex(table: Table) -> str:
    """A floating table for booktabs; the paper's numbers stand in a line of their own below each row."""
    caption = ". ".join([table.title, *([" ".join(table.notes)] if table.notes else [])])
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering\\small\\setlength{\\tabcolsep}{4pt}",
        f"  \\caption{{{latex_escaped(caption)}}}",
        f"  \\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        "    \\toprule",
        _latex_line(map(latex_escaped, (table.corner, *(column.heading for column in table.columns)))),
        "    \\midrule",
    ]
    for row in table.rows:
        mark = f" \\emph{{{latex_escaped(row.mark)}}}" if row.mark else ""
        lines.append(_latex_line([latex_escaped(row.label) + mark, *_texts(table, row, _latex_cell)]))
        papers = _texts(table, row, lambda _, paper: f"\\emph{{{latex_escaped(paper)}}}" if paper else "")
        if any(papers):
            lines.append(_latex_line(["", *papers]))
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}"]) + "\n"


def _latex_line(cells: Iterable[str]) -> str:
    return "    " + " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell, paper: str) -> str:
    interval = f"{{\\scriptsize {cell.interval}}}" if cell.interval else ""
    star = "$^*$" if cell.is_starred else ""
    return " ".join(filter(None, (latex_escaped(cell.text), interval, latex_escaped(cell.word) + star)))


# ----------------------------------------------------------------------------------------------- HTML


def to_html(table: Table, anchor: Callable[[str], str], table_id: str) -> Markup:
    """A ``<table>`` whose columns a script may sort by ``data-sort``, and below it the notes.

    Args:
        anchor: label of a row -> the id of its ``<tr>``, unique in the page.
        table_id: id of the table.
    """
    heads = (table.corner, *(column.heading for column in table.columns))
    head = Markup().join(Markup('<th scope="col">{}</th>').format(inline(text)) for text in heads)
    body = Markup("\n").join(_html_row(table, row, anchor(row.label)) for row in table.rows)
    notes = Markup().join(Markup('\n<p class="note">{}</p>').format(inline(note)) for note in table.notes)
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{title}">\n'
        '<table class="sortable" id="{id}">\n<caption class="unseen">{title}</caption>\n'
        "<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>{notes}\n"
    ).format(title=plain(table.title), id=table_id, head=head, body=body, notes=notes)


def plain(text: str) -> str:
    """Words without the marks of `code`."""
    return text.replace("`", "")


def inline(text: str) -> Markup:
    """Words with the `code` in them marked up."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its partner is a backtick
        return escape(text)
    return Markup().join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


def _html_row(table: Table, row: Row, row_id: str) -> Markup:
    link = Markup('<a class="anchor" href="#{}" aria-label="Link to this row">#</a>').format(row_id)
    return Markup('<tr id="{}"><th scope="row">{}{}</th>\n{}</tr>').format(
        row_id, inline(row.marked_label), link, Markup().join(_texts(table, row, _html_cell))
    )


def _html_cell(cell: Cell, paper: str) -> Markup:
    sort = None
    if cell.mean is not None:
        sort = f"{cell.mean:.12g}"
    elif cell.text in _EMPTY:
        sort = ""
    attributes = "" if sort is None else Markup(' class="number" data-sort="{}"').format(sort)
    word = cell.word + ("*" if cell.is_starred else "")
    parts = [inline(cell.text)]
    if cell.interval:
        parts.append(Markup('<span class="interval">{}</span>').format(cell.interval))
    if word:
        parts.append(Markup('<span class="word {}">{}</span>').format(cell.word, word))
    if paper:
        parts.append(Markup('<span class="paper">({})</span>').format(paper))
    return Markup("<td{}>{}</td>\n").format(attributes, Markup(" ").join(parts))
