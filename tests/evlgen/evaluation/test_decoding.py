import dataclasses
import json

import pytest
import torch

from evlgen import miniworld
from evlgen.backbones.vision import FrozenVision, MiniViT, MiniViTConfig
from evlgen.config import EvalConfig
from evlgen.data import features
from evlgen.diagnostics import derangement
from evlgen.errors import UserError
from evlgen.evaluation import decoding as subject
from evlgen.evaluation.scores import RunPredictions, score_runs
from evlgen.miniworld import PROMPT
from evlgen.model import CaptionModel, save_trained
from evlgen.runs.folder import CONNECTOR, PREDICTIONS
from evlgen.runtime.progress import Progress
from tests.evlgen import tiny

SETS = (("coco", 5), ("nocaps_out", 3), ("flickr", 0), ("vqav2", 6), ("gqa", 3), ("okvqa", 4))
CONFIG = tiny.run_config(
    evaluation=EvalConfig(sets=SETS, batch_size=4, beams=2, min_length=2, max_length=6, answer_max_length=3)
)


@pytest.fixture(autouse=True)
def vision(tmp_path, monkeypatch):
    """A tiny image encoder whose features say nothing much, and a cache of its own."""
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    shape = MiniViTConfig(stem_width=4, width=tiny.WIDTH, num_layers=1, num_heads=2, intermediate=16)
    frozen = FrozenVision(MiniViT(shape).eval().requires_grad_(False), tiny.WIDTH, 65, "tiny")
    for module in ("evlgen.data.features", "evlgen.data.batches", "evlgen.backbones.vision"):
        monkeypatch.setattr(f"{module}.build_vision", lambda *_: frozen)


def captioner() -> CaptionModel:
    return tiny.caption_model(dataclasses.replace(tiny.TOMEFORMER, max_positions=65, r=20))


@pytest.fixture
def folder(tmp_path):
    model = captioner()
    with torch.no_grad():
        model.projection.weight.mul_(20)  # an untrained connector with something to say
    (tmp_path / "run").mkdir()
    save_trained(model, tmp_path / "run" / CONNECTOR, {})
    return tmp_path / "run"


def test_predictions_have_a_text_for_every_example(folder):
    subject.evaluate(CONFIG, folder, model=captioner())
    found = json.loads((folder / PREDICTIONS).read_text())
    assert {name: list(texts) for name, texts in found["captions"].items()} == {
        "coco": ["0", "1", "2", "3", "4"],
        "nocaps_out": ["0", "1", "2"],
    }
    expected = {f"{name}{suffix}": size for name, size in SETS[3:] for suffix in ("", "_shuffled")}
    assert {name: len(answers) for name, answers in found["answers"].items()} == expected
    assert all(2 <= len(text.split()) <= 6 for texts in found["captions"].values() for text in texts.values())
    assert all(len(text.split()) <= 3 for texts in found["answers"].values() for text in texts.values())


def test_texts_are_those_of_the_trained_weights_and_the_right_images(folder):
    subject.evaluate(CONFIG, folder, model=captioner())
    found = json.loads((folder / PREDICTIONS).read_text())
    model = captioner()
    subject.load_trained(model, folder / CONNECTOR)

    def seen(pool: str, index: int) -> torch.Tensor:
        stored = features.load(features.ensure(pool, dict(SETS).get(pool, 5), "mini-vit"))[0]
        return torch.from_numpy(stored[index : index + 1].astype("float32"))

    for index in range(5):
        assert model.caption(seen("coco_test", index), CONFIG.evaluation) == [
            found["captions"]["coco"][str(index)]
        ]
    other = derangement(6)
    for index in range(6):
        question = [miniworld.question("vqav2", index).text]
        answer = model.answer(seen("vqav2", index), question, CONFIG.evaluation)
        assert answer == [found["answers"]["vqav2"][str(index)]]
        answer = model.answer(seen("vqav2", int(other[index])), question, CONFIG.evaluation)
        assert answer == [found["answers"]["vqav2_shuffled"][str(index)]]


def test_questions_are_asked_in_the_papers_words(folder):
    model, asked = captioner(), []
    tokenizer = model.language.tokenizer
    model.language = dataclasses.replace(
        model.language, tokenizer=lambda texts, **k: (asked.extend(texts), tokenizer(texts, **k))[1]
    )
    for name in ("bos_token_id", "pad_token_id", "batch_decode"):
        setattr(model.language.tokenizer, name, getattr(tokenizer, name))
    config = dataclasses.replace(
        CONFIG, evaluation=dataclasses.replace(CONFIG.evaluation, sets=(("gqa", 2),))
    )
    subject.evaluate(config, folder, model=model)
    questions = [miniworld.question("gqa", i).text for i in range(2)]
    assert PROMPT == "Question: {} Short answer:"
    assert sorted(asked) == sorted(f"Question: {q} Short answer:" for q in questions * 2)


def test_predictions_can_be_scored_with_the_shuffled_answers_beside_the_right_ones(folder):
    subject.evaluate(CONFIG, folder, model=captioner())
    found = json.loads((folder / PREDICTIONS).read_text())
    perfect = {str(i): miniworld.question("gqa", i).answers[0] for i in range(3)}
    answers = found["answers"] | {"gqa": perfect, "gqa_shuffled": dict.fromkeys(perfect, "none")}
    scores = score_runs([RunPredictions({}, answers)])[0]
    assert (scores["gqa"], scores["gqa_shuffled"]) == (100, 0)
    assert {"vqav2", "vqav2_shuffled", "okvqa", "okvqa_shuffled"} <= scores.keys()
    assert any(key.startswith("vqav2_shuffled/") for key in scores)


def test_evaluation_repeats(folder):
    texts = []
    for _ in range(2):
        subject.evaluate(CONFIG, folder, model=captioner())
        texts.append((folder / PREDICTIONS).read_bytes())
    assert texts[0] == texts[1]


def test_progress_counts_examples(folder):
    seen: list[Progress] = []
    subject.evaluate(CONFIG, folder, seen.append, model=captioner())
    assert seen[-1].step == seen[-1].steps == 5 + 3 + 2 * (6 + 3 + 4)
    assert [p.step for p in seen] == sorted(p.step for p in seen)
    assert all(p.phase == "evaluate" for p in seen)


def test_describe_captions_the_images_asked_for(folder, monkeypatch):
    monkeypatch.setattr(subject, "build_model", lambda _: captioner())
    subject.evaluate(CONFIG, folder)
    found = json.loads((folder / PREDICTIONS).read_text())["captions"]["coco"]
    assert subject.describe(CONFIG, folder, [4, 1]) == [found["4"], found["1"]]


def test_wrong_sets_and_stages_are_refused(folder, tmp_path):
    config = dataclasses.replace(
        CONFIG, evaluation=dataclasses.replace(CONFIG.evaluation, sets=(("vqa", 2),))
    )
    with pytest.raises(UserError, match=r"'vqa'.*vqav2"):
        subject.evaluate(config, folder, model=captioner())
    with pytest.raises(UserError, match="represent"):
        subject.evaluate(dataclasses.replace(CONFIG, stage="represent"), folder, model=captioner())
    with pytest.raises(UserError, match="has not finished"):
        subject.evaluate(CONFIG, tmp_path / "other", model=captioner())
    assert not (folder / PREDICTIONS).exists()
