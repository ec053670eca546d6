"""The page of results: what it says and escapes, and what it does in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tyro
from PIL import Image

from analysis import provenance, report
from analysis.claims import __main__ as claims
from analysis.tables import write_tables
from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs import identity
from experiments import load
from experiments.base import Experiment, Row, seeded
from experiments.scales import NAMES
from sweeps import merge_search
from sweeps.search.arguments import Arguments
from tests.analysis.made_results import Metrics, results_of

EVIL = '<script>document.title="evil"</script> & "quoted" | <b>'
PHONE = {"width": 360, "height": 740}


def make_results(folder: Path) -> None:
    """A table whose records are not here, with a label that means mischief; verdicts and a figure."""
    base = load("table2", "smoke").rows[0].config
    scores = {"two stages": (9.5, 10.5), EVIL: (-1.25, -0.75), "single stage": (100.0, 120.0), "absent": ()}
    rows = tuple(Row(label, base, {"vqav2": 46.9} if label == EVIL else {}) for label in scores)
    experiment = Experiment("elsewhere", f"Elsewhere: {EVIL}", rows, ("vqav2", "gap"), 2)
    made: dict[str, list[Metrics | None]] = {
        label: [{"vqav2": value, "gap": 0.5, "val_loss": 1.5, "state": "conditioned"} for value in values]
        or [None, None]
        for label, values in scores.items()
    }
    write_tables(results_of(experiment, made), folder / "elsewhere" / "smoke")
    claim = {
        "id": "C1",
        "claim": f"as good {EVIL}",
        "verdict": "does not hold",
        "evidence": [f"12.5 against 13.5 {EVIL}"],
        "rule": "higher on two sets",
        "scale": "smoke",
        "runs": [identity.run_id(base)],
    }
    (folder / "claims-smoke.json").write_text(json.dumps([claim]))
    figures = folder / "figures" / "smoke"
    figures.mkdir(parents=True)
    Image.new("RGB", (990, 600), (200, 30, 30)).save(figures / "quality_cost.png")
    about = {
        "runs": [{"id": identity.run_id(base), "row": EVIL, "seed": 0}],
        "missing": [f"seed 3 of {EVIL}"],
    }
    (figures / "quality_cost.json").write_text(json.dumps(about))


def make_runs() -> list[str]:
    """A complete run of each row of table 2 at scale smoke, with little but its provenance."""
    ids = []
    for number, row in enumerate(load("table2", "smoke").rows):
        config = seeded(row.config, number % 2)
        folder = files.prepare(config)
        facts: dict[str, Any] = dict.fromkeys(provenance.ENVIRONMENT)
        facts |= {"git_commit": "c0ffee" * 6, "git_dirty": True, "processor": f"CPU {EVIL}", "cores": 2}
        facts |= {"packages": {"torch": "2.13.0"}, "started": 1.7e9 + number, "wall_seconds": 12.5}
        files.write_json(folder / files.PROVENANCE, facts | {"seed": config.seed, "host": "secret-host"})
        files.write_outcome(folder, {})
        files.write_result(folder, {"nocaps/CIDEr": 100.0 + number}, {})
        ids.append(folder.name)
    return ids


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page of `make_results` and `make_runs`, made by the command."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVLGEN_RESULTS", str(folder / "results"))
        patch.setenv("EVLGEN_RUNS", str(folder / "runs"))
        make_results(folder / "results")
        make_runs()
        table = folder / "results" / "table2" / "smoke" / "table.csv"
        table.parent.mkdir(parents=True)
        table.write_text("row,metric,n_seeds\nx,vqav2,2\n")  # of more seeds than the default
        assert report.main(["--scale", "smoke"]) == 0
        yield folder / "results" / "report.html"


class Elements(HTMLParser):
    """All start tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_is_self_contained_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    elements = Elements(text).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] or "" for tag, attributes in elements if tag == "a"]
    assert links
    assert {link for link in links if not link.startswith("#") or link[1:] not in ids} == set()
    rows = [attributes for tag, attributes in elements if tag == "tr" and "id" in attributes]
    assert len(rows) >= 2 * 4  # every row of every table has an anchor, the same row in two tables another
    sources = [
        attributes[name] for _, attributes in elements for name in ("src", "srcset") if name in attributes
    ]
    assert [source[:22] for source in sources if source] == ["data:image/png;base64,"]
    assert not [tag for tag, attributes in elements if tag == "link" and attributes["href"] != "data:,"]
    assert [attributes.get("alt") for tag, attributes in elements if tag == "img"] != [""]
    scopes = [attributes.get("scope") for tag, attributes in elements if tag == "th"]
    assert set(scopes) == {"col", "row"}


def test_page_escapes_what_it_shows(page: Path) -> None:
    elements = Elements(page.read_text()).found
    assert [tag for tag, _ in elements].count("script") == 1
    assert "b" not in [tag for tag, _ in elements]


def test_page_names_hardware_commit_and_seeds_but_no_host(page: Path) -> None:
    text = page.read_text()
    assert "c0ffee" * 6 in text
    assert "with changes that were not committed" in text
    assert "4 runs, seeds 0, 1, begun between 2023-11-14 22:13" in text
    assert "secret-host" not in text


def test_equal_results_give_equal_bytes(page: Path) -> None:
    before = page.read_bytes()
    assert report.main(["--scale", "smoke"]) == 0
    assert page.read_bytes() == before


def test_what_is_missing_is_said_with_its_command(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path))
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "table2" / "mini"
    folder.mkdir(parents=True)
    (folder / "table.csv").write_text(
        "row,metric,mean,ci_low,ci_high,n_seeds,paper\nEVLGen,vqav2,62.5,60,64,3,46.9\nBLIP-2,vqav2,61,,,1,collapse\n"
    )
    text, records = report.build("mini", provenance.Provenance({}, {}))
    assert records == []
    for command in ("make figures", "python -m analysis.claims", "python sweeps/run.py table1", "run.py all"):
        assert f"<code>{command}</code>" in text or f"<code>python sweeps/{command}</code>" in text
    assert "62.5 <span" in text
    assert "[60, 64]" in text
    assert "paper: 46.9" in text
    assert "paper: collapse" in text
    assert "1 of 3 seeds" in text


def test_no_results_or_damaged_ones_are_a_users_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path))
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    assert report.main([]) == 2
    assert "python sweeps/run.py all" in capsys.readouterr().err
    assert report.main(["--scale", "huge"]) == 2
    assert "no such scale" in capsys.readouterr().err
    path = tmp_path / "table1" / "mini" / "table.csv"
    path.parent.mkdir(parents=True)
    path.write_text("nothing\nof,the,kind\n")
    assert report.main([]) == 2
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_tables_are_made_from_records_and_else_from_their_files(page: Path) -> None:
    """Table 2 has records, of each row with one seed of two; of the other there is the CSV file alone."""
    text = page.read_text()
    assert "1 of 2 (incomplete)" in text
    assert "Made from <code>table.csv</code> alone: the records of its runs are not here." in text
    cells = re.findall(r'data-sort="([^"]*)">([^ <]*)', text)
    assert ("110", "110") in cells
    assert ("", "–") in cells
    assert ("100", "100.0") in cells
    assert '<span class="interval">[100, 120]</span>' in text
    assert '<span class="paper">(paper: 46.9)</span>' in text


# ------------------------------------------------------------------------------------------ provenance


def test_summary_keeps_what_the_store_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    assert provenance.write("smoke", {}).runs == {}
    assert not provenance.summary_path("smoke").exists()
    environment = dict.fromkeys(provenance.ENVIRONMENT)
    old = {
        "a" * 16: {"experiments": {"table1": ["x"]}, "seed": 0, "environment": "e1"},
        "b" * 16: {"experiments": {"table2": ["y"]}, "seed": 0, "environment": "e2"},
        "c" * 16: {"experiments": {"table1": ["x"], "table2": ["y"]}, "seed": 0, "environment": "e1"},
    }
    path = provenance.summary_path("smoke")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"environments": {"e1": environment, "e2": environment}, "runs": old}))
    ids = make_runs()  # all rows of table 2, some of table 1 as well
    found = provenance.write("smoke", {"table2": 2})
    assert set(found.runs) == {"a" * 16, "c" * 16, *ids}
    assert found.runs["c" * 16]["experiments"] == {"table1": ["x"]}
    rows = [row.label for row in load("table2", "smoke").rows]
    assert [found.runs[run]["experiments"]["table2"] for run in ids] == [[label] for label in rows]
    assert not any("table1" in found.runs[run]["experiments"] for run in ids)
    assert "e2" not in found.environments
    assert provenance.read("smoke") == found


def test_the_command_counts_the_seeds_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of more seeds than the default, as those behind claims: their runs are named too."""
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    ids = make_runs()  # of seeds 0 and 1, where the scale's default is one seed
    table = tmp_path / "results" / "table2" / "smoke" / "table.csv"
    table.parent.mkdir(parents=True)
    table.write_text("row,metric,n_seeds\nx,vqav2,2\n")
    assert provenance.main(["--scale", "smoke"]) == 0
    assert set(provenance.read("smoke").runs) == set(ids)


def test_damaged_runs_are_named_and_skipped_and_a_damaged_summary_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    first, *others = make_runs()
    (tmp_path / "runs" / first / "provenance.json").write_text('{"cut":')
    found = provenance.from_records("smoke", {"table2": 2})
    assert set(found.runs) == set(others)
    assert f"{first}/provenance.json: damaged" in capsys.readouterr().err
    path = provenance.summary_path("smoke")
    path.parent.mkdir(parents=True)
    path.write_text('{"environments": {}, "runs": {"x": {"environment": "none"}}}')
    with pytest.raises(UserError, match="damaged"):
        provenance.read("smoke")


# --------------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium (Debian: chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, page: Path) -> Iterator[Any]:
    """The page in a phone with a dark system; at the end nothing was complained of, and nothing asked for."""
    context = chromium.new_context(viewport=PHONE, color_scheme="dark")
    context.set_default_timeout(120_000)  # machines are busy
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    yield tab
    assert said == []
    assert {url.split("#")[0] for url in asked if not url.startswith("data:")} == {page.as_uri()}
    context.close()


chromium_tests = pytest.mark.xdist_group("chromium")


def column(tab: Any, table: str, number: int) -> list[str]:
    """Texts of a column of a table's body, 0 that of the labels."""
    script = "([id, n]) => [...document.getElementById(id).tBodies[0].rows].map((r) => r.cells[n].innerText)"
    return [text.split()[0].rstrip("#") for text in tab.evaluate(script, [table, number])]


@chromium_tests
def test_heads_sort_by_number_both_ways_with_the_empty_last(opened: Any) -> None:
    head = opened.locator("#elsewhere-all-metrics-of-table-csv-table th", has_text="VQAv2")
    assert column(opened, "elsewhere-all-metrics-of-table-csv-table", 1) == ["10", "-1", "110", "–"]
    head.locator("button").click()
    assert column(opened, "elsewhere-all-metrics-of-table-csv-table", 1) == ["-1", "10", "110", "–"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert column(opened, "elsewhere-all-metrics-of-table-csv-table", 1) == ["110", "10", "-1", "–"]
    assert head.get_attribute("aria-sort") == "descending"
    opened.locator("#elsewhere-all-metrics-of-table-csv-table th", has_text="row").locator("button").click()
    assert column(opened, "elsewhere-all-metrics-of-table-csv-table", 0)[1:] == ["absent", "single", "two"]
    assert head.get_attribute("aria-sort") is None


@chromium_tests
def test_links_lead_to_rows_also_to_folded_ones(opened: Any) -> None:
    assert not opened.locator("#runs").evaluate("(details) => details.open")
    opened.locator("#claims summary", has_text="1 run").click()
    opened.locator("#claims a[href^='#run-']").first.click()
    row = opened.locator("tr:target")
    assert opened.locator("#runs").evaluate("(details) => details.open")
    row.wait_for(state="visible")
    place = row.bounding_box()
    assert 0 <= place["y"] < PHONE["height"]


@chromium_tests
def test_the_system_decides_on_dark_until_the_button_does(opened: Any) -> None:
    def brightness() -> float:
        script = (
            "() => getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)"
        )
        return sum(opened.evaluate(script)) / 3 / 255

    assert brightness() < 0.2
    opened.locator("#theme").click()
    assert brightness() > 0.9
    opened.locator("#theme").click()
    assert brightness() < 0.2
    opened.emulate_media(color_scheme="light")
    opened.reload()
    assert brightness() > 0.9


@chromium_tests
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(opened: Any, scheme: str) -> None:
    """WCAG AA: a contrast of 4.5 at least, for all text that is shown on a plain ground."""
    opened.emulate_media(color_scheme=scheme)
    script = """() => {
      const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
      const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map(
        (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
      ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = (at) => {
        for (; at; at = at.parentElement) {
          const colour = rgb(getComputedStyle(at).backgroundColor);
          if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
      };
      return [...document.querySelectorAll("body *")].filter(
        (one) => one.checkVisibility() && [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
      ).map((one) => {
        const [a, b] = [light(rgb(getComputedStyle(one).color)), light(ground(one))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.outerHTML.slice(0, 80)];
      });
    }"""
    found = opened.evaluate(script)
    assert len(found) > 50
    assert [one for one in found if one[0] < 4.5] == []


@chromium_tests
def test_page_is_as_wide_as_a_phone_with_all_unfolded(opened: Any) -> None:
    opened.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    picture = opened.locator("#headline img")
    assert picture.evaluate("(image) => image.complete && image.naturalWidth") == 990
    assert picture.bounding_box()["width"] < PHONE["width"]
    assert opened.title() == "evlgen: results at scale smoke"  # the label's script did not run


@chromium_tests
def test_without_javascript_the_tables_are_there(chromium: Any, page: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("#elsewhere-all-metrics-of-table-csv-table tbody tr").count() == 4
    assert tab.locator("thead button").count() == 0
    assert not tab.locator("#theme").is_visible()
    context.close()


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("constant", "--space constant"),
        ("free-val_loss", "--space free --objectives val_loss"),
        ("learning-rate-table1", "--search learning-rate --experiment table1"),
        ("joint-changed", "--space joint"),
    ],
)
def test_a_search_is_made_again_by_its_command(name: str, flags: str) -> None:
    """By the flags of the command the search gets the folder that it was found in."""
    command = report.search_command(name, "smoke")
    assert command.startswith(f"python sweeps/merge_search.py {flags} --scale smoke")
    words = [word for word in command.split()[2:] if word not in ("--set", "KEY=VALUE")]
    arguments = tyro.cli(Arguments, args=words)
    assert arguments.name == name.removesuffix("-changed")
    assert arguments.scale == "smoke"
    assert ("--set KEY=VALUE" in command) == name.endswith("-changed")


@pytest.mark.parametrize("main", [report.main, claims.main, merge_search.main])
def test_help_names_every_scale(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert ", ".join(NAMES) in " ".join(capsys.readouterr().out.split())
