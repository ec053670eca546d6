"""Q-Former against transformers' BLIP-2, and the masks of its three stage-1 losses.

The reference knows none of the short cuts of `evlgen.qformer`: it runs transformers' Q-Former on queries and
text side by side, and says with a full mask who sees whom.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel, Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from evlgen.config import Objective, QFormerConfig
from evlgen.errors import UserError
from evlgen.interop.convert import qformer_names
from evlgen.qformer import QFormer
from evlgen.stage1 import OBJECTIVES, hard_negatives, image_text_similarity, stage1_losses

TINY = QFormerConfig(
    encoder_width=10,
    width=12,
    num_layers=3,
    num_heads=3,
    intermediate=20,
    max_positions=16,
    num_queries=4,
    vocab_size=30,
    embed_dim=6,
    dropout=0.0,
)
DECODE = 29


@pytest.fixture
def qformer() -> QFormer:
    """Float64, in eval mode, with weights large enough that every term matters."""
    torch.manual_seed(0)
    model = QFormer(TINY).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.3))
    return model


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Features (5, 9, 10), text ids (5, 8), mask (5, 8)."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(5, 9, 10, dtype=torch.float64, generator=generator)
    ids = torch.randint(3, 29, (5, 8), generator=generator)
    mask = torch.arange(8) < torch.tensor([8, 5, 6, 3, 8])[:, None]
    return features, ids.masked_fill(~mask, 0), mask


def as_transformers(model: QFormer) -> Blip2QFormerModel:
    """transformers' Q-Former with the same weights."""
    config = model.config
    other = Blip2QFormerModel(
        Blip2QFormerConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate,
            max_position_embeddings=config.max_positions,
            cross_attention_frequency=config.cross_attention_every,
            encoder_hidden_size=config.encoder_width,
            use_qformer_text_input=True,
            attn_implementation="eager",
        )
    )
    names = qformer_names(config, "transformers")
    state = {}
    for ours, tensor in model.state_dict().items():
        keys = [key.removeprefix("qformer.") for key in names[ours] if key.startswith("qformer.")]
        if keys:  # the queries, the words and the heads are not in there
            state |= dict(zip(keys, tensor.chunk(len(keys)), strict=True))
    other.double().load_state_dict(state)
    return other.eval()


def run_reference(
    model: QFormer, features: Tensor, ids: Tensor, mask: Tensor, sees: str
) -> tuple[Tensor, Tensor]:
    """Queries (B, Q, D) and text (B, T, D) run side by side; ``sees``: "separate", "all" or "causal"."""
    queries, length = model.config.num_queries, ids.shape[1]
    words = model.words(ids) + model.positions[:length]
    x = torch.cat([model.queries.expand(len(ids), -1, -1), words], 1)
    allowed = torch.ones(len(ids), queries + length, queries + length, dtype=torch.bool)
    allowed[:, :, queries:] = mask[:, None]
    if sees != "all":
        allowed[:, :queries, queries:] = False
    if sees == "separate":
        allowed[:, queries:, :queries] = False
    if sees == "causal":
        allowed[:, queries:, queries:] &= torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.zeros(allowed.shape, dtype=x.dtype).masked_fill(~allowed, torch.finfo(x.dtype).min)
    out = as_transformers(model)(
        x, query_length=queries, attention_mask=bias[:, None], encoder_hidden_states=features
    ).last_hidden_state
    return out[:, :queries], out[:, queries:]


def reference_logits(model: QFormer, hidden: Tensor) -> Tensor:
    """transformers' language-model head, tied to the word embeddings."""
    config = BertConfig(vocab_size=model.config.vocab_size, hidden_size=model.config.width)
    head = BertLMPredictionHead(config).double()
    head.transform.dense = model.generation_dense
    head.transform.LayerNorm = model.generation_norm
    head.decoder.weight, head.decoder.bias = model.words.weight, model.generation_bias
    logits: Tensor = head(hidden)
    return logits


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
        ((), "objectives: is empty; stage 1 needs a loss, there are itc, itm, lm"),
        (("lm", "itc", "lm"), "objectives: lm is there more than once"),
        (("itc", "mlm"), "objectives: 'mlm' is not one of itc, itm, lm"),
    ):
        with pytest.raises(UserError, match=message):
            stage1_losses(qformer, *batch, DECODE, objectives=objectives)  # type: ignore[arg-type]
    features, ids, mask = (each[:1] for each in batch)
    with pytest.raises(UserError, match="takes its negatives from the batch"):
        stage1_losses(qformer, features, ids, mask, DECODE, objectives=("itm", "lm"))
    assert stage1_losses(qformer, features, ids, mask, DECODE, objectives=("lm",)).total > 0


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
