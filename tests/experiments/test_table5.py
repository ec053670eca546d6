"""Table 5 at a small scale, its countings and schedules at the paper's."""

from __future__ import annotations

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.cost_tables import write_cost_tables
from analysis.timings import training_times
from evlgen.config import TomeFormerConfig
from evlgen.cost import Stage1Macs
from evlgen.merging import token_counts
from evlgen.runs import folder as files
from evlgen.runs import identity
from evlgen.runtime.paths import ROOT
from experiments import table1, table5, table5_counts
from experiments.base import seeded
from experiments.cost_tables import CostTables


def test_a_list_of_experiments_does_not_wait_for_torch() -> None:
    code = "import sys; from experiments import load; assert load('table5', 'paper').count; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_schedules() -> None:
    config = TomeFormerConfig()
    schedules = table5_counts.merge_schedules(config, 257)
    assert len(schedules) == 22 + 9 + 3
    assert schedules["r = 19"] == [19] * 12
    assert schedules["r = (19, -1)"] == list(reversed(schedules["r = (19, +1)"]))
    assert schedules["as early as possible"] == [128, 64, 32, 4] + [0] * 8  # 257 -> 129 -> 65 -> 33 -> 29
    assert token_counts(257, table5_counts.cut(schedules["r = 19"], 257, True))[-1] == 29
    assert table5_counts.cut([19] * 12, 257, True) == [19] * 12
    # the last layer has 26 tokens: half of the 25 that are no class token
    assert table5_counts.cut([21] * 12, 257, True) == [21] * 11 + [12]
    # without a class token, all 26
    assert table5_counts.cut([21] * 12, 257, False) == [21] * 11 + [13]
    bent = dataclasses.replace(config, r=(19, 1))
    assert table5_counts.merge_schedules(bent, 257)["every second layer"][:2] == [
        0,
        36,
    ]  # 223 in all, 18 a layer


def test_countings_of_stage1() -> None:
    macs = Stage1Macs(image=1000, queries=100, text=10, generation=1, vocabulary=2)
    countings = table5_counts.stage1_countings(macs, ours=7)
    assert countings["this project, with the LM head"] == 9
    # ITC: queries, image, text; ITM: three of all; LM: text
    assert countings["LAVIS, ITC + 3 x ITM + LM"] == 4 * 1100 + 5 * 10
    assert countings["LAVIS, with the LM head"] == 4 * 1100 + 5 * 10 + 3
    assert countings["LAVIS, ITM counted once"] == 2 * 1100 + 3 * 10


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table5")
    experiment = table5.build("smoke")
    rows = tuple(row for row in experiment.rows if "Vicuna" not in row.label)
    write_cost_tables(table5.count(dataclasses.replace(experiment, rows=rows), "smoke"), folder)
    return folder


def test_csv(table: Path) -> None:
    lines = list(csv.DictReader((table / "table.csv").open()))
    assert list(lines[0]) == ["row", "metric", "mean", "ci_low", "ci_high", "n_seeds", "paper"]
    assert all(line["mean"] == line["ci_low"] == line["ci_high"] for line in lines)
    assert {line["n_seeds"] for line in lines} == {"1"}
    by_hand = sum(n * 4 * 96**2 + (n - 12) * 2 * 96 * 384 for n in (65, 53, 41, 29)) / 1e9
    (macs,) = [x for x in lines if x["row"] == "EVLGen, OPT-2.7B" and x["metric"] == "macs"]
    assert float(macs["mean"]) == pytest.approx(by_hand, rel=1e-5)
    assert macs["paper"] == "11.9"


def test_csv_table_and_pages(table: Path) -> None:
    rows = {line["schedule"]: line for line in csv.DictReader((table / "schedules.csv").open())}
    assert rows["r = 12"]["tokens"] == "65 53 41 29 17"
    assert rows["r = 12"]["cut"] == "no"
    assert rows["r = 21"]["tokens"] == "65 44 23 12 7"  # ToMe's: 23 tokens can lose 11, then 12 can lose 5
    assert rows["r = 21"]["cut"] == "yes"
    page = (table / "table.md").read_text()
    assert "| EVLGen, OPT-2.7B | 0.017 (paper: 11.9) |" in page
    assert "Hours" not in page  # only the paper's scale has a rate to calibrate
    assert (table / "table.tex").read_text().count("\\begin{tabular}") == 4


def test_committed_figures_of_the_paper() -> None:
    path = Path(__file__).parents[2] / "results" / "table5" / "paper" / "table.csv"
    found = {(x["row"], x["metric"]): x for x in csv.DictReader(path.open())}
    assert round(float(found["EVLGen, OPT-2.7B", "macs"]["mean"]), 3) == 11.877
    assert round(float(found["BLIP-2, stage 2, OPT-2.7B", "macs"]["mean"]), 3) == 6.279
    assert found["BLIP-2, stage 1", "macs"]["paper"] == "36.7"
    assert float(found["EVLGen, 104M, 250K", "hours"]["mean"]) == 133
    assert float(found["EVLGen, 104M, 150K", "hours"]["mean"]) == pytest.approx(79.8)
    assert found["BLIP-2, two stages, 104M, 250K + 80K", "hours"]["paper"] == "234"


def test_measured_table_comes_from_finished_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    assert training_times("smoke") is None
    for row, whole in zip(table1.build("smoke").rows, (300.0, 100.0), strict=False):  # two stages, and one
        metrics = {"train_seconds": 100.0, "total_seconds": whole, "state": "conditioned"}
        folder = identity.run_folder(seeded(row.config, 0))
        files.write_result(folder, metrics, {})
    times = training_times("smoke")
    assert times is not None
    two, one = times.rows
    assert two.values["seconds"] == 300
    assert two.values["stage1_seconds"] == 200
    assert two.paper == {"hours": 234}
    assert one.values["update_seconds"] == 100 / table1.build("smoke").rows[1].config.optim.steps
    assert "stage1_seconds" not in one.values
    write_cost_tables(CostTables("Cost", ()), tmp_path, (times,))
    page = (tmp_path / "table.md").read_text()
    assert "Counted; the last table is measured" in page
    assert "## Training, measured" in page
