"""Scores and the numbers of their scorers change together."""

from __future__ import annotations

import dataclasses

import pytest

from evlgen.runs.behaviour import SCORERS
from tests.golden import scorers
from tests.golden.rule import Golden

pytestmark = pytest.mark.xdist_group("meteor")


def test_scores_and_numbers_agree():
    assert scorers.BOOK.problems(scorers.BOOK.read(), scorers.measured(), SCORERS) == []


def test_every_scorer_has_a_case():
    assert set(scorers.CASES) == set(SCORERS)


def _recorded(name: str, **changes: float) -> dict[str, Golden]:
    recorded = scorers.BOOK.read()
    case = recorded[name]
    return {**recorded, name: dataclasses.replace(case, values={**case.values, **changes})}


def test_a_changed_score_names_the_number_to_raise():
    (message,) = scorers.BOOK.problems(scorers.BOOK.read(), _recorded("captions", CIDEr=93.0), SCORERS)
    raised = f"raise captions to {SCORERS['captions'] + 1} in SCORERS of evlgen/runs/behaviour.py"
    assert raised in message
    assert "CIDEr" in message


def test_a_number_raised_for_nothing_is_named():
    number = SCORERS["gqa_accuracy"]
    recorded = scorers.BOOK.read()
    raised = dataclasses.replace(recorded["gqa_accuracy"], numbers={"gqa_accuracy": number + 1})
    (message,) = scorers.BOOK.problems(recorded, {**recorded, "gqa_accuracy": raised}, SCORERS)
    assert f"gqa_accuracy is raised to {number + 1}, but none of its golden values has changed" in message


def test_a_scorer_without_a_case_is_named():
    recorded = scorers.BOOK.read()
    (message,) = scorers.BOOK.problems(recorded, recorded, {**SCORERS, "bleurt": 1})
    assert message == "the scorer 'bleurt' has no golden case: add one that uses it"
