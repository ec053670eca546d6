"""``--scale paper`` from files in the true formats to a table, with models and sets of the smallest size."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from evlgen.config import EvalConfig, OptimConfig, QFormerConfig
from evlgen.data.batches import load_training_data
from evlgen.model import build_model
from evlgen.stage1 import Stage1Model
from evlgen.training import train
from experiments import table1
from sweeps import local, requirements, run, worker
from tests.evlgen import folders, real_sets

POOLS = [["laion-115m", 15], ["ccs-14m", 4], ["coco", 1]]
SETS = [["coco", 4], ["nocaps_in", 2], ["nocaps_near", 2], ["nocaps_out", 1], ["flickr", 2]]
SETS += [["vqav2", 4], ["gqa", 3], ["okvqa", 2]]
CONNECTOR = {"width": 16, "num_layers": 2, "num_heads": 2, "intermediate": 32, "init": "random"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RUNS", "RESULTS", "CACHE", "DATA"):
        monkeypatch.setenv(f"EVLGEN_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("EVLGEN_DECODERS", "0")
    monkeypatch.setattr("evlgen.evaluation.java.find_java", lambda: None)  # METEOR takes its time to start
    return tmp_path


def arguments(place: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {
        "vision": str(real_sets.clip(place / "clip")),
        "language": str(folders.write("opt", place / "opt")),
        "connector": None,
        "data.pools": POOLS,
        "optim.steps": 4,
        "optim.batch_size": 8,
        "optim.warmup_steps": 1,
        "optim.precision": "fp32",
        "optim.eval_every": 2,
        "optim.checkpoint_every": 2,
        "evaluation.sets": SETS,
        "evaluation.validation": 4,
        "evaluation.beams": 2,
        "evaluation.min_length": 1,
        "evaluation.max_length": 4,
        "evaluation.answer_max_length": 2,
        **{f"connector.{key}": value for key, value in CONNECTOR.items()},
        "connector.input_width": 24,
        "connector.r": 3,
        **changes,
    }
    chosen = [
        f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items() if v is not None
    ]
    return [word for setting in chosen for word in ("--set", setting)]


def files(place: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in place.glob("runs/*/connector.safetensors")}


def lines(place: Path) -> list[dict[str, Any]]:
    (path,) = place.glob("runs/*/metrics.jsonl")
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "samples_per_second"} for line in read]


def test_a_row_of_table_1_is_trained_and_scored_and_a_kill_changes_no_bit(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_sets.write(place / "data")
    command = ["table1", "--scale", "paper", "--rows", "EVLGen, 104M, 250K", *arguments(place)]
    monkeypatch.setattr("sweeps.local.execute", _in_this_process())
    assert run.main(command) == 0
    whole, logged = files(place), lines(place)
    (result,) = place.glob("runs/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    for name in ("coco/CIDEr", "nocaps/CIDEr", "flickr/CIDEr", "vqav2", "gqa", "okvqa", "val_loss", "gap"):
        assert name in metrics
    assert (metrics["coco/images"], metrics["nocaps/images"]) == (4, 5)  # one image of the domain "out"
    predictions = json.loads((result.parent / "predictions.json").read_text())
    assert len(predictions["answers"]["vqav2"]) == len(predictions["answers"]["vqav2_shuffled"]) == 4
    (table_there,) = place.glob("results/table1-changed-*/paper/table.csv")
    table = table_there.read_text()
    assert '"EVLGen, 104M, 250K",coco/CIDEr,' in table
    assert "samples_per_second" in (result.parent / "metrics.jsonl").read_text()

    # Again, but killed in the third update: resumed from the checkpoint after the second.
    monkeypatch.setenv("EVLGEN_RUNS", str(place / "again/runs"))
    monkeypatch.setattr("sweeps.local.execute", _in_this_process(kill_at=3))
    assert run.main(command) == 1
    monkeypatch.setattr("sweeps.local.execute", _in_this_process())
    assert run.main(command) == 0
    assert files(place / "again") == whole
    assert lines(place / "again") == logged


class Killed(Exception):
    pass


def _in_this_process(kill_at: int | None = None) -> Any:
    """As `sweeps.local.execute`, without processes that take seconds to start."""

    def execute(tasks: list[local.Task], workers: int, event: Any) -> None:
        def tell(progress: Any) -> None:
            if kill_at is not None and getattr(progress, "step", 0) == kill_at:
                raise Killed

        for task in sorted(tasks, key=lambda task: "execute_run" in task.function):
            if "execute_run" not in task.function:
                worker.cache_features(tell, *task.arguments)
                continue
            try:
                worker.execute_run(tell, *task.arguments)
                event("done", task.key, None)
            except Killed as error:
                event("failed", task.key, repr(error))

    return execute


def test_what_is_missing_is_told_before_anything_is_done(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(place / "weights"))
    (place / "data").mkdir()
    assert run.main(["table1", "--scale", "paper", "--dry-run"]) == 2
    said = capsys.readouterr().out
    for name in ("eva_vit_g.pth", "'opt-2.7b'", "bert-base-uncased'", "laion-115m", "dataset_coco.json"):
        assert sum(line.startswith("missing: ") and name in line for line in said.splitlines()) == 1, name
    assert "6 of 6 runs to execute" in said
    assert not (place / "runs").exists()
    assert run.main(["table1", "--scale", "paper"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --scale paper: ")
    assert "things are missing:\n" in error
    assert not list(place.glob("runs/*"))
    real_sets.write(place / "data")
    lines = requirements.missing(row.config for row in table1.build("paper").rows)
    wanted = [f"weights {name!r}" for name in ("eva-clip-g", "opt-2.7b", "bert-base-uncased")]
    short = ["evaluation.sets"] * len(SETS) + ["evaluation.validation"]  # of sets of the smallest size
    assert [line.split(":")[0] for line in lines] == wanted + short


def test_a_folder_that_is_there_is_looked_into(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a job waits in a queue for weights that are none."""
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(place / "weights"))
    real_sets.write(place / "data")
    config = table1.build("paper").rows[-2].config
    bert = place / "weights/bert-base-uncased"
    bert.mkdir(parents=True)
    config = dataclasses.replace(
        config,
        vision=str(real_sets.clip(place / "clip")),
        language="no/such",
        evaluation=EvalConfig(sets=tuple((name, size) for name, size in SETS), validation=4),
    )
    lines = requirements.missing([config])
    assert [line.split(";")[0].removeprefix(f"{place}/") for line in lines] == [
        "language 'no/such': no such language model",
        "weights/bert-base-uncased: not a folder of a model: it has no config.json",
    ]
    bert.rmdir()
    real_sets.bert(bert)
    (line,) = requirements.missing([dataclasses.replace(config, language="mini-opt")])
    assert line.startswith(f"{bert}: no weights in this folder")
    (bert / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (line,) = requirements.missing([dataclasses.replace(config, language="mini-opt")])
    assert "git lfs pull" in line


def test_one_s_own_folder_is_trained_on_with_and_without_a_cache(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_sets.own_folder(place / "data/mine", 24)
    monkeypatch.setattr("sweeps.local.execute", _in_this_process())
    sets = [["captions", 2], ["questions", 5]]
    for cache, chosen in ((True, sets), (False, None)):  # those of the world, where none are chosen
        changes = {
            "data.world": "folder",
            "data.cache": cache,
            "data.views": 2,
            "data.pools": [["mine", 20]],
            "evaluation.sets": chosen,
            "evaluation.validation": 2,
            "optim.steps": 2,
        }
        command = ["table1", "--scale", "paper", "--rows", "EVLGen, 104M, 250K", *arguments(place, **changes)]
        assert run.main(command) == 0
        (folder,) = place.glob("results/table1-changed-*/paper")
        assert "paper:" not in (folder / "table.md").read_text()  # whose numbers are of other images
        metrics = [line["metric"] for line in csv.DictReader((folder / "table.csv").open())]
        assert metrics[:2] == ["questions", "captions/CIDEr"]
    results = [json.loads(path.read_text())["metrics"] for path in place.glob("runs/*/result.json")]
    assert sorted((m["captions/images"], m["questions/questions"]) for m in results) == [(2, 5), (2, 24)]


def test_stage_1_of_blip_2_reads_with_the_words_of_bert(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(place / "weights"))
    real_sets.write(place / "data")
    bert = real_sets.bert(place / "weights/bert-base-uncased")
    config = table1.build("paper").rows[0].config.init_from
    assert config is not None
    assert config.stage == "represent"
    connector = QFormerConfig(
        **{**CONNECTOR, "encoder_width": 24, "num_queries": 4, "embed_dim": 8, "max_positions": 40}
    )
    config = dataclasses.replace(
        config,
        vision=str(real_sets.clip(place / "clip")),
        connector=connector,
        data=dataclasses.replace(config.data, pools=tuple((name, size) for name, size in POOLS)),
        optim=OptimConfig(steps=2, batch_size=4, warmup_steps=1, eval_every=2, checkpoint_every=2),
        evaluation=EvalConfig(validation=4),
    )
    data = load_training_data(config)
    first = data.validation.text_ids[0, 0, : data.validation.lengths[0, 0]]
    assert bert.convert_ids_to_tokens(first.tolist())[:3] == ["a", "red", "ball"]
    assert first[-1] == bert.sep_token_id
    model = build_model(config)
    assert isinstance(model, Stage1Model)
    assert (model.class_id, model.decode_id) == (bert.cls_token_id, len(bert))
    (place / "stage1").mkdir()
    found = train(config, place / "stage1", data, model=model)
    assert found["val_lm"] > 0


def test_the_paper_s_runs_read_what_the_paper_says() -> None:
    config = table1.build("paper").rows[-2].config
    sizes = dict(config.data.pools)
    total = sum(sizes.values())
    assert total == 104_000_000
    assert [20 * size / total for size in sizes.values()] == [15, 4, 1]
    assert not config.data.cache
