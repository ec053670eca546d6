"""What is read of a run store and of archives: whole, incomplete, damaged, earlier, empty."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from analysis import tables
from analysis.results import found_in, read, read_all_seeds, read_several
from analysis.table import page_markdown, to_csv
from evlgen.errors import UserError
from evlgen.runs import archive, behaviour, identity
from evlgen.runs import folder as files
from experiments import two_stage
from experiments.base import seeded
from paper_figures import soft_tokens
from tests.paper_figures import made_up


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))


def test_no_runs_names_the_command() -> None:
    with pytest.raises(UserError, match=r"`python sweeps/run.py two_stage --scale smoke`"):
        read_all_seeds("two_stage", "smoke")
    with pytest.raises(UserError, match=r"`python sweeps/run.py two_stage`$"):
        read_all_seeds("two_stage", "mini")


def test_seeds_that_every_row_lacks_take_one_line() -> None:
    made_up.fill("two_stage", seeds=1)
    assert read_all_seeds("two_stage", "mini").missing("two_stage: ") == ["two_stage: every row (seed 1, 2)"]


def test_incomplete_rows_are_there_and_said_to_be_missing() -> None:
    made_up.fill("two_stage", seeds=2, leave_out=("without ITM",))
    found = read_all_seeds("two_stage", "mini")
    first = found.all_runs[:3]
    assert [run.seed for run in first] == [0, 1, 2]
    assert first[0].record is not None
    assert first[2].record is None
    lines = found.missing("two_stage: ")
    assert "two_stage: without ITM in stage 1" in lines  # all seeds
    assert "two_stage: without ITC in stage 1 (seed 2)" in lines
    assert read("two_stage", "mini", seeds=1).missing() == ["without ITM in stage 1"]


def test_more_seeds_than_the_experiment_says_are_taken_and_must_be_everywhere() -> None:
    made_up.fill("two_stage", seeds=3)
    row = two_stage.build("mini").rows[0]
    made_up.write(seeded(row.config, 4))
    found = read_all_seeds("two_stage", "mini")
    assert [run.seed for run in found.runs[row.label]] == [0, 1, 2, 3, 4]
    assert f"{row.label} (seed 3)" in found.missing()
    assert {run.seed for run in read("two_stage", "mini", seeds=2).all_runs} == {0, 1}


def test_a_damaged_result_is_named_and_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    made_up.fill("two_stage", "smoke")
    row = two_stage.build("smoke").rows[0]
    path = identity.run_folder(row.config) / "result.json"
    path.write_text(path.read_text().replace("val_loss", "val_less"))
    before = path.read_bytes()
    found = read_all_seeds("two_stage", "smoke")
    assert f"{path}: damaged" in capsys.readouterr().err
    assert path.read_bytes() == before  # figures change nothing in the store
    assert found.missing() == [row.label]


def test_a_damaged_history_is_named_and_empty(capsys: pytest.CaptureFixture[str]) -> None:
    made_up.fill("two_stage", "smoke")
    run = read("two_stage", "smoke").all_runs[0]
    assert run.record is not None
    steps, losses = run.history("val_loss")
    assert steps == sorted(steps)
    assert len(losses) == len(steps) > 0
    assert run.history("nothing of that name") == ([], [])
    path = run.record.folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"val_loss": ', '"val_loss": 1'))
    assert run.history("val_loss") == ([], [])
    assert f"{path}: damaged" in capsys.readouterr().err


def test_a_metric_that_is_no_finite_number_is_none() -> None:
    made_up.fill("two_stage", "smoke")
    run = read("two_stage", "smoke").all_runs[0]
    assert run.record is not None
    odd = {"a": float("nan"), "b": "word", "c": True, "d": 2}
    run = dataclasses.replace(run, record=dataclasses.replace(run.record, metrics=odd))
    assert [run.metric(name) for name in ("a", "b", "c", "d", "e")] == [None, None, None, 2.0, None]


def test_several_experiments_of_which_one_is_not_there() -> None:
    made_up.fill("initialisation", "smoke")
    found, missing = read_several(("encoders", "initialisation"), "smoke")
    assert list(found) == ["initialisation"]
    assert missing == ["encoders (`python sweeps/run.py encoders --scale smoke`)"]
    with pytest.raises(UserError, match="encoders"):
        read_several(("encoders",), "smoke")


def test_the_records_of_stage_1_come_with_those_of_stage_2() -> None:
    made_up.fill("two_stage", "smoke")
    for run in read("two_stage", "smoke").all_runs:
        if run.config.init_from is None:
            assert run.first is None
        else:
            assert run.first is not None
            assert run.first.id == identity.run_id(run.config.init_from)


def test_records_are_read_from_the_archive_where_the_store_has_none(tmp_path: Path) -> None:
    made_up.fill("initialisation", "smoke")
    before = read_all_seeds("initialisation", "smoke")
    assert found_in(before.records()) == "the run store runs/"
    history = before.all_runs[0].history("gap")
    assert history[0]
    path = archive.path_of("initialisation", "smoke")
    archive.pack(path, [record.id for record in before.records()], [])
    shutil.rmtree(tmp_path / "runs")
    after = read_all_seeds("initialisation", "smoke")
    assert [run.metric("val_loss") for run in after.all_runs] == [
        run.metric("val_loss") for run in before.all_runs
    ]
    assert after.all_runs[0].history("gap") == history
    assert found_in(after.records()) == "results/initialisation/smoke/runs.tar.xz"
    assert not (tmp_path / "runs").exists()  # nothing was unpacked there
    made_up.write(after.all_runs[0].config)
    both = read_all_seeds("initialisation", "smoke").records()
    assert found_in(both) == "the run store runs/ and results/initialisation/smoke/runs.tar.xz"


def test_rows_of_an_earlier_behaviour_or_scorer_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging and the scorer of captions change after the runs were made; the Q-Former does neither."""
    made_up.fill("initialisation", "smoke")
    for run in read_all_seeds("initialisation", "smoke").complete():
        assert run.record is not None
        is_ours = run.config.connector.kind == "tomeformer"
        files.write_result(
            run.record.folder, dict(run.record.metrics), {"captions": 1} if is_ours else {"vqa_accuracy": 1}
        )
    assert read_all_seeds("initialisation", "smoke").warnings() == []
    monkeypatch.setitem(behaviour.COMPONENTS, "merging", 2)
    monkeypatch.setitem(behaviour.SCORERS, "captions", 3)
    results = read_all_seeds("initialisation", "smoke")
    ours, theirs = results.labels(connector="EVLGen"), results.labels(connector="BLIP-2, single stage")
    assert [results.mark(label) for label in ours] == ["†‡"] * len(ours)
    assert [results.mark(label) for label in theirs] == [""] * len(theirs)
    names = "; ".join(ours)
    assert results.warnings() == [
        f"† Recorded with an earlier behaviour of the code (merging 1, now 2): {names}. "
        "`python sweeps/run.py initialisation --scale smoke --seeds 1` makes this anew.",
        f"‡ Scored by an earlier scorer (captions 1, now 3): {names}. "
        "`python sweeps/run.py rescore initialisation --scale smoke` makes this anew.",
    ]
    page = page_markdown(tables.page(results))
    assert page.count(f"| {ours[0]} †‡ |") == 3  # of every table of single rows
    assert results.warnings()[0] in page
    assert results.warnings()[1] in page
    assert f"| {theirs[0]} |" in page
    lines = to_csv(tables.all_metrics(results)).splitlines()
    assert any(line.startswith(f'"{ours[0]}",') for line in lines)  # labels in files stay as they are


def test_figures_say_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up.fill("soft_tokens", "smoke")
    monkeypatch.setitem(behaviour.COMPONENTS, "merging", 2)
    pdf, _ = soft_tokens.draw("smoke")
    (sentence,) = json.loads(pdf.with_suffix(".json").read_text())["changed"]
    assert sentence.startswith("Recorded with an earlier behaviour of the code (merging 1, now 2): EVLGen")
    assert "BLIP-2" not in sentence


def test_of_two_archives_the_one_with_the_captions_is_read(tmp_path: Path) -> None:
    """Two tables share runs, and the archive of the first in the alphabet has no captions."""
    made_up.fill("initialisation", "smoke")
    ids = [record.id for record in read("initialisation", "smoke").records()]
    archive.pack(archive.path_of("a", "smoke"), ids, [])
    archive.pack(archive.path_of("b", "smoke"), ids, ids)
    archive.pack(archive.path_of("c", "smoke"), ids, [])
    shutil.rmtree(tmp_path / "runs")
    for run in read("initialisation", "smoke").complete():
        assert run.predictions("captions", "coco")["0"] == made_up.CAPTION
        assert run.predictions("captions", "flickr") == {}
