"""Figures of made-up runs, in the true file format: what is in them, and what they do without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.results import read_all_seeds, read_several
from evlgen.config import TomeFormerConfig
from evlgen.runs import folder as files
from evlgen.runtime import paths
from experiments.scales import get
from paper_figures import __main__ as everything
from paper_figures import (
    collapse,
    data_fractions,
    pareto,
    quality_cost,
    schedules,
    soft_tokens,
    style,
    two_stage,
)
from tests.paper_figures import made_up

FOLDER = Path(everything.__file__).parent
EXPERIMENTS = (
    "table1 table2 budgets merge_schedules data_fractions two_stage collapse soft_tokens encoders "
    "initialisation baselines"
).split()


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))


def about(name: str, scale: str = "smoke") -> dict[str, object]:
    """The JSON file of a figure."""
    path = paths.results_folder() / "figures" / scale / f"{name}.json"
    value: dict[str, object] = json.loads(path.read_text())
    return value


def test_a_figure_of_an_incomplete_sweep_says_what_is_missing() -> None:
    made_up.fill("two_stage", "smoke", leave_out=("1 : 3", "without LM"))
    paths = two_stage.draw("smoke")
    assert [path.name for path in paths] == ["two_stage.pdf", "two_stage.png"]
    assert about("two_stage")["missing"] == ["stage 1 : stage 2 = 1 : 3", "without LM in stage 1"]


def test_equal_stores_give_equal_figures() -> None:
    made_up.fill("soft_tokens", "smoke")
    first = [path.read_bytes() for path in soft_tokens.draw("smoke")]
    assert [path.read_bytes() for path in soft_tokens.draw("smoke")] == first


def test_a_script_without_runs_says_in_one_line_how_to_make_them() -> None:
    done = subprocess.run(
        [sys.executable, str(paths.ROOT / "paper_figures" / "soft_tokens.py"), "--scale", "smoke"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "python sweeps/run.py soft_tokens --scale smoke" in done.stderr


def test_the_pareto_front_leaves_out_what_is_beaten() -> None:
    points = [(3.0, 5.0), (1.0, 2.0), (2.0, 2.0), (2.0, 4.0), (4.0, 5.0)]
    assert pareto.pareto_front(points, lower=False) == [(1.0, 2.0), (2.0, 4.0), (3.0, 5.0)]
    assert pareto.pareto_front(points, lower=True) == [(1.0, 2.0)]


def test_macs_of_the_layers_are_those_of_the_connector() -> None:
    from evlgen.cost import connector_macs

    scale = get("mini")
    assert sum(schedules.layer_macs(scale.tomeformer, 65)) == connector_macs(scale.tomeformer, 65)
    macs = schedules.layer_macs(TomeFormerConfig(), 257)
    assert len(macs) == 12
    assert macs == sorted(macs, reverse=True)
    assert sum(macs) / 1e9 == pytest.approx(11.877, abs=5e-4)  # table 5 of the paper


def test_schedules_that_are_shown_have_one_name_each_at_every_scale() -> None:
    for scale in ("paper", "mini"):
        chosen = schedules.chosen(scale)
        assert list(chosen)[:3] == ["no merging", f"r = {get(scale).tomeformer.r}", "constant"]
        assert set(list(chosen)[3:]) == {
            "decreasing",
            "increasing",
            "all in the first layer",
            "all in the last layer",
        }


def test_operations_of_two_stages_include_the_first() -> None:
    from evlgen.cost import run_cost

    made_up.fill("budgets", "smoke")
    found, _ = read_several(("budgets",), scale="smoke")
    run = next(run for run in found["budgets"].all_runs if run.config.init_from is not None)
    first, second = run.config.init_from, run.config
    assert first is not None
    samples = [stage.optim.steps * stage.optim.batch_size for stage in (first, second)]
    macs = run_cost(first).step_flop / 2 * samples[0] + run_cost(second).step_flop / 2 * samples[1]
    assert quality_cost.training_tmacs(run) == pytest.approx(macs / 1e12)


def test_the_final_score_of_two_stages_is_that_of_their_whole_budget() -> None:
    made_up.fill("budgets", leave_out=("250K + 80K",))
    found, missing = read_several(("budgets",), scale="mini")
    assert quality_cost.final_point(found["budgets"].all_runs, "val_loss", quality_cost.seconds) is None
    assert missing == ["budgets: BLIP-2, two stages, 250K + 80K"]
    made_up.fill("budgets")
    found, _ = read_several(("budgets",), scale="mini")
    whole = [run for run in found["budgets"].all_runs if run.row.label == "BLIP-2, two stages, 250K + 80K"]
    costs, scores = [[float(run.metric(name) or 0) for run in whole] for name in ("total_seconds", "vqav2")]
    expected = (sum(costs) / 3, sum(scores) / 3)
    final = quality_cost.final_point(found["budgets"].all_runs, "vqav2", quality_cost.seconds)
    assert final == pytest.approx(expected)


def test_the_overall_score_is_the_mean_share_of_blip2s() -> None:
    made_up.fill("budgets")
    found, _ = read_several(("budgets",), scale="mini")
    budgets = found["budgets"].all_runs
    whole = [run for run in budgets if run.row.label == "BLIP-2, two stages, 250K + 80K"]
    assert sum(quality_cost.scores(budgets, whole, "overall")) / 3 == pytest.approx(100)
    row = [run for run in budgets if run.row.label == "EVLGen, 150K"]
    sets = ("coco/CIDEr", "vqav2", "gqa", "okvqa")
    means = [sum(float(run.metric(name) or 0) for run in whole) / 3 for name in sets]
    shares = [float(row[1].metric(name) or 0) / mean for name, mean in zip(sets, means, strict=True)]
    assert quality_cost.scores(budgets, row, "overall")[1] == pytest.approx(25 * sum(shares))


def test_longer_trainings_that_collapsed_are_all_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up.fill("collapse", "smoke", seeds=1)
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, *others: figures.append(figure) or [])
    collapse.draw("smoke")
    longer = [row.values for row in made_up.rows("collapse", "smoke") if row.values["factor"] == "budget"]
    for figure, connector in zip(figures, collapse.FIGURES, strict=True):
        last = figure.axes[len(collapse.FACTORS) - 1]  # of the upper row
        labels = {line.get_label() for line in last.lines if not line.get_label().startswith("_")}
        assert labels == {values["level"] for values in longer if values["connector"] == connector}


def test_fractions_whose_images_are_not_used_are_hollow(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up.fill("data_fractions", "smoke")
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, *others: figures.append(figure) or [])

    def hollow() -> int:
        data_fractions.draw("smoke")
        axis = figures[-1].axes[1]
        return sum(line.get_markerfacecolor() == "white" and line.get_ms() > 4 for line in axis.lines)

    used = hollow()
    short = "EVLGen, 1/50 of the data, equal epochs"
    for run in read_all_seeds("data_fractions", "smoke").complete(short):
        assert run.record is not None
        files.write_result(run.record.folder, {**run.record.metrics, "state": "slow"}, {})
    assert hollow() == used + 1


def test_what_cannot_be_drawn_does_not_keep_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up.fill("two_stage", "smoke", leave_out=("without LM",))
    left_out = {path.stem for path in FOLDER.glob("*.py")} - {"two_stage", "soft_tokens", "merge_search"}
    monkeypatch.setattr(everything, "NO_FIGURES", tuple(left_out))
    assert everything.main(["--scale", "smoke"]) == 1
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["two_stage"].endswith("missing: without LM in stage 1")
    assert said["soft_tokens"].startswith("not drawn: ")
    assert "`python sweeps/run.py soft_tokens --scale smoke`" in said["soft_tokens"]

    made_up.fill("two_stage", "smoke")
    made_up.fill("soft_tokens", "smoke")
    assert everything.main(["--scale", "smoke"]) == 0  # a search is no part of the paper
    assert "merge_search: not drawn" in capsys.readouterr().out


@pytest.mark.parametrize("scale", ["bridge", "paper"])
def test_schedules_without_one_r_have_their_place(scale: str) -> None:
    """At these scales the constant schedule of most tokens merged is spread unevenly: it has no one r."""
    rows = made_up.rows("merge_schedules", scale)
    assert any(row.values["kind"] == "constant" and "r" not in row.values for row in rows)
    made_up.fill("merge_schedules", scale, seeds=1)
    assert [path.name for path in pareto.draw(scale)] == ["pareto.pdf", "pareto.png"]
    assert about("pareto", scale)["missing"] == []


def test_a_script_that_fails_does_not_keep_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up.fill("soft_tokens", "smoke")
    made_up.fill("two_stage", "smoke")
    left_out = {path.stem for path in FOLDER.glob("*.py")} - {"two_stage", "soft_tokens"}
    monkeypatch.setattr(everything, "NO_FIGURES", tuple(left_out))

    def broken(scale: str) -> list[Path]:
        raise KeyError("r")

    monkeypatch.setattr(soft_tokens, "draw", broken)
    assert everything.main(["--scale", "smoke"]) == 1
    out, err = capsys.readouterr()
    assert "soft_tokens: not drawn: its script failed" in out
    assert "Traceback" in err
    assert "KeyError: 'r'" in err
    assert about("two_stage")["missing"] == []
    assert "1 whole, 0 partial, 1 not drawn" in out


@pytest.mark.slow  # half a minute
def test_all_figures(capsys: pytest.CaptureFixture[str]) -> None:
    for experiment in EXPERIMENTS:
        made_up.fill(experiment, "smoke")
    own = {path.stem for path in FOLDER.glob("*.py")} - set(everything.NO_FIGURES)
    need_arrays = {"merge_maps", "soft_prompts"} & own  # the made-up store has none of their files
    assert everything.main(["--scale", "smoke"]) == (1 if need_arrays else 0)
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    for name in own - need_arrays - set(everything.OPTIONAL):
        assert "not drawn" not in said[name]
        assert "missing" not in said[name]


def test_an_unknown_scale_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert everything.main(["--scale", "smoek"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --scale smoek: no such scale; there are: ")
    assert error.endswith("; did you mean smoke?\n")
