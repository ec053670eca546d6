"""All foundation models from nothing: what each is trained with, and the processes that do it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertForMaskedLM

from evlgen import miniworld
from evlgen.backbones.vision import clip_names, file_hash, load_mini_clip
from evlgen.errors import UserError
from evlgen.miniworld.pretrain.cards import card_page, language_card, masked_card, retrieval_card, vision_card
from evlgen.miniworld.pretrain.encoders import (
    Distillation,
    VisionPretraining,
    pretrain_clip,
    pretrain_vision,
    read_mini_vit,
)
from evlgen.miniworld.pretrain.language import (
    LanguagePretraining,
    MaskedPretraining,
    make_tokenizer,
    pretrain_bert,
    pretrain_language,
)
from evlgen.miniworld.pretrain.loop import Report
from evlgen.runtime.cpu import prepare_worker
from evlgen.runtime.paths import SHIPPED_WEIGHTS
from evlgen.runtime.sources import write_checksums


@dataclass(frozen=True)
class Budget:
    """How much the foundation models are trained, and on how much the card's figures rest."""

    vision: VisionPretraining
    clip: Distillation
    language: LanguagePretraining
    masked: MaskedPretraining
    card: int


BUDGETS = {
    "mini": Budget(VisionPretraining(), Distillation(), LanguagePretraining(), MaskedPretraining(), 1000),
    "smoke": Budget(
        VisionPretraining(steps=4, batch_size=8, warmup_steps=2),
        Distillation(steps=4, batch_size=8, warmup_steps=2),
        LanguagePretraining(steps=4, batch_size=8, warmup_steps=2),
        MaskedPretraining(steps=4, batch_size=8, warmup_steps=2),
        100,
    ),
}
NAMES = ("mini-vit", "mini-opt", "mini-llama", "mini-bert", "mini-clip")  # the longest first
TEACHERS = {"mini-clip": "mini-vit"}  # a model that learns from another's weights waits for them


def build_one(name: str, scale: str, out: Path, report: Report) -> dict[str, Any]:
    """Train one foundation model, write ``out/<name>.safetensors`` (fp16) and return its card.

    ``mini-clip`` reads its teacher, ``mini-vit``, from ``out``.
    """
    prepare_worker()
    budget = BUDGETS[scale]
    tokenizer = make_tokenizer()
    started = time.perf_counter()
    setup: Any
    model: nn.Module
    if name == "mini-vit":
        setup = budget.vision
        contrast = pretrain_vision(tokenizer, setup, report)
        model = contrast.vision
    elif name == "mini-clip":
        setup = budget.clip
        model = pretrain_clip(read_mini_vit(out / "mini-vit.safetensors"), setup, report)
    elif name == "mini-bert":
        model, setup = pretrain_bert(tokenizer, budget.masked, report), budget.masked
    else:
        model = pretrain_language(name, tokenizer, budget.language, report)
        setup = budget.language
    seconds = time.perf_counter() - started
    path = out / f"{name}.safetensors"
    state = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    for tied in ("lm_head.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        state.pop(tied, None)  # to the word embeddings, or to another bias
    names = clip_names(model) if name == "mini-clip" else {key: key for key in state}
    save_file({names[key]: value for key, value in state.items()}, path)
    model.load_state_dict(
        {key: value.float() for key, value in state.items()}, strict=False
    )  # judge what is shipped
    with torch.random.fork_rng():
        if name == "mini-vit":
            figures = vision_card(model, 3 * budget.card, budget.card) | retrieval_card(contrast, tokenizer)
        elif name == "mini-clip":
            figures = vision_card(load_mini_clip(path).of_pixels, 3 * budget.card, budget.card)
        elif isinstance(model, BertForMaskedLM):
            figures = masked_card(model, tokenizer, budget.card, budget.masked)
        else:
            figures = language_card(model, tokenizer, max(100, budget.card // 100 * 50))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "setup": dataclasses.asdict(setup),
        "minutes": round(seconds / 60, 1),
        "world": miniworld.version(),
        "sha256": file_hash(path),
        "figures": {key: round(value, 2) for key, value in figures.items()},
    }


def _build_task(name: str, scale: str, out: str, queue: Any) -> dict[str, Any]:
    return build_one(name, scale, Path(out), lambda *line: queue.put(line))


def build(scale: str, out: Path, workers: int = 2, report: Report | None = None) -> dict[str, bool | None]:
    """Make all foundation models from nothing in ``out``: weights, tokenizer, ``card.json``, ``CARD.md``.

    Each model is trained by a process of its own with one thread, so that the bits do not depend on
    ``workers``.

    Returns:
        For each model whether its weights equal the shipped ones bit for bit (None: none are shipped).

    Raises:
        UserError: no budget is defined for ``scale``.
    """
    if scale not in BUDGETS:
        raise UserError(f"foundation: no scale {scale!r}; there are: {', '.join(BUDGETS)}")
    out.mkdir(parents=True, exist_ok=True)
    make_tokenizer().backend_tokenizer.save(str(out / "mini-tokenizer.json"))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(workers, mp_context=context) as pool:
        queue = manager.Queue()
        tasks: dict[str, Future[dict[str, Any]]] = {}
        while len(tasks) < len(NAMES) or not all(task.done() for task in tasks.values()) or not queue.empty():
            for name in NAMES:
                teacher = tasks.get(TEACHERS.get(name, ""))
                ready = name not in TEACHERS or (teacher is not None and teacher.done())
                if name not in tasks and ready:
                    if teacher is not None:
                        teacher.result()  # raises what went wrong there
                    tasks[name] = pool.submit(_build_task, name, scale, str(out), queue)
            try:
                line = queue.get(timeout=0.2)
            except Empty:
                continue
            if report is not None:
                report(*line)
        cards = {name: tasks[name].result() for name in NAMES}
    (out / "card.json").write_text(json.dumps(cards, indent=2) + "\n", "utf-8")
    (out / "CARD.md").write_text(card_page(cards), "utf-8")
    write_checksums(out)
    shipped = {name: SHIPPED_WEIGHTS / f"{name}.safetensors" for name in NAMES}
    return {
        name: file_hash(path) == cards[name]["sha256"] if path.exists() else None
        for name, path in shipped.items()
    }
