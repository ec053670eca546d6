"""Which behaviour of each component the code has: one whole number each, part of the identity of a run.

Raise a component's number in the same commit that changes what it computes, and run it again where its
numbers are shown. Refactoring, faster code with the same numbers, and new options with a default that changes
nothing do not raise it. The golden tests (tests/golden) compare numbers with behaviour: they fail where
values have changed and no number was raised, and where a number was raised and no value has changed.

A component that is not listed has never changed: its number is 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from evlgen.config import RunConfig

COMPONENTS: dict[str, int] = {
    # Data: the worlds, and how pairs and views are drawn from them
    "miniworld": 1,
    "easy-vqa": 1,
    "folder": 2,  # 2: images are upright, transparency is laid on white, sixteen bits are scaled
    "capfilt": 2,  # 2: questions are cleaned as BLIP's; images as those of folder
    "sampling": 1,
    "features": 1,  # images to features: resizing, crops, precision of the cache
    "streaming": 1,  # images decoded, cropped and encoded anew in every update
    # Frozen models
    "vision": 1,
    "language": 1,
    # Connectors
    "merging": 1,
    "tomeformer": 1,
    "qformer": 1,
    "linear": 1,
    "pool": 1,
    "perceiver": 1,
    # What is trained and measured
    "stage1": 2,  # ITC, ITM and image-grounded LM; 2: the true pair leaves ITM's negatives before the softmax
    "captioner": 1,  # soft prompt, frozen language model, loss on the text
    "training": 1,  # initial weights, optimiser, schedule, precision, order of updates
    "diagnostics": 1,  # validation losses and measures of collapse
    "decoding": 1,  # beam search for captions and answers
    "inspection": 1,  # merge maps, soft prompts, MACs
}

SCORERS: dict[str, int] = {
    "captions": 1,  # tokenizer, BLEU-4, METEOR, ROUGE-L, CIDEr
    "vqa_accuracy": 1,  # of answers in no published form: both sides are normalized
    "gqa_accuracy": 1,
    "okvqa_accuracy": 1,
    "lavis_vqa": 1,  # of published sets, as LAVIS scores them
    "lavis_gqa": 1,
    "lavis_okvqa": 1,
    "official_vqa": 1,  # as the benchmark's script of 2021 does
    "official_okvqa": 1,
    "scene_truth": 1,  # objects and colours named that are in the scene
    "spice": 1,  # where the user has placed its models, as the next
    "clip_score": 1,
    "distinct": 1,  # share of distinct captions
}


def components_of(config: RunConfig) -> dict[str, int]:
    """Component -> its number, for all that decide the numbers of a run, its stage 1 among them."""
    names = {config.data.world, "sampling", "features", "vision", "training", "diagnostics"}
    names.add(config.connector.kind)
    if config.connector.kind == "tomeformer":
        names.add("merging")
    if not config.data.cache:
        names.add("streaming")
    if config.stage == "caption":
        names |= {"captioner", "language", "inspection"}
        if config.evaluation.sets:
            names.add("decoding")
    else:
        names.add("stage1")
    numbers = {name: COMPONENTS.get(name, 1) for name in names}
    if config.init_from is not None:
        numbers |= components_of(config.init_from)
    return dict(sorted(numbers.items()))


def changes(recorded: Mapping[str, int], now: Mapping[str, int]) -> tuple[str, ...]:
    """What differs between the numbers of a record and those of the code, in words: ``merging 1, now 2``."""
    names = sorted({*recorded, *now})
    return tuple(
        f"{name} {recorded.get(name, 1)}, now {now.get(name, 1)}"
        for name in names
        if recorded.get(name, 1) != now.get(name, 1)
    )
