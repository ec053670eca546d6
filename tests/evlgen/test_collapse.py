import numpy as np

from evlgen.collapse import CollapseThresholds, classify


def history(gaps: list[float], losses: list[float], blind: float = 2.0) -> list[dict[str, float]]:
    """Validations every tenth step, with lines of the log between them that have none."""
    lines: list[dict[str, float]] = []
    for i, (gap, loss) in enumerate(zip(gaps, losses, strict=True)):
        lines.append({"step": 10 * i + 5, "loss": loss})
        lines.append({"step": 10 * i + 10, "gap": gap, "val_loss": loss, "blind_loss": blind})
    return lines


def test_a_large_gap_is_conditioned_whatever_came_before():
    assert classify(history([0.0, 0.3], [2.0, 1.5])) == "conditioned"
    assert classify(history([0.1], [1.9])) == "conditioned"


def test_a_rising_gap_is_a_plateau_and_not_a_collapse():
    losses = [2.0] * 12
    assert classify(history([0.0] * 8 + [0.0, 0.004, 0.009, 0.015], losses)) == "plateau"
    assert classify(history([0.0] * 8 + [0.02, 0.03, 0.045, 0.06], losses)) == "plateau"


def test_a_loss_that_still_falls_is_a_plateau():
    losses = [2.4 - 0.02 * i for i in range(12)]
    assert classify(history([0.001] * 12, losses, blind=2.17)) == "plateau"


def test_no_gap_no_trend_and_a_blind_loss_is_a_collapse():
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 0.003, 12).tolist()
    losses = [2.5 - 0.1 * i for i in range(6)] + rng.normal(2.0, 0.002, 6).tolist()
    assert classify(history(gaps, losses, blind=2.0)) == "collapsed"


def test_noise_of_the_gap_is_not_taken_for_a_rise():
    gaps = [0.0] * 8 + [-0.004, 0.006, -0.006, 0.004]
    assert classify(history(gaps, [2.0] * 12)) == "collapsed"


def test_what_is_neither_is_undecided():
    assert classify([]) == "undecided"
    assert classify([{"step": 1, "loss": 3.0}]) == "undecided"
    assert classify(history([0.0] * 8, [2.0] * 8)) == "undecided"  # two validations in the last third
    assert classify(history([0.05] * 12, [2.0] * 12)) == "undecided"  # a small gap that stays
    better = history([0.01] * 12, [1.9] * 12, blind=2.0)  # better than blind, though shuffling hardly hurts
    assert classify(better) == "undecided"


def test_thresholds_can_be_changed():
    lines = history([0.05] * 12, [2.0] * 12)
    assert classify(lines, CollapseThresholds(conditioned=0.04)) == "conditioned"
    assert classify(lines, CollapseThresholds(unused=0.06)) == "collapsed"
