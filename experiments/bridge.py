"""Small real models: SmolLM2-135M as the frozen language model, connectors from a six-layer BERT (MiniLM).

Image features are the miniature's. The budgets are small: this shows that the same code trains and generates
with a real language model, not which row is better. The miniworld's pairs are those in the role of the 11M,
which are cleaner. On easy-VQA, an external data set, training sees captions alone and the questions are asked
zero-shot. BLIP-2's two stages do not fit into an hour: see ``table1 --scale bridge``.
"""

from __future__ import annotations

import dataclasses

from evlgen.config import DataConfig, RunConfig
from experiments.base import Experiment, Row
from experiments.changes import with_connector
from experiments.scales import blip2_single_stage, evlgen, get

METRICS = (
    *("coco/CIDEr", "coco/objects_right", "coco/colours_right", "vqav2"),
    *("easy_captions/CIDEr", "easy_vqa", "gap"),
)
STEPS, EASY_STEPS = 750, 200  # thousand updates of the paper
EASY_VQA = DataConfig(world="easy-vqa", pools=(("easy_train", 3342),))


def build(scale: str) -> Experiment:
    """EVLGen on the miniworld, whose captions take long to learn; connectors compared on easy-VQA."""
    bert = get(scale).bert
    ours = with_connector(evlgen(scale, steps=EASY_STEPS), init=bert)
    theirs = with_connector(blip2_single_stage(scale, steps=EASY_STEPS), init=bert)
    random = with_connector(ours, init="random")
    runs = (
        ("EVLGen, 11M", "EVLGen", with_connector(evlgen(scale, pairs="11M", steps=STEPS), init=bert)),
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
    return Experiment(
        "bridge",
        "Small real models",
        rows,
        METRICS,
        get(scale).seeds,
        notes="One seed and a short training: differences between rows say little.",
        examples=4,
        in_all=False,
        default_scale="bridge",
    )


def on_easy_vqa(config: RunConfig) -> RunConfig:
    """The run on easy-VQA, whose captions have three words."""
    evaluation = dataclasses.replace(
        config.evaluation, sets=(("easy_captions", 100), ("easy_vqa", 200)), min_length=2, max_length=8
    )
    return dataclasses.replace(config, data=EASY_VQA, evaluation=evaluation)
