"""One HTML page of all results: ``make report`` or ``python -m analysis.report [--scale mini] [--out FILE]``.

Its tables are made from the records of the runs, in the run store or in the archives committed beside the
tables; where there are none, from ``table.csv``. The page holds its figures, styles and script itself and
asks nothing of any server; without JavaScript its tables are plain tables. Equal results give equal bytes.
What is not there yet is said with the command that makes it.
"""

from __future__ import annotations

import ast
import base64
import datetime
import hashlib
import json
import re
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
import tyro
from markupsafe import Markup

from analysis import cost_tables, provenance, tables
from analysis.claims import files as claims_files
from analysis.readme import HEADLINE
from analysis.results import command, found_in, read_all_seeds
from analysis.search import read_search
from analysis.table import Cell, Column, Page, Row, Section, Table, exact, inline, plain, read_csv, to_html
from analysis.timings import training_times
from evlgen.errors import UserError, exit_code, nearest
from evlgen.evaluation.metrics import metric
from evlgen.runs.results import Record
from evlgen.runtime import paths
from evlgen.runtime.files import write_atomic
from experiments import EXPERIMENTS, load
from experiments.scales import NAMES as SCALES

FIGURE_SCRIPTS = paths.ROOT / "paper_figures"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
SCRIPT = Path(__file__).with_name("report.js")
_SHOWN_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pycocoevalcap", "optuna")


@dataclass(frozen=True)
class Part:
    """A part of the page: tables and paragraphs as HTML, in their order.

    Attributes:
        is_open: else a reader sees its title alone until it is opened.
    """

    id: str
    title: str
    blocks: Sequence[Markup]
    is_open: bool = True


@dataclass(frozen=True)
class Chapter:
    """All about one experiment or search; without parts it is not there yet.

    Attributes:
        command: what makes it.
        source: folder that its files are in.
    """

    id: str
    title: str
    command: str
    source: str
    parts: Sequence[Part] = ()


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


def build(scale: str, origin: provenance.Provenance) -> tuple[str, list[Record]]:
    """The page, and the records that its tables were made from.

    Args:
        origin: what is known of the runs behind the tables.

    Raises:
        UserError: there is no table at this scale, or a file of results is damaged.
    """
    results, ids = paths.results_folder(), Ids()
    records: list[Record] = []
    chapters = [_chapter(name, own, scale, ids, records) for name, own in _experiments(results, scale)]
    if not any(chapter.parts for chapter in chapters):
        raise UserError(f"{results}: no table of scale {scale}; make them with `{command('all', scale)}`")
    searches = [
        _search(path.parent, ids) for path in sorted(results.glob(f"merge_search/*/{scale}/trials.csv"))
    ]
    pictures = [_picture(path, ids) for path in _pngs(results, scale)]
    claims = claims_files.read(claims_files.results_file(scale))
    script = SCRIPT.read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(TEMPLATE.read_text("utf-8")).render(
        scale=scale,
        is_default=scale == "mini",
        claims=claims,
        rules_came_first=claims_files.RULES_CAME_FIRST,
        headline=next((one for one in pictures if one.name == HEADLINE), None),
        pictures=[one for one in pictures if one.name != HEADLINE],
        chapters=[chapter for chapter in chapters if chapter.parts],
        absent=[chapter for chapter in chapters if not chapter.parts],
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
    return page, records


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
        experiment = load(name, scale)
        usual = scale if experiment.default_scale == "mini" else experiment.default_scale
        own = [one for one in dict.fromkeys((usual, "paper")) if _csv(results, name, one).exists()]
        names += [(name, one) for one in (own if experiment.count and own else [usual])]
    others = sorted(path.parent.parent.name for path in results.glob(f"*/{scale}/table.csv"))
    return names + [(name, scale) for name in others if name not in EXPERIMENTS]


def _csv(results: Path, name: str, scale: str) -> Path:
    return results / name / scale / "table.csv"


def _chapter(name: str, own: str, scale: str, ids: Ids, records: list[Record]) -> Chapter:
    """An experiment at its ``own`` scale, from records, or else from its CSV file; the records are noted."""
    path = _csv(paths.results_folder(), name, own)
    chapter_id = ids.new(name, own if own != scale else "")
    page = _page(name, own, path, records)
    made_by = command(name, "mini" if name in EXPERIMENTS and load(name).default_scale == own else own)
    if "-changed" in name:  # what was changed is in the page's title
        made_by = f"{command(name.partition('-changed')[0], own)} --rows TEXT --set KEY=VALUE"
    if page is None:
        return Chapter(chapter_id, name, made_by, "")
    parts = _parts(page, chapter_id, ids)
    return Chapter(chapter_id, plain(page.title), made_by, f"results/{name}/{own}/", parts)


def _page(name: str, scale: str, path: Path, records: list[Record]) -> Page | None:
    experiment = load(name, scale) if name in EXPERIMENTS else None
    if experiment is not None and experiment.count is not None:
        if not path.exists():
            return None
        measured = training_times(scale)
        return cost_tables.cost_page(experiment.count(experiment, scale), [measured] if measured else [])
    if experiment is not None:
        try:
            results = read_all_seeds(name, scale, provenance.seeds_of_tables(scale).get(name, 0))
        except UserError:  # no run is complete
            pass
        else:
            records += results.records()
            scores = tables.scores_of(results)
            page = tables.page(results, scores)
            full = _in_full(tables.all_metrics(results, scores))
            return Page(page.title, (*page.sections, Section("All metrics of table.csv", (full,))))
    if not path.exists():
        return None
    title = f"{name if experiment is None else experiment.title} (scale `{scale}`)"
    if experiment is None:
        title = _written_title(path.with_name("table.md")) or title
    note = "Made from `table.csv` alone: the records of its runs are not here."
    return Page(
        title,
        (Section("", (note,)), Section("All metrics of table.csv", tuple(map(_in_full, read_csv(path))))),
    )


def _written_title(path: Path) -> str:
    """The heading of a ``table.md``: it says what was changed; empty if there is none."""
    if not path.exists():
        return ""
    first, *_ = path.read_text("utf-8").splitlines() or [""]
    return first.removeprefix("# ") if first.startswith("# ") else ""


def _in_full(table: Table) -> Table:
    """The table with all digits of ``table.csv``, and its metrics under both names."""
    most = max((cell.n for row in table.rows for cell in row.cells), default=0)

    def full(cell: Cell) -> Cell:
        has_interval = cell.low is not None and cell.high is not None and most > 1
        return Cell(
            exact(cell.mean) or "–",
            cell.mean,
            interval=f"[{exact(cell.low)}, {exact(cell.high)}]" if has_interval else "",
            word=f"{cell.n} of {most} seeds" if 0 < cell.n < most else "",
            paper=cell.paper,
        )

    return Table(
        table.title,
        tuple(Column(column.name, _both_names(column.name)) for column in table.columns),
        tuple(Row(row.label, tuple(map(full, row.cells)), row.mark) for row in table.rows),
    )


def _both_names(name: str) -> str:
    title = metric(name).title
    return name if title == name else f"{title} ({name})"


def _search(folder: Path, ids: Ids) -> Chapter:
    name, scale = folder.parent.name, folder.name
    chapter_id, page = ids.new("search", name), read_search(folder)
    source = f"results/merge_search/{name}/{scale}/"
    return Chapter(
        chapter_id, plain(page.title), search_command(name, scale), source, _parts(page, chapter_id, ids)
    )


def _parts(page: Page, prefix: str, ids: Ids) -> list[Part]:
    """Sections as HTML. All is open up to the first section with a table."""
    parts, seen = [], False
    for section in page.sections:
        part_id = ids.new(prefix, section.title or "overview")
        blocks = []
        for block in section.blocks:
            if isinstance(block, Table):
                table_id = ids.new(prefix, section.title, "table")
                blocks.append(_html(block, table_id, ids))
            else:
                blocks.append(Markup('<p class="note">{}</p>').format(inline(block)))
        parts.append(Part(part_id, section.title, blocks, not seen))
        seen = seen or any(isinstance(block, Table) for block in section.blocks)
    return parts


def _html(table: Table, table_id: str, ids: Ids) -> Markup:
    prefix = table_id.removesuffix("-overview").removesuffix("-table")
    return to_html(table, lambda label: ids.new(prefix, label), table_id)


def search_command(name: str, scale: str) -> str:
    """What makes a search again, from the name of its folder; what ``--set`` changed is not in that."""
    own, is_changed, _ = name.partition("-changed")
    if own.startswith("learning-rate-"):
        flags = f"--search learning-rate --experiment {own.removeprefix('learning-rate-')}"
    else:
        flags = f"--space {own.removesuffix('-val_loss')}"
        flags += " --objectives val_loss" if own.endswith("-val_loss") else ""
    changed = " --set KEY=VALUE" if is_changed else ""
    return f"python sweeps/merge_search.py {flags} --scale {scale}{changed}"


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
    about = {} if of_search else _about(path.with_suffix(".json"))
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
        [(run["id"], f"{run['row']}, seed {run['seed']}") for run in about.get("runs", [])],
        about.get("missing", []),
    )


def _about(path: Path) -> dict[str, Any]:
    """What a figure's JSON file says of it; if damaged, it is named on stderr and says nothing."""
    try:
        about = json.loads(path.read_text("utf-8"))
        _ = (
            [(run["id"], run["row"], run["seed"]) for run in about["runs"]],
            [str(one) for one in about["missing"]],
        )
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, OSError) as error:
        print(f"{path}: damaged ({type(error).__name__}: {error}): skipped", file=sys.stderr)
        return {}
    return dict(about)


def _shows(name: str) -> list[str]:
    """Paragraphs of the docstring of the script that draws a figure: ``collapse`` draws ``collapse_x``."""
    parts = name.split("_")
    for end in range(len(parts), 0, -1):
        path = FIGURE_SCRIPTS / f"{'_'.join(parts[:end])}.py"
        if path.exists():
            words = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            return [" ".join(part.split()).replace("`", "") for part in words.split("\n\n") if part]
    return []


# ------------------------------------------------------------------------------------------ provenance


def _run_table(origin: provenance.Provenance, ids: Ids) -> Markup | None:
    if not origin.runs:
        return None
    rows = []
    for run, facts in origin.runs.items():
        where = "; ".join(f"{name}: {', '.join(labels)}" for name, labels in facts["experiments"].items())
        cells = (
            Cell(where),
            _measured(facts["seed"], 0),
            _measured(facts.get("wall_seconds"), 1),
            _measured(facts.get("peak_memory_mib"), 0),
            Cell(_day(facts.get("started")), facts.get("started")),
            Cell(facts["environment"]),
        )
        rows.append(Row(run, cells))
    heads = (
        *("experiments and rows", "seed", "wall time, s", "peak memory, MiB", "begun (UTC)", "environment"),
    )
    table = Table("Runs", tuple(map(Column, heads)), tuple(rows), corner="run")
    return to_html(table, lambda run: f"run-{run}", ids.new("runs", "table"))


def _measured(value: float | None, decimals: int) -> Cell:
    return Cell() if value is None else Cell(f"{value:,.{decimals}f}", value)


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

    scale, out = tyro.cli(arguments, args=argv, prog="python -m analysis.report", description=__doc__)

    def act() -> None:
        path = out or paths.results_folder() / "report.html"
        if scale not in SCALES:
            raise UserError(
                f"--scale {scale}: no such scale; there are: {', '.join(SCALES)}{nearest(scale, SCALES)}"
            )
        page, records = build(scale, provenance.write(scale, provenance.seeds_of_tables(scale)))
        write_atomic(path, page.encode())
        print(f"{path} ({len(page) / 2**20:.1f} MiB), tables made from {found_in(records)}")

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
