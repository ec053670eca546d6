"""Accuracies of answers against hand-computed values, and against a plain reading of both public scripts."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evlgen import miniworld
from evlgen.evaluation.answer_scores import (
    ACCURACY,
    exact_match,
    lemmatize,
    normalize_answer,
    normalized_accuracy,
    official_accuracy,
    prediction_match,
    published_lemmas,
    soft_accuracy,
)


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
        ("somebody'd", "somebodyd"),  # so it stands in both scripts
        ("somebodyd", "somebodyd"),
        ("let's", "let's"),
        ("'Twas", "'twas"),
        ("twas", "'twas"),
        ("a" + "." * 33, "a."),  # their 32 is meant to be a flag, but is a count
        ("a b\tc\u00a0d", "b c d"),
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


@pytest.mark.parametrize("accuracy", [soft_accuracy, official_accuracy, normalized_accuracy])
@pytest.mark.parametrize(
    ("agreeing", "expected"),
    # Leave one of ten out, min(matches / 3, 1), averaged: 3 agree -> (3 * 2/3 + 7 * 1) / 10.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_agreement(accuracy, agreeing: int, expected: float) -> None:
    humans = ["red"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert accuracy("red", humans) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "humans", "official", "lavis"),
    [
        ("none", ["none"] + ["no"] * 9, 0.3, 0.0),
        ("hat", ["a hat"] * 5 + ["cap"] * 5, 1.0, 0.0),
        ("Yes.", ["yes"] * 10, 0.0, 1.0),
        ("The cat.", ["The cat."] * 10, 1.0, 0.0),
        ("cat", ["The cat"] * 10, 0.0, 0.0),
        ("", ["a"] * 5 + ["another"] * 5, 1.0, 0.0),
        ("two", ["2"] * 4 + ["two"] * 6, 1.0, 1.0),
        ("two", ["2"] * 2 + ["two"] * 8, 1.0, 0.6),  # "two" of a human is never matched by LAVIS
        ("Yes", ["Yes"] * 9 + ["no"], 1.0, 0.0),
        ("t-shirt", ["t-shirt"] * 10, 1.0, 0.0),
        ("t-shirt", ["t-shirt"] * 9 + ["shirt"], 1.0, 1.0),
        ("1,000", ["1,000"] * 9 + ["1000"], 1.0, 1.0),
        ("dont", ["don't"] * 9 + ["no"], 1.0, 1.0),
        ("don't", ["dont"] * 9 + ["no"], 1.0, 0.0),
        (" yes\n", ["yes "] * 10, 1.0, 0.0),
        ("yes", ["yes "] * 9 + ["no"], 1.0, 0.0),
    ],
)
def test_the_two_public_scripts(answer: str, humans: list[str], official: float, lavis: float) -> None:
    assert official_accuracy(answer, humans) == pytest.approx(official)
    assert soft_accuracy(answer, humans) == pytest.approx(lavis)
    assert ACCURACY["official_vqa"](answer, humans) == pytest.approx(official)
    assert ACCURACY["lavis_vqa"](answer, humans) == pytest.approx(lavis)


# A plain reading of what both scripts do, step by step and one human at a time.
MARKS = [
    ";",
    "/",
    "[",
    "]",
    '"',
    "{",
    "}",
    "(",
    ")",
    "=",
    "+",
    "\\",
    "_",
    "-",
    ">",
    "<",
    "@",
    "`",
    ",",
    "?",
    "!",
]
DIGITS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
}
DIGITS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
SHORT = {"dont": "don't", "isnt": "isn't", "thats": "that's", "couldnt've": "couldn't've", "yall": "y'all"}
SHORT |= {"somebody'd": "somebodyd", "youre": "you're", "oclock": "o'clock", "couldn'tve": "couldn't've"}


def plain_punctuation(text: str) -> str:
    out = text
    for mark in MARKS:
        if mark + " " in text or " " + mark in text or re.search(r"\d,\d", text):
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    kept, dropped = "", 0
    for place, letter in enumerate(out):
        if letter == "." and not out[place + 1 : place + 2].isdecimal() and dropped < 32:
            dropped += 1
        else:
            kept += letter
    return kept


def plain_words(text: str) -> str:
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(SHORT.get(word, word) for word in words if word not in ("a", "an", "the"))


def plain_mean(answer: str, humans: list[str]) -> float:
    scores = []
    for left_out in range(len(humans)):
        matches = [h for i, h in enumerate(humans) if i != left_out and h == answer]
        scores.append(min(1.0, len(matches) / 3))
    return sum(scores) / len(scores)


def plain_lavis(answer: str, humans: list[str]) -> float:
    answer = plain_words(plain_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()))
    if len(set(humans)) > 1:
        humans = [plain_punctuation(human) for human in humans]
    return plain_mean(answer, humans)


def plain_official(answer: str, humans: list[str]) -> float:
    humans = [human.replace("\n", " ").replace("\t", " ").strip() for human in humans]
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    if len(set(humans)) > 1:
        humans = [plain_words(plain_punctuation(human)) for human in humans]
        answer = plain_words(plain_punctuation(answer))
    return plain_mean(answer, humans)


PIECES = [
    *MARKS,
    *DIGITS,
    *SHORT,
    "a",
    "An",
    "the",
    "The",
    "Yes",
    "no",
    "cat",
    "1",
    "20",
    "1,000",
    "3.5",
    ".5",
    "5.",
]
PIECES += ["p.m.", "don't", "'s", "été", "٣", "٣,٣", ".٣", ":", "\n", "\t", "\u00a0", "\r", "...", "." * 20]


def generated(rng: random.Random) -> tuple[str, list[str]]:
    """An answer and ten humans', often alike up to what one of the scripts takes away."""

    def text() -> str:
        return rng.choice(["", " "]).join(rng.choices(PIECES, k=rng.randint(0, 4)))

    def variant(one: str) -> str:
        changes = (
            *(lambda: one, lambda: one, one.upper, lambda: f"the {one}", lambda: f"{one}.", text),
            *(lambda: f" {one} ", lambda: one.replace(" ", "-"), lambda: f"{one}?"),
            *(lambda: one.replace("2", "two"), lambda: one.replace("'", "")),
            lambda: plain_words(plain_punctuation(one)),
        )
        return rng.choice(changes)()

    base = text()
    humans = [base] * 10 if rng.random() < 0.2 else [variant(base) for _ in range(10)]
    return variant(base), humans


@pytest.mark.parametrize(
    ("subject", "plain"),
    [(soft_accuracy, plain_lavis), (official_accuracy, plain_official)],
    ids=["LAVIS", "official"],
)
def test_no_difference_to_a_plain_reading_of_the_scripts(subject, plain) -> None:
    rng = random.Random(0)
    right = 0
    for _ in range(20_000):
        answer, humans = generated(rng)
        expected = plain(answer, humans)
        assert abs(subject(answer, humans) - expected) < 1e-9, (answer, humans)
        right += expected > 0
    assert 4_000 < right < 18_000  # neither all nor none: the pairs tell something


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.sampled_from("abcd"))
def test_accuracy_is_the_mean_over_subsets(humans: list[str], answer: str) -> None:
    subsets = [humans[:i] + humans[i + 1 :] for i in range(len(humans))]
    expected = sum(min(subset.count(answer) / 3, 1) for subset in subsets) / len(subsets)
    # "a" is an article: named otherwise, so that it is kept
    assert soft_accuracy(f"x{answer}", [f"x{human}" for human in humans]) == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in ACCURACY if not name.endswith("gqa_accuracy")])
def test_accuracy_needs_humans(name: str) -> None:
    if name != "lavis_gqa":
        with pytest.raises(ValueError, match="human answer"):
            ACCURACY[name]("yes", [])


def test_answers_in_no_published_form_are_normalized_on_both_sides() -> None:
    """Those of one's own folder and of the drawn world."""
    humans = ["The red one."] * 3 + ["blue"] * 7
    assert normalized_accuracy("red 1", humans) == pytest.approx(0.9)
    assert ACCURACY["vqa_accuracy"]("red 1", humans) == pytest.approx(0.9)
    assert soft_accuracy("red 1", humans) == 0


# ----------------------------------------------------------------------------------------------- OK-VQA


@pytest.mark.parametrize(
    ("answer", "humans", "expected"),
    [
        ("mounted", ["mounted"] * 4 + ["wall mounted"] * 2 + ["wall"] * 2 + ["bidet"] * 2, 0.0),
        ("mounted", ["mount"] * 4 + ["wall"] * 6, 1.0),
        ("Playing games", ["play game"] * 2 + ["games"] * 8, 0.6),
        ("bricks", ["brick"] * 4 + ["bricks"] * 6, 1.0),
        ("bricks", ["bricks"] * 10, 0.0),
        ("ones", ["1"] * 10, 1.0),
        ("one", ["one"] * 10, 0.0),
        ("surfing", ["surf"] * 10, 1.0),
    ],
)
def test_ok_vqa_lemmatizes_the_prediction_alone(answer: str, humans: list[str], expected: float) -> None:
    assert ACCURACY["lavis_okvqa"](answer, humans) == pytest.approx(expected)
    if normalize_answer(humans[0]) == humans[0]:
        assert ACCURACY["official_okvqa"](answer, humans) == pytest.approx(expected)


def test_no_difference_to_a_plain_reading_on_ok_vqa() -> None:
    rng = random.Random(1)
    for _ in range(5_000):
        answer, humans = generated(rng)
        lemmas = published_lemmas(answer)
        assert abs(ACCURACY["lavis_okvqa"](answer, humans) - plain_lavis(lemmas, humans)) < 1e-9
        assert abs(ACCURACY["official_okvqa"](answer, humans) - plain_official(lemmas, humans)) < 1e-9


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
                assert ACCURACY["okvqa_accuracy"](answer, [answer] * 10) == 1.0


@pytest.mark.parametrize(("answer", "expected"), [("The red.", 1.0), ("red boat", 0.0), ("blue", 0.0)])
def test_exact_match(answer: str, expected: float) -> None:
    assert exact_match(answer, ["Red", "blue"]) == expected


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("The red.", "red", 1.0),
        ("Red", "Red", 0.0),
        ("two", "two", 0.0),
        ("t-shirt", "t-shirt", 0.0),
        ("", "", 1.0),
    ],
)
def test_gqa_normalizes_the_prediction_alone(answer: str, truth: str, expected: float) -> None:
    assert prediction_match(answer, [truth]) == expected
    assert ACCURACY["lavis_gqa"](answer, [truth]) == expected
