"""SPICE and CLIPScore where their models are placed, and a line where they are not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil

from evlgen.config import DataConfig, EvalConfig, RunConfig
from evlgen.data import worlds
from evlgen.data.readers import folder as own_folder
from evlgen.errors import UserError
from evlgen.evaluation import java, placed_scores
from evlgen.evaluation.java import JavaError
from evlgen.evaluation.placed_scores import Caption, absent, clip_scores, spice
from evlgen.evaluation.scores import RunPredictions, score_runs, scorers_of, scorers_used
from evlgen.runs.behaviour import SCORERS
from tests.evlgen import real_sets, tiny_clip

DATA = DataConfig(world="folder", pools=(("mine", 20),))
CONFIG = RunConfig(data=DATA, evaluation=EvalConfig(sets=(("captions", 2),)))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("EVLGEN_DATA", str(tmp_path / "data"))
    real_sets.own_folder(tmp_path / "data/mine", 24)
    own_folder._read.cache_clear()
    placed_scores._say.cache_clear()
    return tmp_path / "weights"


def pixels(key: tuple[str, str, int]) -> np.ndarray:
    rng = np.random.default_rng(key[2])
    return rng.integers(0, 255, ((40, 47, 56)[key[2]], 61, 3), dtype=np.uint8)


def predictions() -> RunPredictions:
    world = worlds.of(DATA)
    count = world.count("mine/test")
    return RunPredictions(
        {"captions": {str(i): world.references("mine/test", i)[0] for i in range(count)}}, {}, DATA
    )


# ------------------------------------------------------------------------------------------ CLIPScore


def test_clip_score_by_hand(weights: Path) -> None:
    """The cosine of (1, 0) and (3, 4) is 0.6: 2.5 * 0.6 = 1.5; with a reference at 1: 2 * 1.5 / 2.5 = 1.2."""
    model = tiny_clip.write(weights / "clip-vit-base-patch32")
    text, image = torch.zeros(16), torch.zeros(16)
    text[0], image[0], image[1] = 1.0, 3.0, 4.0
    caption = Caption(("folder", "mine", 0), "a red cat", ("a dog",))
    for value, expected in ((image, (1.5, 1.2)), (-image, (0.0, 0.0))):  # below 0 is 0
        tiny_clip.with_fixed_embeddings(model, text, value)
        model.save_pretrained(weights / "clip-vit-base-patch32")
        (score,) = clip_scores([caption], pixels).values()
        assert score == pytest.approx(expected, abs=1e-6)


def test_clip_score_is_that_of_transformers_own_embeddings(weights: Path) -> None:
    """Preprocessing, tokens, cut at the longest text, projection: as the published model is to be used."""
    place = weights / "clip-vit-base-patch32"
    model = tiny_clip.write(place)
    captions = [
        Caption(("folder", "mine", 0), "a red cat", ("a dog", "red red cat")),
        Caption(("folder", "mine", 1), "the dog is a cat " * 20, ("", "a photo")),
        Caption(("folder", "mine", 2), "", ("été 日本",)),
        Caption(("folder", "mine", 0), "a dog", ("a dog",)),
    ]
    tokenizer = AutoTokenizer.from_pretrained(place)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": tiny_clip.SIDE}, crop_size={"height": tiny_clip.SIDE, "width": tiny_clip.SIDE}
    )

    def embedded(text: str) -> torch.Tensor:
        given = tokenizer("A photo depicts " + text, truncation=True, max_length=20, return_tensors="pt")
        found = model.text_projection(model.text_model(**given).pooler_output)[0]
        return found / found.norm()

    scores = clip_scores(captions, pixels)
    assert len({round(score[0], 4) for score in scores.values()}) > 1
    with torch.no_grad():
        for one in captions:
            shown = processor(Image.fromarray(pixels(one.image)), return_tensors="pt")["pixel_values"]
            image = model.visual_projection(model.vision_model(shown).pooler_output)[0]
            text = embedded(one.text)
            score = 2.5 * max(0.0, float(text @ (image / image.norm())))
            nearest = max(0.0, max(float(text @ embedded(reference)) for reference in one.references))
            both = 2 / (1 / score + 1 / nearest) if score and nearest else 0.0
            assert scores[one] == pytest.approx((score, both), abs=2e-5)


def test_the_metrics_of_a_run(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_clip.write(weights / "clip-vit-base-patch32")
    (metrics,) = score_runs([predictions()], meteor=False)
    assert 0 <= metrics["captions/CLIPScore"] <= 250
    assert 0 <= metrics["captions/RefCLIPScore"] <= 250
    assert "captions/SPICE" not in metrics
    assert scorers_of(CONFIG) == {
        "captions": SCORERS["captions"],
        "clip_score": SCORERS["clip_score"],
        "distinct": SCORERS["distinct"],
    }
    drawn = RunConfig(evaluation=EvalConfig(sets=(("coco", 2),)))
    assert "clip_score" not in scorers_of(drawn)  # CLIP says nothing of 64 x 64 drawn pixels


@pytest.mark.parametrize("damage", ["no weights", "another model", "no tokenizer"])
def test_a_folder_that_is_no_clip_costs_its_scores_alone(
    damage: str, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = weights / "clip-vit-base-patch32"
    if damage == "another model":
        real_sets.bert(place)
    else:
        tiny_clip.write(place)
        for name in ("model.safetensors",) if damage == "no weights" else ("vocab.json", "merges.txt"):
            (place / name).unlink()
    with pytest.raises(UserError, match="clip-vit-base-patch32"):
        clip_scores([Caption(("folder", "mine", 0), "a", ("b",))], pixels)
    (metrics,) = score_runs([predictions()], meteor=False)
    assert metrics["captions/CIDEr"] > 0
    assert "captions/CLIPScore" not in metrics
    assert "CLIPScore is left out" in caplog.text
    assert "clip_score" not in scorers_used(CONFIG, metrics)  # `rescore` tries again


# ---------------------------------------------------------------------------------------------- SPICE


def test_spice_is_asked_once_about_all_captions(weights: Path, tmp_path: Path) -> None:
    tiny_clip.jars(weights / "spice")
    program = tiny_clip.spice_in_java_s_place(tmp_path, "len(entry['test']) / 10 + len(entry['refs']) / 100")
    assert spice([("a dog", ("x", "y")), ("", ("z",))], program) == pytest.approx([0.52, 0.01])


def test_spice_of_a_run_is_the_mean_over_its_captions(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_clip.jars(weights / "spice" / "stanford-corenlp-full-2015-12-09")  # as the archive unpacks
    real = java.find_java()
    program = tiny_clip.spice_in_java_s_place(tmp_path, "0.25 if 'red' in entry['test'] else 0.75")
    text = program.read_text().replace(
        "import json, sys\n",
        "import json, os, sys\n"
        f"real = {str(real)!r}\n"
        "if 'edu.anu.spice.SpiceScorer' not in sys.argv: os.execv(real, [real, *sys.argv[1:]])\n",
    )
    program.write_text(text)
    monkeypatch.setattr(java, "find_java", lambda: program)
    said = predictions()
    (metrics,) = score_runs([said], meteor=False)
    values = [25 if "red" in text else 75 for text in said.captions["captions"].values()]
    assert metrics["captions/SPICE"] == pytest.approx(sum(values) / len(values))


def test_java_s_own_words_where_spice_fails(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The jars are empty: SPICE starts, and finds no parser."""
    tiny_clip.jars(weights / "spice")
    program = java.find_java()
    assert program is not None
    with pytest.raises(JavaError, match=r"SPICE failed: .*(Exception|Error)"):
        spice([("a dog", ("a dog",))], program)
    (metrics,) = score_runs([predictions()], meteor=False)
    assert metrics["captions/CIDEr"] > 0
    assert "captions/SPICE" not in metrics
    assert "SPICE is left out" in caplog.text
    assert "spice" not in scorers_used(CONFIG, metrics)


# ------------------------------------------------------------------------------- what is not there


def test_one_line_says_what_is_not_there(
    weights: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            score_runs([predictions()], meteor=False)
    lines = [record.message for record in caplog.records]
    assert lines == [
        "SPICE is left out: stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar: not in "
        f"{weights / 'spice'}; docs/PAPER_SCALE.md says what it needs",
        f"CLIPScore is left out: {weights / 'clip-vit-base-patch32'} is no folder of a model; "
        "docs/PAPER_SCALE.md says what it needs",
    ]
    monkeypatch.delenv("EVLGEN_WEIGHTS")
    assert absent() == {
        "spice": "SPICE is left out: EVLGEN_WEIGHTS is not set",
        "clip_score": "CLIPScore is left out: EVLGEN_WEIGHTS is not set",
    }
    assert set(scorers_of(CONFIG)) == {"captions", "distinct"}
