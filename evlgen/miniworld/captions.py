"""What people say of a scene: captions and notes; and whether a caption is true of it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from evlgen.miniworld.scenes import Scene, Thing, between, relation
from evlgen.miniworld.vocabulary import (
    BACKGROUND_ANSWERS,
    BACKGROUND_PHRASES,
    CANONICAL,
    COLOURS,
    CONTAINERS,
    NUMBERS,
    PLACE_PHRASES,
    SHAPES,
    SYNONYMS,
)


def choose_word(rng: random.Random, word: str) -> str:
    return rng.choice(SYNONYMS.get(word, (word,)))


def choose_noun(rng: random.Random, shape: str) -> str:
    """Mostly the usual name, sometimes another."""
    return choose_word(rng, shape) if rng.random() < 0.25 else shape


def plural(noun: str) -> str:
    return {"box": "boxes", "fish": "fish"}.get(noun, noun + "s")


def _attributes(rng: random.Random, thing: Thing, size: float, texture: float, colour: float) -> list[str]:
    """Adjectives, each with the given probability; a plain texture is never mentioned."""
    words = []
    if thing.shape not in CONTAINERS:
        if rng.random() < size:
            words.append(choose_word(rng, thing.size))
        if thing.texture != "plain" and rng.random() < texture:
            words.append(choose_word(rng, thing.texture))
    if rng.random() < colour:
        words.append(choose_word(rng, thing.colour))
    return words


def _phrase(rng: random.Random, thing: Thing, detail: float = 1.0) -> str:
    """Noun phrase with its article: "a small striped red boat"."""
    words = [*_attributes(rng, thing, 0.45 * detail, 0.5 * detail, 0.93), choose_noun(rng, thing.shape)]
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def caption(scene: Scene, rng: random.Random) -> str:
    """One person's description, 8 to 28 words, lower case without punctuation; all of it is true."""
    while True:
        words = (_sketch_caption if scene.style == "sketch" else _paint_caption)(scene, rng).split()
        if 8 <= len(words) <= 28:
            return " ".join(words)


def _mentioned(scene: Scene, rng: random.Random) -> list[int]:
    """Indices of the things mentioned, large ones first as a rule; a container comes with what it holds."""
    indices = [i for i, t in enumerate(scene.things) if t.shape not in CONTAINERS]
    indices.sort(key=lambda i: -scene.things[i].radius + rng.uniform(-5, 5))
    return indices[:1] + [i for i in indices[1:] if rng.random() < 0.85]


def _with_container(scene: Scene, rng: random.Random, index: int, place: float, detail: float = 1.0) -> str:
    thing = scene.things[index]
    text = _phrase(rng, thing, detail)
    if thing.inside >= 0 and rng.random() < 0.75:
        text += f" {choose_word(rng, 'inside')} {_phrase(rng, scene.things[thing.inside])}"
    if rng.random() < place:
        text += f" {rng.choice(PLACE_PHRASES[thing.place])}"
    return text


def _join(rng: random.Random, parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f" {rng.choice(('and', 'and', 'with', 'next to'))} ".join([" and ".join(parts[:-1]), parts[-1]])


def _related(scene: Scene, rng: random.Random, mentioned: list[int]) -> str:
    """ "a red star above a blue boat", or "... between ... and ...", then the other things mentioned."""
    first = mentioned[0]
    pair = between(scene, first)
    if pair is not None and rng.random() < 0.6:
        sides = f"{_phrase(rng, scene.things[pair[0]], 0.6)} and {_phrase(rng, scene.things[pair[1]], 0.6)}"
        rest = [i for i in mentioned[1:] if i not in pair]
        head = f"{_phrase(rng, scene.things[first])} between {sides}"
    else:
        second = mentioned[1]
        link = relation(scene.things[first], scene.things[second])
        link = choose_word(rng, link) if link else "next to"
        rest = mentioned[2:]
        head = f"{_with_container(scene, rng, first, 0)} {link} {_with_container(scene, rng, second, 0, 0.6)}"
    return " and ".join([head, *(_with_container(scene, rng, i, 0.3, 0.6) for i in rest)])


def _counted(scene: Scene, rng: random.Random, mentioned: list[int]) -> str:
    """ "two stars one red and one blue" where shapes recur, else "three objects ...", naming them."""
    by_shape: dict[str, list[int]] = {}
    for i, t in enumerate(scene.things):
        by_shape.setdefault(t.shape, []).append(i)
    for shape, members in by_shape.items():
        if len(members) > 1 and shape not in CONTAINERS:
            colours = " and ".join(f"one {choose_word(rng, scene.things[i].colour)}" for i in members)
            rest = [_with_container(scene, rng, i, 0.2, 0.7) for i in mentioned if i not in members]
            return " and ".join(
                [f"{NUMBERS[len(members)]} {plural(choose_noun(rng, shape))} {colours}", *rest]
            )
    things = [i for i, t in enumerate(scene.things) if t.shape not in CONTAINERS]
    thing = rng.choice(("objects", "things"))
    return (
        f"{NUMBERS[len(things)]} {thing} {_join(rng, [_phrase(rng, scene.things[i], 0.5) for i in things])}"
    )


def _paint_caption(scene: Scene, rng: random.Random) -> str:
    mentioned = _mentioned(scene, rng)
    form = rng.random()
    things = sum(t.shape not in CONTAINERS for t in scene.things)
    if form < 0.45 and len(mentioned) > 1:
        body = _related(scene, rng, mentioned)
    elif form < 0.6 and things > 1:
        body = _counted(scene, rng, mentioned)
    else:
        body = _join(
            rng, [_with_container(scene, rng, i, 0.6 if len(mentioned) < 3 else 0.25) for i in mentioned]
        )
    opening = (
        rng.choice(("", "", "there is ", "a picture of ", "this is ", "you can see ")) if form >= 0.6 else ""
    )
    ending = f" {rng.choice(BACKGROUND_PHRASES[scene.background])}" if rng.random() < 0.5 else ""
    return opening + body + ending


def _sketch_caption(scene: Scene, rng: random.Random) -> str:
    mentioned = _mentioned(scene, rng)
    opening = rng.choice(("someone drew", "a drawing that shows", "in this drawing we find", "a sketch of"))
    if len(mentioned) > 1 and rng.random() < 0.5:
        body = _related(scene, rng, mentioned)
    else:
        body = " and ".join(_with_container(scene, rng, i, 0.6) for i in mentioned)
    ending = f" drawn {rng.choice(BACKGROUND_PHRASES[scene.background])}" if rng.random() < 0.5 else ""
    return f"{opening} {body}{ending}"


def note(scene: Scene, rng: random.Random) -> str:
    """Everything there is to say, as terse notes in any order: what the language models learn to read."""
    entries = []
    for i in rng.sample(range(len(scene.things)), len(scene.things)):
        thing = scene.things[i]
        words = [choose_word(rng, thing.colour), choose_noun(rng, thing.shape)]
        if thing.shape not in CONTAINERS:
            words.insert(0, choose_word(rng, thing.size))
            if thing.texture != "plain" or rng.random() < 0.3:
                words.insert(1, choose_word(rng, thing.texture))
        if rng.random() < 0.15:
            rng.shuffle(words)
        words.append(thing.place if rng.random() < 0.5 else rng.choice(PLACE_PHRASES[thing.place]))
        if thing.inside >= 0:
            words += [choose_word(rng, "inside"), choose_noun(rng, scene.things[thing.inside].shape)]
        entries.append(" ".join(words))
    ground = rng.choice(BACKGROUND_PHRASES[scene.background] + BACKGROUND_ANSWERS[scene.background])
    entries.insert(rng.randint(0, len(entries)), ground)
    return rng.choice((" , ", " ; ", " and ")).join(entries)


@dataclass(frozen=True)
class CaptionCheck:
    """How many objects a caption names, and how many of these names are true of the scene."""

    named: int
    shape_right: int
    colour_named: int
    colour_right: int  # an object of this very shape has the colour named with it


def check_caption(text: str, scene: Scene) -> CaptionCheck:
    """Compare a caption's nouns, and the colours named with them, with the scene (as CHAIR does for COCO)."""
    named = shape_right = colour_named = colour_right = 0
    colour: str | None = None
    for word in text.split():
        canonical = CANONICAL.get(word, word)
        if canonical in COLOURS:
            colour = canonical
            continue
        if canonical not in SHAPES + CONTAINERS:
            if word in ("a", "an", "and", "the"):
                colour = None  # a new noun phrase begins
            continue
        named += 1
        shape_right += any(t.shape == canonical for t in scene.things)
        if colour is not None:
            colour_named += 1
            colour_right += any((t.shape, t.colour) == (canonical, colour) for t in scene.things)
        colour = None
    return CaptionCheck(named, shape_right, colour_named, colour_right)
