"""A run store with made-up runs in the true file format: figures at full size without an hour of training."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from evlgen.config import RunConfig
from evlgen.runs import folder as files
from evlgen.runs import identity
from experiments import load
from experiments.base import Row, seeded

SECONDS = {"tomeformer": 0.13, "qformer": 0.11}
CAPTION = "a big orange star on the right side of a green house and a blue house on a snowy field"


def fill(
    experiment: str, scale: str = "mini", seeds: int | None = None, leave_out: tuple[str, ...] = ()
) -> None:
    """Every run of an experiment but those of the rows whose label has one of ``leave_out`` in it."""
    described = load(experiment, scale)
    for row in described.rows:
        if not any(text in row.label for text in leave_out):
            for seed in range(seeds or described.seeds):
                write(seeded(row.config, seed))


def write(config: RunConfig) -> Path:
    """The folder of a run, with a history and a result that look like those of a real one."""
    folder = files.prepare(config)
    noise = random.Random(identity.run_id(config))
    optim = config.optim
    begun = 0 if config.init_from is None else config.init_from.optim.steps * 1.5
    least = 0.42 + noise.gauss(0, 0.02) + 0.1 * abs(math.log10(optim.lr / 3e-3))

    def at(step: int) -> dict[str, float]:
        learnt = 1 / (1 + math.exp(-(step + begun - 180) / 60))
        loss = 1.6 * math.exp(-step / 60) + least + 0.9 * (1 - learnt)
        return {
            "val_loss": loss,
            "gap": 0.95 * learnt * (1 + noise.gauss(0, 0.02)),
            "cosine": 0.98 - 0.5 * learnt + noise.gauss(0, 0.01),
            "effective_rank": 2 + 20 * learnt + noise.gauss(0, 0.5),
        }

    steps = range(optim.eval_every, optim.steps + 1, optim.eval_every)
    lines = [json.dumps({"step": step, "loss": 2.0, **at(step)}) for step in steps]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    pace = 0.38 if config.stage == "represent" else SECONDS.get(config.connector.kind, 0.1)
    seconds = optim.steps * pace * (1 + abs(noise.gauss(0, 0.03)))
    files.write_json(folder / files.PROVENANCE, {"seed": config.seed})
    outcome = {"train_seconds": seconds, "state": "conditioned", "samples": optim.steps * optim.batch_size}
    files.write_outcome(folder, outcome)
    if config.stage == "represent":
        files.write_result(folder, outcome, {})
        return folder
    if config.init_from is not None:
        first = files.read_outcome(write(config.init_from))
        assert first is not None
        seconds += first["metrics"]["train_seconds"]
    final = at(optim.steps)
    metrics = {
        **outcome,
        **final,
        "total_seconds": seconds,
        "coco/CIDEr": 240 - 140 * final["val_loss"] + noise.gauss(0, 6),
        "vqav2": 85 - 40 * final["val_loss"] + noise.gauss(0, 1),
        "gqa": 70 - 25 * final["val_loss"] + noise.gauss(0, 1),
        "okvqa": 60 - 30 * final["val_loss"] + noise.gauss(0, 3),
        "connector_gmacs": gmacs(config),
    }
    captions = {"coco": {str(image): CAPTION for image in range(16)}}
    (folder / files.PREDICTIONS).write_text(json.dumps({"captions": captions}))
    files.write_outcome(folder, outcome)
    files.write_result(folder, metrics, {})
    return folder


def gmacs(config: RunConfig) -> float:
    """Roughly what a connector costs: each token that passes a layer alike."""
    connector, tokens = config.connector, 65
    if connector.kind != "tomeformer":
        return 0.013
    total = 0
    for layer in range(connector.num_layers):
        r = connector.r[layer] if isinstance(connector.r, tuple) else connector.r
        total += tokens
        tokens -= r
    return total * 12 * connector.width**2 / 1e9


def rows(experiment: str, scale: str = "mini") -> tuple[Row, ...]:
    """The rows of an experiment."""
    return load(experiment, scale).rows
