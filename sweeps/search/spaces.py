"""What `sweeps/merge_search.py` searches: from a trial's parameters to a run, as pure functions.

A merge schedule is always written as a list with one entry a layer, so that merging at some place of the
connector is a list with zeros elsewhere. An entry that the tokens of a layer do not allow is cut to the most
they do (`evlgen.merging.merge_limit`): every point of a space is a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from evlgen.config import EvalConfig, RunConfig, Schedule, TomeFormerConfig
from evlgen.connectors import row_of
from evlgen.errors import UserError
from evlgen.merging import merge_limit, merge_schedule, token_counts
from experiments.base import Experiment

FEWEST_LAYERS = 3  # the configuration reads a list of two entries as (r, inflection)
WARMUP = (0.005, 0.2)  # share of the updates

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """What one study looks for.

    Attributes:
        part: name in the tables: a merge space, or a part of an experiment.
        base: the run with the default parameters, without captions and questions: a search looks at the
            validation loss alone.
        space: parameter -> range.
        default: the parameters that give ``base``, tried first; None if the space does not hold it.
        config: from a trial's parameters to its run.
    """

    part: str
    base: RunConfig
    space: dict[str, BaseDistribution]
    default: dict[str, Any] | None
    config: Callable[[Params], RunConfig]


# --------------------------------------------------------------------------------------- merge schedules


def merge_target(name: str, base: RunConfig, tokens: int) -> Target:
    """The search of a merge schedule.

    Args:
        name: one of `MERGE_SPACES`.
        base: the run that is varied; its connector is a TomeFormer.
        tokens: image tokens, the class token among them.

    Raises:
        UserError: another connector, or fewer than three layers.
    """
    connector = base.connector
    if not isinstance(connector, TomeFormerConfig):
        raise UserError(f"connector {connector.kind}: merges no tokens; a TomeFormer is needed")
    if connector.num_layers < FEWEST_LAYERS:
        raise UserError(
            f"connector.num_layers is {connector.num_layers}: {FEWEST_LAYERS} at least are needed, since a "
            "list of two entries means (r, inflection)"
        )

    def config(params: Params) -> RunConfig:
        layers = params.get("num_layers", connector.num_layers)
        changed = dataclasses.replace(connector, num_layers=layers)
        r = merge_entries(params, layers, tokens, connector.class_token)
        return dataclasses.replace(base, connector=dataclasses.replace(changed, r=as_schedule(r)))

    return Target(
        name, base, merge_space(name, connector, tokens), merge_params(name, connector, tokens), config
    )


def merge_space(name: str, connector: TomeFormerConfig, tokens: int) -> dict[str, BaseDistribution]:
    """The ranges of a space."""
    layers = connector.num_layers
    if name == "free":
        return {f"merge_{layer}": FloatDistribution(0, 1) for layer in range(layers)}
    # A connector that starts from BERT's weights cannot have more layers than they have.
    most = layers if connector.init != "random" else layers + layers // 2
    fewest = max(FEWEST_LAYERS, layers // 2)
    merging = {"position": 1, "joint": 1, "layers": fewest}.get(name, layers)  # layers that merge, at least
    space: dict[str, BaseDistribution] = {
        "r": IntDistribution(0, largest_r(merging, tokens, connector.class_token))
    }
    if name in ("inflection", "joint"):
        space["inflection"] = FloatDistribution(-1, 1, step=0.25)
    if name in ("layers", "joint"):
        space["num_layers"] = IntDistribution(fewest, most)
    if name in ("position", "joint"):
        depth = most if name == "joint" else layers
        space["first"] = IntDistribution(0, depth - 1)
        space["span"] = IntDistribution(1, depth)
    return space


def merge_params(name: str, connector: TomeFormerConfig, tokens: int) -> dict[str, Any] | None:
    """The parameters of the default schedule, None where a space does not hold it."""
    layers = connector.num_layers
    if name == "free":
        schedule = merge_schedule(layers, connector.r)
        counts = token_counts(tokens, schedule, connector.class_token)
        limits = [merge_limit(count, connector.class_token) for count in counts[:-1]]
        return {
            f"merge_{layer}": r / limit if limit else 0.0
            for layer, (r, limit) in enumerate(zip(schedule, limits, strict=True))
        }
    if not isinstance(connector.r, int):
        return None
    every = {"r": connector.r, "inflection": 0.0, "num_layers": layers, "first": 0, "span": layers}
    return {key: every[key] for key in merge_space(name, connector, tokens)}


def merge_entries(params: Params, layers: int, tokens: int, class_token: bool = True) -> list[int]:
    """How many tokens each of ``layers`` layers merges; entries beyond a layer's limit are cut to it."""
    if "merge_0" in params:
        entries, left = [], tokens
        for layer in range(layers):
            entries.append(round(params[f"merge_{layer}"] * merge_limit(left, class_token)))
            left -= entries[-1]
        return entries
    first = min(params.get("first", 0), layers - 1)
    span = min(params.get("span", layers), layers - first)
    inside = merge_schedule(span, (params["r"], params.get("inflection", 0.0)))
    cut, left = [], tokens
    for r in [0] * first + inside + [0] * (layers - first - span):
        cut.append(min(r, merge_limit(left, class_token)))
        left -= cut[-1]
    return cut


def as_schedule(entries: Sequence[int]) -> Schedule:
    """The shortest form of a schedule, so that the same schedule is always the same run."""
    return entries[0] if len(set(entries)) == 1 else tuple(entries)


def largest_r(layers: int, tokens: int, class_token: bool = True) -> int:
    """Most tokens that each of ``layers`` layers can merge alike."""
    r = 0
    while merge_entries({"r": r + 1}, layers, tokens, class_token) == [r + 1] * layers:
        r += 1
    return r


# ---------------------------------------------------------------------------------------- learning rates


def parts(experiment: Experiment) -> dict[str, RunConfig]:
    """The distinct parts of an experiment that are trained: of the rows that share one, the longest run.

    ``stage 1 of two`` is the same run as ``stage 2 of two``: what stage 1 is worth shows in the loss after
    stage 2.
    """
    found: dict[str, RunConfig] = {}
    for row in experiment.rows:
        config = row.config
        name = row_of(config.connector).title
        names = [f"{name}, stage 2 of two", f"{name}, stage 1 of two"]
        for part in [f"{name}, single stage"] if config.init_from is None else names:
            if part not in found or found[part].optim.steps < config.optim.steps:
                found[part] = unscored(config)
    return found


def rate_targets(experiment: Experiment, warmup: bool) -> list[Target]:
    """The search of the peak learning rate, the same range for every part.

    The range goes from a tenth of the lowest default rate to ten times the highest.

    Args:
        warmup: search the share of the updates that warm up as well.
    """
    found = parts(experiment)
    rates = [_searched(part, config).optim.lr for part, config in found.items()]
    space: dict[str, BaseDistribution] = {"lr": FloatDistribution(min(rates) / 10, max(rates) * 10, log=True)}
    if warmup:
        space["warmup"] = FloatDistribution(*WARMUP, log=True)
    return [_rate_target(part, config, space) for part, config in found.items()]


def _rate_target(part: str, base: RunConfig, space: dict[str, BaseDistribution]) -> Target:
    optim = _searched(part, base).optim
    default: dict[str, Any] = {"lr": optim.lr}
    if "warmup" in space:
        default["warmup"] = min(max(optim.warmup_steps / optim.steps, WARMUP[0]), WARMUP[1])

    def config(params: Params) -> RunConfig:
        searched, lr = _searched(part, base), float(f"{params['lr']:.3g}")
        # The ends of the schedule in proportion, as by default.
        changed = dataclasses.replace(searched.optim, lr=lr, warmup_lr=lr / 100, min_lr=lr / 10)
        if "warmup" in params:
            steps = max(1, round(params["warmup"] * optim.steps))
            changed = dataclasses.replace(changed, warmup_steps=steps)
        run = dataclasses.replace(searched, optim=changed)
        return dataclasses.replace(base, init_from=run) if is_stage1(part) else run

    return Target(part, base, space, default, config)


def is_stage1(part: str) -> bool:
    """Whether a part is the stage 1 that another run starts from."""
    return part.endswith("stage 1 of two")


def _searched(part: str, config: RunConfig) -> RunConfig:
    """The run whose rate is searched: the part's own, or the stage 1 that it starts from."""
    if not is_stage1(part):
        return config
    assert config.init_from is not None
    return config.init_from


def unscored(config: RunConfig) -> RunConfig:
    """The run without captions and questions: only its validation loss counts in a search."""
    return dataclasses.replace(config, evaluation=EvalConfig(validation=config.evaluation.validation))
