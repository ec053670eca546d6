"""Accuracy of answers to VQAv2, GQA, OK-VQA and to questions of one's own.

Two public scripts score VQAv2 and OK-VQA, and they disagree on what they do with the humans' answers:

- LAVIS's, which gave the numbers of BLIP-2 and EVLGen (`soft_accuracy`): the prediction is normalized; of
  the humans' answers only the punctuation goes, and only where they differ from each other. A human's "Yes",
  "a hat" or "two" is never matched.
- that of the benchmark, in its version of 2021 (`official_accuracy`): both sides are normalized, but neither
  where all humans agree. It is shown beside LAVIS's as ``<set>/official``.

For OK-VQA, whose published answers are stemmed already, LAVIS lemmatizes the prediction alone; for GQA it
normalizes the prediction alone (`prediction_match`). Answers that are in no published form, of the drawn
world or of one's own folder, are compared with both sides normalized (`normalized_accuracy`, `exact_match`).

`ACCURACY` says which scorer is which. Whoever changes one raises its number in
`evlgen.runs.behaviour.SCORERS`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence

import lemminflect

NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
# A contraction that lacks one of its apostrophes -> the contraction. One is the wrong way round in both
# scripts.
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTED.split()
    for i, letter in enumerate(word)
    if letter == "'" and word != "somebody'd"
} | {"somebody'd": "somebodyd"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIODS = 32  # are dropped at most: both scripts pass a flag of that value where the count belongs


@functools.lru_cache(maxsize=65536)  # most answers are given many times
def normalize_answer(answer: str) -> str:
    """An answer in the form in which the VQA benchmark compares answers.

    Lower case, no punctuation (but apostrophes and colons), no articles, number words up to ten as digits,
    contractions with their apostrophes. Punctuation at the edge of a word goes without trace, inside a word
    it leaves a space; in an answer with a comma between digits all of it goes without trace ("1,000" is
    "1000"). A period goes unless a digit follows it.
    """
    words = [NUMBER_WORDS.get(word, word) for word in _without_punctuation(_stripped(answer)).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _stripped(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=65536)
def _without_punctuation(text: str) -> str:
    thousands = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        if mark in text:
            at_edge = f"{mark} " in text or f" {mark}" in text
            cleaned = cleaned.replace(mark, "" if at_edge or thousands else " ")
    return re.sub(r"\.(?!\d)", "", cleaned, count=_PERIODS)


def soft_accuracy(
    answer: str, humans: Sequence[str], normalize: Callable[[str], str] = normalize_answer
) -> float:
    """VQA accuracy (0 to 1) as LAVIS computes it, which compares with published numbers of its models.

    min(humans who gave this answer / 3, 1), averaged over leaving out each human. The answer is normalized;
    of the humans' answers only punctuation goes, where they are not all the same.

    Raises:
        ValueError: there are no human answers.
    """
    compared = [_without_punctuation(human) for human in humans] if len(set(humans)) > 1 else humans
    return _left_out_in_turn(normalize(answer), compared)


def official_accuracy(answer: str, humans: Sequence[str]) -> float:
    """VQA accuracy (0 to 1) as the benchmark's own script of 2021 computes it; see `soft_accuracy`.

    Both sides are normalized, but neither of them where all humans gave the same answer.

    Raises:
        ValueError: there are no human answers.
    """
    given, compared = _stripped(answer), [_stripped(human) for human in humans]
    if len(set(compared)) > 1:
        given, compared = normalize_answer(given), [normalize_answer(human) for human in compared]
    return _left_out_in_turn(given, compared)


def normalized_accuracy(
    answer: str, humans: Sequence[str], normalize: Callable[[str], str] = normalize_answer
) -> float:
    """VQA accuracy (0 to 1) with both sides normalized: of answers as people type them.

    Raises:
        ValueError: there are no human answers.
    """
    return _left_out_in_turn(normalize(answer), [normalize(human) for human in humans])


def _left_out_in_turn(answer: str, humans: Sequence[str]) -> float:
    if not humans:
        raise ValueError("a question needs at least one human answer")
    same = sum(human == answer for human in humans)
    agreeing, others = min((same - 1) / 3, 1.0), min(same / 3, 1.0)  # leaving out one who agrees, or another
    return (same * agreeing + (len(humans) - same) * others) / len(humans)


def lemmatize(answer: str) -> str:
    """The normalized answer with nouns and verbs in their dictionary form (OK-VQA; "playing" -> "play").

    LAVIS tags and lemmatizes with a spaCy model, which would have to be downloaded. This goes by the
    dictionary of lemminflect: a word that can be a verb's -ing or -ed form is taken as that, else as a noun,
    else as a verb.
    """
    return " ".join(_lemma(word) for word in normalize_answer(answer).split())


@functools.lru_cache(maxsize=65536)
def _lemma(word: str) -> str:
    lemmas: dict[str, tuple[str, ...]] = lemminflect.getAllLemmas(word)
    if "AUX" in lemmas:
        return word
    verbs = lemmas.get("VERB", ())
    if verbs and word.endswith(("ing", "ed")):
        return verbs[0]
    nouns = [noun for noun in lemmas.get("NOUN", ()) if noun != word] or list(lemmas.get("NOUN", ()))
    nouns.sort(key=lambda noun: noun in verbs)  # "leaves" is rather "leaf" than "leave"
    return (nouns or list(verbs) or [word])[0]


def published_lemmas(answer: str) -> str:
    """An answer as it is compared with OK-VQA's published ones: lemmatized, then normalized ("ones": "1")."""
    return normalize_answer(lemmatize(answer))


def exact_match(answer: str, humans: Sequence[str]) -> float:
    """1 if the normalized answer is the first of the right ones, normalized, else 0."""
    return float(normalize_answer(answer) == normalize_answer(humans[0]))


def prediction_match(answer: str, humans: Sequence[str]) -> float:
    """1 if the normalized answer is the first of the right ones as it is, else 0 (GQA in LAVIS)."""
    return float(normalize_answer(answer) == humans[0])


# Scorer of a question set -> accuracy (0 to 1) of an answer, given the right ones.
ACCURACY: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    # Of published sets
    "lavis_vqa": soft_accuracy,
    "lavis_okvqa": functools.partial(soft_accuracy, normalize=published_lemmas),
    "lavis_gqa": prediction_match,
    "official_vqa": official_accuracy,
    "official_okvqa": lambda answer, humans: official_accuracy(published_lemmas(answer), humans),
    # Of answers that are in no published form
    "vqa_accuracy": normalized_accuracy,
    "okvqa_accuracy": functools.partial(normalized_accuracy, normalize=lemmatize),
    "gqa_accuracy": exact_match,
}
BESIDE = {"official_vqa": "official", "official_okvqa": "official"}  # scorer -> metric beside a set's score
