"""What a search looks for: its targets, and the names of their studies."""

from __future__ import annotations

import hashlib
import json

from evlgen.backbones.eva import EvaConfig
from evlgen.backbones.vision import build_vision
from evlgen.config import RunConfig, TomeFormerConfig
from evlgen.errors import UserError
from evlgen.runs.identity import run_id
from evlgen.runtime.sources import SOURCES
from experiments import load
from sweeps.search.arguments import Arguments
from sweeps.search.spaces import Target, merge_target, parts, rate_targets


def targets(arguments: Arguments) -> list[Target]:
    """What is to be searched, one study each.

    Raises:
        UserError: the experiment does not have what is searched, or ``--set`` is wrong.
    """
    experiment = load(arguments.experiment, arguments.scale, arguments.set)
    if arguments.search == "learning-rate":
        return rate_targets(experiment, arguments.warmup)
    bases = [c for c in parts(experiment).values() if isinstance(c.connector, TomeFormerConfig)]
    if not bases:
        raise UserError(f"--experiment {arguments.experiment}: none of its rows has a TomeFormer")
    return [merge_target(arguments.space, bases[0], image_tokens(bases[0]))]


def image_tokens(config: RunConfig) -> int:
    """Tokens that the image encoder gives for an image, the class token among them."""
    if config.vision in SOURCES:
        return 1 + EvaConfig().grid ** 2
    return build_vision(config.vision).tokens


def study_name(arguments: Arguments, target: Target) -> str:
    """Name of a study: whatever would change its trials changes its name, the behaviour of code among it."""
    identity = {
        "base": run_id(target.base),
        "space": {name: repr(axis) for name, axis in target.space.items()},
        "objectives": arguments.minimised,
        "pruner": arguments.pruner,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    part = target.part.lower().replace(",", "").replace(" ", "-")
    return f"{arguments.search}-{part}-{arguments.scale}-seed{arguments.seed}-{digest}"
