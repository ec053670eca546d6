"""``python -m evlgen``: caption, ask and draw, typed as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evlgen import miniworld
from evlgen.__main__ import main
from evlgen.config import QFormerConfig, RunConfig, to_json
from evlgen.interop import from_run
from evlgen.model import build_model, save_trained
from evlgen.runs import folder as files
from evlgen.runs.choice import best, named
from evlgen.runs.identity import id_of

ROOT = Path(__file__).parents[3]


class Typed:
    """Types words in a folder, and keeps what came back."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.err = ""

    def __call__(self, *words: str | Path, code: int = 0) -> list[dict[str, str]]:
        capsys = self.capsys
        capsys.readouterr()
        got = main([str(word) for word in words])
        out, self.err = capsys.readouterr()
        assert got == code, (got, self.err)
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def typed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """In an empty folder, with a store that has one run."""
    monkeypatch.setenv("EVLGEN_RUNS", str(made.parent))
    monkeypatch.chdir(tmp_path)
    return Typed(capsys)


def drawn(folder: str, count: int = 3, pool: str = "coco_test") -> Path:
    """What ``draw`` makes."""
    assert main(["draw", folder, "--count", str(count), "--pool", pool]) == 0
    return Path(folder)


def said(run: Path, kind: str, name: str) -> list[str]:
    """The first captions or answers of a run's own evaluation."""
    return list(json.loads((run / files.PREDICTIONS).read_text())[kind][name].values())


# ------------------------------------------------------------------------------------------ what is said


def test_as_in_the_evaluation(typed: Typed, made: Path) -> None:
    pictures = drawn("pictures")
    lines = typed("caption", "pictures")
    assert [line["path"] for line in lines] == [f"pictures/coco_test_{i:04d}.png" for i in range(3)]
    assert [line["text"] for line in lines] == said(made, "captions", "coco")
    assert {line["run"] for line in lines} == {made.name}
    assert f"run {made.name}: the only finished run on miniworld: CIDEr" in typed.err
    assert [line["text"] for line in typed("caption", pictures, "--batch", "2")] == [
        line["text"] for line in lines
    ]
    drawn("questions", pool="vqav2")
    for index, answer in enumerate(said(made, "answers", "vqav2")):
        question = miniworld.question("vqav2", index).text
        (line,) = typed("ask", f"questions/vqav2_{index:04d}.png", question, "--device", "cpu")
        assert line["text"] == answer
        assert line["question"] == question


def test_a_terminal_gets_plain_lines(made: Path, tmp_path: Path) -> None:
    """Typed as a user types it, from another folder."""
    drawn(str(tmp_path / "pictures"), 2)
    done = subprocess.run(
        [sys.executable, "-m", "evlgen", "caption", "pictures", "--run", str(made), "--plain"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    first, second = said(made, "captions", "coco")[:2]
    assert done.stdout == f"pictures/coco_test_0000.png: {first}\npictures/coco_test_0001.png: {second}\n"
    assert done.stderr == ""


def test_words_that_the_run_does_not_know(typed: Typed) -> None:
    drawn("pictures", 1)
    typed("ask", "pictures", "What colour is the zebra?")
    assert "does not know: colour, zebra" in typed.err


# ---------------------------------------------------------------------------------------------- images


def test_folders_are_searched(typed: Typed) -> None:
    drawn("all/below/deep", 1)
    drawn("all/.hidden", 1)
    image = Image.open("all/below/deep/coco_test_0000.png")
    image.save("all/B.JPG")
    image.save("all/a.webp")
    image.save("all/a.png.explain.png")
    Path("all/notes.txt").write_text("notes")
    os.mkdir("elsewhere")
    image.save("elsewhere/c.bmp")
    os.symlink("../elsewhere", "all/link")
    os.symlink("..", "all/below/up")
    paths = [line["path"] for line in typed("caption", "all")]
    assert paths == ["all/B.JPG", "all/a.webp", "all/below/deep/coco_test_0000.png", "all/link/c.bmp"]
    assert "all: 1 file is no image and left out" in typed.err
    os.mkdir("empty")
    assert typed("caption", "empty", code=2) == []
    assert typed.err.startswith("error: empty: no images in this folder")


def test_what_cannot_be_read_is_counted_and_the_rest_captioned(typed: Typed, tmp_path: Path) -> None:
    drawn("pictures", 2)
    Path("pictures/coco_test_0000a.png").write_bytes(Path("pictures/coco_test_0000.png").read_bytes()[:300])
    Path("pictures/empty.jpg").write_bytes(b"")
    os.mkfifo("pipe.png")
    lines = typed("caption", "none.png", "pictures", "pipe.png", code=1)
    assert [Path(line["path"]).name for line in lines] == ["coco_test_0000.png", "coco_test_0001.png"]
    for fault in ("none.png: no such file", "coco_test_0000a.png", "empty.jpg", "pipe.png"):
        assert fault in typed.err
    assert "2 images done, 4 could not be read" in typed.err
    assert "Traceback" not in typed.err
    assert typed("caption", "pictures/empty.jpg", code=1) == []


def test_images_of_any_kind_keep_their_contents(typed: Typed) -> None:
    """A drawing of 64 x 64 pixels says the same however it is stored."""
    image = Image.open(drawn("pictures", 1) / "coco_test_0000.png")
    os.mkdir("kinds")
    opaque = image.convert("RGBA")
    opaque.save("kinds/opaque.png")
    hidden = np.array(opaque)
    white = (np.asarray(image) > 200).all(-1)
    hidden[white] = 0  # transparent black, to be laid on white
    Image.fromarray(hidden).save("kinds/transparent.png")
    on_white = np.array(image)
    on_white[white] = 255
    Image.fromarray(on_white).save("kinds/white.png")
    exif = Image.Exif()
    exif[0x112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save("kinds/lying.png", exif=exif)
    texts = {Path(line["path"]).stem: line["text"] for line in typed("caption", "kinds", "pictures")}
    assert texts["opaque"] == texts["lying"] == texts["coco_test_0000"]
    assert texts["transparent"] == texts["white"]


# --------------------------------------------------------------------------------------------- explain


def test_explain_draws_the_merge_map(typed: Typed) -> None:
    drawn("a", 1)
    drawn("b", 1)
    Image.new("RGB", (300, 100), "red").save("a/wide.jpg")
    (line, wide) = typed("caption", "a", "--explain")
    assert line["picture"] == "a/coco_test_0000.png.explain.png"
    picture = Image.open(line["picture"])
    assert picture.width > picture.height > 448
    colours = picture.crop((484, 12, 932, 460)).quantize(64).getcolors()
    assert colours is not None
    assert len(colours) > 5
    assert Image.open(wide["picture"]).height < 400
    assert len(typed("caption", "a")) == 2  # its own pictures are no images
    one, two = typed(
        "ask", "a/coco_test_0000.png", "b/coco_test_0000.png", "is it red?", "--explain", "--out", "o"
    )
    assert one["picture"] != two["picture"]
    assert sorted(os.listdir("o")) == sorted(Path(line["picture"]).name for line in (one, two))


def test_explain_of_a_connector_that_merges_nothing(typed: Typed, tmp_path: Path) -> None:
    run = untrained(tmp_path / "blip")
    drawn("pictures", 1)
    assert typed("caption", "pictures", "--run", run, "--explain", code=2) == []
    assert "run blip has the connector 'qformer', which merges no tokens" in typed.err
    assert len(typed("caption", "pictures", "--run", run)) == 1


def untrained(folder: Path, stage: Any = "caption") -> Path:
    """The folder of a run with a Q-Former."""
    shape = {"width": 16, "num_layers": 2, "num_heads": 2, "intermediate": 32}
    config = RunConfig(QFormerConfig(encoder_width=96, num_queries=4, **shape), stage=stage)
    torch.manual_seed(0)
    save_trained(build_model(config), folder / files.CONNECTOR, {})
    files.write_json(folder / files.CONFIG, to_json(config))
    return folder


# ----------------------------------------------------------------------------------------- which run


def test_runs_are_named_in_many_ways(
    typed: Typed, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(made.parent.parent))
    ways = (
        made.name,
        made.name[:6],
        f"runs/{made.name}",
        f"~/runs/{made.name}",
        os.path.relpath(made),
        str(made),
    )
    for way in ways:
        assert named(way).folder.resolve() == made.resolve()
    for way in ways[:4]:
        assert from_run(way)[0].config.model_type == "evlgen"
    shutil.copytree(made, "0123")  # a folder comes before an id
    assert named("0123").folder == tmp_path / "0123"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("ffffff", "--run ffffff: no such run in"),
        ("here", "--run here: no such folder, and no run's id"),
        (".", "--run .: is not the folder of a run: it has no config.json"),
        ("a.png", "--run a.png: is a file"),
    ],
)
def test_runs_that_are_not_there(typed: Typed, run: str, message: str) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    assert typed("caption", "a.png", "--run", run, code=2) == []
    assert typed.err.startswith(f"error: {message}")
    assert typed.err.count("\n") == 1


def test_unfinished_damaged_and_stage_1_runs(typed: Typed, copied: Path) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    stage1 = untrained(copied.parent / "stage1", "represent")
    typed("caption", "a.png", "--run", stage1, code=2)
    assert "stage 'represent' has no language model" in typed.err
    weights = copied / files.CONNECTOR
    content = weights.read_bytes()
    weights.write_bytes(content[:-8] + bytes(8))
    typed("caption", "a.png", "--run", copied, code=2)
    assert "connector.safetensors: damaged" in typed.err
    weights.unlink()
    typed("caption", "a.png", "--run", copied, code=2)
    assert "archives hold no weights" in typed.err
    for made_last in (files.RESULT, files.OUTCOME):
        (copied / made_last).unlink()
    typed("caption", "a.png", "--run", copied, code=2)
    assert "has not finished its training" in typed.err


def test_an_empty_store_says_how_to_make_a_run(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "store"))
    Image.new("RGB", (8, 8)).save("a.png")
    typed("caption", "a.png", code=2)
    assert "no finished run yet" in typed.err
    assert 'python sweeps/run.py table1 --rows "EVLGen, 104M, 150K" --seeds 1' in typed.err


def test_the_best_run_is_taken(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By CIDEr on as many images, of the data that was trained on last; runs without weights do not count."""
    store = tmp_path / "store"
    monkeypatch.setenv("EVLGEN_RUNS", str(store))
    old, result = files.read_json(made / files.CONFIG), files.read_json(made / files.RESULT)
    assert old is not None
    assert result is not None

    def add(number: int, world: str = "miniworld", **metrics: float) -> Path:
        folder = Path(shutil.copytree(made, store / f"{number:012x}-00000000"))
        data = {**old["data"], "world": world}
        files.write_json(folder / files.CONFIG, {**old, "data": data})
        changed = {name.replace("_", "/", 1): value for name, value in metrics.items()}
        files.write_result(folder, {**result["metrics"], **changed}, {})
        os.utime(folder / files.RESULT, (number, number))
        return folder

    first = add(1, coco_CIDEr=90, coco_images=250, vqav2=10)
    second = add(2, coco_CIDEr=120, coco_images=250, vqav2=5)
    few = add(3, coco_CIDEr=300, coco_images=2)
    bare = add(4, coco_CIDEr=200, coco_images=250)
    (bare / files.CONNECTOR).unlink()
    damaged = add(5, coco_CIDEr=400, coco_images=250)
    (damaged / files.RESULT).write_text("{")
    assert best("caption").folder == second
    assert "the best of 3 finished runs on miniworld: CIDEr 120.0 on 250 images" in best("caption").why
    assert best("ask").folder == first
    assert f"{damaged / files.RESULT}: damaged" in capsys.readouterr().err
    other = add(6, "easy-vqa", coco_CIDEr=1, coco_images=2)
    assert best("caption").folder == other
    assert "(3 on other data)" in best("caption").why
    for folder in (first, second, few, other):
        (folder / files.CONNECTOR).unlink()
    typed = Typed(capsys)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    typed("caption", tmp_path / "a.png", code=2)
    assert "5 finished runs, but none has its weights" in typed.err


def test_a_run_of_an_earlier_behaviour_says_so(typed: Typed, copied: Path) -> None:
    config, versions = files.read_config(copied), files.read_json(copied / files.IDENTITY)
    outcome = files.read_json(copied / files.OUTCOME)
    assert config is not None
    assert versions is not None
    assert outcome is not None
    versions["components"]["merging"] = 0
    versions["weights"]["vision"] = "0" * 16
    files.write_json(copied / files.IDENTITY, versions)
    files.write_json(copied / files.OUTCOME, {**outcome, "id": id_of(config, versions)})
    with pytest.warns(UserWarning, match="was trained with merging 0, now 1; other weights of mini-vit"):
        from_run(copied)
    Image.new("RGB", (8, 8)).save("a.png")
    typed("caption", "a.png", "--run", copied)
    assert "was trained with merging 0, now 1; other weights of mini-vit" in typed.err


# ---------------------------------------------------------------------------------------------- typing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("captoin", "a.png"),
            "captoin: no such command; there are: caption, ask, draw; did you mean caption?",
        ),
        (("caption",), "the following arguments are required: PATH"),
        (("caption", "none.png"), "none.png: no such file or folder"),
        (("caption", ""), "PATH: is empty"),
        (("caption", "a.png", " "), "PATH: is empty"),
        (("caption", "a.png", "--run", ""), "--run: is empty"),
        (("caption", "a.png", "--explain", "--out", ""), "--out: is empty"),
        (("ask", "", "is it red?"), "PATH: is empty"),
        (("draw", ""), "FOLDER: is empty"),
        (("ask", "a.png", "red " * 3000), "question: too long: 30"),
        (("caption", "a.png", "--bach", "2"), "--bach: no such flag; did you mean --batch?"),
        (("caption", "a.png", "--batch", "0"), "--batch 0: must be a whole number above 0"),
        (("caption", "a.png", "--json", "--plain"), "--plain: not allowed with argument --json"),
        (("caption", "a.png", "--out", "o"), "--out: is for the pictures of --explain"),
        (("caption", "a.png", "--device", "gpu"), "--device gpu: no such device"),
        (("caption", "a.png", "--explain", "--out", "a.png"), "a.png: cannot be written"),
        (("ask", "a.png"), "ask takes images and then a question"),
        (("ask", "is it red?", "a.png"), "a.png: is a file; the question comes last"),
        (("ask", "a.png", "is", "it", "red?"), "is: no such file; put the whole question into quotes"),
        (("draw", "o", "--pool", "coco_tset"), "--pool coco_tset: no such pool"),
    ],
)
def test_mistakes_are_one_line(typed: Typed, words: tuple[str, ...], message: str) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    assert typed(*words, code=2) == []
    assert f"error: {message}" in typed.err
    assert "Traceback" not in typed.err
    assert typed.err.splitlines()[-1].startswith("error: ")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for command in ("caption", "ask", "draw"):
        assert command in overview
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 100
