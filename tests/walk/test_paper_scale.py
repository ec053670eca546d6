"""``--scale paper`` as a user walks it: commands of README and docs, one after the other, as processes.

Nothing is replaced and no switch is set that only tests set. What differs from the paper is what a user has
to say so that a laptop can try it: see `tests.walk.checkout.SMALL`.
"""

from __future__ import annotations

import csv

import pytest

from evlgen.runtime.files import sha256_of
from tests.walk.checkout import Checkout, moved, read, settings

pytestmark = pytest.mark.xdist_group("walk")
PAPER = ("table1", "--scale", "paper")
ROW = ("--rows", "EVLGen, 104M, 250K")


def test_the_dry_run_says_what_is_missing_and_where_to_get_it(place: Checkout) -> None:
    nowhere = str(place.path.parent / "nowhere")
    said = place.run(*PAPER, "--dry-run", expect=2, EVLGEN_DATA=nowhere, EVLGEN_WEIGHTS=nowhere)
    for name in (
        "eva_vit_g.pth",
        "opt-2.7b",
        "bert-base-uncased",
        "laion-115m",
        "ccs-14m",
        "dataset_coco.json",
    ):
        assert name in said
    assert "Traceback" not in said
    assert not place.runs.exists()


def test_the_dry_run_finds_what_is_there(place: Checkout) -> None:
    said = place.run(*PAPER, "--dry-run", *settings())
    assert "missing" not in said
    assert "6 of 6 runs to execute" in said


def test_what_the_machine_lacks_is_said_before_anything_is_indexed(place: Checkout) -> None:
    said = place.run(*PAPER, *settings(optim__precision="fp16"), expect=2)
    assert "optim.precision fp16: needs a GPU" in said
    said = place.run(*PAPER, *settings(connector__input_width=None), expect=2)
    assert "eva-clip-g gives 32; give --set connector.input_width=32" in said
    assert not (place.path / ".cache/pairs").exists()
    assert not place.runs.exists()


def test_a_table_is_trained_scored_and_shown_with_two_stages_and_one(place: Checkout) -> None:
    """Shards and lists are indexed, images decoded by other processes, BERT's words and weights read."""
    rows = ("--rows", "104M, 250K")  # BLIP-2 in two stages, and EVLGen
    said = place.run(*PAPER, *rows, *settings())
    assert "3 of 3 runs complete" in said
    assert len(place.complete()) == 3
    folder = place.latest_table()
    with (folder / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["metric"] for line in lines} >= {"vqav2", "gqa", "okvqa", "coco/CIDEr"}
    assert all(line["mean"] for line in lines if line["metric"] in ("vqav2", "coco/CIDEr"))
    assert (folder / "table.md").exists()
    assert (folder / "table.tex").exists()
    said = place.run(*PAPER, *rows, *settings())  # and is not trained again
    assert "3 runs, 3 complete" in said
    assert "3 done" in place.run("status", *PAPER, *rows, *settings())


def test_a_killed_run_goes_on_to_the_same_bits(place: Checkout) -> None:
    (whole,) = [
        run for run in place.complete() if read(run / "config.json")["connector"]["kind"] == "tomeformer"
    ]
    again = place.path / "runs of another try"
    run = again / whole.name

    def has_a_checkpoint() -> bool:
        path = run / "metrics.jsonl"
        return bool(list(run.glob("checkpoint*"))) and path.exists() and path.read_text().count("\n") >= 2

    words = (*PAPER, *ROW, *settings())
    place.killed(has_a_checkpoint, *words, EVLGEN_RUNS=str(again))
    assert not (run / "connector.safetensors").exists(), "killed too late"
    # Nor does the number of processes that decode images.
    assert "1 of 1 runs complete" in place.run(*words, EVLGEN_RUNS=str(again), EVLGEN_DECODERS="3")
    assert "resumed at step" in (run / "log.txt").read_text()
    for name in ("connector.safetensors", "predictions.json"):
        assert sha256_of(run / name) == sha256_of(whole / name), name


def test_vicuna_reads_with_a_sentencepiece_tokenizer_and_table_2_wants_no_questions(place: Checkout) -> None:
    data = place.path.parent / "data"
    zero_shot = [["nocaps_in", 2], ["nocaps_near", 2], ["nocaps_out", 1], ["flickr", 2]]
    words = ("table2", "--scale", "paper", "--rows", "EVLGen, Vicuna-7B")
    small = settings(evaluation__sets=zero_shot, updates=5e-5)
    with moved(data / "vqav2", data / "away"):
        said = place.run(*words, *small)
    assert "1 of 1 runs complete" in said
    predictions = read(place.complete()[-1] / "predictions.json")
    assert len(predictions["captions"]["nocaps_near"]) == 2


def test_a_run_captions_and_answers_from_the_shell_and_from_python(place: Checkout) -> None:
    run = next(
        run for run in place.complete() if read(run / "config.json")["connector"]["kind"] == "tomeformer"
    )
    image = place.path.parent / "data/coco/val2014/COCO_val2014_000000000014.jpg"
    said = place.python("-m", "evlgen", "caption", str(image), "--run", str(run))
    assert image.name in said
    said = place.python("-m", "evlgen", "ask", str(image), "What colour is the ball?", "--run", str(run))
    assert image.name in said
    code = f"""
from PIL import Image
from evlgen.interop import from_run
model, processor, tokenizer = from_run("runs/{run.name}")
ids = model.generate(**processor(Image.open({str(image)!r}), return_tensors="pt"))
print(len(ids), "captions")
"""
    assert "1 captions" in place.python("-c", code)


def test_one_s_own_folder_is_captioned_by_what_was_trained_on_it(place: Checkout) -> None:
    from tests.evlgen import real_sets

    real_sets.own_folder(place.path.parent / "data/pets", 24)
    own = settings(
        updates=None,
        data__world="folder",
        data__pools=[["pets", 16]],
        data__cache=True,
        data__views=2,
        evaluation__sets=[["captions", 2], ["questions", 3]],
        evaluation__validation=2,
        evaluation__min_length=1,
        optim__steps=2,
        optim__warmup_steps=1,
    )
    said = place.run(*PAPER, *ROW, *own)
    assert "1 of 1 runs complete" in said
    metrics = read(place.complete()[-1] / "result.json")["metrics"]
    assert (metrics["captions/images"], metrics["questions/questions"]) == (2, 3)
    with (place.latest_table() / "table.csv").open() as file:
        assert [line["metric"] for line in csv.DictReader(file)][:2] == ["questions", "captions/CIDEr"]
    assert "(paper" not in (place.latest_table() / "table.md").read_text()  # its numbers are of other images
    new = place.path.parent / "new images"
    new.mkdir()
    (new / "1.jpg").write_bytes(real_sets.jpeg(1000))
    said = place.python("-m", "evlgen", "caption", str(new), "--run", str(place.complete()[-1]))
    assert "1.jpg" in said
