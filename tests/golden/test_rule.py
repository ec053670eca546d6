"""Both rules, on copies of the golden values and of the numbers: no value without its number, and no number
without a value."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from evlgen.runs.behaviour import COMPONENTS
from tests.golden import book as runs
from tests.golden import cases
from tests.golden.book import BOOK
from tests.golden.rule import Golden

NUMBERS = {"merging": 1, "tomeformer": 1, "qformer": 1, "stage1": 1, "training": 1, "decoding": 3}
USES = {
    "ours": ("merging", "tomeformer", "training", "decoding"),
    "ours, other metric": ("merging", "tomeformer", "training", "decoding"),
    "theirs": ("qformer", "training", "decoding"),
    "their stage 1": ("qformer", "stage1", "training"),
}


@pytest.fixture
def book(tmp_path):
    return dataclasses.replace(BOOK, path=tmp_path / "golden.json")


def golden(numbers: dict[str, int] = NUMBERS) -> dict[str, Golden]:
    values = {
        "loss": [3.25, 2.5],
        "weights connector": [4.0, 0.5, -1.25],
        "said captions coco": {"0": "a red ball", "1": None},
    }
    return {
        name: Golden(copy.deepcopy(values), {part: numbers[part] for part in parts})
        for name, parts in USES.items()
    }


def changed(cases: dict[str, Golden], *names: str, value: str = "loss") -> dict[str, Golden]:
    found = copy.deepcopy(cases)
    for name in names:
        found[name].values[value] = {"loss": [3.25, 2.55], "said captions coco": {"0": "a ball", "1": ""}}[
            value
        ]
    return found


def test_nothing_has_changed(book):
    book.write(golden())
    assert book.read() == golden()
    assert book.problems(book.read(), golden(), NUMBERS) == []
    assert book.renewed(book.read(), golden(), NUMBERS) == golden()


def test_rounding_is_no_change_and_leaves_the_digits_as_they_are(book):
    now = copy.deepcopy(golden())
    now["ours"].values["loss"] = [3.2501, 2.4999]
    now["ours"].values["said captions coco"]["1"] = "whatever rounding makes of it"
    assert book.problems(golden(), now, NUMBERS) == []
    assert book.renewed(golden(), now, NUMBERS) == golden()


@pytest.mark.parametrize(
    ("cases", "value", "advice"),
    [
        (("ours", "ours, other metric"), "loss", "raise merging to 2 or tomeformer to 2 in"),
        (("theirs", "their stage 1"), "loss", "raise qformer to 2 in"),
        (("their stage 1",), "loss", "raise stage1 to 2 in"),
        (tuple(USES), "loss", "raise training to 2 in"),
        (("theirs",), "said captions coco", "raise decoding to 4 in"),
        (("ours", "their stage 1"), "loss", "raise training to 2 in"),
    ],
)
def test_changed_values_want_the_number_of_what_all_changed_cases_use(book, cases, value, advice):
    now = changed(golden(), *cases, value=value)
    (problem,) = book.problems(golden(), now, NUMBERS)
    assert f"{len(cases)} of 4 cases" in problem
    assert advice + " COMPONENTS of evlgen/runs/behaviour.py" in problem
    assert "renew the values with 'python -m tests.golden --write'" in problem
    with pytest.raises(ValueError, match="golden values have changed, but no number"):
        book.renewed(golden(), now, NUMBERS)


def test_another_rate_is_a_change_of_training(book):
    """Also where only cases with a curve of their own show it, which use more than `training`."""
    before = golden()
    for case in before.values():
        case.values["lr"] = [1e-3, 4e-3]
    now = changed(before, "ours, other metric")
    now["ours, other metric"].values["lr"] = [1e-3, 3e-3]
    (problem,) = book.problems(before, now, NUMBERS)
    assert "raise training to 2 in COMPONENTS" in problem


def test_a_raised_number_and_changed_values_want_new_golden_values_and_no_more(book):
    numbers = NUMBERS | {"merging": 2}
    now = changed(golden(numbers), "ours")
    (problem,) = book.problems(golden(), now, numbers)
    assert problem == "golden.json is older than the numbers: renew it with 'python -m tests.golden --write'"
    renewed = book.renewed(golden(), now, numbers)
    assert renewed["ours"] == now["ours"]
    assert renewed["ours, other metric"] == Golden(golden()["ours"].values, now["ours"].numbers)
    book.write(renewed)
    assert book.problems(book.read(), now, numbers) == []


def test_a_raised_number_without_changed_values_fails(book):
    numbers = NUMBERS | {"merging": 2}
    now = golden(numbers)
    (problem,) = book.problems(golden(), now, numbers)
    assert problem == (
        "merging is raised to 2, but none of its golden values has changed (cases: 2): set it back to 1 in "
        "COMPONENTS of evlgen/runs/behaviour.py"
    )
    with pytest.raises(ValueError, match="merging is raised to 2, but none"):
        book.renewed(golden(), now, numbers)


def test_a_number_explains_only_what_it_can_change(book):
    numbers = NUMBERS | {"decoding": 4}  # it has no part in a loss
    first, second = book.problems(golden(), changed(golden(numbers), "ours"), numbers)
    assert first.startswith("decoding is raised to 4, but none")
    assert "raise merging to 2 or tomeformer to 2" in second
    numbers = NUMBERS | {"stage1": 2}  # of another case
    first, second = book.problems(golden(), changed(golden(numbers), "ours"), numbers)
    assert first.startswith("stage1 is raised to 2, but none")
    assert "raise merging to 2" in second


def test_a_number_does_not_fall(book):
    numbers = NUMBERS | {"decoding": 2}
    now = changed(golden(numbers), "ours", value="said captions coco")
    (problem,) = book.problems(golden(), now, numbers)
    assert problem.startswith("decoding is lowered from 3 to 2: numbers only rise")


def test_every_number_has_a_case_and_every_case_has_values(book):
    (problem,) = book.problems(golden(), golden(), NUMBERS | {"temporal": 1})
    assert problem == "the component 'temporal' has no golden case: add one that uses it"
    (problem,) = book.problems({}, {"ours": golden()["ours"]}, golden()["ours"].numbers)
    assert "the case 'ours' has no golden values: add them with 'python -m tests.golden --write'" in problem
    fewer = golden()
    del fewer["theirs"]
    (problem,) = book.problems(golden(), fewer, NUMBERS)
    assert "the case 'theirs' is gone" in problem
    assert book.renewed(golden(), fewer, NUMBERS) == fewer
    assert book.renewed({}, golden(), NUMBERS) == golden()


def test_values_that_come_and_go_are_changes(book):
    now = copy.deepcopy(golden())
    del now["theirs"].values["loss"]
    now["theirs"].values["perplexity"] = 2.0
    (problem,) = book.problems(golden(), now, NUMBERS)
    assert "theirs: loss: no longer there; perplexity: new" in problem


# ------------------------------------------------------------------------------- the golden values of runs


def today(numbers: dict[str, int]) -> dict[str, Golden]:
    """The recorded values, as if they were measured under these numbers."""
    return {
        name: Golden(copy.deepcopy(case.values), {part: numbers[part] for part in case.numbers})
        for name, case in BOOK.read().items()
    }


def test_the_recorded_numbers_are_those_of_the_cases():
    recorded = BOOK.read()
    assert recorded.keys() == {*(f"world {name}" for name in cases.WORLDS), *cases.RUNS}
    for name, case in cases.RUNS.items():
        assert recorded[name].numbers.keys() == runs.numbers_of(case).keys()


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_is_held_to_its_number(component):
    number = COMPONENTS[component]
    raised = COMPONENTS | {component: number + 1}
    (problem,) = BOOK.problems(BOOK.read(), today(raised), raised)
    assert problem.startswith(f"{component} is raised to {number + 1}, but none of its golden values")
    start, changed_values = BOOK.reach.get(component, ("",)), today(COMPONENTS)
    for case in changed_values.values():
        if component in case.numbers:
            name = next(name for name in case.values if name.startswith(start))
            case.values[name] = "something else"
    (problem,) = BOOK.problems(BOOK.read(), changed_values, COMPONENTS)
    assert f"{component} to {number + 1}" in problem.split(" in COMPONENTS")[0]
