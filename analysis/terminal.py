"""Tables on a terminal: no number and no id is ever cut; a table that is too wide is stacked."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

_BORDERS = 3  # characters of a column beside its text
_LEAST = 24  # columns: a run's id in a line


class _Console(Console):
    """A console that leaves the wrapping of lines to the terminal: ids and paths stay whole."""

    def print(self, *objects: Any, **options: Any) -> None:
        if all(isinstance(thing, str) for thing in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)


def _width() -> int | None:
    """Of a terminal whose ``COLUMNS`` cannot be meant; else None, for what rich finds."""
    columns = os.environ.get("COLUMNS", "")
    if not columns.isdecimal() or int(columns) >= _LEAST:
        return None
    return _LEAST if int(columns) else 80


console = _Console(width=_width())


def show_rows(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    whole: Sequence[int] = (),
    right: Sequence[int] = (),
) -> None:
    """Print a table; text wraps between words, and where these do not fit side by side, it is stacked.

    Args:
        whole: columns whose text is not wrapped if there is room.
        right: columns to be aligned to the right.
    """
    columns = [[str(line[i]) for line in (header, *rows)] for i in range(len(header))]
    least = [
        max(cell_len(text) if i in whole or i in right else _longest_word(text) for text in column)
        for i, column in enumerate(columns)
    ]
    room = console.width - _BORDERS * len(least) - 1
    if sum(least) > room:
        _stack(title, header, rows)
        return
    widths = _shared(least, [max(map(cell_len, column)) for column in columns], room)
    if cell_len(title) > console.width:
        print(title)
        title = ""
    table = Table(title=escape(title) if title else None)
    for i, name in enumerate(header):
        is_whole = i in whole or i in right
        justify: Any = "right" if i in right else "left"
        table.add_column(escape(name), width=widths[i], no_wrap=is_whole, justify=justify)
    for row in rows:
        table.add_row(*(escape(str(text)) for text in row))
    console.print(table)


def _shared(least: Sequence[int], wanted: Sequence[int], room: int) -> list[int]:
    """Widths of columns: as wide as wanted where there is room, none below its least."""
    widths = list(least)
    while True:
        short = [i for i, width in enumerate(widths) if width < wanted[i]]
        if not short or sum(widths) >= room:
            return widths
        widths[min(short, key=lambda i: widths[i])] += 1


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _stack(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Each row as a paragraph: its first cell, and below it a line for each other one."""
    if title:
        print(_wrapped(title, ""))
    for first, *rest in rows:
        print(_wrapped(str(first), "  "))
        for name, text in zip(header[1:], rest, strict=True):
            if str(text).strip():
                print(_wrapped(f"  {name}: {text}", "    "))
    print()


def _wrapped(text: str, indent: str) -> str:
    width = max(console.width, _LEAST)
    lines = text.split("\n")
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
        for line in lines
    )


def show_page(text: str) -> None:
    """Print a page of Markdown; its tables as `show_rows` does."""
    for is_table, block in _blocks(text):
        if not is_table:
            if block.strip():
                console.print(Markdown(block))
            continue
        header, _, *rows = [_cells(line) for line in block.splitlines()]
        right = [i for i in range(1, len(header)) if all(_is_number(row[i]) for row in rows)]
        show_rows("", header, rows, right=right)


def _blocks(text: str) -> Iterator[tuple[bool, str]]:
    """Parts of a page in order, and whether each is a table."""
    lines: list[str] = []
    was_table = False
    for line in text.splitlines():
        is_table = line.lstrip().startswith("|")
        if is_table != was_table and lines:
            yield was_table, "\n".join(lines)
            lines = []
        was_table = is_table
        lines.append(line)
    if lines:
        yield was_table, "\n".join(lines)


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [_plain(cell.strip()) for cell in cells]


def _plain(text: str) -> str:
    """A cell without Markdown's marks."""
    text = re.sub(r"\[([^\]]*)\]\([^)\s]+\)", r"\1", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
    text = re.sub(r"`([^`]*)`", r"\1", text)
    return re.sub(r"\\([\\|*_`\[\]<>#])", r"\1", text).replace("<br>", " ")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+−]?[\d,.]+%?|", text) is not None
