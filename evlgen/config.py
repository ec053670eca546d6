"""The full description of one run, as frozen dataclasses, and its JSON form.

A run is a training plus an evaluation with one seed. Everything that changes its numbers is a field here, so
that the JSON form identifies it, together with its data, its weights and the behaviour of the components that
it uses (`evlgen.runs.identity`). Committed runs are read back: no field may be renamed, no default changed.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from evlgen.errors import UserError, nearest

Schedule = int | tuple[int, ...]
Objective = Literal["itc", "itm", "lm"]
Conventions = Literal["plain", "authors"]


@dataclass(frozen=True)
class TomeFormerConfig:
    """TomeFormer, EVLGen's connector (paper: BERT-base, 12 layers, r = 19, 257 -> 29 tokens).

    Attributes:
        input_width: width of the image features.
        width, num_layers, num_heads, intermediate, max_positions: sizes of the BERT encoder.
        r: merge schedule in ToMe's notation: ``19`` merges 19 tokens in each layer, ``(19, -1)`` is
            (r, inflection), linear in depth, and a tuple of ``num_layers`` numbers gives each layer's own.
        metric: what similarity is measured on: the attention's ``keys``, averaged over heads (paper), the
            layer's ``features``, or ``random`` numbers; ``position`` merges neighbours whatever they contain,
            which is plain pooling (`evlgen.merging.position_matching`).
        reduce: plain ``mean`` of the tokens merged in a layer (paper), or ``weighted`` by how many input
            tokens each of them stands for (ToMe).
        proportional_attention: add log(size) to the attention scores (ToMe; not in the paper).
        class_token: position 0 is a class token and is never merged.
        dropout: of hidden states and attention weights, as in BERT.
        init: initial weights: ``random``, or the name of a BERT (paper: ``bert-base-uncased``).
        similarity: precision of the similarities that decide what is merged: ``single``, ``half``, which is
            that of mixed precision where it is on, or ``auto``: by the run's conventions.
    """

    kind: Literal["tomeformer"] = "tomeformer"
    input_width: int = 1408
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512
    r: Schedule = 19
    metric: Literal["keys", "features", "random", "position"] = "keys"
    reduce: Literal["mean", "weighted"] = "mean"
    proportional_attention: bool = False
    class_token: bool = True
    dropout: float = 0.1
    init: str = "random"
    similarity: Literal["auto", "single", "half"] = "auto"


@dataclass(frozen=True)
class QFormerConfig:
    """Q-Former of BLIP-2 (paper: BERT-base, 32 queries, cross-attention in every second layer).

    Attributes:
        encoder_width: width of the image features that the queries attend to.
        width, num_layers, num_heads, intermediate, max_positions: sizes of the BERT encoder.
        num_queries: learned queries: the soft tokens.
        cross_attention_every: layers from one with cross-attention to the next.
        vocab_size: size of the text vocabulary of stage 1; 0 omits the text branch (stage 2).
        embed_dim: width of the joint space of the contrastive loss (BLIP-2: 256).
        dropout: of hidden states and attention weights, as in BERT.
        init: initial weights: ``random``, or the name of a BERT (paper: ``bert-base-uncased``).
    """

    kind: Literal["qformer"] = "qformer"
    encoder_width: int = 1408
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512
    num_queries: int = 32
    cross_attention_every: int = 2
    vocab_size: int = 0
    embed_dim: int = 256
    dropout: float = 0.1
    init: str = "random"

    @property
    def input_width(self) -> int:
        """``encoder_width``, under the name that the other connectors have for it."""
        return self.encoder_width


@dataclass(frozen=True)
class LinearConfig:
    """LLaVA's connector: every image token goes to the language model, through nothing but linear layers.

    Attributes:
        input_width: width of the image features.
        width: of the hidden layers (LLaVA-1.5: the language model's width); equal to ``input_width`` if there
            is one layer, and so no hidden one.
        num_layers: linear layers, with a GELU between them: 1 is LLaVA's, 2 the MLP of LLaVA-1.5. The last
            one is the model's projection to the width of the language model.
        init: ``random``; there is no BERT in it.
    """

    kind: Literal["linear"] = "linear"
    input_width: int = 1408
    width: int = 1408
    num_layers: int = 1
    init: str = "random"


@dataclass(frozen=True)
class PoolConfig:
    """Average pooling of the square of patches; the defaults give 29 tokens, as many as TomeFormer's.

    Attributes:
        input_width: width of the image features.
        rows, columns: of the grid that the patches are pooled to.
        class_token: position 0 is a class token; it stays in front, unchanged.
        init: ``random``; there is no BERT in it.
    """

    kind: Literal["pool"] = "pool"
    input_width: int = 1408
    rows: int = 4
    columns: int = 7
    class_token: bool = True
    init: str = "random"

    @property
    def width(self) -> int:
        """Width of the output, that of the image features."""
        return self.input_width


@dataclass(frozen=True)
class PerceiverConfig:
    """Flamingo's perceiver resampler, of TomeFormer's size: as deep, as wide, as many soft tokens.

    Flamingo's has 6 layers; with 12 it has as many parameters as a TomeFormer of BERT-base's size, so that
    only the way in which tokens are reduced differs.

    Attributes:
        input_width: width of the image features.
        width, num_layers, num_heads, intermediate: sizes of the layers.
        max_positions: limit to the number of image tokens, each of which has a learned position.
        num_latents: learned vectors that attend to the image: the soft tokens (Flamingo: 64).
        init: ``random``; there is no BERT in it.
    """

    kind: Literal["perceiver"] = "perceiver"
    input_width: int = 1408
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512
    num_latents: int = 29
    init: str = "random"


ConnectorConfig = TomeFormerConfig | QFormerConfig | LinearConfig | PoolConfig | PerceiverConfig


@dataclass(frozen=True)
class DataConfig:
    """Which image-text pairs are drawn, and how.

    Attributes:
        world: data family: ``miniworld`` (drawn on the fly), ``capfilt`` (the real sets of the paper scale)
            or ``folder`` (one's own images), see `evlgen.data.worlds`.
        pools: pool name -> number of pairs; pairs are sampled in proportion to these numbers
            (paper: LAION-115M : CCS-14M : COCO = 15 : 4 : 1).
        cache: compute the features of all training images once and keep them. Otherwise each image is
            decoded, cropped, flipped and encoded anew whenever it is drawn (paper).
        views: augmented views (random resized crops) cached for each image; 1 is the plain image.
        max_text_tokens: captions are cut to this many tokens, including the closing newline (paper: 32).
    """

    world: str = "miniworld"
    pools: tuple[tuple[str, int], ...] = (("web", 6000), ("ccs", 1600), ("coco", 400))
    cache: bool = True
    views: int = 1
    max_text_tokens: int = 32


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay; the defaults are the settings of the paper's authors.

    Attributes:
        steps: number of updates.
        batch_size: pairs in one update, over all devices and micro-batches.
        lr, warmup_lr, min_lr: learning rate at its peak, at the start of the warm-up, and at the end of the
            cosine.
        warmup_steps: updates of the warm-up.
        weight_decay: not applied to biases and normalisation weights.
        clip_norm: limit of the gradient's norm; 0 turns clipping off.
        precision: ``fp32``, or ``bf16`` or ``fp16`` autocast (fp16 with a gradient scaler).
        eval_every: updates between two validations with collapse diagnostics.
        checkpoint_every: updates between two checkpoints.
        accumulate: micro-batches that the batch of an update is computed in, one after the other. The
            gradient is that of the whole batch; only stage 1 takes its negatives from the micro-batch (over
            all devices).
        gradient_checkpointing: recompute the activations of connector and language model in the backward pass
            instead of keeping them: less memory, the same bits, about a third more time. (The frozen image
            encoder needs no gradient and keeps none.)
        llm_placement: ``replicate`` keeps the frozen language model whole on each device; ``shard`` spreads
            its layers over the devices (FSDP2), for models that do not fit.
        compile: have torch.compile fuse what lies between the matrix products: of connector, language model
            and, where images are encoded in each step, of the image encoder. Minutes at the start, other
            roundings and another dropout, so another run.
    """

    steps: int = 250_000
    batch_size: int = 1600
    lr: float = 1e-4
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    warmup_steps: int = 5000
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    clip_norm: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    eval_every: int = 5000
    checkpoint_every: int = 5000
    accumulate: int = 1
    gradient_checkpointing: bool = False
    llm_placement: Literal["replicate", "shard"] = "replicate"
    compile: bool = False


@dataclass(frozen=True)
class EvalConfig:
    """How many examples of each evaluation set are used, and how they are decoded.

    Attributes:
        sets: evaluation set -> number of images (captioning) or questions; all if there are fewer; 0: none.
        validation: number of pairs for the validation loss and the collapse diagnostics.
        batch_size: examples decoded together.
        beams, min_length, max_length: caption decoding, in generated tokens (paper: 5, 8, 30), with one
            in front of them by the authors' conventions.
        answer_max_length: tokens of an answer (paper: 10; beam 5, length penalty 0).
    """

    sets: tuple[tuple[str, int], ...] = ()
    validation: int = 256
    batch_size: int = 128
    beams: int = 5
    min_length: int = 8
    max_length: int = 30
    answer_max_length: int = 10


@dataclass(frozen=True)
class RunConfig:
    """One run: one training and its evaluation, with one seed.

    Attributes:
        stage: ``caption`` trains the connector through the frozen LLM (EVLGen's only stage, BLIP-2's
            stage 2); ``represent`` is BLIP-2's stage 1 (ITC + ITM + image-grounded LM, no LLM).
        objectives: the losses that the stage ``represent`` sums; others are not computed. The stage
            ``caption`` has one loss and ignores them.
        init_from: the ``represent`` run whose connector this run starts from, or None.
        vision, language: names of the frozen image encoder and of the frozen LLM, or the LLM's folder. In the
            stage ``represent`` ``language`` names the BERT whose words the Q-Former reads; empty: that of
            ``connector.init``.
        conventions: what the paper's text leaves open: ``plain``, as the documentation of each part says, or
            ``authors``, as the code of the paper's authors does it (`evlgen.conventions`).
    """

    connector: ConnectorConfig = field(default_factory=TomeFormerConfig)
    vision: str = "mini-vit"
    language: str = "mini-opt"
    stage: Literal["caption", "represent"] = "caption"
    objectives: tuple[Objective, ...] = ("itc", "itm", "lm")
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    init_from: RunConfig | None = None
    seed: int = 0
    conventions: Conventions = "plain"


def to_json(config: Any) -> dict[str, Any]:
    """Plain JSON form (nested dicts, lists, numbers, strings, None) of a config dataclass."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_json(data: dict[str, Any]) -> RunConfig:
    """RunConfig from its JSON form.

    Raises:
        UserError: a key is unknown or a value has the wrong type; the message names it.
    """
    config = _build(RunConfig, data, "")
    assert isinstance(config, RunConfig)
    return config


def with_value(config: RunConfig, key: str, text: str) -> RunConfig:
    """Copy of ``config`` whose field at dotted ``key`` (``optim.lr``) has the value ``text`` (``--set``).

    Raises:
        UserError: unknown key (the message lists those that exist) or a text of the wrong type.
    """
    return typing.cast(RunConfig, _replace(config, key.split("."), text, key, config))


def _keys(node: Any) -> list[str]:
    """Dotted keys of all fields that hold a value."""
    keys = []
    for field_ in dataclasses.fields(node):
        value = getattr(node, field_.name)
        group = _keys(value) if dataclasses.is_dataclass(value) else []
        keys += [f"{field_.name}.{key}" for key in group] or [field_.name]
    return keys


def _similar(key: str, root: Any) -> str:
    keys = _keys(root)
    ends = [one for one in keys if one.endswith(f".{key}")]
    return f"; did you mean {ends[0]}?" if ends else nearest(key, keys)


# The width of the image features has two names (BLIP-2's and the other connectors'): either sets all rows.
_SAME_WIDTH = {"input_width": "encoder_width", "encoder_width": "input_width"}


def _replace(node: Any, path: list[str], text: str, key: str, root: Any) -> Any:
    names = [f.name for f in dataclasses.fields(node)]
    if path[0] not in names and (other := _SAME_WIDTH.get(path[0])) in names:
        path = [str(other), *path[1:]]
    if path[0] not in names:
        raise UserError(f"--set {key}: no such key; there are: {', '.join(names)}{_similar(key, root)}")
    old = getattr(node, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(old):
            raise UserError(f"--set {key}: {path[0]} has no fields of its own")
        return dataclasses.replace(node, **{path[0]: _replace(old, path[1:], text, key, root)})
    if dataclasses.is_dataclass(old):
        inner = ", ".join(f"{key}.{f.name}" for f in dataclasses.fields(old))
        raise UserError(f"--set {key}: is a group; set one of {inner}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    hint = typing.get_type_hints(type(node))[path[0]]
    return dataclasses.replace(node, **{path[0]: _build(hint, value, f"--set {key}")})


def _build(hint: Any, value: Any, where: str) -> Any:
    """Value of type ``hint`` from JSON ``value``; ``where`` names the place in messages."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if isinstance(value, dict):
            for option in options:
                if dataclasses.is_dataclass(option) and _kind(option) in (None, value.get("kind")):
                    return _build(option, value, where)
            raise UserError(f"{where or 'config'}: unknown kind {value.get('kind')!r}")
        for option in options:
            if dataclasses.is_dataclass(option):
                continue
            try:
                return _build(option, value, where)
            except UserError:
                continue
        raise UserError(f"{where}: {value!r} is not {_type_name(hint)}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{where or 'config'}: expected an object, got {value!r}")
        hints = typing.get_type_hints(hint)
        names = [f.name for f in dataclasses.fields(hint)]
        for name in value:
            if name not in names:
                raise UserError(
                    f"{where}.{name}".lstrip(".") + f": no such key; there are: {', '.join(names)}"
                )
        return typing.cast(Any, hint)(
            **{
                name: _build(hints[name], entry, f"{where}.{name}".lstrip("."))
                for name, entry in value.items()
            }
        )
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: {value!r} is not a list")
        items = typing.get_args(hint)
        if len(items) == 2 and items[1] is Ellipsis:
            return tuple(_build(items[0], entry, where) for entry in value)
        if len(items) != len(value):
            raise UserError(f"{where}: {value!r} does not have {len(items)} entries")
        return tuple(_build(item, entry, where) for item, entry in zip(items, value, strict=True))
    if hint is type(None):
        if value is not None:
            raise UserError(f"{where}: {value!r} is not null")
        return None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where}: {value!r} is not {_type_name(hint)}")
    return value


def _kind(option: Any) -> str | None:
    """Default of the ``kind`` field, which distinguishes the members of a union of dataclasses."""
    for f in dataclasses.fields(option):
        if f.name == "kind":
            return typing.cast(str, f.default)
    return None


def _type_name(hint: Any) -> str:
    """What a value of this type is called, for the end of "is not"."""
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(item) for item in items)
    if origin is tuple:
        plural = {int: "whole numbers", float: "numbers", str: "names"}.get(items[0], "entries")
        return f"a list of {plural}"
    if dataclasses.is_dataclass(hint):
        return "an object with fields"
    known = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return known.get(hint, str(hint))
