"""The experiments beside the paper's tables: what their rows are, at each scale."""

from __future__ import annotations

import dataclasses

import pytest

from evlgen.config import QFormerConfig, RunConfig, TomeFormerConfig
from evlgen.cost import run_cost
from evlgen.errors import UserError
from evlgen.merging import merge_schedule, token_counts
from experiments import EXPERIMENTS, load
from experiments.collapse import fewest
from experiments.data_fractions import with_fraction
from experiments.merge_schedules import spread
from experiments.scales import NAMES, blip2, blip2_single_stage, blip2_split, blip2_stage1, evlgen, get

TRAINED = [name for name in EXPERIMENTS if load(name).count is None]
AT_SCALES = [(name, scale) for name in TRAINED for scale in NAMES if (name, scale) != ("table2", "bridge")]


@pytest.mark.parametrize(("name", "scale"), AT_SCALES)
def test_rows_are_told_apart_and_can_be_built(name: str, scale: str) -> None:
    rows = load(name, scale).rows
    assert len({row.label for row in rows}) == len(rows)
    if name != "learning_rates":  # a part's default setting is a row of several searches
        assert len({row.config for row in rows}) == len(rows)
    for row in rows:
        connector = row.config.connector
        if isinstance(connector, TomeFormerConfig):
            schedule = merge_schedule(connector.num_layers, connector.r)
            left = token_counts(get(scale).tokens, schedule)[-1]  # raises if a layer cannot
            assert row.values.get("tokens", left) == left
        elif isinstance(connector, QFormerConfig):
            assert row.values.get("tokens", connector.num_queries) == connector.num_queries


@pytest.mark.parametrize(("scale", "rate"), [("mini", 1e-3), ("bridge", 1e-4), ("paper", 1e-4)])
def test_initial_weights_have_their_own_rate(scale: str, rate: float) -> None:
    chosen = get(scale)
    rows = [row for name in ("initialisation", "collapse") for row in load(name, scale).rows]
    other = [row for row in rows if f"from {chosen.bert}" in row.label or "from random" in row.label]
    kept = [row for row in other if row.config.connector.init == chosen.tomeformer.init]
    assert (len(other), len(kept)) == (8, 2)
    for row in other:
        make = evlgen if isinstance(row.config.connector, TomeFormerConfig) else blip2_single_stage
        assert row.config.optim.lr == (make(scale).optim.lr if row in kept else rate)


def test_berts_weights_have_the_warm_up_that_was_found_for_them() -> None:
    (row,) = (
        row for row in load("collapse", "mini").rows if row.label == "BLIP-2, single stage, from mini-bert"
    )
    assert (row.config.optim.lr, row.config.optim.warmup_lr, row.config.optim.warmup_steps) == (
        1e-3,
        1e-5,
        45,
    )


def test_longer_rows_of_collapse_are_those_of_other_rows() -> None:
    rows = {row.label: row for row in load("collapse", "mini").rows}
    longer = [row for row in rows.values() if row.values["factor"] == "budget"]
    assert len(longer) == 2 * 6
    for row in longer:
        short = rows[f"{row.values['connector']}, {row.values['level']}"].config
        assert row.config.optim.steps == 3 * short.optim.steps
        assert row.config.optim.warmup_steps == short.optim.warmup_steps
        optim = dataclasses.replace(
            row.config.optim,
            steps=short.optim.steps,
            eval_every=short.optim.eval_every,
            checkpoint_every=short.optim.checkpoint_every,
        )
        assert dataclasses.replace(row.config, optim=optim) == short


@pytest.mark.parametrize(
    ("scale", "schedules"),
    [
        ("mini", [16, 6]),
        ("paper", [(25, 26, 25) * 3, (10, 9, 9, 10) * 6]),
        ("bridge", [(32, 16, 6, 0), (4, 5, 5, 4) * 3]),  # 24 tokens cannot lose 13
    ],
)
def test_other_depths_merge_evenly_where_they_can(scale: str, schedules: list[object]) -> None:
    deep = [row.config.connector for row in load("collapse", scale).rows if row.values["factor"] == "depth"]
    assert [one.r for one in deep if isinstance(one, TomeFormerConfig)] == schedules


@pytest.mark.parametrize(("name", "scale"), AT_SCALES)
def test_rows_are_compared_with_rows_that_there_are(name: str, scale: str) -> None:
    rows = {row.label: row for row in load(name, scale).rows}
    for row in rows.values():
        if row.against:
            base = rows[row.against]
            if name not in ("budgets", "baselines"):
                assert row.values.get("connector") == base.values.get("connector")


@pytest.mark.parametrize(
    ("name", "label", "against"),
    [
        ("collapse", "BLIP-2, single stage, lr 0.0003", "BLIP-2, single stage, default"),
        ("two_stage", "without ITC in stage 1", "as in table 1"),
        (
            "data_fractions",
            "EVLGen, 1/50 of the data, equal epochs",
            "EVLGen, 1/1 of the data, equal steps",
        ),
        ("soft_tokens", "EVLGen, 65 soft tokens", "EVLGen, 17 soft tokens"),
        ("soft_tokens", "BLIP-2, single stage, 4 soft tokens", "BLIP-2, single stage, 18 soft tokens"),
        ("initialisation", "EVLGen, from mini-bert", "EVLGen, from random"),
        ("encoders", "EVLGen, mini-clip", "EVLGen, mini-vit"),
        ("budgets", "EVLGen, 50K", "BLIP-2, two stages, 250K + 80K"),
        ("merge_schedules", "r = 12, at random", "constant, r = 12"),
        ("merge_schedules", "32 merged, increasing", "constant, r = 8"),  # 8 in each layer are 32, too
        ("baselines", "linear projection (LLaVA)", "EVLGen"),
    ],
)
def test_what_a_row_is_compared_with(name: str, label: str, against: str) -> None:
    (row,) = (row for row in load(name, "mini").rows if row.label == label)
    assert row.against == against


def test_table2_needs_two_language_models() -> None:
    with pytest.raises(UserError, match=r"^table2: needs two language models; scale bridge has one$"):
        load("table2", "bridge")


@pytest.mark.parametrize(
    ("scale", "bert", "rates"),
    [
        ("mini", "mini-bert", [3e-4, 1e-3, 3e-3, 1e-2]),
        ("bridge", "minilm-l6", [1e-5, 3e-5, 1e-4, 3e-4]),
        ("paper", "bert-base-uncased", [1e-5, 3e-5, 1e-4, 3e-4]),
    ],
)
def test_search_of_rates_is_about_those_of_the_scale(scale: str, bert: str, rates: list[float]) -> None:
    rows = [row for row in load("learning_rates", scale).rows if row.label.startswith("EVLGen")]
    assert sorted({row.config.optim.lr for row in rows}) == rates
    assert {row.config.connector.init for row in rows} == {"random", bert}


def test_experiments_say_what_they_are() -> None:
    experiments = {name: load(name) for name in EXPERIMENTS}
    assert [name for name, one in experiments.items() if one.count] == ["table5"]
    claimed = [name for name, one in experiments.items() if one.claimed]
    assert claimed == ["table1", "table2", "budgets", "encoders"]
    assert all(experiments[name].in_all for name in claimed)
    assert [name for name, one in experiments.items() if not one.in_all] == ["learning_rates", "bridge"]
    assert {name: one.pictured for name, one in experiments.items() if one.pictured} == {
        "table1": 99,
        "table2": 1,
    }


def test_an_experiment_is_loaded_at_its_default_scale() -> None:
    assert load("bridge") == load("bridge", "bridge") != load("bridge", "mini")
    assert load("table1") == load("table1", "mini") != load("table1", "smoke")


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (32, [3, 2, 1, 0], (16, 11, 5, 0)),
        (32, [0, 1, 2, 3], (0, 5, 11, 16)),
        (32, [1, 1, 1, 1], 8),
        (7, [1, 1, 1], (2, 3, 2)),
    ],
)
def test_spread_adds_up_exactly(total: int, weights: list[int], expected: int | tuple[int, ...]) -> None:
    assert spread(total, weights) == expected


def test_fewest_merges_all_it_can() -> None:
    assert fewest(65, 4, 5) == (32, 16, 8, 4)
    assert fewest(65, 4, 8) == (32, 16, 8, 1)
    assert fewest(65, 3, 17) == (32, 16, 0)


def test_equal_epochs_have_updates_in_proportion() -> None:
    rows = {
        (str(row.values["connector"]), str(row.values["equal"]), float(row.values["fraction"])): row.config
        for row in load("data_fractions", "mini").rows
    }
    whole, half = rows["EVLGen", "steps", 1.0], rows["EVLGen", "epochs", 0.5]
    assert half.optim.steps * 2 == whole.optim.steps
    assert rows["EVLGen", "steps", 0.5].optim.steps == whole.optim.steps
    assert rows["EVLGen", "steps", 0.5].data == half.data
    assert sum(size for _, size in half.data.pools) * 2 == sum(size for _, size in whole.data.pools)


def test_a_small_fraction_leaves_no_pool_empty() -> None:
    assert min(size for _, size in with_fraction(evlgen("smoke"), 0.02).data.pools) == 1


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_two_stages_cost_the_same_however_they_are_split(share: float) -> None:
    def cost(config: RunConfig) -> tuple[float, float]:
        assert config.init_from is not None
        return config.init_from.optim.steps * get("mini").stage1_cost, config.optim.steps

    first, second = cost(blip2_split("mini", share))
    assert first + second == pytest.approx(sum(cost(blip2("mini"))), rel=0.01)
    assert first / (first + second) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("scale", NAMES)
def test_the_cost_of_stage_1_without_a_loss_is_what_is_counted(scale: str) -> None:
    def macs(config: RunConfig) -> int:
        cost = run_cost(config)
        return cost.trained_macs + (0 if config.data.cache else cost.vision_macs)

    whole = blip2_stage1(scale)
    for loss, share in get(scale).without_loss.items():
        objectives = tuple(one for one in whole.objectives if one != loss)
        assert share == pytest.approx(
            macs(dataclasses.replace(whole, objectives=objectives)) / macs(whole), abs=1e-6
        )


def test_a_stage_1_without_a_loss_costs_as_much() -> None:
    def macs(config: RunConfig) -> int:
        assert config.init_from is not None
        return config.init_from.optim.steps * run_cost(config.init_from).trained_macs

    rows = {row.label: row.config for row in load("two_stage", "mini").rows}
    for loss in ("ITC", "ITM", "LM"):
        row = rows[f"without {loss} in stage 1"]
        assert row.init_from is not None
        assert loss.lower() not in row.init_from.objectives
        assert macs(row) == pytest.approx(macs(rows["as in table 1"]), rel=0.01)
        assert row.optim == rows["as in table 1"].optim  # of stage 2


def test_both_single_stages_have_the_same_budgets() -> None:
    steps: dict[object, list[int]] = {}
    for row in load("budgets", "mini").rows:
        steps.setdefault(row.values["connector"], []).append(row.config.optim.steps)
    assert steps["EVLGen"] == steps["BLIP-2, single stage"] == [100, 200, 300, 500, 800]


def test_tables_share_their_runs_with_the_budgets() -> None:
    table = {row.config for row in load("table1", "mini").rows}
    budgets = {row.config for row in load("budgets", "mini").rows}
    assert len(table & budgets) == 4
