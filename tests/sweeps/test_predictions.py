"""What users do with kept predictions: ``run.py submit`` and ``run.py diff``, on two short real runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evlgen.runs import archive
from sweeps import run
from tests.evlgen import folders, real_sets

SETS = [["coco", 4], ["nocaps_in", 2], ["nocaps_near", 3], ["nocaps_out", 1], ["flickr", 2]]
SETS += [["vqav2", 24], ["gqa", 3], ["okvqa", 6], ["nocaps_test", 3], ["vqav2_test", 4]]


@dataclass
class Place:
    """Where both runs are, and their ids."""

    root: Path
    first: str
    second: str

    def predictions(self, run_id: str) -> dict[str, Any]:
        return json.loads((self.root / "runs" / run_id / "predictions.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("two words")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNS", "RESULTS", "CACHE", "DATA"):
            patch.setenv(f"EVLGEN_{name}", str(root / name.lower()))
        real_sets.write(root / "data")
        settings: dict[str, object] = {
            "vision": str(real_sets.clip(root / "clip")),
            "language": str(folders.write("opt", root / "opt")),
            "data.pools": [["laion-115m", 15], ["ccs-14m", 4], ["coco", 1]],
            "optim.steps": 2,
            "optim.batch_size": 8,
            "optim.warmup_steps": 1,
            "optim.lr": 0.5,
            "optim.precision": "fp32",
            "optim.eval_every": 2,
            "optim.checkpoint_every": 2,
            "evaluation.sets": SETS,
            "evaluation.validation": 4,
            "evaluation.beams": 1,
            "evaluation.min_length": 1,
            "evaluation.max_length": 5,
            "evaluation.answer_max_length": 2,
            "connector.width": 16,
            "connector.num_layers": 2,
            "connector.num_heads": 2,
            "connector.intermediate": 32,
            "connector.init": "random",
            "connector.input_width": 24,
            "connector.r": 3,
        }
        words = [f"{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in settings.items()]
        command = ["table1", "--scale", "paper", "--rows", "EVLGen, 104M, 250K", "--seeds", "2"]
        assert run.main([*command, *(word for one in words for word in ("--set", one))]) == 0
        ids = sorted(path.parent.name for path in root.glob("runs/*/result.json"))
        assert len(ids) == 2
        yield Place(root, *ids)


def test_predictions_carry_the_ids_of_the_data_sets(place: Place) -> None:
    ids = place.predictions(place.first)["ids"]
    assert ids["coco"] == {"image_id": [14, 15, 16, 17]}
    assert ids["nocaps_near"] == {"image_id": [2, 3, 4]}
    assert ids["flickr"]["image_id"] == ["1.jpg", "3.jpg"]
    assert ids["vqav2"]["question_id"][:3] == [60, 61, 70]
    assert ids["vqav2"]["image_id"][:3] == [6, 6, 7]
    assert ids["gqa"] == {"image_id": ["n0", "n1", "n2"], "question_id": ["200", "201", "202"]}
    # The same questions, each on the image of another one.
    shuffled = ids["vqav2_shuffled"]
    assert shuffled["question_id"] == ids["vqav2"]["question_id"]
    assert sorted(shuffled["image_id"]) == sorted(ids["vqav2"]["image_id"])
    assert shuffled["image_id"] != ids["vqav2"]["image_id"]


def test_the_table_says_on_what_was_evaluated_and_has_the_official_accuracy(place: Place) -> None:
    (folder,) = (place.root / "results").glob("table1-changed*/paper")
    said = (folder / "table.md").read_text()
    evaluated = "24 questions of VQAv2, 3 questions of GQA, 6 questions of OK-VQA, 4 images of COCO."
    assert f"Evaluated on {evaluated}" in said
    assert "VQAv2 by the official script" in said
    table = (folder / "table.csv").read_text()
    assert ",vqav2/official," in table
    assert ",okvqa/official," in table
    metrics = json.loads((place.root / "runs" / place.first / "result.json").read_text())["metrics"]
    answers = place.predictions(place.first)["answers"]
    # Nothing to score them with, so nothing to ask again on other images.
    assert not any(name.startswith(("nocaps_test", "vqav2_test")) for name in metrics)
    assert "vqav2_test_shuffled" not in answers
    right = [answers["vqav2"][str(i)] == real_sets.colour_of(6 + i // 2) for i in range(24)]
    assert metrics["vqav2/official"] == pytest.approx(100 * sum(right) / 24)


def submitted(
    place: Place, name: str, capsys: pytest.CaptureFixture[str]
) -> tuple[list[dict[str, Any]], str]:
    assert run.main(["submit", place.first, name]) == 0
    said = capsys.readouterr()
    path = place.root / "results/submissions" / place.first / f"{name}.json"
    assert said.out.splitlines()[-1].endswith(f"{name}.json")
    return json.loads(path.read_text()), said.err


def test_kept_captions_of_nocaps_go_into_one_file(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.root / "runs" / place.first / "connector.safetensors").rename(place.root / "hidden")
    try:  # no weights are needed
        entries, errors = submitted(place, "nocaps", capsys)
    finally:
        (place.root / "hidden").rename(place.root / "runs" / place.first / "connector.safetensors")
    captions = place.predictions(place.first)["captions"]
    assert [entry["image_id"] for entry in entries] == [0, 1, 2, 3, 4, 5]
    assert entries[2] == {"image_id": 2, "caption": captions["nocaps_near"]["0"]}
    assert "nocaps_in: 2 are there, 648 were published: a server takes whole sets only" in errors


def test_sets_without_captions_and_answers_are_decoded(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    entries, _ = submitted(place, "nocaps_test", capsys)
    assert [entry["image_id"] for entry in entries] == [100, 101, 102]
    assert all(
        set(entry) == {"image_id", "caption"} and isinstance(entry["caption"], str) for entry in entries
    )
    entries, errors = submitted(place, "vqav2_testdev", capsys)
    assert [entry["question_id"] for entry in entries] == [10_000, 10_001]
    assert all(
        set(entry) == {"question_id", "answer"} and isinstance(entry["answer"], str) for entry in entries
    )
    assert "107394 were published" in errors
    entries, _ = submitted(place, "vqav2_test", capsys)
    assert len(entries) == 4


def test_what_was_kept_of_a_part_is_decoded_whole(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    entries, _ = submitted(place, "okvqa", capsys)
    kept = place.predictions(place.first)["answers"]["okvqa"]
    assert len(entries) == 24
    assert [entry["answer"] for entry in entries[:6]] == list(kept.values())
    entries, _ = submitted(place, "gqa", capsys)
    kept = place.predictions(place.first)["answers"]["gqa"]
    assert entries[1] == {"questionId": "201", "prediction": kept["1"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("submit", "submit: of what? Give a run's id"),
        ("submit ID", "needs a SET behind the run"),
        ("submit ID nocap", "no such set in the world 'capfilt'; there are: coco, nocaps_in"),
        ("submit ID nocap", "did you mean nocaps?"),
        ("submit ffff nocaps", "ffff: no complete run begins so, in the run store or in an archive"),
        ("submit ID nocaps vqav2", "takes one run and one SET"),
        ("diff ID", "needs a RUN_B behind the run"),
        ("diff ID ID", "both are the run "),
        ("diff ID ffff", "ffff: no complete run begins so"),
        ("diff ID OTHER --seeds 3", "--seeds: not a flag of this command"),
    ],
)
def test_mistakes_get_a_line(
    words: str, message: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = words.replace("ID", place.first).replace("OTHER", place.second).split()
    assert run.main(typed) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_test_set_that_is_not_there_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    questions = place.root / "data/vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json"
    questions.rename(place.root / "hidden")
    try:
        assert run.main(["submit", place.first, "vqav2_testdev"]) == 2
        assert f"{questions}: missing; get it from visualqa.org" in capsys.readouterr().err
    finally:
        (place.root / "hidden").rename(questions)


def page_of(place: Place) -> str:
    return (place.root / "results/diff" / f"{place.first}--{place.second}.html").read_text()


def test_two_runs_are_compared(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["diff", place.first[:14], place.second]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"A  {place.first}  tomeformer, ")
    assert said[1].startswith(f"B  {place.second}  tomeformer, ")
    assert said[-1].startswith("page: ")
    page = page_of(place)
    first, second = place.predictions(place.first), place.predictions(place.second)
    for kind in ("captions", "answers"):
        for name in first[kind]:
            if name.endswith("_shuffled"):
                continue
            one, other = first[kind][name], second[kind][name]
            count = sum(one[key] != other[key] for key in one)
            (line,) = [x for x in said if re.search(rf" {count} of {len(one)} {kind} differ", f" {x}")][:1]
            assert line
            section = page.partition(f'<h2 id="{name}">')[2].partition("</section>")[0]
            assert section.count("<article>") == count
            assert section.count("data:image/png;base64,") == count
    assert "<script" not in page


def test_archived_runs_are_compared_too(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["diff", place.first, place.second])
    expected = capsys.readouterr().out
    path = archive.path_of("table1", "paper")
    archive.pack(path, [place.first, place.second], [place.first, place.second])
    moved = place.root / "moved"
    shutil.move(place.root / "runs" / place.first, moved)
    try:
        assert run.main(["diff", place.first, place.second]) == 0
        assert capsys.readouterr().out == expected
    finally:
        shutil.move(moved, place.root / "runs" / place.first)
        path.unlink()


def test_texts_are_compared_where_images_are_not_there(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run.main(["diff", place.first, place.second])
    expected = capsys.readouterr().out
    shutil.move(place.root / "data/coco/val2014/COCO_val2014_000000000014.jpg", place.root / "hidden")
    try:
        assert run.main(["diff", place.first, place.second]) == 0
    finally:
        shutil.move(place.root / "hidden", place.root / "data/coco/val2014/COCO_val2014_000000000014.jpg")
    assert capsys.readouterr().out == expected
    same = (
        place.predictions(place.first)["captions"]["coco"]["0"]
        == (place.predictions(place.second)["captions"]["coco"]["0"])
    )
    assert same or "the image is not on this machine" in page_of(place)


def test_texts_are_compared_where_no_data_is(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVLGEN_DATA")
    assert run.main(["diff", place.first, place.second]) == 0
    said = capsys.readouterr()
    assert "coco: texts alone are compared: EVLGEN_DATA is not set" in said.err
    assert " of 4 captions differ" in said.out


def test_a_run_whose_predictions_were_not_kept(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = archive.path_of("table1", "paper")
    archive.pack(path, [place.first, place.second], [])
    moved = place.root / "moved"
    shutil.move(place.root / "runs" / place.first, moved)
    try:
        assert run.main(["diff", place.first, place.second]) == 2
        assert f"{place.first}: its captions and answers are not in {path}" in capsys.readouterr().err
        assert run.main(["submit", place.first, "nocaps"]) == 2
        assert (
            "the predictions were not kept, and its weights (connector.safetensors)"
            in capsys.readouterr().err
        )
    finally:
        shutil.move(moved, place.root / "runs" / place.first)
        path.unlink()
