"""What ``--scale paper`` needs and reads, from files in the true formats; tests/walk runs its commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from evlgen.config import EvalConfig, OptimConfig, QFormerConfig
from evlgen.data.batches import load_training_data
from evlgen.model import build_model
from evlgen.stage1 import Stage1Model
from evlgen.training import train
from experiments import table1
from sweeps import requirements, run
from tests.evlgen import real_sets

POOLS = [["laion-115m", 15], ["ccs-14m", 4], ["coco", 1]]
SETS = [["coco", 4], ["nocaps_in", 2], ["nocaps_near", 2], ["nocaps_out", 1], ["flickr", 2]]
SETS += [["vqav2", 4], ["gqa", 3], ["okvqa", 2]]
CONNECTOR = {"width": 16, "num_layers": 2, "num_heads": 2, "intermediate": 32, "init": "random"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RUNS", "RESULTS", "CACHE", "DATA"):
        monkeypatch.setenv(f"EVLGEN_{name}", str(tmp_path / name.lower()))
    return tmp_path


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
