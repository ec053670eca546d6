"""The table of connectors: every configuration has a row, and every row gives a connector that works."""

from __future__ import annotations

import subprocess
import sys
import typing
from typing import Any

import pytest
import torch

from evlgen.config import (
    ConnectorConfig,
    LinearConfig,
    PerceiverConfig,
    PoolConfig,
    QFormerConfig,
    RunConfig,
    TomeFormerConfig,
)
from evlgen.connectors import CONNECTORS, LOOKS, ConnectorRow, build_connector, look_of, row_of
from evlgen.runtime.paths import ROOT

LAYERS: Any = {"width": 16, "num_layers": 2, "num_heads": 2, "intermediate": 32, "max_positions": 16}
SIZES: Any = {"input_width": 16, **LAYERS}
SMALL: dict[str, ConnectorConfig] = {
    "TomeFormer": TomeFormerConfig(**SIZES, r=2),
    "Q-Former": QFormerConfig(encoder_width=16, **LAYERS, num_queries=3),
    "linear": LinearConfig(input_width=16, width=16),
    "MLP": LinearConfig(input_width=16, width=24, num_layers=2),
    "average pooling": PoolConfig(input_width=16, rows=2, columns=3),
    "perceiver": PerceiverConfig(**SIZES, num_latents=3),
}


def test_every_configuration_has_exactly_one_row() -> None:
    assert {row.config for row in CONNECTORS} == set(typing.get_args(ConnectorConfig))
    for title, config in SMALL.items():
        fitting = [row for row in CONNECTORS if isinstance(config, row.config) and row.fits(config)]
        assert [row.title for row in fitting] == [title]


@pytest.mark.parametrize("row", CONNECTORS, ids=lambda row: row.title)
def test_every_row_gives_a_connector(row: ConnectorRow) -> None:
    config = SMALL[row.title]
    connector = build_connector(config)
    assert connector.config == config
    soft = connector(torch.zeros(2, 10, config.input_width))
    assert soft.shape[0] == 2
    assert soft.shape[2] == config.width
    modules = set(connector.modules())
    blocks = connector.recomputed_blocks()
    assert modules.issuperset(blocks)
    assert len(set(blocks)) == len(blocks)
    trained = sum(p.numel() for p in connector.parameters())
    inside = sum(p.numel() for block in blocks for p in block.parameters())
    assert inside > 0.8 * trained or not trained  # all but embeddings, projections and norms


@pytest.mark.parametrize("row", CONNECTORS, ids=lambda row: row.title)
def test_only_a_connector_with_a_bert_starts_from_one(row: ConnectorRow) -> None:
    assert row.has_bert == hasattr(build_connector(SMALL[row.title]), "load_bert")


def test_looks_of_runs() -> None:
    single = RunConfig(connector=SMALL["Q-Former"])
    assert look_of(single).name == "BLIP-2, single stage"
    assert look_of(RunConfig(connector=SMALL["Q-Former"], init_from=single)).name == "BLIP-2, two stages"
    assert look_of(RunConfig(connector=SMALL["TomeFormer"], init_from=single)).name == "EVLGen"
    for title in ("linear", "MLP", "average pooling", "perceiver"):
        assert look_of(RunConfig(connector=SMALL[title])).name == title == row_of(SMALL[title]).title
    assert len({look.colour for look in LOOKS.values()}) == len(LOOKS)
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS)


def test_the_table_needs_no_torch() -> None:
    code = "import sys, evlgen.connectors as c; assert c.CONNECTORS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
