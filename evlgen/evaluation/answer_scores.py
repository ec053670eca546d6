"""Accuracy of answers as VQAv2, GQA and OK-VQA compute it.

Whoever changes a score raises its number in `evlgen.runs.behaviour.SCORERS`: ``vqa_accuracy`` and
``okvqa_accuracy`` (`soft_accuracy`, with `normalize_answer` or `lemmatize`), ``gqa_accuracy``
(`exact_match`).
"""

from __future__ import annotations

import functools
import re
from collections import Counter
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
# A contraction that lacks one of its apostrophes -> the contraction.
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTED.split()
    for i, letter in enumerate(word)
    if letter == "'"
}


def normalize_answer(answer: str) -> str:
    """An answer in the form in which the VQA benchmark compares answers.

    Lower case, no punctuation (but apostrophes and colons), no articles, number words up to ten as digits,
    contractions with their apostrophes. Punctuation at the edge of a word goes without trace, inside a word
    it leaves a space; in an answer with a comma between digits all of it goes without trace ("1,000" is
    "1000"). A period goes unless a digit follows it.
    """
    text = " ".join(answer.split())
    thousands = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        at_edge = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if at_edge or thousands else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [NUMBER_WORDS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(
    answer: str, humans: Sequence[str], normalize: Callable[[str], str] = normalize_answer
) -> float:
    """VQA accuracy (0 to 1): min(humans who gave this answer / 3, 1), averaged over leaving out each human.

    Both sides are normalized. (The benchmark's own script normalizes the humans' answers in part only, which
    makes no difference for its published annotations, as these are normalized.)

    Raises:
        ValueError: there are no human answers.
    """
    if not humans:
        raise ValueError("a question needs at least one human answer")
    same = Counter(normalize(human) for human in humans)[normalize(answer)]
    agreeing, others = min((same - 1) / 3, 1.0), min(same / 3, 1.0)  # leaving out one who agrees, or another
    return (same * agreeing + (len(humans) - same) * others) / len(humans)


def lemmatize(answer: str) -> str:
    """The normalized answer with nouns and verbs in their dictionary form (OK-VQA; "playing" -> "play").

    LAVIS tags and lemmatizes with a spaCy model, which would have to be downloaded. This goes by the
    dictionary of lemminflect: a word that can be a verb's -ing or -ed form is taken as that, else as a noun,
    else as a verb. Human answers go through the same function, so that both sides agree.
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


def exact_match(answer: str, humans: Sequence[str]) -> float:
    """1 if the normalized answer is the first of the right ones, else 0 (GQA)."""
    return float(normalize_answer(answer) == normalize_answer(humans[0]))


# Scorer of a question set -> accuracy (0 to 1) of an answer, given the right ones.
ACCURACY: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "vqa_accuracy": soft_accuracy,
    "okvqa_accuracy": functools.partial(soft_accuracy, normalize=lemmatize),
    "gqa_accuracy": exact_match,
}
