"""The references compute what the connectors compute, or a benchmark would compare two different things."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.reference import ReferenceQFormer, ReferenceTomeFormer
from evlgen.config import QFormerConfig, TomeFormerConfig
from evlgen.qformer import QFormer
from evlgen.tomeformer import TomeFormer

TOMEFORMER = TomeFormerConfig(
    input_width=10, width=16, num_layers=3, num_heads=2, intermediate=24, max_positions=32, r=4
)
QFORMER = QFormerConfig(
    encoder_width=10, width=16, num_layers=3, num_heads=2, intermediate=24, max_positions=32, num_queries=5
)


@pytest.mark.parametrize("class_token", [True, False])
def test_tomeformer_with_tomes_published_merging(class_token: bool) -> None:
    torch.manual_seed(0)
    ours = TomeFormer(dataclasses.replace(TOMEFORMER, class_token=class_token)).double().eval()
    for parameter in ours.parameters():  # biases and norms, too
        torch.nn.init.normal_(parameter, std=0.3)
    reference = ReferenceTomeFormer(ours.config).double().eval()
    reference.load(ours)
    x = torch.randn(3, 21, 10, dtype=torch.float64)
    expected = ours(x)
    assert expected.shape == (3, 9, 16)
    torch.testing.assert_close(reference(x), expected, rtol=0, atol=1e-10)
    assert not reference.keys


def test_qformer() -> None:
    torch.manual_seed(0)
    ours = QFormer(QFORMER).double().eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reference = ReferenceQFormer(QFORMER).double().eval()
    reference.load(ours)
    x = torch.randn(3, 21, 10, dtype=torch.float64)
    torch.testing.assert_close(reference(x), ours(x), rtol=0, atol=1e-10)
