import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from evlgen import diagnostics as subject
from evlgen.collapse import classify
from evlgen.data.pairs import plain_batch
from evlgen.runs.folder import read_metrics
from evlgen.training import train
from tests.evlgen import tiny

# ------------------------------------------------------------------------------------------- measures


@given(st.integers(2, 200), st.integers(0, 10))
def test_derangement_moves_everything(count, seed):
    partner = subject.derangement(count, seed)
    assert sorted(partner.tolist()) == list(range(count))
    assert not (partner == torch.arange(count)).any()


def test_derangement_of_one_is_refused():
    with pytest.raises(ValueError, match="one image"):
        subject.derangement(1)


def test_cosine_of_hand_made_prompts():
    prompts = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[3.0, 3.0]]])  # cosines 0, 1/sqrt 2, 1/sqrt 2
    assert subject.pairwise_cosine(prompts) == pytest.approx(2 * math.sqrt(0.5) / 3)
    assert subject.pairwise_cosine(torch.ones(5, 3, 4)) == pytest.approx(1)


def test_cosine_equals_the_mean_over_all_pairs():
    prompts = tiny.features(7)
    flat = prompts.flatten(1)
    pairs = [F.cosine_similarity(flat[i], flat[j], dim=0) for i in range(7) for j in range(7) if i != j]
    assert subject.pairwise_cosine(prompts) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)


def test_effective_rank_of_hand_made_prompts():
    assert subject.effective_rank(torch.ones(6, 2, 3)) == pytest.approx(1)
    assert subject.effective_rank(torch.eye(6).view(6, 2, 3)) == pytest.approx(6)
    # singular values 3 and 1: shares 3/4 and 1/4
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert subject.effective_rank(torch.diag(torch.tensor([3.0, 1.0])).view(2, 1, 2)) == pytest.approx(
        expected
    )
    assert subject.effective_rank(torch.zeros(3, 1, 2)) == pytest.approx(1)


@given(st.floats(0.01, 100))
def test_effective_rank_does_not_depend_on_the_scale(scale):
    prompts = tiny.features(6, torch.float64)
    assert subject.effective_rank(prompts * scale) == pytest.approx(subject.effective_rank(prompts))


@pytest.mark.parametrize("architecture", ["opt", "llama"])
@pytest.mark.parametrize("bos_position", ["first", "after_prompt", "none"])
def test_attention_entropy_is_that_of_the_probabilities(architecture, bos_position):
    model = tiny.caption_model(architecture=architecture, bos_position=bos_position, dtype=torch.float64)
    batch = plain_batch(tiny.pairs("val", 3), np.arange(3))
    prompt = model.soft_prompt(batch.images.double()).detach()
    before = model(batch.images.double(), batch.text_ids, batch.text_mask)
    found = subject.attention_to_prompt(model, prompt, batch.text_ids, batch.text_mask)
    # by hand: layer by layer from projections of the states that go in
    llm = model.language.model
    llm.set_attn_implementation("eager")
    first = {"first": 1, "after_prompt": 0, "none": 0}[bos_position]
    writer = {"first": 5, "after_prompt": 5, "none": 4}[bos_position]  # 5 soft tokens
    entropies, masses = [], []
    for i in range(3):
        length = int(batch.text_mask[i].sum())
        inputs = model.inputs_embeds(prompt[i : i + 1], batch.text_ids[i : i + 1, :length])
        for layer in llm.base_model(inputs_embeds=inputs, output_attentions=True).attentions:
            rows = layer[0, :, writer:, first : first + 5]
            assert rows.shape == (2, length, 5)
            share = rows / rows.sum(-1, keepdim=True)
            entropies.append(-(share * share.log()).sum(-1).flatten())
            masses.append(rows.sum(-1).flatten())
    assert found.entropy == pytest.approx(float(torch.cat(entropies).mean()) / math.log(5))
    assert found.mass == pytest.approx(float(torch.cat(masses).mean()))
    assert 0 < found.mass < 1
    llm.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(batch.images.double(), batch.text_ids, batch.text_mask), before)


def test_measuring_attention_leaves_the_implementation_as_it_was():
    model = tiny.caption_model()
    implementation = model.language.model.config._attn_implementation
    subject.validate(model, tiny.pairs("val", 4))
    assert model.language.model.config._attn_implementation == implementation == "sdpa"


# ----------------------------------------------------------------------------------------- validation


def test_validation_losses_are_those_of_the_model():
    model, pool = tiny.caption_model(), tiny.pairs("val", 10)
    found = subject.validate(model, pool, batch_size=4)
    batch = plain_batch(pool, np.arange(10))
    with torch.no_grad():
        right = model(batch.images, batch.text_ids, batch.text_mask)
        wrong = model(batch.images[subject.derangement(10)], batch.text_ids, batch.text_mask)
        mean = model.soft_prompt(batch.images).mean(0, keepdim=True).expand(10, -1, -1)
        blind = model.token_losses(mean, batch.text_ids, batch.text_mask).mean()
    assert found["val_loss"] == pytest.approx(float(right), rel=1e-5)
    assert found["shuffled_loss"] == pytest.approx(float(wrong), rel=1e-5)
    assert found["blind_loss"] == pytest.approx(float(blind), rel=1e-5)
    assert found["gap"] == pytest.approx(found["shuffled_loss"] - found["val_loss"])
    assert all(type(value) is float for value in found.values())


def test_validation_repeats_and_leaves_everything_as_it_was():
    for model in (
        tiny.caption_model(dataclasses.replace(tiny.TOMEFORMER, dropout=0.5, metric="random")),
        tiny.stage1_model(),
    ):
        model.train()
        state = torch.get_rng_state()
        first = subject.validate(model, tiny.pairs("val", 10), batch_size=4)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training
        assert subject.validate(model, tiny.pairs("val", 10), batch_size=4) == first


def test_losses_left_out_are_not_validated():
    model, pool = tiny.stage1_model(), tiny.pairs("val", 10)
    whole = subject.validate(model, pool, batch_size=4)
    assert list(whole) == ["val_loss", "val_itc", "val_itm", "val_lm", "retrieval@1"]
    model.objectives = ("itc", "lm")
    found = subject.validate(model, pool, batch_size=4)
    assert list(found) == ["val_loss", "val_itc", "val_lm", "retrieval@1"]
    assert found["val_loss"] == found["val_itc"] + found["val_lm"]
    assert all(found[name] == whole[name] for name in ("val_itc", "val_lm", "retrieval@1"))
    model.objectives = ("lm",)
    assert subject.validate(model, pool, batch_size=4) == {
        "val_loss": whole["val_lm"],
        "val_lm": whole["val_lm"],
    }


def test_a_connector_that_gives_the_same_prompt_for_all_images_has_no_gap():
    model = tiny.caption_model()
    with torch.no_grad():
        model.projection.weight.zero_()
        model.projection.bias.normal_()
    found = subject.validate(model, tiny.pairs("val", 12))
    assert found["gap"] == pytest.approx(0, abs=1e-6)
    assert found["blind_loss"] == pytest.approx(found["val_loss"], abs=1e-6)
    assert found["cosine"] == pytest.approx(1)
    assert found["effective_rank"] == pytest.approx(1)


def test_a_trained_model_has_a_gap_and_is_conditioned(tmp_path):
    config = tiny.run_config(steps=60, lr=1e-2, eval_every=10, batch_size=16)
    model = tiny.caption_model()
    result = train(config, tmp_path, tiny.training_data(size=96), model=model)
    assert result["gap"] > 0.3
    assert result["val_loss"] < result["blind_loss"] < result["shuffled_loss"] + 0.5
    assert result["cosine"] < 0.99
    assert classify(read_metrics(tmp_path)) == "conditioned"


def test_retrieval_counts_both_directions():
    model, pool = tiny.stage1_model(), tiny.pairs("val", 4)
    images, texts = torch.eye(4)[:, None, :], torch.eye(4)
    swapped = texts[[1, 0, 2, 3]]  # two of four right, in both directions

    def measured(text: torch.Tensor) -> float:
        model.embed_images = lambda _: images  # type: ignore[method-assign]
        model.embed_texts = lambda *_: text  # type: ignore[method-assign]
        return subject.validate(model, pool)["retrieval@1"]

    assert measured(texts) == 100
    assert measured(swapped) == 50
    # the first text suits all images best: one hit of four; each text finds image 0 first: one hit of four
    assert measured(texts[:, :1] * torch.tensor([[4.0], [3], [2], [1]]) * torch.ones(4)) == 25
