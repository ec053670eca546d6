"""The foundation models: rebuilt alike, shipped as their card says, and able to see and to read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM, CLIPVisionModel

from evlgen import miniworld
from evlgen.backbones.language import MASK_ID, build_language, mini_bert_config, mini_model, mini_tokenizer
from evlgen.backbones.vision import (
    CLIP_MEAN,
    CLIP_STD,
    build_vision,
    file_hash,
    mini_clip_config,
)
from evlgen.errors import UserError
from evlgen.miniworld.pretrain import build, cards, encoders, induction, language
from evlgen.runtime.paths import SHIPPED_WEIGHTS


@pytest.mark.slow
def test_smoke_rebuild_is_bit_identical(tmp_path: Path) -> None:
    silent: list[tuple[str, int, int, float, float]] = []
    first = build.build("smoke", tmp_path / "a", workers=2, report=lambda *line: silent.append(line))
    build.build("smoke", tmp_path / "b", workers=1)
    assert {line[0] for line in silent} == set(build.NAMES) == set(first)
    for name in build.NAMES:
        assert file_hash(tmp_path / "a" / f"{name}.safetensors") == file_hash(
            tmp_path / "b" / f"{name}.safetensors"
        )
    assert not any(first.values())  # four steps are not the shipped weights, and build() says so
    assert (tmp_path / "a" / "mini-tokenizer.json").read_bytes() == (
        SHIPPED_WEIGHTS / "mini-tokenizer.json"
    ).read_bytes()


def test_unknown_scale_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'huge'.*mini, smoke"):
        build.build("huge", tmp_path)


def test_card_speaks_of_the_shipped_weights() -> None:
    stored = json.loads((SHIPPED_WEIGHTS / "card.json").read_text())
    for name in build.NAMES:
        assert stored[name]["sha256"] == file_hash(SHIPPED_WEIGHTS / f"{name}.safetensors")
        assert stored[name]["world"] == miniworld.version(), (
            "the world has changed since the weights were made"
        )
    assert (SHIPPED_WEIGHTS / "CARD.md").read_text() == cards.card_page(stored)
    assert sum(path.stat().st_size for path in SHIPPED_WEIGHTS.iterdir()) < 5_000_000


def test_shipped_encoder_tells_attributes_apart() -> None:
    """The condition for everything else: linear probes above 95%."""
    card = cards.vision_card(build_vision("mini-vit").model, train=1500, test=300)
    for name in ("shape", "colour", "size", "place"):
        assert card[f"probe {name}"] > 93, (
            card
        )  # half the training data of the card, a tenth of its test data
    stored = json.loads((SHIPPED_WEIGHTS / "card.json").read_text())
    for name in ("shape", "colour", "size", "place"):
        assert stored["mini-vit"]["figures"][f"probe {name}"] > 95


def test_shipped_clip_is_as_its_card_says() -> None:
    """Near the card's figures on a fraction of its images, on what `build_vision` gives."""
    frozen = build_vision("mini-clip")
    assert (frozen.width, frozen.tokens) == (64, 65)
    card = cards.vision_card(frozen.of_pixels, train=1000, test=200)
    figures = json.loads((SHIPPED_WEIGHTS / "card.json").read_text())["mini-clip"]["figures"]
    for name in ("shape", "colour", "size", "texture", "place"):
        assert card[f"probe {name}"] > figures[f"probe {name}"] - 8, card
    assert figures["probe shape"] > 80  # a weaker encoder, not a blind one
    assert min(figures[f"probe {name}"] for name in ("colour", "size", "place")) > 95


def test_shipped_clip_is_one_of_transformers(tmp_path: Path) -> None:
    """The file has a published encoder's names, its last layer too; our features are those before it."""
    shutil.copy(SHIPPED_WEIGHTS / "mini-clip.safetensors", tmp_path / "model.safetensors")
    mini_clip_config().save_pretrained(tmp_path)
    reference = CLIPVisionModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    pixels = (images / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    with torch.no_grad():
        states = reference(
            torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), output_hidden_states=True
        ).hidden_states
    assert len(states) == 6
    found = build_vision("mini-clip").encode(images)
    torch.testing.assert_close(found, states[-2], rtol=1e-4, atol=1e-4)  # pixels in float64 there
    through_folder = build_vision(str(tmp_path)).encode(images)
    torch.testing.assert_close(found, through_folder, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mini-opt", "mini-llama"])
def test_shipped_language_models_read_their_context(name: str) -> None:
    shipped = build_language(name)
    card = cards.language_card(shipped.model, shipped.tokenizer, 100)
    assert card["caption perplexity, notes"] < 0.7 * card["caption perplexity, alone"]
    assert card["caption perplexity, other notes"] > card["caption perplexity, alone"]
    assert card["noun behind a colour, from notes"] > 90
    for kind in ("vqav2", "okvqa"):
        assert card[f"{kind} from notes"] > card[f"{kind} from another scene's notes"] + 10
    # two relations deep is hard for four layers: the card's 500 questions are enough to see it, 100 are not
    figures = json.loads((SHIPPED_WEIGHTS / "card.json").read_text())[name]["figures"]
    assert figures["gqa from notes"] > figures["gqa from another scene's notes"] + 8


def test_tokenizer_knows_every_word() -> None:
    tokenizer = mini_tokenizer()
    texts = ["".join(miniworld.document(i)) for i in range(8000, 8600)]
    for pool in ("web", "coco", "flickr", "nocaps_out"):
        texts += [c for i in range(100) for c in miniworld.pool(pool).captions(i)]
    for kind in miniworld.QUESTION_KINDS:
        for question in (miniworld.question(kind, i) for i in range(200)):
            texts += [miniworld.PROMPT.format(question.text), *question.answers]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
    ids = tokenizer("Question: is the boat red? Short answer: yes\n")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(ids[1:3]) == ["question", ":"]
    assert ids[-1] == tokenizer.convert_tokens_to_ids("\n")


def test_contrast_has_no_false_negatives() -> None:
    """An altered phrase never fits any thing of its own image."""
    pool = miniworld.pool("foundation")
    for index in range(50):
        scene = pool.scene(index)
        for group in encoders.contrast_phrases(scene, miniworld.random_stream("t", index), 4)[:-1]:
            assert len(group) == 5
            for phrase in group[1:]:
                assert not any(_fits(phrase, thing) for thing in scene.things), (phrase, scene)
            assert any(_fits(group[0], thing) for thing in scene.things)


def test_masked_words_are_as_in_bert() -> None:
    """80% masked, 10% another word, 10% as it was; padding and special tokens are never asked for."""
    ids = torch.randint(0, 300, (200, 100), generator=torch.Generator().manual_seed(1))
    masked, asked = language.mask_words(ids, 0.25, 300, torch.Generator().manual_seed(0))
    words = ids > 2
    assert not (asked & ~words).any()
    assert torch.equal(masked[~asked], ids[~asked])
    assert asked[words].float().mean() == pytest.approx(0.25, abs=0.01)
    hidden, same = masked[asked] == MASK_ID, masked[asked] == ids[asked]
    assert hidden.float().mean() == pytest.approx(0.8, abs=0.02)
    assert same.float().mean() == pytest.approx(0.1, abs=0.02)


def test_shipped_bert_reads_both_ways() -> None:
    tokenizer = mini_tokenizer()
    model = BertForMaskedLM(mini_bert_config(len(tokenizer))).eval()
    state = {k: v.float() for k, v in load_file(SHIPPED_WEIGHTS / "mini-bert.safetensors").items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("decoder" in key for key in missing)
    card = cards.masked_card(model, tokenizer, 100, language.MaskedPretraining())
    assert card["masked words right"] > 70, card


def _fits(phrase: str, thing: miniworld.Thing) -> bool:
    """Whether every word of the phrase is true of the thing: written anew, from the words alone."""
    for place, ways in miniworld.PLACE_PHRASES.items():
        for way in ways:
            if phrase.endswith(" " + way):
                if place != thing.place:
                    return False
                phrase = phrase.removesuffix(" " + way)
    facts = (thing.shape, thing.colour, thing.size, thing.texture)
    return all(
        any(word == f or word in miniworld.SYNONYMS.get(f, ()) for f in facts) for word in phrase.split()
    )


@pytest.mark.parametrize("name", ["mini-opt", "mini-llama"])
def test_induction_start_copies(name: str) -> None:
    """On random words said twice, the first head looks one word back, the second behind the word's twin."""
    torch.manual_seed(1)
    model = mini_model(name, 300).eval()
    induction.induction_start(model)
    model.set_attn_implementation("eager")
    once = torch.randint(3, 300, (8, 30))
    with torch.no_grad():
        attention = model(input_ids=torch.cat([once, once], 1), output_attentions=True).attentions
    back, match = attention[0][:, 0], attention[1][:, 0]  # each (8, 60, 60)
    assert back.diagonal(-1, 1, 2).mean() > 0.85
    assert match.diagonal(-29, 1, 2)[:, 1:].mean() > 0.4
    assert attention[1][:, 1].diagonal(-29, 1, 2).mean() < 0.1  # other heads are as random as ever


def test_induction_start_refuses_other_models() -> None:
    with pytest.raises(TypeError, match="Linear"):
        induction.induction_start(torch.nn.Linear(2, 2))


def test_document_loss_weighs_answers() -> None:
    tokenizer = language.make_tokenizer()
    setup = language.LanguagePretraining(head_weight=0.3, answer_weight=5.0)
    ids, weights = language.weighted(
        tokenizer, "a red boat\n", "a boat\nQuestion: what? Short answer: red\n", setup
    )
    words = tokenizer.convert_ids_to_tokens(ids)
    assert words == "</s> a red boat \n a boat \n question : what ? short answer : red \n".split(" ")
    assert weights == [0.0] + [0.3] * 4 + [1.0] * 3 + [1.0] * 7 + [5.0] * 2
    torch.manual_seed(0)
    model = mini_model("mini-opt", len(tokenizer)).eval()
    loss = language.document_loss(model, [(ids, weights), (ids[:6], weights[:6])])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    each = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    weight = torch.tensor(weights[1:])
    expected = ((each * weight).sum() + (each * weight)[:5].sum()) / (weight.sum() + weight[:5].sum())
    torch.testing.assert_close(loss, expected)
