"""One HTML page of all results: ``make report`` or ``python -m analysis.report [--scale mini] [--out FILE]``.

The page holds its figures, styles and script itself and asks nothing of any server; without JavaScript its
tables are plain tables. Equal results give equal bytes. What is not there yet is said with the command that
makes it.
"""

from __future__ import annotations

import ast
import base64
import csv
import datetime
import hashlib
import json
import re
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
import tyro
from markupsafe import Markup, escape

from analysis import provenance
from analysis.claims import results_file
from analysis.readme import HEADLINE, read_claims
from analysis.tables import COLUMNS, title
from evlgen.errors import UserError, exit_code
from evlgen.runtime import paths
from evlgen.runtime.files import write_atomic
from experiments import EXPERIMENTS, load
from experiments.scales import NAMES as SCALES

FIGURE_SCRIPTS = paths.ROOT / "paper_figures"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
SCRIPT = Path(__file__).with_name("report.js")
_NUMBER = re.compile(r"[+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?")
_SHOWN_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pycocoevalcap", "optuna")


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        key: by what the column is sorted: a number in full, "" if there is none; None sorts by the text.
        text: the figure, or words.
        interval: ``[low, high]``, or empty.
        word: a verdict or the like behind it, or empty.
        paper: ``paper: 44.6``, or empty.
    """

    text: str | Markup
    key: str | None = None
    interval: str = ""
    word: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Line:
    """A row: its anchor, its label and its other cells."""

    id: str
    label: str | Markup
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """A table; the first of its heads is that of the labels."""

    id: str
    caption: str
    head: Sequence[str]
    lines: Sequence[Line]


@dataclass(frozen=True)
class Section:
    """A part of the page: tables and paragraphs in their order.

    Attributes:
        is_open: else a reader sees its title alone until it is opened.
    """

    id: str
    title: str
    blocks: Sequence[Table | Markup]
    is_open: bool = True

    @property
    def has_table(self) -> bool:
        return any(isinstance(block, Table) for block in self.blocks)


@dataclass(frozen=True)
class Chapter:
    """All about one experiment or search; without sections it is not there yet.

    Attributes:
        command: what makes it.
        source: file that the figures are in.
    """

    id: str
    title: str
    command: str
    source: str
    sections: Sequence[Section] = ()


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of its file.
        uri: the PNG itself, as a data URI.
        width, height: as shown, in CSS pixels: half of those of a PNG for print.
        text: what it shows, in words; ``more``: further paragraphs.
        runs: ids of the runs that it was drawn from, and which these are.
        missing: what should be in it and is not.
    """

    id: str
    name: str
    title: str
    uri: str
    width: int
    height: int
    text: str
    more: Sequence[str]
    runs: Sequence[tuple[str, str]]
    missing: Sequence[str]


def build(scale: str, origin: provenance.Provenance) -> str:
    """The page.

    Args:
        origin: what is known of the runs behind the tables.

    Raises:
        UserError: there is no table at this scale, or a file of results is damaged.
    """
    results, ids = paths.results_folder(), Ids()
    chapters = [_chapter(results, name, scale, ids) for name in _experiments(results, scale)]
    if not any(chapter.sections for chapter in chapters):
        raise UserError(
            f"{results}: no table of scale {scale}; make them with `python sweeps/run.py all --scale {scale}`"
        )
    searches = [_search(path, ids) for path in sorted(results.glob(f"merge_search/*/{scale}/trials.md"))]
    pictures = [_picture(path, ids) for path in _pngs(results, scale)]
    claims = read_claims(results_file(scale))
    script = SCRIPT.read_text()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text()).render(
        scale=scale,
        is_default=scale == "mini",
        claims=None
        if claims is None
        else [{**one, "runs": [(run, "") for run in one["runs"]]} for one in claims],
        headline=next((one for one in pictures if one.name == HEADLINE), None),
        pictures=[one for one in pictures if one.name != HEADLINE],
        chapters=[chapter for chapter in chapters if chapter.sections],
        absent=[chapter for chapter in chapters if not chapter.sections],
        searches=searches,
        environments=origin.environments,
        shown_packages=_SHOWN_PACKAGES,
        runs=_run_table(origin, ids),
        run_ids=origin.runs.keys(),
        totals=_totals(origin),
        # Only this very script may run, whatever a label may hold.
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode(),
    )


class Ids:
    """Anchors from words, no two alike."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def new(self, *words: str) -> str:
        name = "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)))
        unique, number = name, 1
        while unique in self._given:
            number += 1
            unique = f"{name}-{number}"
        self._given.add(unique)
        return unique


# ---------------------------------------------------------------------------------------------- tables


def _experiments(results: Path, scale: str) -> list[tuple[str, str]]:
    """Names and scales of the tables: first those that the project knows, then what else is there.

    What is counted, not trained, is shown at the paper's scale as well; what has a scale of its own, at that.
    """
    names = []
    for name in EXPERIMENTS:
        experiment = load(name)
        usual = scale if experiment.default_scale == "mini" else experiment.default_scale
        own = (usual,) if experiment.count is None else (usual, "paper")
        there = [one for one in own if (results / name / one / "table.csv").exists()]
        names += [(name, one) for one in there or [usual]]
    others = sorted(path.parent.parent.name for path in results.glob(f"*/{scale}/table.csv"))
    names += [(name, scale) for name in others if name not in EXPERIMENTS]
    return list(dict.fromkeys(names))


def _chapter(results: Path, named: tuple[str, str], scale: str, ids: Ids) -> Chapter:
    name, own = named
    path = results / name / own / "table.csv"
    default = load(name).default_scale if name in EXPERIMENTS else "mini"
    other = "" if own == default else f" --scale {own}"
    command = f"python sweeps/run.py {name}{other}"
    chapter_id = ids.new(name, own if own != scale else "")
    if not path.exists():
        return Chapter(chapter_id, name, command, "")
    words = path.with_name("table.md")
    heading, sections = read_markdown(words, chapter_id, ids) if words.exists() else (name, [])
    sections.append(_all_metrics(path, chapter_id, ids, is_open=not sections))
    source = f"results/{name}/{own}/"
    return Chapter(chapter_id, heading, command, source, sections)


def _search(path: Path, ids: Ids) -> Chapter:
    name = path.parent.parent.name
    chapter_id = ids.new("search", name)
    heading, sections = read_markdown(path, chapter_id, ids)
    scale = path.parent.name
    source = f"results/merge_search/{name}/{scale}/"
    return Chapter(chapter_id, heading, search_command(name, scale), source, sections)


def search_command(name: str, scale: str) -> str:
    """What makes a search again, from the name of its folder; what ``--set`` changed is not in that."""
    own = name.removesuffix("-changed")
    if own.startswith("learning-rate-"):
        flags = f"--search learning-rate --experiment {own.removeprefix('learning-rate-')}"
    else:
        flags = f"--space {own.removesuffix('-val_loss')}"
        flags += " --objectives val_loss" if own.endswith("-val_loss") else ""
    changed = " --set KEY=VALUE" if own != name else ""
    return f"python sweeps/merge_search.py {flags} --scale {scale}{changed}"


def read_markdown(path: Path, prefix: str, ids: Ids) -> tuple[str, list[Section]]:
    """Title and sections of a file that this project has written: grids, headings and one-line paragraphs.

    All is open up to the first section with a table.
    """
    heading, caption = path.parent.parent.name, ""
    sections: list[tuple[str, list[Table | Markup]]] = [("", [])]
    lines = path.read_text().splitlines()
    at = 0
    while at < len(lines):
        line, blocks = lines[at], sections[-1][1]
        at += 1
        if line.startswith("# "):
            heading = line[2:].replace("`", "")
        elif line.startswith("## "):
            caption = line[3:].replace("`", "")
            sections.append((caption, []))
        elif line.startswith("|"):
            grid = [_split(line)]
            while at < len(lines) and lines[at].startswith("|"):
                grid.append(_split(lines[at]))
                at += 1
            blocks.append(
                _table(grid[0], grid[2:], ids.new(prefix, caption, "table"), caption or heading, ids)
            )
        elif line.strip():
            blocks.append(inline(line))
    found, seen = [], False
    for caption, blocks in sections:
        if blocks:
            found.append(Section(ids.new(prefix, caption or "overview"), caption, blocks, not seen))
            seen = seen or found[-1].has_table
    return heading, found


def _split(line: str) -> list[str]:
    """Cells of a line of a Markdown grid."""
    cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return [cell.strip().replace("\\|", "|") for cell in cells]


def _table(head: Sequence[str], grid: Sequence[Sequence[str]], name: str, caption: str, ids: Ids) -> Table:
    prefix = name.removesuffix("-overview").removesuffix("-table")
    lines = [
        Line(ids.new(prefix, row[0]), inline(row[0]), [read_cell(text) for text in row[1:]]) for row in grid
    ]
    return Table(name, caption, head, lines)


def inline(text: str) -> Markup:
    """A line of Markdown: code and stress; of a link its words."""
    safe = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    safe = str(escape(("• " + safe[2:]) if safe.startswith("- ") else safe))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    safe = re.sub(r"(?<![\w\\])\*([^*]+)\*(?!\w)", r"<em>\1</em>", safe)
    return Markup(safe.replace("\\*", "*"))


def read_cell(text: str) -> Cell:
    """The parts of a cell as the tables write it: ``66.3 [65.1, 68.4] (paper: 44.6)``."""
    found = re.fullmatch(r"(?P<rest>.*?)(?: \((?P<paper>paper: [^()]*)\))?", text, re.DOTALL)
    assert found is not None  # matches everything
    rest, paper = found["rest"], found["paper"] or ""
    parts = re.fullmatch(r"(?P<figure>\S+)(?P<interval> \[[^\]]+\])?(?P<word> \w+(?:\\\*)?)?", rest)
    if parts and _NUMBER.fullmatch(parts["figure"]):
        number = parts["figure"].replace(",", "")
        return Cell(
            parts["figure"],
            number,
            (parts["interval"] or "").strip(),
            (parts["word"] or "").strip().replace("\\*", "*"),
            paper,
        )
    if rest in ("–", "", "?"):
        return Cell(rest, "", "", "", paper)
    # "65.1 / 65.6 / 68.4", "2 of 3 (incomplete)", "1.2 M" go by the number in front.
    number_in_front = re.match(rf"({_NUMBER.pattern})(?=[ ,]|$)", rest)
    return Cell(inline(rest), number_in_front[1].replace(",", "") if number_in_front else None, "", "", paper)


def _all_metrics(path: Path, prefix: str, ids: Ids, is_open: bool) -> Section:
    """All that ``table.csv`` has, rows against metrics; parts with other metrics are tables of their own."""
    parts: list[tuple[tuple[str, ...], dict[str, list[Cell]]]] = []
    for label, metrics, cells in _rows(path):
        if not parts or parts[-1][0] != metrics or label in parts[-1][1]:
            parts.append((metrics, {}))
        parts[-1][1][label] = cells
    section = ids.new(prefix, "all-metrics")
    blocks: list[Table | Markup] = []
    for metrics, rows in parts:
        lines = [Line(ids.new(section, label), label, cells) for label, cells in rows.items()]
        heads = ["row", *(_head(name) for name in metrics)]
        blocks.append(Table(ids.new(section, "table"), "All metrics", heads, lines))
    return Section(section, "All metrics of table.csv", blocks, is_open)


def _rows(path: Path) -> Iterable[tuple[str, tuple[str, ...], list[Cell]]]:
    """Label, metrics and cells of each row: lines of the file that follow each other with the same label."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            lines = list(reader)
            most = max((int(line["n_seeds"] or 0) for line in lines), default=0)
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}); make it again with `python sweeps/run.py`") from error
    at = 0
    while at < len(lines):
        label = lines[at]["row"]
        own: dict[str, Cell] = {}
        while at < len(lines) and lines[at]["row"] == label and lines[at]["metric"] not in own:
            own[lines[at]["metric"]] = _csv_cell(lines[at], most)
            at += 1
        yield label, tuple(own), list(own.values())


def _csv_cell(line: Mapping[str, str], most: int) -> Cell:
    low, high, seeds = line["ci_low"], line["ci_high"], line["n_seeds"]
    interval = f"[{low}, {high}]" if low and high and most > 1 else ""
    fewer = f"{seeds} of {most} seeds" if 0 < int(seeds or 0) < most else ""
    paper = f"paper: {line['paper']}" if line["paper"] else ""
    return Cell(line["mean"] or "–", line["mean"], interval, fewer, paper)


def _head(metric: str) -> str:
    return title(metric) if title(metric) == metric else f"{title(metric)} ({metric})"


# --------------------------------------------------------------------------------- figures and claims


def _pngs(results: Path, scale: str) -> list[Path]:
    own = sorted((results / "figures" / scale).glob("*.png"))
    searches = sorted(results.glob(f"merge_search/*/{scale}/*.png"))
    return [*own, *sorted(results.glob(f"merge_search/pareto-{scale}.png")), *searches]


def _picture(path: Path, ids: Ids) -> Picture:
    data = path.read_bytes()
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise UserError(f"{path}: damaged (no PNG); draw it again with `make figures`")
    width, height = struct.unpack(">II", data[16:24])
    of_search = "merge_search" in path.parts
    told = {} if of_search else _told(path.with_suffix(".json"))
    search = path.parent.parent.name if path.parent.parent.name != "results" else ""
    name = f"search {search} {path.stem}" if of_search else path.stem
    shown = _shows("merge_search" if of_search else path.stem) or [name.replace("_", " ")]
    return Picture(
        ids.new("figure", name),
        name,
        name.replace("_", " ").strip().capitalize(),
        "data:image/png;base64," + base64.b64encode(data).decode(),
        max(1, width // 2),
        max(1, height // 2),
        shown[0],
        shown[1:],
        [(run["id"], f"{run['row']}, seed {run['seed']}") for run in told.get("runs", [])],
        told.get("missing", []),
    )


def _told(path: Path) -> dict[str, Any]:
    """What a figure's JSON file says of it; if damaged, it is named on stderr and says nothing."""
    try:
        told = json.loads(path.read_text())
        _ = (
            [(run["id"], run["row"], run["seed"]) for run in told["runs"]],
            [str(one) for one in told["missing"]],
        )
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, OSError) as error:
        print(f"{path}: damaged ({type(error).__name__}: {error}): skipped", file=sys.stderr)
        return {}
    return dict(told)


def _shows(name: str) -> list[str]:
    """Paragraphs of the docstring of the script that draws a figure: ``collapse`` draws ``collapse_x``."""
    parts = name.split("_")
    for end in range(len(parts), 0, -1):
        path = FIGURE_SCRIPTS / f"{'_'.join(parts[:end])}.py"
        if path.exists():
            words = ast.get_docstring(ast.parse(path.read_text())) or ""
            return [" ".join(part.split()).replace("`", "") for part in words.split("\n\n") if part]
    return []


# ------------------------------------------------------------------------------------------ provenance


def _run_table(origin: provenance.Provenance, ids: Ids) -> Table | None:
    if not origin.runs:
        return None
    lines = []
    for run, facts in origin.runs.items():
        where = "; ".join(f"{name}: {', '.join(rows)}" for name, rows in facts["experiments"].items())
        cells = [
            Cell(where),
            _measured(facts["seed"], 0),
            _measured(facts.get("wall_seconds"), 1),
            _measured(facts.get("peak_memory_mib"), 0),
            Cell(_day(facts.get("started")), f"{facts.get('started') or ''}"),
            Cell(facts["environment"]),
        ]
        lines.append(Line(f"run-{run}", run, cells))
    head = (
        "run",
        "experiments and rows",
        "seed",
        "wall time, s",
        "peak memory, MiB",
        "begun (UTC)",
        "environment",
    )
    return Table(ids.new("runs", "table"), "Runs", head, lines)


def _measured(value: float | None, decimals: int) -> Cell:
    return Cell("–", "") if value is None else Cell(f"{value:,.{decimals}f}", f"{value:.6g}")


def _day(started: float | None) -> str:
    if started is None:
        return "–"
    return f"{datetime.datetime.fromtimestamp(started, datetime.timezone.utc):%Y-%m-%d %H:%M}"


def _totals(origin: provenance.Provenance) -> dict[str, Any]:
    facts = origin.runs.values()
    begun = sorted(day for run in facts if (day := run.get("started")) is not None)
    return {
        "runs": len(origin.runs),
        "seeds": sorted({run["seed"] for run in facts}),
        "hours": sum(run.get("wall_seconds") or 0.0 for run in facts) / 3600,
        "first": _day(begun[0]) if begun else "–",
        "last": _day(begun[-1]) if begun else "–",
    }


# --------------------------------------------------------------------------------------------- command


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 where the user must do something first."""

    def arguments(
        scale: Annotated[str, tyro.conf.arg(help=", ".join(SCALES))] = "mini", out: Path | None = None
    ) -> tuple[str, Path | None]:
        """
        Args:
            out: the page; default: report.html in the folder of the results
        """
        return scale, out

    scale, out = tyro.cli(arguments, args=argv, prog="analysis.report", description=__doc__)
    path = out or paths.results_folder() / "report.html"

    def act() -> None:
        if scale not in SCALES:
            raise UserError(f"--scale {scale}: no such scale; there are: {', '.join(SCALES)}")
        page = build(scale, provenance.write(scale, provenance.seeds_of_tables(scale)))
        write_atomic(path, page.encode())
        print(f"{path} ({len(page) / 2**20:.1f} MiB)")

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
