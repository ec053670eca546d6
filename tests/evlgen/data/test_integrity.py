"""Evaluation sets that are empty, short or do not belong together are found before anything is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evlgen.config import DataConfig, EvalConfig, RunConfig
from evlgen.data import integrity, worlds
from evlgen.data.base import World
from evlgen.data.readers import folder, real
from evlgen.errors import UserError
from sweeps import run
from tests.evlgen import real_sets

CAPFILT = DataConfig(world="capfilt", pools=(("coco", 1),))
COCO, FLICKR = "coco/dataset_coco.json", "flickr30k/dataset_flickr30k.json"
NOCAPS, GQA = "nocaps/nocaps_val_4500_captions.json", "gqa/testdev_balanced_questions.json"
VQA_QUESTIONS = "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
VQA_ANSWERS = "vqav2/v2_mscoco_val2014_annotations.json"
OK_QUESTIONS = "okvqa/OpenEnded_mscoco_val2014_questions.json"
OK_ANSWERS = "okvqa/mscoco_val2014_annotations.json"
SIZES = {"coco": 4, "nocaps_in": 2, "nocaps_near": 3, "nocaps_out": 1, "flickr": 3}
SIZES |= {"vqav2": 24, "gqa": 3, "okvqa": 24}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RUNS", "RESULTS", "CACHE", "DATA"):
        monkeypatch.setenv(f"EVLGEN_{name}", str(tmp_path / name.lower()))
    real._pool.cache_clear()
    folder._read.cache_clear()
    return real_sets.write(tmp_path / "data")


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    new = edit(content)
    path.write_text(json.dumps(content if new is None else new))


def problems(*sets: tuple[str, int], validation: int = 2) -> list[str]:
    return worlds.problems(RunConfig(data=CAPFILT, evaluation=EvalConfig(sets=sets, validation=validation)))


def test_whole_sets_are_no_problem(root: Path) -> None:
    assert problems(*SIZES.items()) == []


@pytest.mark.parametrize("name", SIZES)
def test_fewer_than_are_asked_for(root: Path, name: str) -> None:
    (line,) = problems((name, 5000))
    assert line.startswith(f"evaluation.sets: {name}: 5000 are asked for, ")
    assert line.endswith(f" has {SIZES[name]}; get all of it, or ask for {SIZES[name]}")


def test_fewer_held_out_pairs_than_are_asked_for(root: Path) -> None:
    (line,) = problems(("coco", 4), validation=7)
    assert line.startswith("evaluation.validation: 7 are asked for, 'coco_val' has 6")


def rename(split: str) -> Callable[[Any], Any]:
    def edit(content: Any) -> None:
        for image in content["images"]:
            if image["split"] == split:
                image["split"] = "other"

    return edit


def without_sentences(content: Any) -> None:
    next(image for image in content["images"] if image["split"] == "test")["sentences"] = []


def ids_as_text(key: str, where: str) -> Callable[[Any], Any]:
    def edit(content: Any) -> None:
        for entry in content[where]:
            entry[key] = str(entry[key])

    return edit


def emptied(*keys: str) -> Callable[[Any], Any]:
    return lambda content: dict(content, **{key: [] for key in keys})


def twice(where: str) -> Callable[[Any], Any]:
    return lambda content: dict(content, **{where: [*content[where], content[where][0]]})


def without_captions_of_one(content: Any) -> None:
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 0]


def other_domains(content: Any) -> None:
    for image in content["images"]:
        image["domain"] = "entire"


def of_other_images(content: Any) -> None:
    for one in content["annotations"]:
        one["image_id"] += 1


@pytest.mark.parametrize(
    ("name", "file", "edit", "message"),
    [
        (
            "coco",
            COCO,
            rename("test"),
            "no image with captions in the split test; splits there: other, restval",
        ),
        ("coco", COCO, without_sentences, "1 of 4 images of the split test have no caption"),
        ("coco", COCO, emptied("images"), "; splits there: none"),
        ("flickr", FLICKR, rename("test"), "no image with captions in the split test"),
        ("flickr", FLICKR, without_sentences, "1 of 3 images of the split test have no caption"),
        ("nocaps_in", NOCAPS, ids_as_text("image_id", "annotations"), ": '0' is a text, 0 a number"),
        ("nocaps_in", NOCAPS, ids_as_text("id", "images"), ": 0 is a number, '0' a text"),
        ("nocaps_out", NOCAPS, emptied("annotations"), "1 of 1 images of the domain 'out' have no caption"),
        (
            "nocaps_in",
            NOCAPS,
            without_captions_of_one,
            "1 of 2 images of the domain 'in' have no caption (image 0)",
        ),
        ("nocaps_near", NOCAPS, emptied("images", "annotations"), "no image of the domain 'near'"),
        ("nocaps_near", NOCAPS, other_domains, "no image of the domain 'near'; domains there: entire"),
        ("nocaps_in", NOCAPS, twice("images"), "entries 0 and 6 have the same id, 0"),
        ("vqav2", VQA_QUESTIONS, emptied("questions"), "has no question"),
        ("vqav2", VQA_QUESTIONS, ids_as_text("question_id", "questions"), "'60' is a text, 60 a number"),
        ("vqav2", VQA_ANSWERS, ids_as_text("question_id", "annotations"), "60 is a number, '60' a text"),
        ("vqav2", VQA_ANSWERS, emptied("annotations"), "has no answers to question 60 of"),
        ("vqav2", VQA_QUESTIONS, twice("questions"), "entries 0 and 24 have the same question_id, 60"),
        ("vqav2", VQA_ANSWERS, of_other_images, ": is of the image_id 7, the question 60 of "),
        ("okvqa", OK_ANSWERS, of_other_images, "the two files do not belong together"),
        ("okvqa", OK_QUESTIONS, emptied("questions"), "has no question"),
        ("okvqa", OK_ANSWERS, ids_as_text("question_id", "annotations"), "60 is a number, '60' a text"),
        ("gqa", GQA, lambda content: {}, "has no question"),
        ("gqa", GQA, lambda content: [], "has no question"),
    ],
)
def test_sets_that_are_empty_or_do_not_belong_together(
    root: Path, name: str, file: str, edit: Callable[[Any], Any], message: str
) -> None:
    change(root / file, edit)
    line = problems((name, 1))[0]
    assert Path(file).name in line
    assert message in line


def test_what_is_missing_hides_nothing_of_the_others(root: Path) -> None:
    (root / FLICKR).unlink()
    change(root / GQA, lambda content: {})
    lines = problems(*SIZES.items())
    assert any("dataset_flickr30k.json: missing" in line for line in lines)
    assert any("testdev_balanced_questions.json: has no question" in line for line in lines)


def test_own_images_are_taken_as_many_as_there_are(root: Path) -> None:
    real_sets.own_folder(root / "mine", 24)
    config = RunConfig(
        data=DataConfig(world="folder", pools=(("mine", 20),)),
        evaluation=EvalConfig(sets=(("captions", 500), ("questions", 500)), validation=500),
    )
    assert worlds.problems(config) == []
    lines = (root / "mine/questions.jsonl").read_text().splitlines()
    (root / "mine/questions.jsonl").write_text(
        "\n".join(f'{line[:-1]}, "split": "train"}}' for line in lines)
    )
    folder._read.cache_clear()
    (line,) = worlds.problems(config)
    assert line.endswith("no question to ask: all 24 are on images of other splits than 'test'")
    (root / "mine/questions.jsonl").write_text("")
    folder._read.cache_clear()
    (line,) = worlds.problems(config)
    assert line.endswith("questions.jsonl: no question to ask")


def test_a_world_without_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever reader: what it does not refuse itself."""
    empty: World = dataclasses.replace(worlds.get("easy-vqa"), count=lambda pool: 0)
    assert integrity.problems(empty, [("easy_vqa", 5)], 0) == [
        "evaluation.sets: easy_vqa: there is not a single example in 'easy_questions'"
    ]


def test_a_sweep_refuses_them_before_anything_is_done(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(root / NOCAPS, ids_as_text("image_id", "annotations"))
    command = ["table2", "--scale", "paper", "--set", 'evaluation.sets=[["nocaps_in", 2], ["coco", 5000]]']
    assert run.main(command) == 2
    said = capsys.readouterr().err
    assert "a caption is of the image_id '0', and no image has this id: '0' is a text, 0 a number" in said
    assert "evaluation.sets: coco: 5000 are asked for, 'coco_test' has 4" in said
    assert "Traceback" not in said
    assert not list(root.parent.glob("runs/*"))
    run.main([*command, "--dry-run"])
    said = capsys.readouterr()
    assert "evaluation.sets: coco: 5000 are asked for" in said.out + said.err


def test_damaged_images_of_evaluation_sets_show_before_a_training(root: Path) -> None:
    config = RunConfig(
        data=CAPFILT, evaluation=EvalConfig(sets=(("nocaps_in", 2), ("vqav2", 24), ("coco", 4)))
    )
    worlds.check_images(config)
    image = root / "nocaps/images/0001.jpg"
    image.write_bytes(image.read_bytes()[:100])
    for number in (12, 15, 17):
        (root / f"coco/val2014/COCO_val2014_{number:012d}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"0001\.jpg: .*fetch what is damaged again: nothing is trained yet"):
        worlds.check_images(config)
    image.write_bytes((root / "nocaps/images/0000.jpg").read_bytes())
    with pytest.raises(UserError, match=r"000000012\.jpg: .*, and 2 more of vqav2; fetch"):
        worlds.check_images(config)
