"""Accuracies of answers against hand-computed values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evlgen import miniworld
from evlgen.evaluation.answer_scores import exact_match, lemmatize, normalize_answer, soft_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        (" the  Red\tboat.\n", "red boat"),
        ("two", "2"),
        ("None", "0"),
        ("ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("A an the", ""),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("y'alld've", "y'all'd've"),
        ("well", "well"),  # not "we'll": such words are words of their own
        ("1,000", "1000"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("p.m.", "pm"),
        ("t-shirt", "t shirt"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("yes, it is", "yes it is"),
        ("1,000-2,000", "10002000"),  # a comma between digits: nothing leaves a space
        ("dog's", "dog's"),
        ("5:30", "5:30"),
        ('"stop"', "stop"),
        ("what?!", "what"),
        ("", ""),
    ],
)
def test_normalize_answer(answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected


@pytest.mark.parametrize(
    ("agreeing", "expected"),
    # Leave one of ten out, min(matches / 3, 1), averaged: 3 agree -> (3 * 2/3 + 7 * 1) / 10.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_soft_accuracy(agreeing: int, expected: float) -> None:
    humans = ["The red one."] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert soft_accuracy("red 1", humans) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.sampled_from("abcd"))
def test_soft_accuracy_is_the_mean_over_subsets(humans: list[str], answer: str) -> None:
    subsets = [humans[:i] + humans[i + 1 :] for i in range(len(humans))]
    expected = sum(min(subset.count(answer) / 3, 1) for subset in subsets) / len(subsets)
    # "a" is an article: named otherwise, so that it is kept
    assert soft_accuracy(f"x{answer}", [f"x{human}" for human in humans]) == pytest.approx(expected)


def test_soft_accuracy_needs_humans() -> None:
    with pytest.raises(ValueError, match="human answer"):
        soft_accuracy("yes", [])


@pytest.mark.parametrize(
    ("answer", "lemmas"),
    [
        ("Playing games", "play game"),
        ("opening doors.", "open door"),
        ("bricks", "brick"),
        ("leaves", "leaf"),
        ("children", "child"),
        ("tied", "tie"),
        ("glasses", "glass"),
        ("gas", "gas"),
        ("grass", "grass"),
        ("red", "red"),
        ("better", "better"),  # adjectives stay
        ("is", "is"),  # so do auxiliaries
        ("frisbee", "frisbee"),
        ("dog's", "dog's"),
        ("", ""),
    ],
)
def test_lemmatize(answer: str, lemmas: str) -> None:
    assert lemmatize(answer) == lemmas


def test_every_miniworld_fact_is_its_own_right_answer() -> None:
    """No answer that the world can give may be lost in normalization."""
    for facts in miniworld.FACTS.values():
        for answers in facts.values():
            for answer in answers:
                assert lemmatize(answer)
                assert soft_accuracy(answer, [answer] * 10, lemmatize) == 1.0


@pytest.mark.parametrize(("answer", "expected"), [("The red.", 1.0), ("red boat", 0.0), ("blue", 0.0)])
def test_exact_match(answer: str, expected: float) -> None:
    assert exact_match(answer, ["Red", "blue"]) == expected
