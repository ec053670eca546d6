"""Small real models: SmolLM2-135M as the frozen language model, connectors from a six-layer BERT (MiniLM).

Image features are the miniature's. The budgets are small: what this shows is that the same code trains and
speaks with a real language model, not which row is better. On easy-VQA, a set that is not of this project,
training sees captions alone and the questions are asked zero-shot. BLIP-2's two stages do not fit into an
hour; ``table1 --scale bridge`` has them.
"""

from __future__ import annotations

import dataclasses

from evlgen.config import DataConfig, RunConfig
from experiments.base import Experiment, Row
from experiments.learning_rates import with_setting
from experiments.merge_schedules import with_connector
from experiments.scales import blip2_single_stage, evlgen, get

METRICS = (
    *("coco/CIDEr", "coco/objects_right", "coco/colours_right", "vqav2"),
    *("easy_captions/CIDEr", "easy_vqa", "gap"),
)
STEPS, EASY_STEPS = 500, 200  # thousand updates of the paper
EASY_RATE = 2e-4  # at 5e-4 EVLGen diverged there, when its loss had long been at 0.6
EASY_VQA = DataConfig(world="easy-vqa", pools=(("easy_train", 3342),))


def build(scale: str) -> Experiment:
    """EVLGen on the miniworld, whose captions it takes long to learn; connectors and initial weights on easy-VQA."""
    bert = get(scale).bert
    ours = with_connector(evlgen(scale, steps=EASY_STEPS), init=bert)
    theirs = with_connector(blip2_single_stage(scale, steps=EASY_STEPS), init=bert)
    random = with_connector(ours, init="random")
    runs = (
        ("EVLGen", "EVLGen", with_connector(evlgen(scale, steps=STEPS), init=bert)),
        ("EVLGen, easy-VQA", "EVLGen", on_easy_vqa(ours)),
        ("BLIP-2, single stage, easy-VQA", "BLIP-2, single stage", on_easy_vqa(theirs)),
        ("EVLGen from random weights, easy-VQA", "EVLGen", on_easy_vqa(random)),
    )
    rows = tuple(
        Row(
            label,
            config,
            values={"connector": connector, "init": config.connector.init, "world": config.data.world},
        )
        for label, connector, config in runs
    )
    notes = "One seed and a short training: differences between rows say little."
    return Experiment("bridge", "Small real models", rows, METRICS, get(scale).seeds, notes, examples=4)


def on_easy_vqa(config: RunConfig) -> RunConfig:
    """The run on easy-VQA, whose captions have three words."""
    evaluation = dataclasses.replace(
        config.evaluation, sets=(("easy_captions", 100), ("easy_vqa", 200)), min_length=2, max_length=8
    )
    config = with_setting(config, config.connector.init, EASY_RATE, 0.15)
    return dataclasses.replace(config, data=EASY_VQA, evaluation=evaluation)
