"""TomeFormer against transformers' BERT, and against plain loops where it merges."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertModel

from evlgen.config import TomeFormerConfig
from evlgen.errors import UserError
from evlgen.merging import bipartite_soft_matching
from evlgen.tomeformer import TomeFormer, TomeFormerLayer, TomeFormerTrace

TINY = TomeFormerConfig(
    input_width=10,
    width=12,
    num_layers=3,
    num_heads=3,
    intermediate=20,
    max_positions=16,
    r=3,
    dropout=0.0,
)


def tiny_bert(**changes: Any) -> BertModel:
    config = BertConfig(
        vocab_size=7,
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
        attn_implementation="eager",
        **changes,
    )
    return BertModel(config).double().eval()


def loud(module: torch.nn.Module) -> None:
    """Weights large enough that every term matters, biases and LayerNorms among them."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name.lower() else 0.3))


def pair(**changes: Any) -> tuple[TomeFormer, BertModel]:
    """A TomeFormer with the weights of a BertModel, both float64 and in eval mode."""
    torch.manual_seed(0)
    bert = tiny_bert()
    loud(bert)
    tomeformer = TomeFormer(dataclasses.replace(TINY, **changes)).double().eval()
    loud(tomeformer)
    tomeformer.load_bert(bert.state_dict())
    return tomeformer, bert


@torch.no_grad()
def reference(model: TomeFormer, features: Tensor) -> Tensor:
    """TomeFormer of one image (N, D_in), token by token, from the description in the paper."""
    weights, config = dict(model.named_parameters()), model.config
    heads, d = config.num_heads, config.width // config.num_heads

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean()
        normed = centred / (centred.square().mean() + 1e-12).sqrt()
        return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    tokens = []
    for position, feature in enumerate(features):
        x = linear("input_projection", feature) + weights["positions"][position] + weights["token_type"][0]
        tokens.append(norm("norm", x))
    sizes = [1] * len(tokens)

    for index, r in enumerate(model.schedule):
        layer = f"layers.{index}"
        projected = [linear(f"{layer}.attention.query_key_value", x).view(3, heads, d) for x in tokens]
        attended = []
        for q, _, _ in projected:
            outputs = []
            for h in range(heads):
                scores = torch.stack([q[h] @ k[h] / d**0.5 for _, k, _ in projected])
                if config.proportional_attention:
                    scores = scores + torch.tensor(sizes).double().log()
                outputs.append(
                    sum(p * v[h] for p, (_, _, v) in zip(scores.softmax(0), projected, strict=True))
                )
            attended.append(torch.cat(outputs))
        tokens = [
            norm(f"{layer}.attention.norm", x + linear(f"{layer}.attention.out", a))
            for x, a in zip(tokens, attended, strict=True)
        ]

        metric = tokens if config.metric == "features" else [k.mean(0) for _, k, _ in projected]
        links = []
        for i in range(2 if config.class_token else 0, len(tokens), 2):
            cosines = {j: F.cosine_similarity(metric[i], metric[j], 0) for j in range(1, len(tokens), 2)}
            best = max(cosines, key=lambda j: float(cosines[j]))
            links.append((float(cosines[best]), i, best))
        merged = {i: j for _, i, j in sorted(links, reverse=True)[:r]}
        groups = [[i] for i in range(0, len(tokens), 2) if i not in merged]
        groups += [[j, *(i for i in merged if merged[i] == j)] for j in range(1, len(tokens), 2)]
        if r == 0:
            groups = [[i] for i in range(len(tokens))]
        if config.metric == "position":
            front = int(config.class_token)
            pairs = [[i, i + 1] for i in range(front, len(tokens) - 1, 2)]
            chosen = [pairs[int((j + 0.5) * len(pairs) / r)] for j in range(r)]
            seconds = {second for _, second in chosen}
            groups = [
                [i, *([i + 1] if i + 1 in seconds else [])] for i in range(len(tokens)) if i not in seconds
            ]
        share = [float(size) if config.reduce == "weighted" else 1.0 for size in sizes]
        tokens = [sum(tokens[i] * share[i] for i in group) / sum(share[i] for i in group) for group in groups]
        sizes = [sum(sizes[i] for i in group) for group in groups]

        fed = []
        for x in tokens:
            update = linear(f"{layer}.feed_forward.down", F.gelu(linear(f"{layer}.feed_forward.up", x)))
            fed.append(norm(f"{layer}.feed_forward.norm", x + update))
        tokens = fed
    return torch.stack(tokens)


def test_a_layer_attends_merges_and_feeds_forward() -> None:
    """The paper's figure, step by step, on the layer alone."""
    torch.manual_seed(0)
    layer = TomeFormerLayer(TINY, r=2, index=0).double().eval()
    loud(layer)
    x, size = torch.randn(2, 9, 12, dtype=torch.float64), torch.ones(2, 9, 1, dtype=torch.float64)
    out, new_size, matching, attention = layer(x, size, return_attention=True)

    query, key, value = layer.attention.project(x)
    probabilities = (query @ key.transpose(-1, -2) / 4**0.5).softmax(-1)
    attended = layer.attention.out((probabilities @ value).transpose(1, 2).flatten(2))
    after = layer.attention.norm(x + attended)
    expected = bipartite_soft_matching(key.mean(1), 2)
    assert torch.equal(matching.destination, expected.destination)
    torch.testing.assert_close(out, layer.feed_forward(expected.merge(after)), rtol=0, atol=1e-10)
    torch.testing.assert_close(attention, probabilities, rtol=0, atol=1e-10)
    assert out.shape == (2, 7, 12)
    assert new_size.sum(1).flatten().tolist() == [9, 9]
    assert layer(x, size)[3] is None


def test_without_merging_it_is_bert() -> None:
    tomeformer, bert = pair(r=0)
    features = torch.randn(2, 13, 10, dtype=torch.float64)
    expected = bert(inputs_embeds=tomeformer.input_projection(features), output_attentions=True)
    out, trace = tomeformer(features, return_trace=True)
    torch.testing.assert_close(out, expected.last_hidden_state, rtol=0, atol=1e-10)
    for ours, theirs in zip(trace.attention, expected.attentions, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"r": (2, -1)},
        {"r": (4, 0, 2)},
        {"metric": "features"},
        {"metric": "position"},
        {"metric": "position", "reduce": "weighted", "class_token": False},
        {"reduce": "weighted"},
        {"proportional_attention": True},
        {"reduce": "weighted", "proportional_attention": True, "class_token": False},
    ],
    ids=str,
)
def test_with_merging_it_is_what_plain_loops_give(changes: dict[str, Any]) -> None:
    tomeformer, _ = pair(**changes)
    features = torch.randn(3, 14, 10, dtype=torch.float64)
    expected = torch.stack([reference(tomeformer, image) for image in features])
    torch.testing.assert_close(tomeformer(features), expected, rtol=0, atol=1e-10)


def test_token_count_and_trace() -> None:
    tomeformer, _ = pair()
    features = torch.randn(2, 15, 10, dtype=torch.float64)
    out, trace = tomeformer(features, return_trace=True)
    assert out.shape == (2, 15 - 9, 12)
    assert out.equal(tomeformer(features))
    assert isinstance(trace, TomeFormerTrace)
    assert [m.tokens_out for m in trace.matchings] == [12, 9, 6]
    assert [a.shape[-1] for a in trace.attention] == [15, 12, 9]
    for probabilities in trace.attention:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]).double())
    assert trace.source.shape == (2, 6, 15)
    assert (trace.source.sum(1) == 1).all()
    assert (trace.source[:, 0].sum(-1) == 1).all()


def test_proportional_attention_makes_merging_of_equal_tokens_exact() -> None:
    """Two equal tokens that are merged count twice afterwards, so later attention does not notice (ToMe)."""
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, num_layers=2, class_token=False, proportional_attention=True)
    merging = TomeFormer(dataclasses.replace(config, r=[1, 0])).double().eval()  # type: ignore[arg-type]
    loud(merging)
    with torch.no_grad():
        merging.positions[1] = merging.positions[0]
    plain = TomeFormer(dataclasses.replace(config, r=0)).double().eval()
    plain.load_state_dict(merging.state_dict())
    features = torch.randn(1, 6, 10, dtype=torch.float64)
    features[:, 1] = features[:, 0]
    out, trace = merging(features, return_trace=True)
    torch.testing.assert_close(trace.matchings[0].unmerge(out), plain(features), rtol=0, atol=1e-10)


def test_gradient_reaches_features_and_all_parameters() -> None:
    tomeformer, _ = pair()
    features = torch.randn(2, 15, 10, dtype=torch.float64, requires_grad=True)
    (tomeformer(features) * torch.randn(2, 6, 12)).sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(-1) > 0).all()
    for name, parameter in tomeformer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-8, name


def test_gradient_is_right() -> None:
    tomeformer, _ = pair(num_layers=3, r=(2, 1, 0))
    features = torch.randn(1, 7, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tomeformer(x)[..., :3], (features,))


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_load_bert_takes_all_namings(prefix: str, old_names: bool) -> None:
    expected, bert = pair()
    state = {}
    for name, tensor in bert.state_dict().items():
        if old_names:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        state[prefix + name] = tensor
    state["cls.predictions.bias"] = torch.zeros(7)  # heads do not matter
    other = TomeFormer(TINY).double()
    other.load_bert(state)
    for name, parameter in other.named_parameters():
        if not name.startswith("input_projection"):
            assert parameter.equal(expected.get_parameter(name)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_positions": 9},
            r"embeddings.position_embeddings.weight has shape \(16, 12\), .* wants \(9, 12\)",
        ),
        (
            {"intermediate": 24},
            r"layer.0.intermediate.dense.weight has shape \(20, 12\), .* wants \(24, 12\)",
        ),
        ({"num_layers": 2}, "3 layers, the config wants num_layers = 2"),
        ({"num_layers": 4}, r"encoder.layer.3.attention.self.query.weight is missing .* \(12, 12\)"),
    ],
)
def test_load_bert_names_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TomeFormer(dataclasses.replace(TINY, **changes)).load_bert(tiny_bert().state_dict())


def test_random_matching_is_reproducible() -> None:
    tomeformer, _ = pair(metric="random")
    features = torch.randn(4, 15, 10, dtype=torch.float64)
    out = tomeformer(features)
    assert tomeformer(features).equal(out)
    torch.testing.assert_close(tomeformer(features[2:3]), out[2:3], rtol=0, atol=1e-12)  # whatever the batch
    state = torch.get_rng_state()
    tomeformer(features)
    assert torch.get_rng_state().equal(state)  # evaluation does not disturb training

    tomeformer.train()
    torch.manual_seed(3)
    first, second = tomeformer(features), tomeformer(features)
    assert not first.equal(second)
    torch.manual_seed(3)
    assert tomeformer(features).equal(first)


def test_dropout_only_while_training() -> None:
    model = TomeFormer(dataclasses.replace(TINY, dropout=0.5))
    features = torch.randn(2, 15, 10)
    assert not model.train()(features).equal(model(features))
    assert model.eval()(features).equal(model(features))


def test_initialisation() -> None:
    model = TomeFormer(dataclasses.replace(TINY, width=96, intermediate=384, input_width=96, num_layers=1))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert 0.015 < parameter.std() < 0.025, name


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="num_heads = 5: width 12"):
        TomeFormer(dataclasses.replace(TINY, num_heads=5))
    with pytest.raises(UserError, match="4 entries for 3 layers"):
        TomeFormer(dataclasses.replace(TINY, r=(1, 2, 3, 4)))
    model = TomeFormer(TINY)
    with pytest.raises(UserError, match="max_positions = 16: the image has 17 tokens"):
        model(torch.randn(1, 17, 10))
    with pytest.raises(UserError, match="layer 2 cannot merge 3 of its 5 tokens, 2 at most"):
        model(torch.randn(1, 11, 10))
