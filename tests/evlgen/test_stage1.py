"""The three losses of stage 1 against transformers' BLIP-2."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evlgen.config import Objective
from evlgen.errors import UserError
from evlgen.qformer import QFormer
from evlgen.stage1 import OBJECTIVES, hard_negatives, image_text_similarity, stage1_losses
from tests.evlgen.qformers import (
    DECODE,
    TINY,
    loud_qformer,
    reference_logits,
    run_reference,
    some_batch,
)


@pytest.fixture
def qformer() -> QFormer:
    return loud_qformer()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    return some_batch()


def test_stage1_losses(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """All three, from full sequences with full masks, label smoothing written out."""
    features, ids, mask = batch
    losses = stage1_losses(qformer, features, ids, mask, DECODE, generator=torch.Generator().manual_seed(3))

    def smoothed(logits: Tensor, target: Tensor) -> Tensor:
        log = logits.log_softmax(-1)
        return -(0.9 * log.gather(1, target[:, None])[:, 0] + 0.1 * log.mean(1)).mean()

    queries, text = run_reference(qformer, features, ids, mask, "separate")
    image_embedding = F.normalize(qformer.image_projection(queries), dim=-1)
    text_embedding = F.normalize(qformer.text_projection(text[:, 0]), dim=-1)
    similarity = torch.empty(5, 5, dtype=torch.float64)
    for i in range(5):
        for t in range(5):
            similarity[i, t] = max(image_embedding[i] @ text_embedding[t]) / qformer.log_temperature.exp()
    right = torch.arange(5)
    itc = (smoothed(similarity, right) + smoothed(similarity.T, right)) / 2
    torch.testing.assert_close(losses.itc, itc, rtol=0, atol=1e-10)

    generator = torch.Generator().manual_seed(3)
    image, word = hard_negatives(similarity.T, generator), hard_negatives(similarity, generator)
    passes = [
        run_reference(qformer, features, ids, mask, "all")[0],
        run_reference(qformer, features[image], ids, mask, "all")[0],
        run_reference(qformer, features, ids[word], mask[word], "all")[0],
    ]
    logits = qformer.matching_head(torch.cat(passes)).mean(1)
    labels = torch.tensor([1] * 5 + [0] * 10)
    itm = -logits.log_softmax(-1)[torch.arange(15), labels].mean()
    torch.testing.assert_close(losses.itm, itm, rtol=0, atol=1e-10)

    decoder_ids = ids.clone()
    decoder_ids[:, 0] = DECODE
    logits = reference_logits(qformer, run_reference(qformer, features, decoder_ids, mask, "causal")[1])
    lm = smoothed(logits[:, :-1][mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
    torch.testing.assert_close(losses.lm, lm, rtol=0, atol=1e-10)
    torch.testing.assert_close(losses.total, itc + itm + lm, rtol=0, atol=1e-10)


SOME = [c for n in (1, 2) for c in itertools.combinations(OBJECTIVES, n)]


@pytest.mark.parametrize("objectives", [*SOME, ("lm", "itc")], ids="+".join)
def test_losses_left_out(
    qformer: QFormer,
    batch: tuple[Tensor, Tensor, Tensor],
    objectives: tuple[Objective, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others stay what they are, and no pass is made that none of them needs."""
    features, ids, mask = batch
    whole = stage1_losses(qformer, features, ids, mask, DECODE, generator=torch.Generator().manual_seed(3))
    passes = set()

    def counting(name: str) -> Any:
        real = getattr(qformer, name)

        def call(*arguments: object) -> object:
            passes.add(name)
            return real(*arguments)

        return call

    for name in ("encode_images", "encode_texts", "encode_pairs", "decode_texts"):
        monkeypatch.setattr(qformer, name, counting(name))
    losses = stage1_losses(
        qformer,
        features,
        ids,
        mask,
        DECODE,
        generator=torch.Generator().manual_seed(3),
        objectives=objectives,
    )
    needs = {
        "itc": {"encode_images", "encode_texts"},
        "itm": {"encode_pairs"},
        "lm": {"encode_images", "decode_texts"},
    }
    assert passes == set().union(*(needs[name] for name in objectives))
    for name in OBJECTIVES:
        if name not in objectives:
            assert getattr(losses, name) is None
        elif name != "itm" or "itc" in objectives:
            assert getattr(losses, name).equal(getattr(whole, name))
    present = [getattr(losses, name) for name in OBJECTIVES if name in objectives]
    torch.testing.assert_close(losses.total, torch.stack(present).sum(), rtol=0, atol=1e-12)


def test_without_itc_negatives_are_uniform(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, ids, mask = batch
    losses = stage1_losses(
        qformer, features, ids, mask, DECODE, generator=torch.Generator().manual_seed(3), objectives=("itm",)
    )
    generator = torch.Generator().manual_seed(3)
    image, word = (hard_negatives(torch.zeros(5, 5), generator) for _ in range(2))
    passes = [
        run_reference(qformer, features, ids, mask, "all")[0],
        run_reference(qformer, features[image], ids, mask, "all")[0],
        run_reference(qformer, features, ids[word], mask[word], "all")[0],
    ]
    logits = qformer.matching_head(torch.cat(passes)).mean(1)
    expected = F.cross_entropy(logits, torch.tensor([1] * 5 + [0] * 10))
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-10)
    draws = torch.stack([hard_negatives(torch.zeros(5, 5), generator) for _ in range(600)])
    for row in range(5):
        counts = torch.bincount(draws[:, row], minlength=5)
        assert counts[row] == 0
        assert (counts[torch.arange(5) != row] - 150).abs().max() < 50  # of 600, a quarter each


def test_wrong_objectives_are_named(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    for objectives, message in (
        ((), "objectives: is empty; stage 1 needs at least one of itc, itm, lm"),
        (("lm", "itc", "lm"), "objectives: lm is listed more than once"),
        (("itc", "mlm"), "objectives: 'mlm' is not one of itc, itm, lm"),
    ):
        with pytest.raises(UserError, match=message):
            stage1_losses(qformer, *batch, DECODE, objectives=objectives)  # type: ignore[arg-type]
    features, ids, mask = (each[:1] for each in batch)
    with pytest.raises(UserError, match="takes its negatives from the batch"):
        stage1_losses(qformer, features, ids, mask, DECODE, objectives=("itm", "lm"))
    assert stage1_losses(qformer, features, ids, mask, DECODE, objectives=("lm",)).total > 0


def test_nothing_sees_padding(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, ids, mask = batch
    garbage = torch.where(mask, ids, 17)
    wide_ids, wide_mask = F.pad(garbage, (0, 5), value=11), F.pad(mask, (0, 5))
    expected = stage1_losses(qformer, features, ids, mask, DECODE, generator=torch.Generator().manual_seed(3))
    got = stage1_losses(
        qformer, features, wide_ids, wide_mask, DECODE, generator=torch.Generator().manual_seed(3)
    )
    for name in ("itc", "itm", "lm"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=0, atol=1e-12)


def test_contrastive_pass_keeps_the_two_apart(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Entry (i, t) of the similarities depends on image i and text t alone."""
    features, ids, mask = batch

    def similarities(features: Tensor, ids: Tensor) -> Tensor:
        image = qformer.image_projection(qformer(features))
        return image_text_similarity(
            F.normalize(image, dim=-1),
            F.normalize(qformer.text_projection(qformer.encode_texts(ids, mask)), dim=-1),
        )

    before = similarities(features, ids)
    features, ids = features.clone(), ids.clone()
    features[1] += 1
    ids[3, 1] += 1
    same = torch.isclose(before, similarities(features, ids), rtol=0, atol=1e-12)
    assert same.tolist() == [[i != 1 and t != 3 for t in range(5)] for i in range(5)]


def test_similarity_is_that_of_the_best_query() -> None:
    image = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.6, 0.8]]])
    text = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.8, 0.6]])
    expected = torch.tensor([[1.0, 1.0, 0.8], [0.8, 0.6, 0.96]])
    torch.testing.assert_close(image_text_similarity(image, text), expected)


def test_hard_negatives() -> None:
    generator = torch.Generator().manual_seed(0)
    # the true pair is by far the most similar one, and still never drawn
    similarity = torch.eye(6) * 100
    draws = torch.stack([hard_negatives(similarity, generator) for _ in range(300)])
    assert (draws != torch.arange(6)).all()
    assert all(len(set(column.tolist())) == 5 for column in draws.T)
    # a pair that is similar otherwise is drawn in proportion to its softmax
    similarity = torch.tensor([[9.0, 3.0, 1.0], [0.0, 9.0, 0.0], [0.0, 80.0, 0.0]])
    draws = torch.stack([hard_negatives(similarity, generator) for _ in range(4000)])
    counts = Counter(draws[:, 0].tolist())
    weights = similarity[0].softmax(0) + 1e-4
    assert counts[1] / 4000 == pytest.approx(float(weights[1] / (weights[1] + weights[2])), abs=0.03)
    assert Counter(draws[:, 2].tolist())[1] > 3980
    # and with a generator the draw can be repeated
    first, second = (hard_negatives(torch.rand(9, 9), torch.Generator().manual_seed(2)) for _ in range(2))
    assert first.shape == second.shape == (9,)
    noise = torch.rand(9, 9)
    assert torch.stack([hard_negatives(noise, torch.Generator().manual_seed(2)) for _ in range(5)]).unique(
        dim=0
    ).shape == (1, 9)


def test_training_reaches_all_parameters(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    qformer.train()
    stage1_losses(qformer, *batch, DECODE).total.backward()
    for name, parameter in qformer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-8, name


def test_mistakes_are_named(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, ids, mask = batch
    with pytest.raises(UserError, match="vocab_size"):
        stage1_losses(QFormer(dataclasses.replace(TINY, vocab_size=0)).double(), features, ids, mask, DECODE)
    with pytest.raises(UserError, match="batch_size = 1"):
        stage1_losses(QFormer(TINY).double(), features[:1], ids[:1], mask[:1], DECODE)
    with pytest.raises(UserError, match="num_heads = 5: width 12"):
        QFormer(dataclasses.replace(TINY, num_heads=5))
    with pytest.raises(UserError, match="max_positions = 4: the text has 8 tokens"):
        stage1_losses(QFormer(dataclasses.replace(TINY, max_positions=4)).double(), *batch, DECODE)
