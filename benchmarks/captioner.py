"""A captioner's whole training step beside transformers' BLIP-2: ``python benchmarks/captioner.py --help``.

Frozen image encoder, trained connector, frozen language model: forward to the loss on the captions, backward,
AdamW. The reference is ``Blip2ForConditionalGeneration`` as one gets it: pixels and labels go in. Ours does
what a run does. All take turns, step by step; memory is measured in a process for each.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from benchmarks.machine import DTYPES, describe, peak_memory_mib
from benchmarks.reference import ReferenceCaptioner
from benchmarks.steps import TINY, pick_device, take_turns, training_step
from evlgen.backbones.eva import EvaConfig, EvaViT
from evlgen.backbones.language import FrozenLanguage, closing_newline, mini_tokenizer
from evlgen.backbones.vision import CLIP_MEAN, CLIP_STD, FrozenVision, ImageEncoder, normalised
from evlgen.config import QFormerConfig, TomeFormerConfig
from evlgen.connectors import build_connector
from evlgen.data.pairs import PairPool, encode_texts, plain_batch
from evlgen.data.stream import DecodedRows
from evlgen.miniworld import pool
from evlgen.model import CaptionModel
from evlgen.runtime.cpu import prepare_worker
from evlgen.runtime.files import write_atomic
from experiments.scales import get

ROOT = Path(__file__).resolve().parents[1]
BATCHES = {
    ("mini", "cpu"): 32,
    ("mini", "cuda"): 1024,
    ("base", "cpu"): 4,
    ("base", "cuda"): 64,
    ("paper", "cpu"): 1,
    ("paper", "cuda"): 32,
}
TEXT_TOKENS = 32  # at most
CPU = torch.device("cpu")
Precision = Literal["fp32", "bf16", "fp16"]
Name = Literal["qformer-cached", "qformer-streamed", "tomeformer-cached", "tomeformer-streamed", "blip2"]
NAMES: tuple[Name, ...] = get_args(Name)
REFERENCE: Name = "blip2"
Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Arguments:
    """Time a training step (forward, backward, update) of whole captioners."""

    scales: tuple[Literal["mini", "base", "paper"], ...] = ("mini", "base")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "fp32"
    """autocast of the trained parts, as in a run; the frozen ones are in it themselves"""
    batch: int = 0
    """pairs in a step; 0: what fits"""
    steps: int = 10
    """timed steps of each"""
    allocator: Literal["run", "default"] = "run"
    """on a CPU, that of a run's workers (`evlgen.runtime.cpu`), which keeps buffers, or glibc's as it is"""
    out: str = ""
    """a JSON file for the results"""
    alone: Name | None = None
    """only a few steps of one of them and its peak memory (used by the benchmark itself)"""


@dataclass(frozen=True)
class Shapes:
    """The models of a scale; their weights are random."""

    vision: EvaConfig
    language: OPTConfig
    qformer: QFormerConfig
    tomeformer: TomeFormerConfig


def shapes(scale: str) -> Shapes:
    """``mini`` is the miniature, its image encoder a plain ViT of the same size; ``paper`` is the paper's.

    ``base`` is the paper's with a ViT-B/14 and OPT-125M: as many image tokens, and the same connectors.
    ``tiny`` is for tests.
    """
    if scale == "tiny":
        qformer, tomeformer = TINY["qformer"], TINY["tomeformer"]
        assert isinstance(qformer, QFormerConfig)
        assert isinstance(tomeformer, TomeFormerConfig)
        language = _opt(32, 2, 2, len(mini_tokenizer()))
        return Shapes(EvaConfig(24, 8, 16, 2, 2, 32), language, qformer, tomeformer)
    sizes = get("mini" if scale == "mini" else "paper")
    vision, language = {
        "mini": (EvaConfig(64, 8, 96, 3, 4, 384), _opt(96, 4, 4, len(mini_tokenizer()))),
        "base": (EvaConfig(224, 14, 768, 12, 12, 3072), _opt(768, 12, 12)),
        "paper": (EvaConfig(), _opt(2560, 32, 32)),
    }[scale]
    return Shapes(
        vision,
        language,
        dataclasses.replace(sizes.qformer, encoder_width=vision.width, init="random"),
        dataclasses.replace(sizes.tomeformer, input_width=vision.width, init="random"),
    )


def _opt(width: int, layers: int, heads: int, words: int = 50_272) -> OPTConfig:
    """An OPT that reads the miniature's tokens, which are the first of its vocabulary."""
    return OPTConfig(
        vocab_size=words,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )


@dataclass(frozen=True)
class Case:
    """A scale and how it is run."""

    scale: Literal["tiny", "mini", "base", "paper"]
    batch: int
    precision: Precision


# --------------------------------------------------------------------------------------- what is timed


def pairs(case: Case) -> DecodedRows:
    """Images of noise and captions of the miniworld, so that padding is as in a run."""
    tokenizer = mini_tokenizer()
    captions = [pool("web").captions(index)[0] for index in range(case.batch)]
    ids, lengths = encode_texts(tokenizer, captions, TEXT_TOKENS, closing_newline(tokenizer, "mini-opt"))
    side = shapes(case.scale).vision.image_size
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(256, (case.batch, side, side, 3), dtype=torch.uint8, generator=noise)
    return DecodedRows(images, ids, lengths)


def build_frozen(case: Case, device: torch.device) -> tuple[FrozenVision, FrozenLanguage]:
    """Image encoder and language model."""
    sizes, dtype = shapes(case.scale), DTYPES[case.precision]
    vision, tokenizer = sizes.vision, mini_tokenizer()
    with device:  # random numbers for billions of weights take a CPU minutes
        encoder = EvaViT(vision).to(dtype).eval().requires_grad_(False)
        language: Any = OPTForCausalLM(sizes.language)
    tokens = 1 + vision.grid**2
    return (
        FrozenVision(encoder, vision.width, tokens, "", CLIP_MEAN, CLIP_STD, vision.image_size),
        FrozenLanguage(
            language.to(device, dtype),
            tokenizer,
            sizes.language.hidden_size,
            "after_prompt",  # as in BLIP-2
            closing_newline(tokenizer, "mini-opt"),
            "",
        ),
    )


def build_captioner(
    config: QFormerConfig | TomeFormerConfig, vision: FrozenVision, language: FrozenLanguage
) -> CaptionModel:
    """In training mode, on the device of the frozen parts."""
    model = CaptionModel(ImageEncoder(vision), build_connector(config), language)
    return model.to(language.model.device).train()


def build_reference(case: Case, device: torch.device = CPU) -> ReferenceCaptioner:
    """In training mode, with weights of its own."""
    sizes = shapes(case.scale)
    image_id = mini_tokenizer().unk_token_id  # no text of the miniworld needs it
    dtype = DTYPES[case.precision]
    with device:
        return ReferenceCaptioner(sizes.vision, sizes.qformer, sizes.language, image_id, dtype).train()


def cached_loss(model: CaptionModel, vision: FrozenVision, part: DecodedRows) -> Loss:
    """The features have been computed once, as in a run with ``data.cache``; a step only reads them."""
    features = vision.encode(part.images.numpy()).to(torch.float16).numpy()
    cache = PairPool("web", features[None], part.text_ids[:, None], part.lengths[:, None])

    def loss() -> Tensor:
        batch = plain_batch(cache, np.arange(len(cache))).to(model.norm.weight.device)
        value: Tensor = model(batch.images, batch.text_ids, batch.text_mask, batch.text_places)
        return value

    return loss


def streamed_loss(model: CaptionModel, vision: FrozenVision, part: DecodedRows) -> Loss:
    """A step encodes its images, as in a run without ``data.cache``, the paper's among them."""

    def loss() -> Tensor:
        batch = part.batch().to(model.norm.weight.device)
        value: Tensor = model(batch.images, batch.text_ids, batch.text_mask, batch.text_places)
        return value

    return loss


def reference_loss(model: ReferenceCaptioner, part: DecodedRows) -> Loss:
    """What transformers' processor makes of the pairs is made once: a step does not do it again."""
    inputs = reference_inputs(model, part)

    def loss() -> Tensor:
        value: Tensor = model(**inputs)
        return value

    return loss


def reference_inputs(model: ReferenceCaptioner, part: DecodedRows) -> dict[str, Tensor]:
    """Pixels, token ids (image, beginning of sequence, text), their mask, and labels on the text alone."""
    device, config = model.blip.device, model.blip.config
    text = torch.from_numpy(part.text_ids[:, : part.lengths.max()].astype(np.int64))  # (B, T)
    is_text = torch.arange(text.shape[1]) < torch.from_numpy(part.lengths)[:, None]
    image = torch.full((len(text), config.num_query_tokens), config.image_token_id)
    prompt = torch.cat([image, torch.full((len(text), 1), config.text_config.bos_token_id)], 1)
    pixels = part.images.permute(0, 3, 1, 2).float() / 255
    inputs = {
        "pixel_values": normalised(pixels, CLIP_MEAN, CLIP_STD),
        "input_ids": torch.cat([prompt, text], 1),
        "attention_mask": torch.cat([torch.ones_like(prompt), is_text.long()], 1),
        "labels": torch.cat([torch.full_like(prompt, -100), text.masked_fill(~is_text, -100)], 1),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


# ------------------------------------------------------------------------------------------- measuring


def build_all(case: Case, device: torch.device) -> dict[Name, tuple[nn.Module, Loss]]:
    """Each captioner and its loss; the reference has the weights of ours with the Q-Former."""
    torch.manual_seed(0)
    sizes, part = shapes(case.scale), pairs(case)
    vision, language = build_frozen(case, device)
    qformer = build_captioner(sizes.qformer, vision, language)
    tomeformer = build_captioner(sizes.tomeformer, vision, language)
    reference = build_reference(case)
    assert isinstance(vision.model, EvaViT)
    reference.load(qformer, vision.model)
    return {
        "qformer-cached": (qformer, cached_loss(qformer, vision, part)),
        "qformer-streamed": (qformer, streamed_loss(qformer, vision, part)),
        "tomeformer-cached": (tomeformer, cached_loss(tomeformer, vision, part)),
        "tomeformer-streamed": (tomeformer, streamed_loss(tomeformer, vision, part)),
        REFERENCE: (reference, reference_loss(reference.to(device), part)),
    }


def build_one(case: Case, device: torch.device, name: Name) -> tuple[nn.Module, Loss]:
    """One of `build_all`, and nothing else in memory."""
    part = pairs(case)
    if name == REFERENCE:
        reference = build_reference(case, device)
        return reference, reference_loss(reference, part)
    sizes = shapes(case.scale)
    vision, language = build_frozen(case, device)
    config = sizes.qformer if name.startswith("qformer") else sizes.tomeformer
    model = build_captioner(config, vision, language)
    make_loss = cached_loss if name.endswith("cached") else streamed_loss
    return model, make_loss(model, vision, part)


def measure(case: Case, device: torch.device, steps: int) -> dict[str, Any]:
    """Seconds of all of them, taking turns, and how much faster than the reference ours are."""
    run: dict[str, Callable[[], None]] = {
        name: training_step(model, loss, device, case.precision)
        for name, (model, loss) in build_all(case, device).items()
    }
    seconds = take_turns(run, device, steps)
    lengths = pairs(case).lengths
    result: dict[str, Any] = {
        **dataclasses.asdict(case),
        "steps": steps,
        "mean_text_tokens": float(lengths.mean()),
        "longest_text_tokens": int(lengths.max()),
    }
    for name, times in seconds.items():
        median = statistics.median(times)
        result[name] = {
            "seconds": median,
            "fastest_seconds": min(times),
            "samples_per_second": case.batch / median,
            "speedup": statistics.median(seconds[REFERENCE]) / median,
        }
    return result


def measure_memory(case: Case, device: torch.device, name: Name) -> float:
    """Peak memory in MiB of a few steps, for a process that does nothing else."""
    step = training_step(*build_one(case, device, name), device, case.precision)
    for _ in range(2):
        step()
    return peak_memory_mib(device)


def memory_of_child(case: Case, device: torch.device, name: Name, allocator: str) -> float:
    """`measure_memory` in a fresh process."""
    command = [sys.executable, __file__, "--alone", name, "--device", device.type, "--scales", case.scale]
    command += ["--batch", str(case.batch), "--precision", case.precision]
    command += ["--allocator", allocator]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return float(output.splitlines()[-1])


def main(argv: list[str]) -> int:
    """Exit code 0."""
    arguments = tyro.cli(Arguments, args=argv, prog="benchmarks/captioner.py", description=__doc__)
    device = pick_device(arguments.device)
    if device.type == "cpu" and arguments.allocator == "run":
        prepare_worker(torch.get_num_threads())
    cases = [
        Case(scale, arguments.batch or BATCHES[scale, device.type], arguments.precision)
        for scale in arguments.scales
    ]
    if arguments.alone:
        print(measure_memory(cases[0], device, arguments.alone))
        return 0
    machine = describe(device) | {"allocator": arguments.allocator}
    results = []
    for case in cases:
        result = measure(case, device, arguments.steps)
        for name in NAMES:
            result[name]["peak_memory_mib"] = memory_of_child(case, device, name, arguments.allocator)
        results.append(result)
    show(machine, results)
    if arguments.out:
        write_atomic(
            Path(arguments.out), json.dumps({"machine": machine, "results": results}, indent=1).encode()
        )
    return 0


def show(machine: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Print the results as a table."""
    title = ", ".join(f"{key} {value}" for key, value in machine.items())
    table = Table("scale", "batch", "", "samples/s", "peak MiB", "speed-up", title=title)
    for result in results:
        for name in NAMES:
            line = result[name]
            table.add_row(
                result["scale"],
                str(result["batch"]),
                name,
                f"{line['samples_per_second']:.2f}",
                f"{line['peak_memory_mib']:.0f}",
                f"{line['speedup']:.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
