"""From each layout, and each form of own images: checked, planned, and trained on for a few updates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from evlgen.runs.identity import forget_fingerprints
from evlgen.runtime import own_images
from sweeps import run
from tests.evlgen import folders, layouts, own_forms, real_sets

SETS = [["coco", 4], ["nocaps_in", 2], ["nocaps_near", 2], ["nocaps_out", 1], ["flickr", 2]]
SETS += [["vqav2", 4], ["gqa", 3], ["okvqa", 2]]
SMALL = {
    "data.pools": [["laion-115m", 15], ["ccs-14m", 4], ["coco", 1]],
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
    "connector.width": 16,
    "connector.num_layers": 2,
    "connector.num_heads": 2,
    "connector.intermediate": 32,
    "connector.init": "random",
    "connector.input_width": 24,
    "connector.r": 3,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RUNS", "RESULTS", "CACHE"):
        monkeypatch.setenv(f"EVLGEN_{name}", f"~/{name.lower()} of mine/")
    monkeypatch.setenv("EVLGEN_DATA", "my data")
    forget_fingerprints()  # of data of the tests before; a user's command is a process of its own
    return tmp_path


def settings(place: Path) -> list[str]:
    """``--set`` flags that make a run of the paper's scale small."""
    models = {
        "vision": str(real_sets.clip(place / "clip")),
        "language": str(folders.write("opt", place / "opt")),
    }
    return [
        word
        for key, value in {**SMALL, **models}.items()
        for word in ("--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    ]


def lavis(root: Path) -> None:
    """LAVIS's files, and images as img2dataset's default leaves them."""
    layouts.lavis(root)
    shutil.rmtree(root / "ccs_synthetic_filtered_large")
    layouts.files(root / "ccs_synthetic_filtered_large")


@pytest.mark.parametrize("layout", [lavis, layouts.elsewhere])
def test_a_layout_is_checked_planned_and_trained_on(place, capfd, layout):
    layout(real_sets.write(place / "my data"))
    words = ["table1", "--scale", "paper", "--rows", "EVLGen, 104M, 250K", *settings(place)]
    planned = [word for word in words if word not in ("--scale", "paper")]
    assert run.main(["check-data", *planned]) == 0
    said = capfd.readouterr().out
    assert "problems: 0" in said
    assert "vqav2, evaluation: 24 questions, 4 asked for, 214,354 published" in said
    assert run.main([*words, "--dry-run"]) == 0
    assert run.main([*words, "--workers", "1"]) == 0
    assert "1 of 1 runs complete" in capfd.readouterr().out
    assert len(list((place / "runs of mine").glob("*/result.json"))) == 1


@pytest.mark.parametrize("form", ["csv", "texts", "coco"])
def test_own_images_are_trained_on_and_again_when_they_have_changed(place, capfd, form):
    own_forms.FORMS[form](place / "my data/mine")
    sets = ["--rows", "EVLGen, 104M, 150K", "--set", "data.world=folder", "--set", 'data.pools=[["mine", 6]]']
    sets += ["--set", "evaluation.min_length=1", "--set", "optim.steps=4"]
    words = ["table1", *sets, "--scale", "smoke", "--seeds", "1", "--workers", "1"]
    assert run.main(["check-data", "table1", *sets]) == 0
    assert run.main(words) == 0
    assert run.main([*words, "--dry-run"]) == 0
    assert "0 of 1 runs to execute" in capfd.readouterr().out
    path = own_images.caption_files(place / "my data/mine")[0]
    path.write_bytes(path.read_bytes().replace(b"b\0a\0l\0l", b"b\0o\0x\0s").replace(b"ball", b"box"))
    forget_fingerprints()
    assert run.main([*words, "--dry-run"]) == 0
    assert "1 of 1 runs to execute" in capfd.readouterr().out  # the finished one has read other captions


def test_a_question_too_long_for_the_language_model_stops_a_run_before_its_training(place, capfd):
    real_sets.own_folder(place / "my data/mine", 30)
    questions = place / "my data/mine/questions.jsonl"
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    lines[0]["question"] = "is the ball " + "very " * 300 + "red?"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["table1", "--rows", "EVLGen, 104M, 150K", "--scale", "smoke", "--seeds", "1", "--workers", "1"]
    words += ["--set", "data.world=folder", "--set", 'data.pools=[["mine", 20]]']
    assert run.main([*words, "--set", 'evaluation.sets=[["questions", 60]]']) == 1
    assert "questions: question 'is the ball very very" in capfd.readouterr().out
    assert not list((place / "runs of mine").glob("*/metrics.jsonl"))
