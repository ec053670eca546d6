"""Published checkpoints as ours, and back: ``python -m evlgen.interop.convert CHECKPOINT OUT``.

Understood are the authors' EVLGen (as their fork of LAVIS saves it), BLIP-2 of both stages as LAVIS saves it,
and BLIP-2 as `transformers` saves it. What is frozen in these models is not part of the outcome: it is what
the run's ``vision`` and ``language`` name. With a run's folder in the place of CHECKPOINT it goes the other
way: OUT is then a file, .pth or .safetensors, with the names of the authors' code (of a Q-Former: LAVIS's).
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from evlgen import qformer, tomeformer
from evlgen.backbones.pretrained import read_state
from evlgen.bert import Names, cross_attention_names, linear_names
from evlgen.config import ConnectorConfig, QFormerConfig, RunConfig, TomeFormerConfig, to_json
from evlgen.connectors import build_connector
from evlgen.errors import UserError, exit_code
from evlgen.interop.run_folders import read_run_config, trained_weights
from evlgen.runs.folder import CONFIG, CONNECTOR, write_json, write_outcome
from evlgen.runtime.arguments import Parser
from evlgen.runtime.files import sha256_of, write_atomic
from evlgen.runtime.paths import absolute, settle

log = logging.getLogger(__name__)

TEMPORAL = "temporal.safetensors"
Layout = Literal["evlgen", "lavis", "transformers"]

# The language model that a projection to this width leads to, where the authors of both papers had but one.
LANGUAGES = {
    ("opt_proj", 2560): "opt-2.7b",
    ("opt_proj", 4096): "opt-6.7b",
    ("llm_proj", 4096): "vicuna-7b",
    ("llm_proj", 5120): "vicuna-13b",
    ("t5_proj", 2048): "flan-t5-xl",
    ("language_projection", 2560): "opt-2.7b",
    ("language_projection", 4096): "opt-6.7b",
    ("language_projection", 2048): "flan-t5-xl",
}
PROJECTIONS = ("opt_proj", "llm_proj", "t5_proj", "language_projection")
_MARKS: dict[Layout, str] = {"evlgen": "VLconnector.", "lavis": "Qformer.bert.", "transformers": "qformer."}
_FROZEN = re.compile(r"(visual_encoder|vision_model|opt_model|t5_model|llm_model|language_model)\.")
_LAYER = re.compile(r"(?:VLconnector|Qformer\.bert|qformer)\.encoder\.layer\.(\d+)\.")
_TEMPORAL = re.compile(r"visual_encoder\.(?=blocks\.\d+\.temporal_merge\.)")


@dataclass(frozen=True, eq=False)
class Converted:
    """What a checkpoint holds, under our names.

    Attributes:
        connector: the configuration it fits, with the vocabulary of a stage 1.
        stage: ``caption``: state of a `CaptionModel`; ``represent``: of a `Stage1Model`.
        tensors: that state, float32 at least.
        temporal: the temporal modules of a video model, called as in its image encoder
            (``blocks.0.temporal_merge.alpha``); empty for an image model.
        language: the language model that the projection's name and width stand for; empty if unknown.
        unknown: keys of the checkpoint that nothing is known of.
    """

    connector: ConnectorConfig
    stage: Literal["caption", "represent"]
    tensors: dict[str, Tensor]
    temporal: dict[str, Tensor]
    language: str
    unknown: tuple[str, ...]


def convert(path: Path, connector: ConnectorConfig | None = None) -> Converted:
    """Read a published checkpoint: a .pth or .safetensors file, or a folder of the latter.

    Args:
        connector: the architecture it must have; None: the paper's (of the kind that the checkpoint has).

    Raises:
        UserError: the file cannot be read, is none of those known, or of another architecture; then the
            message names the first key that does not fit, its shape and the one wanted.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    state = {key: value for key, value in read_state(path).items() if isinstance(value, Tensor)}
    layout = _layout(state, path)
    if connector is None:
        connector = TomeFormerConfig() if layout == "evlgen" else QFormerConfig()
    if not isinstance(connector, TomeFormerConfig if layout == "evlgen" else QFormerConfig):
        raise UserError(f"{path}: keys {_MARKS[layout]}* are no {connector.kind}; choose the other connector")
    connector = dataclasses.replace(connector, init="random")
    projection = next((name for name in PROJECTIONS if f"{name}.weight" in state), "")
    stage: Literal["caption", "represent"] = "caption"
    if isinstance(connector, QFormerConfig):
        words = state.get(f"{_embeddings(layout)}.word_embeddings.weight")
        if not projection and words is not None:
            stage = "represent"
            connector = dataclasses.replace(connector, vocab_size=connector.vocab_size or len(words))
        else:
            connector = dataclasses.replace(connector, vocab_size=0)

    layers = 1 + max((int(found[1]) for key in state if (found := _LAYER.match(key))), default=-1)
    if layers > connector.num_layers:
        raise UserError(f"{path}: another architecture: {layers} layers, expected {connector.num_layers}")
    names = checkpoint_names(connector, layout, projection or PROJECTIONS[0])
    shapes = _shapes(connector, len(state.get(f"{projection}.weight", ())))
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for ours, shape in shapes.items():
        keys = names[ours]
        parts = [_take(state, key, _their_shape(ours, shape, len(keys)), path) for key in keys]
        tensors[ours] = _as_ours(ours, torch.cat(parts) if len(parts) > 1 else parts[0], path)
        used.update(keys)
    used |= _check_generation_head(state, tensors, path)
    temporal = {_TEMPORAL.sub("", key): value for key, value in state.items() if _TEMPORAL.match(key)}
    unknown = [
        key for key in state if key not in used and not _FROZEN.match(key) and "position_ids" not in key
    ]
    width = len(tensors["projection.bias"]) if stage == "caption" else 0
    language = LANGUAGES.get((projection, width), "")
    return Converted(connector, stage, tensors, temporal, language, tuple(unknown))


def _layout(state: Mapping[str, Tensor], path: Path) -> Layout:
    for layout, mark in _MARKS.items():
        if any(key.startswith(mark) for key in state):
            return layout
    found = ", ".join(list(state)[:3]) or "no tensors at all"
    wanted = ", ".join(f"{mark}*" for mark in _MARKS.values())
    raise UserError(f"{path}: no checkpoint that is known: has {found}; expected one of {wanted}")


# ---------------------------------------------------------------------------------------------- names


def checkpoint_names(connector: ConnectorConfig, layout: Layout, projection: str) -> Names:
    """Where each tensor of our model is found in a checkpoint."""
    # transformers computes this norm with its encoder's eps (1e-6), LAVIS with 1e-5, as we do
    norm = "vision_model.post_layernorm" if layout == "transformers" else "ln_vision"
    inside = tomeformer_names(connector) if isinstance(connector, TomeFormerConfig) else {}
    if isinstance(connector, QFormerConfig):
        inside = qformer_names(connector, layout)
    return (
        linear_names("norm", norm)
        | {f"connector.{ours}": theirs for ours, theirs in inside.items()}
        | linear_names("projection", projection)
    )


def tomeformer_names(config: TomeFormerConfig) -> Names:
    """`TomeFormer` in the authors' checkpoints: a BERT without word embeddings and pooler."""
    inside = tomeformer.bert_names(config.num_layers)
    names = {ours: tuple(f"VLconnector.{name}" for name in theirs) for ours, theirs in inside.items()}
    return linear_names("input_projection", "VL_proj") | names


def qformer_names(config: QFormerConfig, layout: Layout) -> Names:
    """`QFormer` in the checkpoints of BLIP-2; with a vocabulary also the text branch and heads of stage 1."""
    lavis = layout == "lavis"
    root, inner = ("Qformer.bert", "self") if lavis else ("qformer", "attention")

    def placed(name: str) -> str:
        """Where the layout has what a BERT calls ``name``."""
        if name.startswith("cls."):
            return f"Qformer.{name}"
        if lavis or name.startswith("encoder."):
            return f"{root}.{name}"
        return name.replace("embeddings.LayerNorm", "qformer.layernorm")

    inside = qformer.bert_names(config, "_query", inner)
    names = {ours: tuple(map(placed, theirs)) for ours, theirs in inside.items()}
    names["queries"] = ("query_tokens",)
    for index in range(config.num_layers):
        theirs = f"{root}.encoder.layer.{index}.crossattention"
        names |= cross_attention_names(f"layers.{index}.cross", theirs, inner)
    names |= linear_names("image_projection", "vision_proj" if lavis else "vision_projection")
    names |= linear_names("text_projection", "text_proj" if lavis else "text_projection")
    names |= linear_names("matching_head", "itm_head")
    names["log_temperature"] = ("temp",)
    return names


def _embeddings(layout: Layout) -> str:
    """Where the word embeddings of a Q-Former are."""
    return "embeddings" if layout == "transformers" else "Qformer.bert.embeddings"


# --------------------------------------------------------------------------------- shapes and tensors


def _shapes(connector: ConnectorConfig, language_width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our trained tensors; a ``language_width`` of 0: no projection (stage 1)."""
    with torch.device("meta"):
        vocab_size = connector.vocab_size if isinstance(connector, QFormerConfig) else 0
        inside = build_connector(connector, vocab_size).state_dict()
    width = connector.input_width
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {f"connector.{name}": tuple(tensor.shape) for name, tensor in inside.items()}
    if not vocab_size:
        shapes["projection.weight"] = (language_width, connector.width)
        shapes["projection.bias"] = (language_width,)
    return shapes


def _their_shape(ours: str, shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    if ours == "connector.queries":
        return (1, *shape)
    if ours == "connector.token_type":
        return (2, *shape[1:])  # of BERT's two sentences; an image is the first
    return (shape[0] // parts, *shape[1:]) if shape else shape


def _take(state: Mapping[str, Tensor], key: str, shape: tuple[int, ...], path: Path) -> Tensor:
    found = tuple(state[key].shape) if key in state else None
    if found != shape:
        raise UserError(
            f"{path}: another architecture: {key} "
            + ("is missing" if found is None else f"has shape {found}")
            + f", expected {shape}"
        )
    tensor = state[key]
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _as_ours(ours: str, tensor: Tensor, path: Path) -> Tensor:
    if ours == "connector.queries":
        return tensor[0]
    if ours == "connector.token_type":
        return tensor[:1]
    if ours == "connector.log_temperature":
        if not float(tensor) > 0:
            raise UserError(f"{path}: temp is {float(tensor):g}: a temperature must be above 0")
        return tensor.log()
    return tensor


def _check_generation_head(
    state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path
) -> set[str]:
    """The keys that a head tied to the word embeddings repeats.

    Raises:
        UserError: they are not the same, and our head, which is tied, could not hold them.
    """
    repeated = {
        "Qformer.cls.predictions.decoder.weight": "connector.words.weight",
        "Qformer.cls.predictions.decoder.bias": "connector.generation_bias",
    }
    found = {key for key, ours in repeated.items() if key in state and ours in tensors}
    for key in sorted(found):
        if not state[key].to(tensors[repeated[key]].dtype).equal(tensors[repeated[key]]):
            raise UserError(f"{path}: {key} is not tied as in BLIP-2: it differs from the tensor it repeats")
    return found


# ---------------------------------------------------------------------------------------- the other way


def export(folder: Path, out: Path) -> Layout:
    """Write a run's trained parts as the authors' code, or LAVIS's for a Q-Former, saves them.

    Args:
        folder: of the run, of either stage.
        out: a ``.pth``, as ``{"model": tensors}``, or a ``.safetensors``.

    Returns:
        Whose names they have.

    Raises:
        UserError: the run has no weights or they are damaged, there is no published form of its connector,
            or the file has another ending or cannot be written.
    """
    if out.suffix not in (".pth", ".safetensors"):
        raise UserError(f"{out}: a run is written into a file that ends in .pth or .safetensors")
    config = read_run_config(folder / CONFIG)
    if not isinstance(config.connector, TomeFormerConfig | QFormerConfig):
        raise UserError(
            f"{folder}: the connector {config.connector.kind!r} has no published form; "
            "tomeformer and qformer have"
        )
    tensors = read_state(trained_weights(folder))
    connector = config.connector
    layout: Layout = "evlgen" if isinstance(connector, TomeFormerConfig) else "lavis"
    if isinstance(connector, QFormerConfig) and "connector.words.weight" in tensors:
        connector = dataclasses.replace(connector, vocab_size=len(tensors["connector.words.weight"]))
    names = checkpoint_names(connector, layout, _projection_of(config.language))
    state: dict[str, Tensor] = {}
    for ours, tensor in tensors.items():
        keys, whole = names[ours], _as_theirs(ours, tensor)
        state |= zip(keys, whole.chunk(len(keys)) if len(keys) > 1 else [whole], strict=True)
    if layout == "lavis" and "Qformer.cls.predictions.bias" in state:  # their head repeats what it is tied to
        state["Qformer.cls.predictions.decoder.weight"] = state[
            "Qformer.bert.embeddings.word_embeddings.weight"
        ]
        state["Qformer.cls.predictions.decoder.bias"] = state["Qformer.cls.predictions.bias"]
    state = {key: tensor.clone() for key, tensor in state.items()}
    if out.suffix == ".safetensors":
        write_atomic(out, save(_contiguous(state.items())))
    else:
        content = io.BytesIO()
        torch.save({"model": state}, content)
        write_atomic(out, content.getvalue())
    return layout


def _projection_of(language: str) -> str:
    """What the authors call the projection to a language model."""
    name = Path(language).name.lower()
    return "opt_proj" if "opt" in name else "t5_proj" if "t5" in name else "llm_proj"


def _as_theirs(ours: str, tensor: Tensor) -> Tensor:
    """The inverse of `_as_ours`."""
    if ours == "connector.queries":
        return tensor[None]
    if ours == "connector.token_type":
        return torch.cat([tensor, torch.zeros_like(tensor)])
    return tensor.exp() if ours == "connector.log_temperature" else tensor


# -------------------------------------------------------------------------------------------- command


@dataclass(frozen=True)
class Arguments:
    """What was typed.

    Attributes:
        checkpoint: to be converted; or a run's folder.
        out: folder for ``connector.safetensors`` and ``config.json``; of a run: a file.
        config: a run's ``config.json`` that the checkpoint must fit.
        vision, language: the frozen models, for ``config.json``; not used with a ``config``.
    """

    checkpoint: Path
    out: Path
    config: Path | None = None
    vision: str = "eva-clip-g"
    language: str = ""


def _parse(argv: list[str]) -> Arguments:
    prog = "python -m evlgen.interop.convert"
    parser = Parser(prog, __doc__ or "", f"{prog} [-h] CHECKPOINT OUT [flags]")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="the authors' or LAVIS's .pth, .safetensors, or a folder of a transformers model; or a run's",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="folder for connector.safetensors and config.json; of a run: the file, .pth or .safetensors",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a run's config.json that it must fit; default: the paper's"
    )
    parser.add_argument(
        "--vision",
        default=Arguments.vision,
        help="the frozen image encoder, for config.json; default: eva-clip-g; not used with --config",
    )
    parser.add_argument(
        "--language",
        default=Arguments.language,
        help="the frozen LLM, for config.json; default: inferred from the projection; not used with --config",
    )
    typed = parser.parse_intermixed_args(argv)
    config = None if typed.config is None else absolute(typed.config, "--config")
    return Arguments(absolute(typed.checkpoint), absolute(typed.out), config, typed.vision, typed.language)


def convert_to_folder(arguments: Arguments) -> RunConfig:
    """Write what the command promises; returns the configuration of ``config.json``.

    The folder has the form of a run's: ``connector.safetensors`` (for `evlgen.model.load_trained`; of stage 1
    also for `evlgen.model.init_from_stage1`), ``config.json``, ``outcome.json`` with the checksum of the
    weights, and for a video model ``temporal.safetensors``.

    Raises:
        UserError: see `convert`; or the configuration is of another stage, or the disk is full.
    """
    wanted = None if arguments.config is None else read_run_config(arguments.config)
    converted = convert(arguments.checkpoint, None if wanted is None else wanted.connector)
    if wanted is None:
        language = arguments.language or converted.language
        if converted.stage == "caption" and not language:
            width = len(converted.tensors["projection.bias"])
            raise UserError(f"{arguments.checkpoint}: which LLM has width {width}? name it with --language")
        wanted = RunConfig(  # theirs: it would say other things if it were asked otherwise
            converted.connector, arguments.vision, language, stage=converted.stage, conventions="authors"
        )
    if wanted.stage != converted.stage:
        raise UserError(
            f"{arguments.config}: stage {wanted.stage!r}, but the checkpoint is of {converted.stage!r}"
        )
    if converted.unknown:
        log.warning("left out, unknown: %s", ", ".join(converted.unknown))
    source = {"converted_from": arguments.checkpoint.name}
    if arguments.checkpoint.is_file():
        source["sha256"] = sha256_of(arguments.checkpoint)
    config_json = json.dumps(to_json(wanted), indent=1, sort_keys=True)
    metadata = {"evlgen": json.dumps(source | {"config": config_json}, sort_keys=True)}
    write_atomic(arguments.out / CONNECTOR, save(_contiguous(converted.tensors.items()), metadata=metadata))
    if converted.temporal:
        write_atomic(arguments.out / TEMPORAL, save(_contiguous(converted.temporal.items())))
    write_json(arguments.out / CONFIG, to_json(wanted))
    write_outcome(arguments.out, {})
    return wanted


def _contiguous(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors}


_WHOSE: dict[Layout, str] = {"evlgen": "the authors' EVLGen", "lavis": "LAVIS's BLIP-2"}


def _refuse_unused(arguments: Arguments) -> None:
    defaults = Arguments(arguments.checkpoint, arguments.out)
    for flag in ("config", "vision", "language"):
        if getattr(arguments, flag) != getattr(defaults, flag):
            raise UserError(f"--{flag}: not used where a run's folder is converted")


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 2 a user's mistake."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")

    def act() -> None:
        settle()
        arguments = _parse(argv)
        if (arguments.checkpoint / CONNECTOR).is_file():
            _refuse_unused(arguments)
            layout = export(arguments.checkpoint, arguments.out)
            print(f"{arguments.out}: the trained parts under the names of {_WHOSE[layout]}")
            return
        config = convert_to_folder(arguments)
        print(
            f"{arguments.out}: {config.connector.kind}, stage {config.stage}, {config.language or 'no LLM'}"
        )

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
