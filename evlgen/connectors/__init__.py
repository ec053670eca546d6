"""All connectors, one row each: `CONNECTORS`. Importing this does not import torch.

A new connector is a dataclass in `evlgen.config` (and a member of ``ConnectorConfig``), a module in a file of
this folder, and a row here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evlgen.config import (
    ConnectorConfig,
    LinearConfig,
    PerceiverConfig,
    PoolConfig,
    QFormerConfig,
    RunConfig,
    TomeFormerConfig,
)
from evlgen.errors import UserError

if TYPE_CHECKING:
    from evlgen.connector_base import Connector


@dataclass(frozen=True)
class Look:
    """How figures show a connector.

    Attributes:
        name: in legends.
        colour: one of Okabe and Ito's, which the colour-blind can tell apart.
        marker: matplotlib's letter.
    """

    name: str
    colour: str
    marker: str


@dataclass(frozen=True)
class ConnectorRow:
    """A connector.

    The search of learning rates has no column: every connector gets the same one
    (`sweeps.search.spaces.rate_targets`).

    Attributes:
        title: in tables and searches.
        config: class of its configuration, whose ``kind`` names it in files.
        build: its module, with the weights that ``init`` names. The module itself says which of its blocks
            gradient checkpointing computes again (`evlgen.connector_base.Connector.recomputed_blocks`).
        look: in figures, trained in a single stage.
        two_stage_look: in figures, started from a stage 1; None if there is no stage 1 of it.
        has_bert: whether ``init`` may name the weights of a BERT; otherwise it must be ``random``.
        fits: which configurations of the class the row is about.
    """

    title: str
    config: type[ConnectorConfig]
    build: Callable[[Any], Connector]
    look: Look
    two_stage_look: Look | None = None
    has_bert: bool = False
    fits: Callable[[Any], bool] = lambda config: True


# Modules are imported when one of them is built: torch takes seconds to import, and tables, figures and
# `run.py list` read the rows without it.


def _tomeformer(config: TomeFormerConfig) -> Connector:
    from evlgen.backbones.bert_weights import bert_weights
    from evlgen.tomeformer import TomeFormer

    connector = TomeFormer(config)
    if config.init != "random":
        connector.load_bert(bert_weights(config.init, config.num_heads))
    return connector


def _qformer(config: QFormerConfig) -> Connector:
    from evlgen.backbones.bert_weights import bert_weights
    from evlgen.qformer import QFormer

    connector = QFormer(config)
    if config.init != "random":
        connector.load_bert(bert_weights(config.init, config.num_heads))
    return connector


def _linear(config: LinearConfig) -> Connector:
    from evlgen.connectors.linear import LinearConnector

    return LinearConnector(config)


def _pool(config: PoolConfig) -> Connector:
    from evlgen.connectors.pool import PoolConnector

    return PoolConnector(config)


def _perceiver(config: PerceiverConfig) -> Connector:
    from evlgen.connectors.perceiver import PerceiverResampler

    return PerceiverResampler(config)


CONNECTORS = (
    ConnectorRow(
        "TomeFormer",
        TomeFormerConfig,
        _tomeformer,
        Look("EVLGen", "#0072B2", "o"),
        has_bert=True,
    ),
    ConnectorRow(
        "Q-Former",
        QFormerConfig,
        _qformer,
        Look("BLIP-2, single stage", "#E69F00", "^"),
        two_stage_look=Look("BLIP-2, two stages", "#D55E00", "s"),
        has_bert=True,
    ),
    ConnectorRow(
        "linear",
        LinearConfig,
        _linear,
        Look("linear", "#009E73", "D"),
        fits=lambda config: config.num_layers < 2,
    ),
    ConnectorRow(
        "MLP",
        LinearConfig,
        _linear,
        Look("MLP", "#56B4E9", "v"),
        fits=lambda config: config.num_layers >= 2,
    ),
    ConnectorRow(
        "average pooling",
        PoolConfig,
        _pool,
        Look("average pooling", "#CC79A7", "P"),
    ),
    ConnectorRow(
        "perceiver",
        PerceiverConfig,
        _perceiver,
        Look("perceiver", "#000000", "X"),
    ),
)
LOOKS: Mapping[str, Look] = {
    look.name: look for row in CONNECTORS for look in (row.look, row.two_stage_look) if look is not None
}


def row_of(config: ConnectorConfig) -> ConnectorRow:
    """The row about a configuration."""
    return next(row for row in CONNECTORS if isinstance(config, row.config) and row.fits(config))


def look_of(run: RunConfig) -> Look:
    """How figures show a run's connector; one that started from a stage 1 may look different."""
    row = row_of(run.connector)
    return row.look if run.init_from is None or row.two_stage_look is None else row.two_stage_look


def build_connector(config: ConnectorConfig, vocab_size: int = 0) -> Connector:
    """The module of a connector: random weights, or BERT's where ``init`` names them.

    Random weights come from torch's global generator: seed it before.

    Args:
        config: its ``vocab_size`` is not used: whether there is a text branch depends on the stage alone.
        vocab_size: of the Q-Former's text branch; 0 leaves it out.

    Raises:
        UserError: a config value is wrong, or the weights that ``init`` names cannot be had or do not fit.
    """
    row = row_of(config)
    if config.init != "random" and not row.has_bert:
        raise UserError(
            f"connector.init {config.init!r}: a {config.kind} connector has no BERT in it; set it to random"
        )
    if isinstance(config, QFormerConfig):
        config = dataclasses.replace(config, vocab_size=vocab_size)
    return row.build(config)
