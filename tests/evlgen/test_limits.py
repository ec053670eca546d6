"""What a configuration may say, tried on every number of it."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from evlgen import config as schema
from evlgen.config import RunConfig, with_value
from evlgen.errors import UserError
from evlgen.limits import RANGES, Range, check
from evlgen.runtime.paths import ROOT
from experiments import EXPERIMENTS, load
from experiments.scales import blip2, evlgen
from experiments.scales import linear as linear_of
from experiments.scales import perceiver as perceiver_of
from experiments.scales import pooled as pooled_of

NOT_RANGED = {"connector.r"}  # a schedule, which has rules of its own
RUNS = {
    "tomeformer": evlgen("mini"),
    "qformer": blip2("mini"),
    "linear": linear_of("mini"),
    "pool": pooled_of("mini"),
    "perceiver": perceiver_of("mini"),
}


def numbers_of(kind: type, prefix: str = "") -> dict[str, type]:
    """Dotted name -> type of every number in a configuration; those of all connectors."""
    found: dict[str, type] = {}
    for name, hint in typing.get_type_hints(kind).items():
        parts = typing.get_args(hint) or (hint,)
        for part in parts:
            if dataclasses.is_dataclass(part) and part is not RunConfig:
                found |= numbers_of(typing.cast(type, part), f"{prefix}{name}.")
            elif part in (int, float):
                found[prefix + name] = part
    return found


def test_every_number_has_a_range() -> None:
    assert numbers_of(RunConfig).keys() - NOT_RANGED == RANGES.keys()


@pytest.mark.parametrize("name", sorted(RANGES))
def test_numbers_out_of_range_are_named(name: str) -> None:
    kind = numbers_of(RunConfig)[name]
    limits = RANGES[name]
    wrong: list[float] = [limits.low - 1, -(10**9)]
    if limits.high < math.inf:
        wrong += [limits.high + 1] + ([limits.high] if limits.below else [])
    if kind is float:
        wrong += [math.nan, math.inf, -math.inf]
    run = next(
        run for run in RUNS.values() if hasattr(run.connector, name.split(".")[-1]) or "connector" not in name
    )
    for value in wrong:
        given = f"[0.5, {value}]" if name == "optim.betas" else str(value)
        given = given.replace("nan", "NaN").replace("inf", "Infinity")
        with pytest.raises(UserError, match=rf"^{name} is .*it must be") as refused:
            check(with_value(run, name, given))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("scale", ["smoke", "mini", "bridge", "paper"])
def test_the_experiments_hold_to_it(scale: str) -> None:
    for name in EXPERIMENTS:
        if (scale, name) != ("bridge", "table2"):  # which has but one language model
            load(name, scale)


@pytest.mark.parametrize(
    ("run", "changes", "message"),
    [
        ("tomeformer", {"connector.r": "100"}, r"connector.r: layer 0 cannot merge 100 of its 65 tokens, 32"),
        ("tomeformer", {"connector.r": "17"}, "connector.r: layer 2 cannot merge 17 of its 31 tokens, 15"),
        ("tomeformer", {"connector.r": "-1"}, "connector.r = -1: -1 is not a whole number of 0 or more"),
        ("tomeformer", {"connector.r": "[3, 7]"}, "connector.r = .*inflection"),
        ("tomeformer", {"connector.r": "[1, 2, 3]"}, "connector.r = .*3 entries for 4 layers"),
        ("tomeformer", {"connector.num_heads": "5"}, "connector.num_heads is 5: 96, the width"),
        ("tomeformer", {"connector.input_width": "95"}, "input_width is 95: mini-vit gives .* width 96"),
        ("tomeformer", {"vision": "mini-clip"}, "input_width is 96: mini-clip gives .* width 64"),
        ("tomeformer", {"connector.max_positions": "64"}, "connector.max_positions is 64: an image has 65"),
        ("perceiver", {"connector.max_positions": "64"}, "connector.max_positions is 64: an image has 65"),
        ("pool", {"connector.rows": "9"}, "connector.rows is 9: an image has 8 x 8 patches"),
        ("linear", {"connector.width": "64"}, "connector.width is 64: .* connector.input_width, 96"),
        ("tomeformer", {"evaluation.max_length": "300"}, "evaluation.max_length is 300: .*room for 238"),
        ("qformer", {"data.max_text_tokens": "300"}, "data.max_text_tokens is 300: .*room for"),
        ("tomeformer", {"evaluation.min_length": "31"}, "evaluation.min_length is 31: above"),
        ("tomeformer", {"conventions": "authors", "evaluation.answer_max_length": "1"}, "2 or more"),
        ("tomeformer", {"optim.accumulate": "5"}, "optim.batch_size 32: cannot be split .* multiple of 5"),
        ("tomeformer", {"data.pools": "[]"}, "data.pools: there is no pair"),
        ("tomeformer", {"data.pools": '[["coco", 4], ["coco", 4]]'}, "data.pools: coco is listed more"),
        ("tomeformer", {"data.pools": '[["coco", -4]]'}, "data.pools: coco is -4"),
        ("tomeformer", {"evaluation.sets": '[["coco", -4]]'}, "evaluation.sets: coco is -4"),
        ("tomeformer", {"stage": "represent"}, "it is a stage of the Q-Former"),
        ("tomeformer", {"objectives": "[]"}, "objectives: is empty"),
        ("tomeformer", {"objectives": '["lm", "lm"]'}, "objectives: lm is listed more than once"),
    ],
)
def test_what_does_not_fit_together_is_named(run: str, changes: dict[str, str], message: str) -> None:
    config = RUNS[run]
    check(config)
    for key, value in changes.items():
        config = with_value(config, key, value)
    with pytest.raises(UserError, match=message):
        check(config)


def test_stage_1_is_looked_at_as_well() -> None:
    config = RUNS["qformer"]
    assert config.init_from is not None
    for key, value, message in (
        ("optim.lr", "-1", "stage1.optim.lr is -1.0"),
        ("optim.batch_size", "1", "stage1.optim.batch_size is 1: .*2 pairs"),
        ("connector.max_positions", "8", "stage1.connector.max_positions is 8: a text has up to"),
    ):
        first = with_value(config.init_from, key, value)
        with pytest.raises(UserError, match=message):
            check(dataclasses.replace(config, init_from=first))
    with pytest.raises(UserError, match="followed by a Q-Former"):
        check(dataclasses.replace(RUNS["tomeformer"], init_from=config.init_from))
    with pytest.raises(UserError, match="'represent'"):
        check(dataclasses.replace(config, init_from=dataclasses.replace(config, init_from=None)))


def test_tokens_of_an_encoder_are_those_that_are_given() -> None:
    config = dataclasses.replace(RUNS["tomeformer"], vision="/models/clip", language="/models/llm")
    config = with_value(config, "connector.r", "40")
    check(config)  # only its weights can tell
    with pytest.raises(UserError, match="cannot merge 40 of its 65 tokens"):
        check(config, 65)
    check(with_value(config, "connector.max_positions", "600"), 577)


def test_ranges_in_words() -> None:
    assert str(Range(1)) == "1 or more"
    assert str(Range(1, 1_000_000_000)) == "1 to 1,000,000,000"
    assert str(Range(0, 1, below=True)) == "0 to below 1"
    assert isinstance(RANGES["optim.lr"], Range)
    assert schema.OptimConfig().lr > 0


@pytest.mark.parametrize(
    "change", ["evaluation.beams=0", "evaluation.max_length=0", "optim.lr=-1", "optim.lr=NaN"]
)
@pytest.mark.parametrize("way", [(), ("--dry-run",)])
def test_a_run_ends_before_it_begins(tmp_path: Path, change: str, way: tuple[str, ...]) -> None:
    """Nothing is trained, and the command says in one line what to change."""
    places = {f"EVLGEN_{name}": str(tmp_path / name.lower()) for name in ("RUNS", "RESULTS", "CACHE")}
    command = [
        sys.executable,
        "sweeps/run.py",
        "table1",
        "--scale",
        "smoke",
        "--seeds",
        "1",
        "--set",
        change,
        *way,
    ]
    told = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **places},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 2
    (line,) = told.stderr.splitlines()
    assert line.startswith(f"error: {change.partition('=')[0]} is ")
    assert not (tmp_path / "runs").exists()
