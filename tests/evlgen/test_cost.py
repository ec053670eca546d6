"""Costs: the paper's table 5, and small modules by hand."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from evlgen.config import OptimConfig, QFormerConfig, RunConfig, TomeFormerConfig
from evlgen.cost import (
    Stage1,
    connector_macs,
    count_parameters,
    full_macs,
    image_features,
    is_counted,
    linear_macs,
    meta_connector,
    meta_language,
    meta_vision,
    run_cost,
    stage1_macs,
    step_cost,
)
from evlgen.errors import UserError
from evlgen.qformer import QFormer
from evlgen.stage1 import OBJECTIVES, stage1_losses
from evlgen.throughput import A100S, Devices, step_seconds, training_hours, utilisation
from evlgen.tomeformer import TomeFormer


def test_table5() -> None:
    assert connector_macs(TomeFormerConfig(), 257) == 11_876_696_064  # paper: 11.9 G
    assert connector_macs(QFormerConfig(), 257) == 6_279_266_304  # paper: 6.28 G
    assert connector_macs(QFormerConfig(vocab_size=30523), 257) == 6_279_266_304  # text branch not counted


def test_linear_macs_by_hand() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))
    x = torch.randn(4, 7, 3)
    assert linear_macs(module, x) == 4 * 7 * (3 * 5 + 5 * 2)
    assert linear_macs(module, x, include=lambda name: name == "2") == 4 * 7 * 5 * 2
    assert full_macs(module, x) == 4 * 7 * (3 * 5 + 5 * 2)
    assert module[0].weight.device.type == "cpu"
    assert not module[0]._forward_hooks


class Unusual(nn.Module):
    """Products that are in no ``nn.Linear``: torch's attention, a bare parameter, a tied head."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.words = nn.Embedding(11, 8)
        self.layers = nn.ModuleList([nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)])
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.weight = nn.Parameter(torch.randn(8, 5))

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        x, _ = self.layers[0](x, image, image, need_weights=self.need_weights)
        x, _ = self.attention(x, x, x, need_weights=self.need_weights)
        return torch.cat([x @ self.weight, x @ self.words.weight.T], -1)


@pytest.mark.parametrize("need_weights", [True, False])
def test_products_outside_of_linear_layers_are_counted(need_weights: bool) -> None:
    module, batch, tokens, image = Unusual(need_weights), 3, 4, 7
    inputs = torch.randn(batch, tokens, 8), torch.randn(batch, image, 6)
    cross = batch * (tokens * 8 * 8 + 2 * image * 6 * 8 + tokens * 8 * 8)
    own = batch * tokens * 4 * 8 * 8
    head, tied = batch * tokens * 8 * 5, batch * tokens * 8 * 11
    scores = batch * 2 * (tokens * image + tokens * tokens) * 8
    for mode in (True, False):
        module.train(mode)
        assert linear_macs(module, *inputs) == cross + own + head
        assert linear_macs(module, *inputs, include=is_counted) == cross
        assert full_macs(module, *inputs) == cross + own + head + tied + scores
    assert step_cost(module, *inputs).linear_macs == cross + own + head


def test_full_macs_by_hand() -> None:
    config = TomeFormerConfig(
        input_width=10, width=8, num_layers=2, num_heads=2, intermediate=16, max_positions=32, r=3
    )
    tokens, counts = 15, [15, 12, 9]
    linear = tokens * 10 * 8
    products = similarity = 0
    for before, after in itertools.pairwise(counts):
        linear += before * 4 * 8 * 8 + after * 2 * 8 * 16
        products += 2 * before * before * 8
        even, odd = (before + 1) // 2 - 1, before // 2
        similarity += even * odd * 4  # keys averaged over the heads
    features = image_features(config, tokens)
    assert linear_macs(meta_connector(config), features) == linear
    assert full_macs(meta_connector(config), features) == linear + products + similarity
    assert full_macs(TomeFormer(config).eval(), torch.randn(1, tokens, 10)) == linear + products + similarity


def test_parameters_are_those_of_bert() -> None:
    with torch.device("meta"):
        bert = BertModel(BertConfig(), add_pooling_layer=False)
    # BERT-base has word embeddings and a second token type besides; TomeFormer its input projection
    expected = count_parameters(bert) - 30522 * 768 - 768 + 1408 * 768 + 768
    assert count_parameters(meta_connector(TomeFormerConfig())) == expected

    module = nn.Linear(3, 4)
    module.bias.requires_grad_(False)
    assert (count_parameters(module), count_parameters(module, trainable=True)) == (16, 12)


def test_activations_by_hand() -> None:
    module = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.LayerNorm(10), nn.Linear(10, 3))
    x = torch.randn(4, 6)
    # kept: both inputs of linear layers (the second is the norm's output), the ReLU's result, which is the
    # norm's input as well and one memory, and the norm's mean and deviation
    values = 4 * 6 + 4 * 10 + 2 * 4 + 4 * 10
    cost = step_cost(module, x)
    assert cost.activations == 4 * values
    assert step_cost(module.double(), x.double()).activations == 8 * values
    assert cost.output == (4, 3)

    frozen = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).requires_grad_(False)
    # towards the input only the ReLU's result is needed: the weights are parameters
    assert step_cost(frozen, torch.randn(4, 6, requires_grad=True)).activations == 4 * 4 * 10


def test_training_macs_by_hand() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    first, second = 7 * 3 * 5, 7 * 5 * 2
    x = torch.randn(7, 3)
    # backward: to each weight, and to the input of the second layer; nobody asks for that of the first
    assert step_cost(module, x).training_macs == 2 * first + 3 * second
    assert step_cost(module, x.requires_grad_()).training_macs == 3 * first + 3 * second
    assert step_cost(module.requires_grad_(False), x).training_macs == 2 * first + 2 * second


def test_stage1_on_meta_is_the_real_pass() -> None:
    config = QFormerConfig(
        encoder_width=10,
        width=16,
        num_layers=3,
        num_heads=2,
        intermediate=24,
        max_positions=32,
        num_queries=5,
        vocab_size=50,
        embed_dim=6,
        dropout=0.0,
    )
    text, tokens, batch = 7, 9, 4
    counted = linear_macs(Stage1(config, text), torch.randn(batch, tokens, 10))
    # the real loss on real numbers, counted by other hooks
    qformer, real = QFormer(config), 0

    def hook(linear: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal real
        real += args[0].numel() * output.shape[-1]

    for part in qformer.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(hook)
    ids = torch.randint(0, 49, (batch, text))
    stage1_losses(qformer, torch.randn(batch, tokens, 10), ids, torch.ones_like(ids, dtype=torch.bool), 49)
    assert counted == real

    # and by hand, part by part
    macs = stage1_macs(config, tokens, text)
    layer, cross = 4 * 16 * 16 + 2 * 16 * 24, 2 * 16 * 16  # of a token; queries and outputs to the image
    assert macs.image == 2 * tokens * 2 * 10 * 16  # two of three layers have cross-attention
    assert macs.queries == 5 * (3 * layer + 2 * cross)
    assert macs.text == text * 3 * layer
    assert macs.generation == text * 16 * 16
    assert macs.vocabulary == text * 16 * 50
    cut = 16 * 16 + 2 * 16 * 24  # in the last layer a token that is not used has keys and values alone
    heads = 5 * 16 * 6 + 16 * 6 + 3 * 5 * 16 * 2
    fused = 3 * (macs.queries + macs.text - text * cut)
    read = macs.text - (text - 1) * cut
    assert counted // batch == (
        macs.image + macs.queries + read + fused + macs.text + macs.generation + heads
    )

    # losses left out: what they share is counted once, what they alone need is not
    parts = {
        "itc": read + heads - 3 * 5 * 16 * 2,
        "itm": fused + 3 * 5 * 16 * 2,
        "lm": macs.text + macs.generation,
    }
    for left in ("itc", "itm", "lm"):
        objectives = tuple(name for name in OBJECTIVES if name != left)
        some = linear_macs(Stage1(config, text, objectives), torch.randn(batch, tokens, 10))
        expected = macs.image + sum(parts[name] for name in objectives)
        shared = macs.queries  # ITC and LM look at the same pass of the queries, ITM has its own
        assert some // batch == expected + shared
    alone = linear_macs(Stage1(config, text, ("itm",)), torch.randn(batch, tokens, 10))
    assert alone // batch == macs.image + parts["itm"]

    run = RunConfig(connector=dataclasses.replace(config, encoder_width=96), language="", stage="represent")
    whole, some_run = run_cost(run), run_cost(dataclasses.replace(run, objectives=("itc", "lm")))
    assert some_run.macs < whole.macs
    assert some_run.step_flop < whole.step_flop


def test_paper_sizes_of_frozen_models() -> None:
    encoder, pixels, tokens = meta_vision("eva-clip-g")
    assert (tokens, pixels.shape[-1]) == (257, 224)
    block = 4 * 1408**2 + 2 * 1408 * 6144 + (2 + 1) * 1408 + 6144 + 1408 + 4 * 1408
    assert count_parameters(encoder) == 39 * block + 3 * 14 * 14 * 1408 + 1408 + 1408 + 257 * 1408
    encoder, pixels, tokens = meta_vision("clip-vit-l")
    assert encoder(pixels).shape == (1, tokens, 1024)
    assert tokens == 257
    # the published image encoder has 303,179,776 parameters; the last of 24 layers is not there
    assert count_parameters(encoder) == 303_179_776 - (4 * 1024**2 + 2 * 1024 * 4096 + (4 + 4 + 1 + 4) * 1024)
    encoder, pixels, tokens = meta_vision("mini-clip")
    assert (pixels.shape, encoder(pixels).shape) == ((1, 3, 64, 64), (1, 65, 64))
    assert count_parameters(meta_language("opt-2.7b")) == 2_651_596_800  # of the published checkpoints
    assert count_parameters(meta_language("vicuna-7b")) == 6_738_415_616
    with pytest.raises(UserError, match="language 'gpt-9': its cost is not known"):
        meta_language("gpt-9")
    with pytest.raises(UserError, match="vision 'eye': its cost is not known"):
        meta_vision("eye")


def test_run_cost_adds_up() -> None:
    config = TomeFormerConfig(
        input_width=96, width=16, num_layers=2, num_heads=2, intermediate=32, max_positions=65, r=12
    )
    run = RunConfig(connector=config, vision="mini-vit", language="mini-opt")
    cost = run_cost(run)
    assert cost.soft_tokens == 65 - 24
    assert cost.macs == connector_macs(config, 65)
    counts = [65, 53, 41]
    assert cost.trained == count_parameters(meta_connector(config)) + 2 * 96 + 16 * 96 + 96
    assert (
        cost.full_macs == full_macs(meta_connector(config), image_features(config, 65)) + counts[-1] * 16 * 96
    )
    assert cost.step_flop == 2 * (cost.vision_macs + cost.trained_macs + cost.language_macs)
    # the language model: 41 soft tokens, one of the beginning, 31 of the text; backward as dear as forward,
    # but for attention, two products forward and four backward
    length, text, words = 41 + 32, 32, meta_language("mini-opt").config.vocab_size
    linear = 4 * length * (4 * 96**2 + 2 * 96 * 384) + text * 96 * words
    assert cost.language_macs == 2 * linear + 3 * 4 * 2 * length**2 * 96

    half = run_cost(dataclasses.replace(run, optim=OptimConfig(precision="bf16")))
    assert half.step_flop == cost.step_flop
    assert half.activations < cost.activations
    stage1 = dataclasses.replace(run, stage="represent")
    with pytest.raises(UserError, match="it is a stage of the Q-Former"):
        run_cost(stage1)


def test_hours() -> None:
    two = Devices("test", 2, 100.0)
    assert utilisation(flop=50.0, seconds=0.5, devices=two) == 0.5
    assert step_seconds(50.0, two, used=0.5) == 0.5
    assert training_hours(7200, 0.5) == 1.0
    paper = 133 * 3600 / 250_000
    assert paper == pytest.approx(1.915, abs=5e-4)
    used = utilisation(2e15, paper, A100S)
    assert training_hours(150_000, step_seconds(2e15, A100S, used)) == pytest.approx(79.8)
