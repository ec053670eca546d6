"""Captions and answers of a trained run on its evaluation sets, written to ``predictions.json``.

The file is::

    {"captions": {set: {position: caption}}, "answers": {set: {position: answer}},
     "ids": {set: {"image_id": [...], "question_id": [...]}}}

Positions are those in the set, from 0. ``ids`` has at each position what the data set calls the image and the
question; of the drawn world, which calls them by their positions, it is left out. Each question set is
answered a second time with the images shuffled, ``<set>_shuffled``: this is the score that needs no image.
`evlgen.evaluation.scores.score_runs` scores the files of many runs at once.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evlgen import limits
from evlgen.backbones.beams import check_room, generation_config
from evlgen.backbones.language import build_language
from evlgen.config import RunConfig
from evlgen.conventions import blip_question, prompt_of
from evlgen.data import features, worlds
from evlgen.data.base import SHUFFLED, World
from evlgen.data.batches import PoolImages, evaluation_images
from evlgen.diagnostics import derangement
from evlgen.errors import UserError
from evlgen.model import CaptionModel, build_model, load_trained
from evlgen.runs.folder import CONNECTOR, PREDICTIONS
from evlgen.runtime.device import chosen
from evlgen.runtime.files import write_atomic
from evlgen.runtime.progress import Progress
from evlgen.training import autocast

log = logging.getLogger(__name__)


def evaluate(
    config: RunConfig,
    folder: Path,
    progress: Callable[[Progress], None] = lambda _: None,
    model: CaptionModel | None = None,
) -> None:
    """Decode all evaluation sets of a trained run and write ``predictions.json``.

    Args:
        folder: the run's folder, with its ``connector.safetensors``.
        progress: called after each batch; its steps are examples.
        model: the model to load the weights into, instead of the one that ``config`` describes.

    Raises:
        UserError: the run is not trained or is of the stage ``represent``, or a set does not exist.
    """
    world = worlds.of(config.data)
    for name, _ in config.evaluation.sets:
        if name not in world.sets:
            raise UserError(f"evaluation.sets: no set {name!r}; there are: {', '.join(world.sets)}")
    sets = [
        (name, min(size, world.count(world.pool_of(name)))) for name, size in config.evaluation.sets if size
    ]
    captioner = load_captioner(config, folder, model)
    total = sum(size * (2 if _is_shuffled(world, name, size) else 1) for name, size in sets)
    done, started = 0, time.perf_counter()

    def advance(examples: int) -> None:
        nonlocal done
        done += examples
        rate = done / max(time.perf_counter() - started, 1e-9)
        progress(Progress("evaluate", done, total, None, rate))

    found: dict[str, dict[str, Any]] = {"captions": {}, "answers": {}}
    ids: dict[str, dict[str, list[int | str]]] = {}
    for name, size in sets:
        kind = "captions" if name in world.caption_sets else "answers"
        orders = {name: np.arange(size)}
        if _is_shuffled(world, name, size):
            orders[name + SHUFFLED] = derangement(size).numpy()
        for key, order in orders.items():
            found[kind][key] = _by_id(predict(captioner, config, name, order, advance))
            if world.ids is not None:
                ids[key] = _ids(world, name, order)
    text = json.dumps(found | ({"ids": ids} if ids else {}), indent=1)
    write_atomic(folder / PREDICTIONS, text.encode())


def predict(
    captioner: CaptionModel,
    config: RunConfig,
    name: str,
    order: npt.NDArray[np.int64],
    advance: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Captions of the images ``order`` of an evaluation set, or answers to its first questions on them.

    Raises:
        UserError: there is no such set, or its images cannot be read.
    """
    world = worlds.of(config.data)
    pool = world.pool_of(name)
    asked = dict(config.evaluation.sets).get(name, 0)
    images = evaluation_images(config, pool, max(asked, len(order)))
    if name in world.caption_sets:
        return caption_all(captioner, config, images, order, advance)
    questions = [world.question(name, i).text for i in range(len(order))]
    return answer_all(captioner, config, images, order, questions, advance)


def _is_shuffled(world: World, name: str, size: int) -> bool:
    """Whether the questions of a set are asked again on other images: where the answers can be scored."""
    return name in world.question_sets and size > 1 and bool(world.eval_set(name).scorers)


def _ids(world: World, name: str, order: npt.NDArray[np.int64]) -> dict[str, list[int | str]]:
    """What the data set calls the images ``order`` of an evaluation set, and its first questions."""
    assert world.ids is not None
    pool = world.pool_of(name)
    found = {"image_id": [world.ids(pool, i)["image_id"] for i in order.tolist()]}
    if name in world.question_sets:
        found["question_id"] = [world.ids(pool, i)["question_id"] for i in range(len(order))]
    return found


def caption_all(
    model: CaptionModel,
    config: RunConfig,
    images: PoolImages,
    order: npt.NDArray[np.int64],
    advance: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Captions of ``images[order]``; ``advance`` is called with the number of captions of each batch."""
    found: list[str] = []
    for start in range(0, len(order), config.evaluation.batch_size):
        some = order[start : start + config.evaluation.batch_size]

        def decode(part: npt.NDArray[np.int64]) -> list[str]:
            with autocast(_device(model), config.optim.precision):
                return model.caption(images[part].to(_device(model)), config.evaluation)

        found += as_many_as_fit(some, decode)
        advance(len(some))
    return found


def answer_all(
    model: CaptionModel,
    config: RunConfig,
    images: PoolImages,
    order: npt.NDArray[np.int64],
    questions: Sequence[str],
    advance: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Answers to the questions, the i-th on ``images[order[i]]``; ``advance`` as in `caption_all`.

    Questions are asked by the conventions of the run. Those of similar length share a batch, so that little
    of it is padding.
    """
    if config.conventions == "authors":
        questions = [blip_question(question) for question in questions]
    by_length = sorted(range(len(questions)), key=lambda i: len(questions[i].split()))
    found = [""] * len(questions)
    for start in range(0, len(by_length), config.evaluation.batch_size):
        some = np.array(by_length[start : start + config.evaluation.batch_size])

        def decode(part: npt.NDArray[np.int64]) -> list[str]:
            with autocast(_device(model), config.optim.precision):
                shown = images[order[part]].to(_device(model))
                return model.answer(shown, [questions[i] for i in part], config.evaluation)

        texts = as_many_as_fit(some, decode)
        for i, text in zip(some.tolist(), texts, strict=True):
            found[i] = text
        advance(len(some))
    return found


_LONGEST = 32  # questions by their letters, the longest by tokens surely among them


def check_questions(config: RunConfig, tokens: int) -> None:
    """Refuse one's own questions behind which the language model has no room left for an answer.

    Asked before a training; after it would be too late.

    Args:
        tokens: feature vectors of an image.

    Raises:
        UserError: a question is too long.
    """
    world = worlds.of(config.data)
    soft = limits.soft_tokens(config.connector, tokens)
    if world.name == "miniworld" or soft is None:
        return
    for name, size in config.evaluation.sets:
        if not size or world.eval_set(name).kind != "question":
            continue
        language = build_language(config.language, config.conventions)
        if language.is_encoder_decoder:
            return
        count = min(size, world.count(world.pool_of(name)))
        texts = sorted((world.question(name, i).text for i in range(count)), key=len)[-_LONGEST:]
        settings = generation_config(language, config.evaluation, "answer")
        for text in texts:
            asked = prompt_of(text, language.manners)
            length = soft + 1 + len(language.tokenizer(asked, add_special_tokens=False)["input_ids"])
            check_room(language.model.config, length, settings, f"{name}: question '{text[:40]}...'")


def as_many_as_fit(
    indices: npt.NDArray[np.int64], decode: Callable[[npt.NDArray[np.int64]], list[str]]
) -> list[str]:
    """Texts of all indices at once, or of one half after the other where the device's memory is too small.

    A run that has been trained for days shall not fail by its evaluation, and another
    ``evaluation.batch_size`` would be another run.

    Raises:
        torch.cuda.OutOfMemoryError: the memory is too small even for one.
    """
    try:
        return decode(indices)
    except torch.cuda.OutOfMemoryError:
        if len(indices) == 1:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # only here: the exception has held the memory
    half = len(indices) // 2
    log.warning("out of memory: %d examples are decoded in two halves", len(indices))
    return as_many_as_fit(indices[:half], decode) + as_many_as_fit(indices[half:], decode)


def describe(config: RunConfig, folder: Path, indices: Sequence[int], pool: str = "") -> list[str]:
    """A trained run's captions of the images ``indices`` of a pool, for people to look at.

    Args:
        pool: of the run's world; empty: that of its first captioning set.

    Raises:
        UserError: see `evaluate`; or there is no such pool.
    """
    captioner = load_captioner(config, folder)
    world = worlds.of(config.data)
    side = captioner.encoder.vision.image_size
    pixels = features.images_of(world, pool or world.pool_of(world.caption_sets[0]), indices, side)
    encoded = captioner.encode(torch.from_numpy(pixels))  # in one batch
    return caption_all(captioner, config, encoded, np.arange(len(indices)))


def load_captioner(config: RunConfig, folder: Path, model: CaptionModel | None = None) -> CaptionModel:
    """The trained model of a run, on the GPU if there is one; see `evaluate` for arguments and errors."""
    if config.stage != "caption":
        raise UserError(f"{folder}: a run of the stage {config.stage!r} has no language model")
    captioner = model or build_model(config)
    assert isinstance(captioner, CaptionModel)
    load_trained(captioner, folder / CONNECTOR)
    captioner.eval()
    device = chosen()
    captioner.to(device)
    captioner.language.model.to(device)
    return captioner


def _device(model: CaptionModel) -> torch.device:
    return model.norm.weight.device


def _by_id(texts: list[str]) -> dict[str, str]:
    return {str(i): text for i, text in enumerate(texts)}
