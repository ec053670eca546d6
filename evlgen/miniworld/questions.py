"""Questions on scenes in the manner of VQAv2, GQA and OK-VQA, with the answers of annotators."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

from evlgen.errors import UserError
from evlgen.miniworld.captions import choose_noun, choose_word, plural
from evlgen.miniworld.scenes import Scene, Thing, random_stream, relation, sample_scene
from evlgen.miniworld.vocabulary import (
    BACKGROUND_ANSWERS,
    BACKGROUNDS,
    COLOURS,
    CONTAINERS,
    FACTS,
    NUMBERS,
    OPPOSITE,
    PAIRED_SHAPES,
    PLACE_PHRASES,
    PLACES,
    RELATIONS,
    SIZES,
    SYNONYMS,
    TEXTURES,
)

QUESTION_KINDS = ("vqav2", "gqa", "okvqa")
# Share of the ten annotators of a question who answer with a synonym or with a mistake.
DISAGREEMENT = {"synonym": 0.10, "mistake": 0.08}


@dataclass(frozen=True)
class Question:
    """A question on the image ``image_index`` of the pool ``image_pool``.

    ``answers`` holds ten annotators' answers (VQAv2 and OK-VQA) or one (GQA).
    """

    image_pool: str
    image_index: int
    text: str
    answers: tuple[str, ...]
    answer_type: str  # "yes/no", "number" or "other"


@dataclass(frozen=True)
class QuestionAnswer:
    """A question on a scene with its right answers, before annotators have answered it."""

    text: str
    answer: str
    synonyms: tuple[str, ...] = ()  # other right answers
    mistakes: tuple[str, ...] = ()  # what a careless annotator might say
    answer_type: str = "other"


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    """Things (no containers) whose ``attribute`` no other thing of the scene shares."""
    values = [getattr(t, attribute) for t in scene.things]
    return [t for t in scene.things if t.shape not in CONTAINERS and values.count(getattr(t, attribute)) == 1]


def _lying(scene: Scene, link: str, anchor: Thing) -> Thing | None:
    """The one thing that lies ``link`` (left of, ...) the anchor; None if there is none or more than one."""
    found = [
        t
        for t in scene.things
        if t is not anchor and t.shape not in CONTAINERS and relation(t, anchor) == link
    ]
    return found[0] if len(found) == 1 else None


def _yes_no(text: str, truth: bool) -> QuestionAnswer:
    answer = "yes" if truth else "no"
    return QuestionAnswer(text, answer, (), ("no" if truth else "yes",), "yes/no")


def _value(text: str, value: str, choices: tuple[str, ...]) -> QuestionAnswer:
    """Asked for an attribute's value; its synonyms are right as well."""
    synonyms = tuple(s for s in SYNONYMS.get(value, ()) if s != value)
    return QuestionAnswer(text, value, synonyms, tuple(c for c in choices if c != value))


def _ask_vqa(scene: Scene, rng: random.Random) -> QuestionAnswer | None:
    """VQAv2-like: about 40% yes/no, 20% number, 40% other; yes and no are balanced."""
    colours = tuple(COLOURS)
    shapes = tuple(sorted({t.shape for t in scene.things} - set(CONTAINERS)))
    kind, truth = rng.random(), rng.random() < 0.5
    thing = rng.choice([t for t in scene.things if t.shape not in CONTAINERS])
    unique = _unique(scene, "shape")
    if kind < 0.4:
        form = rng.randrange(5)
        if form == 0:
            colour = thing.colour if truth else rng.choice(colours)
            present = any((t.shape, t.colour) == (thing.shape, colour) for t in scene.things)
            if present != truth:
                return None
            return _yes_no(f"is there {with_article(colour)} {choose_noun(rng, thing.shape)}?", truth)
        if not unique:
            return None
        thing = rng.choice(unique)
        noun = choose_noun(rng, thing.shape)
        if form == 1:
            colour = thing.colour if truth else rng.choice([c for c in colours if c != thing.colour])
            return _yes_no(f"is the {noun} {colour}?", truth)
        if form == 2:
            texture = thing.texture if truth else rng.choice([t for t in TEXTURES if t != thing.texture])
            return _yes_no(f"is the {noun} {texture}?", truth)
        if form == 3:
            size = thing.size if truth else SIZES[1 - SIZES.index(thing.size)]
            return _yes_no(f"is the {noun} {size}?", truth)
        others = [t for t in unique if t is not thing and relation(thing, t)]
        if not others:
            return None
        other = rng.choice(others)
        link = relation(thing, other)
        claimed = link if truth else OPPOSITE[link]
        return _yes_no(
            f"is the {noun} {choose_word(rng, claimed)} the {choose_noun(rng, other.shape)}?", truth
        )
    if kind < 0.6:
        if any(t.shape in CONTAINERS for t in scene.things):
            return None  # is a box an object? people disagree
        form = rng.randrange(3)
        if form == 0:
            number, text = len(scene.things), f"how many {rng.choice(('objects', 'things'))} are there?"
        elif form == 1:
            colour = thing.colour if rng.random() < 0.8 else rng.choice(colours)
            number = sum(t.colour == colour for t in scene.things)
            text = f"how many {colour} objects are there?"
        else:
            number = sum(t.shape == thing.shape for t in scene.things)
            text = f"how many {plural(thing.shape)} are there?"
        near = tuple(str(n) for n in (number - 1, number + 1) if n >= 0)
        return QuestionAnswer(text, str(number), (NUMBERS[number],), near, "number")
    form = rng.randrange(7)
    if form == 0:
        grounds = tuple(BACKGROUND_ANSWERS[b][0] for b in BACKGROUNDS)
        right = BACKGROUND_ANSWERS[scene.background]
        wrong = tuple(g for g in grounds if g != right[0])
        return QuestionAnswer("what is in the background?", right[0], right[1:], wrong)
    if form == 1:
        singles = _unique(scene, "colour")
        if not singles:
            return None
        thing = rng.choice(singles)
        return _value(f"what is the {thing.colour} object?", thing.shape, PAIRED_SHAPES)
    if not unique:
        return None
    thing = rng.choice(unique)
    noun = choose_noun(rng, thing.shape)
    if form in (2, 3):
        return _value(f"what color is the {noun}?", thing.colour, colours)
    if form == 4:
        link = rng.choice(RELATIONS)
        lying = _lying(scene, link, thing)
        if lying is None:
            return None
        return _value(f"what is {choose_word(rng, link)} the {noun}?", lying.shape, shapes)
    if form == 5:
        places = tuple(p for row in PLACES for p in row)
        return _value(f"where is the {noun}?", thing.place, places)
    if rng.random() < 0.5:
        return _value(f"what size is the {noun}?", thing.size, SIZES)
    return _value(f"what pattern is on the {noun}?", thing.texture, TEXTURES)


def _ask_gqa(scene: Scene, rng: random.Random) -> QuestionAnswer | None:
    """GQA-like, two relations deep: "what color is the object left of the object above the star?"."""
    chains = []
    for anchor in _unique(scene, "shape"):
        for outer in RELATIONS:
            middle = _lying(scene, outer, anchor)
            if middle is None:
                continue
            for inner in RELATIONS:
                target = _lying(scene, inner, middle)
                if target is not None and target is not anchor:
                    chains.append((target, inner, outer, anchor))
    if not chains:
        return None
    target, inner, outer, anchor = rng.choice(chains)
    links = f"{choose_word(rng, inner)} the object {choose_word(rng, outer)}"
    chain = f"the object {links} the {choose_noun(rng, anchor.shape)}"
    form, truth = rng.random(), rng.random() < 0.5
    if form < 0.3:
        wrong = [c for c in COLOURS if c != target.colour]
        return _yes_no(f"is {chain} {target.colour if truth else rng.choice(wrong)}?", truth)
    if form < 0.6:
        return _value(f"what color is {chain}?", target.colour, tuple(COLOURS))
    if form < 0.85:
        return _value(f"what is {chain}?", target.shape, PAIRED_SHAPES)
    return _value(f"what size is {chain}?", target.size, SIZES)


def _ask_okvqa(scene: Scene, rng: random.Random) -> QuestionAnswer | None:
    """OK-VQA-like: the picture tells which thing is meant, only a reader knows the answer."""
    form = rng.randrange(3)
    if form == 0:
        singles = _unique(scene, "colour")
        if not singles:
            return None
        thing = rng.choice(singles)
        name = f"the {thing.colour} object"
    elif form == 1:
        unique = _unique(scene, "shape")
        if not unique:
            return None
        anchor, link = rng.choice(unique), rng.choice(RELATIONS)
        lying = _lying(scene, link, anchor)
        if lying is None:
            return None
        thing, name = lying, f"the object {choose_word(rng, link)} the {choose_noun(rng, anchor.shape)}"
    else:
        singles = _unique(scene, "place")
        if not singles:
            return None
        thing = rng.choice(singles)
        name = f"the object {rng.choice(PLACE_PHRASES[thing.place])}"
    fact = rng.choice(tuple(FACTS))
    text = {
        "used for": f"what is {name} used for?",
        "found": f"where is {name} usually found?",
        "made of": f"what is {name} made of?",
    }[fact]
    right = FACTS[fact][thing.shape]
    wrong = tuple(answers[0] for shape, answers in FACTS[fact].items() if shape != thing.shape)
    return QuestionAnswer(text, right[0], right[1:], wrong)


_ASK: dict[str, Callable[[Scene, random.Random], QuestionAnswer | None]] = {
    "vqav2": _ask_vqa,
    "gqa": _ask_gqa,
    "okvqa": _ask_okvqa,
}


def ask(kind: str, scene: Scene, rng: random.Random) -> QuestionAnswer | None:
    """A random question of a kind on the scene; None where the scene does not carry what was drawn."""
    return _ASK[kind](scene, rng)


def with_article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def question(kind: str, index: int) -> Question:
    """The question ``index`` of ``vqav2``, ``gqa`` or ``okvqa``, on the same image of the pool so named."""
    if kind not in QUESTION_KINDS:
        raise UserError(f"no questions {kind!r}; there are: {', '.join(QUESTION_KINDS)}")
    _scene, asked = drawn_question(kind, index)
    if kind == "gqa":
        answers: tuple[str, ...] = (asked.answer,)
    else:
        rng = random_stream(kind, index, "annotators")
        answers = tuple(_annotate(asked, rng) for _ in range(10))
    return Question(kind, index, asked.text, answers, asked.answer_type)


def _annotate(asked: QuestionAnswer, rng: random.Random) -> str:
    draw = rng.random()
    if draw < DISAGREEMENT["mistake"] and asked.mistakes:
        return rng.choice(asked.mistakes)
    if draw < DISAGREEMENT["mistake"] + DISAGREEMENT["synonym"] and asked.synonyms:
        return rng.choice(asked.synonyms)
    return asked.answer


@functools.lru_cache(maxsize=65536)
def drawn_question(kind: str, index: int) -> tuple[Scene, QuestionAnswer]:
    """Scene and question ``index`` of a question set: scenes are drawn until one carries a question."""
    rng = random_stream(kind, index)
    while True:
        scene = sample_scene(rng, kind)
        for _ in range(4):
            asked = ask(kind, scene, rng)
            if asked is not None:
                return scene, asked
