"""Costs: the paper's table 5, and small modules by hand."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from transformers import BertConfig, BertModel

from evlgen.config import QFormerConfig, TomeFormerConfig
from evlgen.cost import (
    connector_macs,
    count_parameters,
    full_macs,
    image_features,
    linear_macs,
    meta_connector,
)
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
