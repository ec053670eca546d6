"""How figures are written."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from analysis.results import read_all_seeds
from evlgen.connectors import LOOKS
from paper_figures import style
from tests.paper_figures import made_up


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))


def plot() -> Figure:
    style.apply()
    figure, axis = plt.subplots()
    style.series(axis, [(2.0, [1.0, 2.0, 4.0]), (1.0, [3.0]), (5.0, [])], "#0072B2", "o", "EVLGen")
    style.legend_below(figure, axis)
    return figure


def test_equal_figures_have_equal_bytes_and_no_date() -> None:
    first = [path.read_bytes() for path in style.save(plot(), "one", "mini", [], [])]
    paths = style.save(plot(), "one", "mini", [], [])
    assert [path.read_bytes() for path in paths] == first
    assert [path.suffix for path in paths] == [".pdf", ".png"]
    assert first[0].startswith(b"%PDF")
    assert b"CreationDate" not in first[0]
    width = matplotlib.image.imread(paths[1]).shape[1]
    assert width == round(style.COLUMN * 300)


def test_the_json_says_which_runs_and_what_is_missing_and_the_figure_grows() -> None:
    made_up.fill("initialisation", "smoke", leave_out=("from mini-bert",))
    found = read_all_seeds("initialisation", "smoke")
    whole = style.save(plot(), "whole", "smoke", [], [])[1]
    path = style.save(plot(), "partial", "smoke", found.all_runs, found.missing())[1]
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["figure"] == "partial"
    assert about["scale"] == "smoke"
    assert [(run["row"], run["seed"]) for run in about["runs"]] == [
        ("EVLGen, from random", 0),
        ("BLIP-2, single stage, from random", 0),
    ]
    assert [run["id"] for run in about["runs"]] == [run.id for run in found.complete()]
    assert about["missing"] == ["EVLGen, from mini-bert", "BLIP-2, single stage, from mini-bert"]
    assert matplotlib.image.imread(path).shape[0] > matplotlib.image.imread(whole).shape[0]


def test_a_long_list_of_what_is_missing_is_cut_in_the_figure_only() -> None:
    names = [f"row {number} of an experiment" for number in range(80)]
    figure = plot()
    paths = style.save(figure, "long", "mini", [], names)
    suptitle = figure.get_suptitle()
    assert suptitle.count("\n") == 3
    assert "80 in all" in suptitle
    assert json.loads(paths[0].with_suffix(".json").read_text())["missing"] == names


def test_a_point_has_its_mean_its_interval_and_every_seed() -> None:
    style.apply()
    _, axis = plt.subplots()
    style.point(axis, 7.0, [1.0, 2.0, 6.0], "#0072B2", "s")
    interval, mean, seeds = (line.get_ydata() for line in axis.get_lines())
    assert list(interval) == [1.0, 6.0]  # of three seeds the bootstrap's 95% are from the worst to the best
    assert list(mean) == [3.0]
    assert list(seeds) == [1.0, 2.0, 6.0]
    style.point(axis, 7.0, [], "#0072B2", "s")
    assert len(axis.get_lines()) == 3
    plt.close("all")


def test_connectors_have_colours_and_marks_of_their_own() -> None:
    assert len({style.colour(name) for name in LOOKS}) == len(LOOKS)
    assert len({style.marker(name) for name in LOOKS}) == len(LOOKS)
    assert style.colour("EVLGen") == "#0072B2"
    assert style.colour("none of ours") == style.GREY
