"""Parts of ``benchmarks/gpu_check.py`` that time a step in the paper's shapes, beside plain references."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks import captioner, steps
from benchmarks.gpu_found import GIB, Found, Row, Settings, release
from benchmarks.machine import now
from evlgen.connectors import build_connector
from evlgen.cost import MacCounter, image_features, meta_connector, run_cost, step_cost, training_flops
from evlgen.model import CaptionModel, evaluating
from evlgen.throughput import peak_flops
from evlgen.training import autocast, compile_parts
from experiments.scales import get

SPEED_NOTE = (
    "MFU divides the operations of the step's matrix products, without any done twice, by the peak that "
    "the maker states. Memory is the peak of PyTorch's allocator; table 5 counts weights, AdamW's states and "
    "what autograd keeps, with attention written out."
)


def connectors(settings: Settings) -> Found:
    """A step of both connectors in the paper's shapes, beside eager BERT with merging and transformers'."""
    return _connectors(settings, compiled=False)


def connectors_compiled(settings: Settings) -> Found:
    """The same, ours compiled."""
    return _connectors(settings, compiled=True)


def _connectors(settings: Settings, compiled: bool) -> Found:
    rows: list[Row] = []
    device, share = settings.on, settings.seconds / (2 if compiled else 4)
    for name in steps.TINY:
        whole = steps.Case(name, settings.scale, settings.batch, settings.half)  # type: ignore[arg-type]
        for which in ("compiled",) if compiled else ("reference", "ours"):

            def build(case: steps.Case, which: str = which) -> Callable[[], None]:
                torch.manual_seed(0)
                with device:
                    if which == "reference":
                        module: nn.Module = steps.reference_of(case.config)
                    else:
                        module = build_connector(case.config)
                module.train()
                if which == "compiled":
                    module.compile(backend=_backend(settings))
                return steps.stepper(module, case.features(device), case.precision)

            case, timed = in_memory(whole, build, device, share)
            flop = whole.flop() / whole.batch
            row = speed_row(f"{name}, {which}", case.batch, timed, flop, settings)
            row["memory by table 5, GiB"] = gib(predicted_connector(case)) if timed.gib else ""
            rows.append(row)
    notes = [
        "Forward, backward and AdamW on noise, in training mode. The reference is `BertModel` with eager "
        "attention and ToMe's merging, or `Blip2QFormerModel` with eager attention, with the same autocast "
        "and optimiser. " + SPEED_NOTE
    ]
    return Found(_headline(rows), rows, notes)


def captioners(settings: Settings) -> Found:
    """A step of the whole captioner, of the paper's sizes, beside transformers' BLIP-2."""
    return _captioners(settings, ("blip2", "qformer-streamed", "tomeformer-streamed"), compiled=False)


def captioners_compiled(settings: Settings) -> Found:
    """The same, ours compiled."""
    names: tuple[captioner.Name, ...] = ("qformer-streamed", "tomeformer-streamed")
    return _captioners(settings, names[settings.tiny :], compiled=True)


def _captioners(settings: Settings, names: tuple[captioner.Name, ...], compiled: bool) -> Found:
    rows: list[Row] = []
    device, share = settings.on, settings.seconds / (len(names) + 1)
    whole = captioner.Case(settings.scale, settings.batch, settings.half)
    longest = int(captioner.pairs(whole).lengths.max())
    flops = _flops(whole, device)
    for name in names:

        def build(case: captioner.Case, name: captioner.Name = name) -> Callable[[], None]:
            torch.manual_seed(0)
            module, loss = captioner.build_one(case, device, name)
            if compiled:
                assert isinstance(module, CaptionModel)
                compile_parts(module, encodes=True, backend=_backend(settings))
            return steps.training_step(module, loss, device, case.precision)

        case, timed = in_memory(whole, build, device, share)
        flop = flops["tomeformer" if name.startswith("tomeformer") else "qformer"]
        row = speed_row(name + (", compiled" if compiled else ""), case.batch, timed, flop, settings)
        row["memory by table 5, GiB"] = gib(predicted_captioner(name, case.batch, longest, settings))
        rows.append(row)
    notes = [
        "Image encoder, connector, language model, loss on the captions, backward, AdamW; images are noise, "
        f"captions the miniworld's (at most {longest} tokens), weights random. `blip2` is "
        "`Blip2ForConditionalGeneration` with eager attention and the Q-Former, and computes the same "
        "function as `qformer-streamed`; `tomeformer-streamed` is EVLGen's captioner. " + SPEED_NOTE
    ]
    return Found(_headline(rows), rows, notes)


@dataclass(frozen=True)
class Timed:
    """Seconds of a step (median), how many were timed, and the peak memory in GiB (0 where it is unknown)."""

    seconds: float
    number: int
    gib: float


def in_memory(
    case: Any, build: Callable[[Any], Callable[[], None]], device: torch.device, seconds: float
) -> tuple[Any, Timed]:
    """Times steps of a case, or of one with half the batch, again and again, until it fits into memory."""
    while True:
        release(device)
        try:
            return case, timed(build(case), device, seconds)
        except torch.cuda.OutOfMemoryError:
            if case.batch == 1:
                raise
        case = dataclasses.replace(case, batch=case.batch // 2)


def timed(step: Callable[[], None], device: torch.device, seconds: float) -> Timed:
    """Time steps: three to ten, of about a third of ``seconds`` in all."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):  # makes the optimiser's states, fills caches, compiles
        step()
    found: list[float] = []
    started = now(device)
    while len(found) < 3 or (len(found) < 10 and now(device) - started < seconds / 3):
        before = now(device)
        step()
        found.append(now(device) - before)
    memory = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0
    del step
    release(device)
    return Timed(statistics.median(found), len(found), memory)


def speed_row(title: str, batch: int, found: Timed, flop: float, settings: Settings) -> Row:
    """A row of a table of speeds.

    Args:
        flop: of a sample.
    """
    peak = peak_flops(settings.on, settings.half)
    rate = batch / found.seconds
    return {
        "what": title,
        "batch": batch,
        "steps": found.number,
        "ms a step": round(1e3 * found.seconds, 2),
        "samples/s": round(rate, 1),
        "MFU": f"{rate * flop / peak:.1%}" if peak else "",
        "peak memory, GiB": gib(found.gib * GIB),
    }


def gib(size: float) -> float | str:
    return round(size / GIB, 2) if size else ""


def _headline(rows: list[Row]) -> str:
    return ", ".join(f"{row['what']}: {row['samples/s']:g} a second" for row in rows)


def _backend(settings: Settings) -> str:
    return "eager" if settings.tiny else "inductor"  # the latter needs a compiler and minutes


def predicted_connector(case: steps.Case) -> float:
    """Bytes by table 5's rule: 16 for a trained parameter, and what autograd keeps, in half precision."""
    module = meta_connector(case.config).train().half()
    features = image_features(case.config, steps.TOKENS[case.scale]).half()
    trained = sum(p.numel() for p in module.parameters())
    return 16 * trained + case.batch * step_cost(module, features).activations


def predicted_captioner(name: captioner.Name, batch: int, longest: int, settings: Settings) -> float:
    """Bytes by table 5's rule, for texts of this length; 0 for sizes that it does not have."""
    if settings.tiny:
        return 0
    scale = get("paper")
    run = scale.evlgen(250) if name.startswith("tomeformer") else scale.blip2_stage2(80)
    data = dataclasses.replace(run.data, max_text_tokens=longest)
    cost = run_cost(dataclasses.replace(run, data=data))
    states = 16 * cost.trained + 2 * (cost.vision + cost.language)
    return states + batch * (cost.activations + cost.language_activations)


def _flops(whole: captioner.Case, device: torch.device) -> dict[str, float]:
    """FLOP of a sample of a step, by connector, counted on the models that are timed."""
    found = {}
    for name in steps.TINY:
        case = dataclasses.replace(whole, batch=min(whole.batch, 4))
        model, _ = captioner.build_one(case, device, f"{name}-streamed")  # type: ignore[arg-type]
        assert isinstance(model, CaptionModel)
        batch = captioner.pairs(case).batch().to(device)
        with evaluating(model), autocast(device, case.precision):
            with MacCounter() as images:
                model.encode(batch.images)
            found[name] = training_flops(model, batch) + 2 * images.all / case.batch
        del model
        release(device)
    return found
