"""The passes of the Q-Former against transformers' BLIP-2."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from evlgen.errors import UserError
from evlgen.qformer import QFormer
from tests.evlgen.qformers import (
    TINY,
    as_transformers,
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


def test_queries_alone(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features = batch[0]
    queries = qformer.queries.expand(len(features), -1, -1)
    expected = as_transformers(qformer)(queries, encoder_hidden_states=features).last_hidden_state
    torch.testing.assert_close(qformer(features), expected, rtol=0, atol=1e-10)


def test_queries_and_text(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, ids, mask = batch
    expected, _ = run_reference(qformer, features, ids, mask, "all")
    fused = qformer.encode_pairs(qformer.project_image(features), ids, mask)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-10)


def test_text_alone(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, ids, mask = batch
    _, text = run_reference(qformer, features, ids, mask, "separate")
    torch.testing.assert_close(qformer.encode_texts(ids, mask), text[:, 0], rtol=0, atol=1e-10)


def test_text_after_queries(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, ids, mask = batch
    queries, text = run_reference(qformer, features, ids, mask, "causal")
    seen, cache = qformer.encode_images(qformer.project_image(features), len(features))
    torch.testing.assert_close(seen, queries, rtol=0, atol=1e-10)
    logits = qformer.decode_texts(cache, ids, mask)
    torch.testing.assert_close(logits[mask], reference_logits(qformer, text)[mask], rtol=0, atol=1e-10)


def test_lm_does_not_look_ahead(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, ids, _ = batch
    mask = torch.ones_like(ids, dtype=torch.bool)
    _, cache = qformer.encode_images(qformer.project_image(features), len(features))
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % 29
    before, after = qformer.decode_texts(cache, ids, mask), qformer.decode_texts(cache, changed, mask)
    assert before[:, :5].equal(after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()


def test_lm_looks_at_the_image(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Through the queries alone, and the gradient goes back the same way."""
    features, ids, mask = batch
    features.requires_grad_()
    _, cache = qformer.encode_images(qformer.project_image(features), len(features))
    qformer.decode_texts(cache, ids, mask)[:, 0].square().sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(-1) > 0).all()
    assert qformer.queries.grad is not None
    assert qformer.queries.grad.abs().sum() > 0


def test_matching_sees_text_and_image(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, ids, mask = batch
    image = qformer.project_image(features)
    fused = qformer.encode_pairs(image, ids, mask)
    changed = ids.clone()
    changed[:, 2] = (ids[:, 2] + 1) % 29  # the last token of the shortest text
    assert not torch.isclose(fused, qformer.encode_pairs(image, changed, mask)).all(-1).any()
    assert (
        not torch.isclose(fused, qformer.encode_pairs(qformer.project_image(features + 1), ids, mask))
        .all(-1)
        .any()
    )


def test_trace(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features = batch[0]
    out, trace = qformer(features, return_trace=True)
    assert out.equal(qformer(features))
    expected = as_transformers(qformer)(
        qformer.queries.expand(5, -1, -1), encoder_hidden_states=features, output_attentions=True
    )
    assert len(trace.attention) == len(expected.cross_attentions) == 2  # layers 0 and 2
    for ours, theirs in zip(trace.attention, expected.cross_attentions, strict=True):
        assert ours.shape == (5, 3, 4, 9)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_stage2_takes_over_from_stage1(qformer: QFormer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    second = QFormer(dataclasses.replace(TINY, vocab_size=0)).double().eval()
    second.load_stage1(qformer.state_dict())
    assert second(batch[0]).equal(qformer(batch[0]))
    assert not any("text" in name or "words" in name for name, _ in second.named_parameters())
    wider = QFormer(dataclasses.replace(TINY, vocab_size=0, num_queries=5)).double()
    with pytest.raises(UserError, match=r"queries has shape \(4, 12\), the config wants \(5, 12\)"):
        wider.load_stage1(qformer.state_dict())
    with pytest.raises(UserError, match=r"queries has shape None"):
        second.load_stage1({})


def test_load_bert() -> None:
    sizes = BertConfig(
        vocab_size=27,
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
    )
    bert = BertForMaskedLM(sizes)
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    bert = bert.double().eval()
    qformer = QFormer(TINY).double().eval()
    own = qformer.words.weight[27:].clone()
    qformer.load_bert(bert.state_dict())
    assert qformer.words.weight[27:].equal(own)
    ids = torch.randint(0, 27, (2, 7))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():  # Q-Former has no token types
        bert.bert.embeddings.token_type_embeddings.weight.zero_()
    hidden = bert.bert(ids).last_hidden_state
    torch.testing.assert_close(qformer.encode_texts(ids, mask), hidden[:, 0], rtol=0, atol=1e-10)
    torch.testing.assert_close(
        reference_logits(qformer, hidden)[..., :27], bert(ids).logits, rtol=0, atol=1e-10
    )
    for layer in qformer.layers:
        assert layer.text_feed_forward is not None
        assert layer.feed_forward.up.weight.equal(layer.text_feed_forward.up.weight)

    plain = BertModel(sizes, add_pooling_layer=False).state_dict()
    QFormer(dataclasses.replace(TINY, vocab_size=0)).load_bert(plain)
    with pytest.raises(UserError, match=r"word_embeddings.weight has shape \(27, 12\), .* wants \(20, 12\)"):
        QFormer(dataclasses.replace(TINY, vocab_size=20)).load_bert(plain)
    del plain["embeddings.word_embeddings.weight"]
    with pytest.raises(UserError, match=r"word_embeddings.weight is missing .*\(30, 12\)"):
        QFormer(TINY).load_bert(plain)
