"""What ``--set`` changes in the two stages of an experiment's rows."""

from __future__ import annotations

import pytest

from experiments import load


@pytest.mark.parametrize(
    ("change", "key", "both"),
    [
        ("optim.batch_size=8", "batch_size", True),
        ("optim.accumulate=2", "accumulate", True),
        ("optim.lr=0.5", "lr", False),
        ("optim.steps=7", "steps", False),
    ],
)
def test_changes_of_both_stages(change: str, key: str, both: bool) -> None:
    config, plain = load("table1", "mini", (change,)).rows[0].config, load("table1", "mini").rows[0].config
    first, unchanged = config.init_from, plain.init_from
    assert first is not None
    assert unchanged is not None
    assert getattr(config.optim, key) != getattr(plain.optim, key)
    assert getattr(first.optim, key) == getattr((config if both else unchanged).optim, key)


def test_changes_of_data_reach_both_stages() -> None:
    config = load("table1", "mini", ('data.pools=[["coco", 8]]',)).rows[0].config
    assert config.init_from is not None
    assert config.data.pools == config.init_from.data.pools == (("coco", 8),)
