"""One table in four languages."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.table import (
    COLUMNS,
    Cell,
    Column,
    Page,
    Row,
    Section,
    Table,
    inline,
    page_markdown,
    read_csv,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
)
from evlgen.errors import UserError

TABLE = Table(
    "Scores of `run`",
    (Column("vqav2", "VQAv2", marks_unknown=True), Column("seeds"), Column("said", "what <it> said")),
    (
        Row(
            "a | b, 50%",
            (
                Cell("-4.3", -4.25, -7.92, -2.3, 3, "[-7.9, -2.3]", "lower", True, 46.9),
                Cell("3", 3.0),
                Cell("use `x`"),
            ),
            "†",
        ),
        Row("c", (Cell(), Cell("0", 0.0), Cell("65.1 / 70.0", 65.1))),
    ),
    ("† an `old` one.", "Another note."),
)


def test_markdown() -> None:
    assert to_markdown(TABLE).splitlines() == [
        "| row | VQAv2 | seeds | what <it> said |",
        "|---|---|---|---|",
        "| a \\| b, 50% † | -4.3 [-7.9, -2.3] lower\\* (paper: 46.9) | 3 | use `x` |",
        "| c | – (paper: ?) | 0 | 65.1 / 70.0 |",
        "",
        "† an `old` one.",
        "Another note.",
    ]
    page = Page("Title", (Section("", ("intro", TABLE)), Section("More", ("text",))))
    text = page_markdown(page)
    assert text.startswith("# Title\n\nintro\n\n| row |")
    assert text.endswith("Another note.\n\n## More\n\ntext\n")
    assert page_markdown(page, level=3).startswith("### Title\n")


def test_latex() -> None:
    text = to_latex(TABLE)
    assert "\\caption{Scores of run. $\\dagger$ an old one. Another note.}" in text
    assert (
        "a \\textbar{} b, 50\\% \\emph{$\\dagger$} & -4.3 {\\scriptsize [-7.9, -2.3]} lower$^*$ & 3 & use x"
        in text
    )
    assert "\n     & \\emph{paper: 46.9} &  &  \\\\\n" in text
    assert "c & -- & 0 & 65.1 / 70.0 \\\\\n" in text


class Cells(HTMLParser):
    """Attributes and text of the cells of a table's body."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "td":
            self.cells.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.cells:
            attributes, text = self.cells[-1]
            self.cells[-1] = (attributes, text + data)


def test_html() -> None:
    text = to_html(TABLE, lambda label: f"row-{label[0]}", "scores")
    assert '<table class="sortable" id="scores">\n<caption class="unseen">Scores of run</caption>' in text
    assert '<th scope="col">what &lt;it&gt; said</th>' in text
    assert '<tr id="row-a"><th scope="row">a | b, 50% †<a class="anchor" href="#row-a"' in text
    assert '<p class="note">† an <code>old</code> one.</p>' in text
    cells = Cells(text.split("</table>")[0]).cells
    assert [attributes.get("data-sort") for attributes, _ in cells] == ["-4.25", "3", None, "", "0", "65.1"]
    assert cells[0][1].split() == "-4.3 [-7.9, -2.3] lower* (paper: 46.9)".split()
    assert '<span class="word lower">lower*</span>' in text


def test_words_with_code_in_them() -> None:
    assert inline("<b> `x<y` c") == "&lt;b&gt; <code>x&lt;y</code> c"
    assert inline("a ` alone") == "a ` alone"


def test_csv_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(to_csv(TABLE, Table("", (Column("macs"),), (Row("d", (Cell("1", 1.0, 1.0, 1.0, 1),)),))))
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[1] == '"a | b, 50%",vqav2,-4.25,-7.92,-2.3,3,46.9'
    assert lines[4] == "c,vqav2,,,,0,"
    first, second = read_csv(path)
    assert [column.name for column in first.columns] == ["vqav2", "seeds", "said"]
    assert [row.label for row in first.rows] == ["a | b, 50%", "c"]
    cell = first.rows[0].cells[0]
    assert (cell.mean, cell.low, cell.high, cell.n, cell.paper) == (-4.25, -7.92, -2.3, 3, "46.9")
    assert first.rows[1].cells[0] == Cell()
    assert [row.label for row in second.rows] == ["d"]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"table\.csv: damaged"):
        read_csv(path)


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("", (Column("a"), Column("b")), (Row("x", (Cell(),)),))
