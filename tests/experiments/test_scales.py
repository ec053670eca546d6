"""The baselines beside EVLGen: the same budget, and as many soft tokens as their names promise."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from evlgen.config import OptimConfig, RunConfig
from evlgen.cost import image_features, meta_connector, run_cost
from experiments import baselines, collapse, learning_rates, table1, table2
from experiments.scales import (
    NAMES,
    blip2,
    blip2_single_stage,
    blip2_stage1,
    evlgen,
    get,
    linear,
    mlp,
    perceiver,
    pooled,
)
from experiments.scales.base import Language

BASELINES = {linear: (65, 257), mlp: (65, 257), pooled: (17, 29), perceiver: (17, 29)}


@pytest.mark.parametrize("scale", NAMES)
def test_baselines_have_the_budget_of_evlgen(scale: str) -> None:
    """For as long as no search has found another learning rate for one of them."""
    for steps in (50, 250):
        second = get(scale).languages[-1]
        ours = evlgen(scale, language=second, pairs="11M", steps=steps)
        for baseline in BASELINES:
            config = baseline(scale, language=second, pairs="11M", steps=steps)
            assert config.connector.init == "random"
            same = dataclasses.replace(config, connector=ours.connector, optim=ours.optim)
            assert same == ours
            assert config.optim.steps == ours.optim.steps
            assert config.optim.batch_size == ours.optim.batch_size


def test_warm_ups_of_the_paper() -> None:
    rows = [row.config for row in table1.build("paper").rows]
    runs = [*rows, *(row.init_from for row in rows if row.init_from)]
    assert {run.optim.warmup_steps for run in runs} == {5000}
    assert {run.optim.steps for run in runs} == {80_000, 150_000, 250_000}
    assert evlgen("paper", steps=3).optim.warmup_steps == 1500  # a run must reach its peak
    rates = [row.config for row in collapse.build("paper").rows if row.values["factor"] in ("", "lr", "init")]
    assert {config.optim.warmup_steps for config in rates} == {5000}


def test_vicuna_at_the_scale_of_the_paper() -> None:
    vicuna = get("paper").languages[1]
    ours = evlgen("paper", language=vicuna)
    assert (ours.optim.steps, ours.optim.warmup_steps) == (60_000, 2000)
    pools = dict(ours.data.pools)
    assert pools.keys() == {"ccs-14m", "coco"}
    assert pools["ccs-14m"] * 5 == pools["coco"] * 45
    theirs = blip2("paper", language=vicuna)
    assert theirs.optim.steps == 80_000
    assert theirs.data == ours.data
    assert theirs.init_from == blip2("paper").init_from
    rows = {row.label: row.config for row in table2.build("mini").rows}
    first, second = rows["EVLGen, OPT-2.7B"], rows["EVLGen, Vicuna-7B"]
    assert dataclasses.replace(second, language=first.language) == first
    assert (first.language, second.language) == ("mini-opt", "mini-llama")


def test_any_decoder_takes_a_part() -> None:
    own = Language("/models/own-decoder", width=48, steps=100, warmup_steps=7, pools=(("coco", 9),))
    run = evlgen("mini", language=own)
    assert (run.language, run.optim.steps, run.optim.warmup_steps) == (own.name, 200, 7)
    assert run.data.pools == own.pools
    assert evlgen("mini", language=own, pairs="11M").data == evlgen("mini", pairs="11M").data
    assert mlp("mini", language=own).connector.width == 48
    both = blip2("mini", language=own)
    assert (both.language, both.optim.warmup_steps) == (own.name, 7)
    assert both.init_from == blip2_stage1("mini")  # which has no language model
    plain = Language("/models/own-decoder", width=96)
    assert evlgen("mini", language=plain) == dataclasses.replace(evlgen("mini"), language=plain.name)


def test_notes_say_what_differs() -> None:
    assert "Karpathy" in table1.build("paper").notes
    assert table1.build("mini").notes == ""
    assert "not searched" in baselines.build("paper").notes


def test_baselines_have_the_best_settings_of_their_search() -> None:
    """Of CALIBRATION.md: a baseline with another's learning rate is weak by neglect."""
    assert baselines.build("mini").notes == ""
    found = {"linear": (1e-2, 45), "mlp": (3e-2, 45), "pool": (3e-2, 45), "perceiver": (1e-3, 90)}
    for make, part in ((linear, "linear"), (mlp, "mlp"), (pooled, "pool"), (perceiver, "perceiver")):
        optim = make("mini", steps=150).optim
        assert (optim.lr, optim.warmup_steps) == found[part]


def test_default_settings_are_the_best_of_their_search() -> None:
    """By the committed table of the search, within what a seed is worth: nobody is weak by neglect."""
    parts = {
        "EVLGen": evlgen("mini"),
        "BLIP-2, single stage": blip2_single_stage("mini"),
        "BLIP-2, stage 1 of two": blip2("mini"),
        "BLIP-2, stage 2 of two": blip2("mini"),
        "linear": linear("mini"),
        "MLP": mlp("mini"),
        "average pooling": pooled("mini"),
        "perceiver": perceiver("mini"),
    }
    table = Path(__file__).parents[2] / "results" / "learning_rates" / "mini" / "table.csv"
    with table.open(newline="", encoding="utf-8") as file:
        losses = {
            line["row"]: float(line["mean"]) for line in csv.DictReader(file) if line["metric"] == "val_loss"
        }
    rows = learning_rates.build("mini").rows
    assert {row.label for row in rows} == set(losses)
    for part, config in parts.items():
        own = [row for row in rows if row.label.startswith(f"{part}, ")]
        default = [
            row
            for row in own
            if row.config.optim == config.optim
            and row.config.connector == config.connector
            and row.config.init_from == config.init_from
        ]
        assert len(default) == 1, part
        assert losses[default[0].label] < min(losses[row.label] for row in own) + 0.01, part
        varied = [_searched(row.config, part).lr for row in own]
        assert min(varied) < _searched(config, part).lr < max(varied), f"{part}: at the edge of its search"


def _searched(config: RunConfig, part: str) -> OptimConfig:
    if part != "BLIP-2, stage 1 of two":
        return config.optim
    assert config.init_from is not None
    return config.init_from.optim


def test_soft_tokens() -> None:
    for baseline, (mini, paper) in BASELINES.items():
        assert run_cost(baseline("mini")).soft_tokens == mini
        config = baseline("paper").connector
        assert meta_connector(config)(image_features(config, 257)).shape[1] == paper
    assert run_cost(evlgen("mini")).soft_tokens == 17


def test_hidden_layer_of_the_mlp_has_the_width_of_the_language_model() -> None:
    languages = get("paper").languages
    assert [mlp("paper", language=one).connector.width for one in languages] == [2560, 4096]
    assert linear("paper").connector.width == 1408


def test_every_baseline_gets_the_search_of_learning_rates() -> None:
    labels = [row.label for row in learning_rates.build("mini").rows]
    for name in ("linear", "MLP", "average pooling", "perceiver"):
        own = [label for label in labels if label.startswith(f"{name}, ")]
        alike = sum(init == "random" for init, _, _ in learning_rates.SETTINGS)
        assert len(own) == alike + len(learning_rates.FURTHER[name])
        assert all(", random, " in label for label in own)
