"""What a configuration may say: the range of every number in it, and what must fit together.

A dry run asks for this before anything is read, so it needs no torch. What only the data or a machine can
tell (too few pairs, no GPU) is asked for elsewhere, also before a training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from evlgen.schedule import merge_schedule, token_counts

# Tokens of an image, its class token among them, by the name of the encoder; of a path only its weights know.
IMAGE_TOKENS = {"mini-vit": 65, "mini-clip": 65, "eva-clip-g": 257, "clip-vit-l": 257}
POSITIONS = {"mini-opt": 256, "opt-2.7b": 2048, "opt-6.7b": 2048}  # of language models that learn them
IMAGE_WIDTHS = {"mini-vit": 96, "mini-clip": 64}  # of their features; the others' files are looked at


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, ``high`` itself unless ``below``."""

    low: float
    high: float = math.inf
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in it; NaN and infinity are in none."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return value >= self.low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{self.low:g} or more"
        return f"{self.low:g} to {'below ' if self.below else ''}{self.high:,.0f}"


_MOST = 1_000_000_000  # beyond it numbers of pairs, tokens or updates overflow, or are a slip of the hand
_COUNT, _ANY = Range(1, _MOST), Range(0, _MOST)
_LAYERS = Range(1, 10_000)  # a list as long as this is made of them before anything else can be asked
_SIZE = Range(0, 2**62)  # of a pool: that of one that is drawn has no end
_SHARE = Range(0, 1, below=True)
# By the name of the field, dotted within its group; connectors share theirs.
RANGES: dict[str, Range] = {
    **{
        f"connector.{name}": _COUNT
        for name in (
            *("input_width", "encoder_width", "width", "num_heads", "intermediate"),
            *("max_positions", "num_queries", "cross_attention_every", "embed_dim", "num_latents"),
            *("rows", "columns"),
        )
    },
    "connector.num_layers": _LAYERS,
    "connector.vocab_size": _ANY,
    "connector.dropout": _SHARE,
    "data.views": _COUNT,
    "data.max_text_tokens": Range(3, _MOST),  # a first token, a word and a closing one
    "optim.steps": _COUNT,
    "optim.batch_size": _COUNT,
    "optim.lr": Range(0),
    "optim.warmup_lr": Range(0),
    "optim.min_lr": Range(0),
    "optim.warmup_steps": _ANY,
    "optim.betas": _SHARE,
    "optim.weight_decay": Range(0),
    "optim.clip_norm": Range(0),
    "optim.eval_every": _COUNT,
    "optim.checkpoint_every": _COUNT,
    "optim.accumulate": _COUNT,
    "evaluation.validation": Range(2, _MOST),  # to be shuffled
    "evaluation.batch_size": _COUNT,
    "evaluation.beams": Range(1, 1000),
    "evaluation.min_length": _ANY,
    "evaluation.max_length": _COUNT,
    "evaluation.answer_max_length": _COUNT,
    "seed": Range(0, 2**63 - 1),
}


def check(config: RunConfig, tokens: int | None = None) -> None:
    """Refuse a configuration that no training could come of.

    Args:
        tokens: of an image; None: those of an encoder that is known by its name.

    Raises:
        UserError: a number is out of its range, or values do not fit together; the message names the field,
            in the stage that a run starts from with ``stage1.`` in front.
    """
    for stage, one in (("", config), ("stage1.", config.init_from)):
        if one is not None:
            try:
                _check(one, tokens or IMAGE_TOKENS.get(one.vision))
                if tokens is None:
                    _fits(one)
            except UserError as error:
                raise UserError(f"{stage}{error}") from None
    first = config.init_from
    if first is None:
        return
    if first.init_from is not None:
        raise UserError("init_from: the stage 1 that a run starts from starts from nothing itself")
    if (config.stage, first.stage) != ("caption", "represent"):
        raise UserError("init_from: only a run of the stage 'caption' can start from one of 'represent'")
    if not isinstance(config.connector, QFormerConfig):
        raise UserError(
            "init_from: stage 1 can only be followed by a Q-Former; set connector.kind to qformer"
        )


def _check(config: RunConfig, tokens: int | None) -> None:
    _numbers(config, "")
    _connector(config.connector, tokens)
    _pools_and_sets(config)
    optim, evaluation = config.optim, config.evaluation
    if optim.batch_size % optim.accumulate:
        raise UserError(
            f"optim.batch_size {optim.batch_size}: cannot be split evenly into optim.accumulate = "
            f"{optim.accumulate} parts; make it a multiple of {optim.accumulate}"
        )
    if optim.compile and (optim.gradient_checkpointing or optim.llm_placement == "shard"):
        other = "gradient_checkpointing" if optim.gradient_checkpointing else "llm_placement=shard"
        raise UserError(f"optim.compile: not together with optim.{other}; leave one of them out")
    shortest, longest = evaluation.min_length, evaluation.max_length
    if shortest > longest:
        raise UserError(f"evaluation.min_length is {shortest}: above evaluation.max_length, {longest}")
    if config.conventions == "authors":  # a token in front counts
        for name in ("max_length", "answer_max_length"):
            if (value := getattr(evaluation, name)) < 2:
                raise UserError(
                    f"evaluation.{name} is {value}: with conventions = authors it must be 2 or more"
                )
    positions = POSITIONS.get(config.language)
    if config.stage == "caption" and positions is not None:
        soft = soft_tokens(config.connector, tokens)
        for name, length in (
            ("data.max_text_tokens", config.data.max_text_tokens),
            ("evaluation.max_length", longest),
        ):
            if soft is not None and soft + 1 + length > positions:
                raise UserError(
                    f"{name} is {length}: with {soft} soft tokens in front, {config.language} has room for "
                    f"{positions - soft - 1}"
                )
    objectives(config.objectives)
    if config.stage == "represent":
        if not isinstance(config.connector, QFormerConfig):
            raise UserError("stage 'represent': it is a stage of the Q-Former; set connector.kind to qformer")
        if optim.batch_size // optim.accumulate < 2 and tuple(config.objectives) != ("lm",):
            raise UserError(
                f"optim.batch_size is {optim.batch_size}: stage 1 takes its negatives from the batch (or, "
                "with optim.accumulate, from a part of it), which needs at least 2 pairs"
            )
        if (text := config.data.max_text_tokens) > config.connector.max_positions:
            raise UserError(
                f"connector.max_positions is {config.connector.max_positions}: a text has up to {text} tokens"
            )


def _fits(config: RunConfig) -> None:
    """The connector takes features of the width that a known encoder gives."""
    width, wanted = IMAGE_WIDTHS.get(config.vision), config.connector.input_width
    if width not in (None, wanted):
        raise UserError(
            f"connector.input_width is {wanted}: {config.vision} gives image features of width {width}"
        )


def soft_tokens(connector: ConnectorConfig, tokens: int | None) -> int | None:
    """How many soft tokens a connector makes of an image; None where its encoder alone can tell."""
    match connector:
        case QFormerConfig():
            return connector.num_queries
        case PerceiverConfig():
            return connector.num_latents
        case PoolConfig():
            return connector.rows * connector.columns + connector.class_token
        case TomeFormerConfig() if tokens is not None:
            return tokens - sum(merge_schedule(connector.num_layers, connector.r))
        case _:
            return tokens


def objectives(names: Sequence[str]) -> None:
    """Refuse losses of stage 1 that cannot be summed.

    Raises:
        UserError: the list is empty, or a loss is repeated.
    """
    if not names:
        raise UserError("objectives: is empty; stage 1 needs at least one of itc, itm, lm")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"objectives: {name} is listed more than once")


def _numbers(group: Any, prefix: str) -> None:
    """Every number of a group of fields is in its range."""
    for field in dataclasses.fields(group):
        name, value = f"{prefix}{field.name}", getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            if not isinstance(value, RunConfig):
                _numbers(value, f"{name}.")
            continue
        if name not in RANGES:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            if not RANGES[name].holds(one):
                finite = "" if math.isfinite(one) else "a finite number, "
                raise UserError(f"{name} is {one}: it must be {finite}{RANGES[name]}")


def _connector(connector: ConnectorConfig, tokens: int | None) -> None:
    match connector:
        case TomeFormerConfig() | QFormerConfig() | PerceiverConfig() if (
            connector.width % connector.num_heads
        ):
            raise UserError(
                f"connector.num_heads is {connector.num_heads}: {connector.width}, the width, is no multiple"
            )
        case LinearConfig() if connector.num_layers == 1 and connector.width != connector.input_width:
            raise UserError(
                f"connector.width is {connector.width}: one linear layer has no hidden one, so it must be "
                f"connector.input_width, {connector.input_width}"
            )
    if isinstance(connector, TomeFormerConfig):
        try:
            schedule = merge_schedule(connector.num_layers, connector.r)
            if tokens is not None:
                token_counts(tokens, schedule, connector.class_token)
        except UserError as error:
            raise UserError(f"connector.{error}") from None
    if tokens is None:
        return
    most = getattr(connector, "max_positions", tokens)
    if not isinstance(connector, QFormerConfig) and tokens > most:
        raise UserError(f"connector.max_positions is {most}: an image has {tokens} tokens")
    if isinstance(connector, PoolConfig):
        side = math.isqrt(tokens - connector.class_token)
        for name in ("rows", "columns"):
            if (value := getattr(connector, name)) > side:
                raise UserError(f"connector.{name} is {value}: an image has {side} x {side} patches")


def _pools_and_sets(config: RunConfig) -> None:
    for name, entries in (("data.pools", config.data.pools), ("evaluation.sets", config.evaluation.sets)):
        for entry, size in entries:
            if not _SIZE.holds(size):
                raise UserError(f"{name}: {entry} is {size}: it must be {_SIZE}")
            if name == "evaluation.sets" and size == 0:  # its column would be empty, after all training
                raise UserError(f"{name}: {entry} is 0: nothing to evaluate on; leave {entry} out")
            if [one for one, _ in entries].count(entry) > 1:
                raise UserError(f"{name}: {entry} is listed more than once")
    if not any(size for _, size in config.data.pools):
        raise UserError("data.pools: there is no pair in any pool")
