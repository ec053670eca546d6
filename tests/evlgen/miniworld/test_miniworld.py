"""The miniworld: what is drawn, said and asked is true, and no attribute gives another away."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from evlgen import miniworld
from evlgen.errors import UserError
from evlgen.miniworld import Scene, Thing
from evlgen.miniworld.drawing import _mask


def things(pool: str, count: int) -> list[Thing]:
    scenes = (miniworld.pool(pool).scene(i) for i in range(count))
    return [t for scene in scenes for t in scene.things if t.shape not in miniworld.CONTAINERS]


def mutual_information(pairs: list[tuple[str, str]]) -> float:
    """Bits that the first of a pair tells of the second, corrected for chance (Miller-Madow)."""
    joint, first, second = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    total = len(pairs)
    bits = sum(n / total * np.log2(n * total / (first[a] * second[b])) for (a, b), n in joint.items())
    return float(bits - (len(first) - 1) * (len(second) - 1) / (2 * total * np.log(2)))


def test_no_attribute_tells_another() -> None:
    seen = things("foundation", 3000)
    for one, other in itertools.combinations(("shape", "colour", "size", "texture"), 2):
        bits = mutual_information([(getattr(t, one), getattr(t, other)) for t in seen])
        assert abs(bits) < 0.01, (one, other, bits)
    # a large thing cannot lie as near to the border, yet in which of nine cells it lies tells next to nothing
    for name in ("shape", "colour", "texture", "size"):
        assert abs(mutual_information([(getattr(t, name), t.place) for t in seen])) < 0.02, name


def test_paired_pools_leave_out_what_is_held_out() -> None:
    for pool in (
        "web",
        "ccs",
        "coco",
        "coco_val",
        "coco_test",
        "nocaps_in",
        "vqav2",
        "gqa",
        "okvqa",
        "flickr",
    ):
        for thing in things(pool, 300):
            assert thing.shape not in miniworld.HELD_OUT_SHAPES
            assert (thing.colour, thing.shape) not in miniworld.HELD_OUT_PAIRS
        for index in range(300):
            text = " ".join(miniworld.pool(pool).captions(index)).split()
            assert not {"cup", "mug", "cups", "mugs", "fish"} & set(text)


def test_nocaps_domains_show_what_is_held_out() -> None:
    for index in range(200):
        near = miniworld.pool("nocaps_near").scene(index).things
        assert any((t.colour, t.shape) in miniworld.HELD_OUT_PAIRS for t in near)
        assert not any(t.shape in miniworld.HELD_OUT_SHAPES for t in near)
        out = miniworld.pool("nocaps_out").scene(index).things
        assert any(t.shape in miniworld.HELD_OUT_SHAPES for t in out)
    seen = {(t.colour, t.shape) for t in things("foundation", 3000)}
    assert seen >= miniworld.HELD_OUT_PAIRS
    assert {shape for _, shape in seen} == set(miniworld.SHAPES)


@pytest.mark.parametrize("pool", ["coco", "coco_test", "flickr", "nocaps_out"])
def test_clean_captions_are_true(pool: str) -> None:
    for index in range(150):
        scene = miniworld.pool(pool).scene(index)
        captions = miniworld.pool(pool).captions(index)
        assert len(captions) == 5
        for caption in captions:
            check = miniworld.check_caption(caption, scene)
            assert (check.shape_right, check.colour_right) == (check.named, check.colour_named), caption
            assert 8 <= len(caption.split()) <= 28
            assert caption == caption.lower()
            assert not set(caption) & set(".,;:?!\n")


def test_check_caption_sees_wrong_names() -> None:
    scene = Scene((Thing("boat", "red", "small", "plain", 10, 10, 7.0),), "grass", "paint", 0)
    assert miniworld.check_caption("a small red ship on the grass", scene) == miniworld.CaptionCheck(
        1, 1, 1, 1
    )
    assert miniworld.check_caption("a blue boat next to a star", scene) == miniworld.CaptionCheck(2, 1, 1, 0)


def test_noise_is_as_stated() -> None:
    for pool, noise in miniworld.NOISE.items():
        count = 2000
        captions = [miniworld.pool(pool).captions(i)[0] for i in range(count)]
        irrelevant = sum(c in miniworld.IRRELEVANT for c in captions) / count
        assert abs(irrelevant - noise["irrelevant"]) < 0.025
        false = 0
        for index, caption in enumerate(captions):
            check = miniworld.check_caption(caption, miniworld.pool(pool).scene(index))
            false += check.shape_right < check.named or check.colour_right < check.colour_named
        # a caption of another image is now and then true by accident
        assert noise["wrong"] * 0.8 < false / count < noise["wrong"] + 0.03


def test_relations_by_hand() -> None:
    a = Thing("star", "red", "small", "plain", 10, 30, 7.0)
    b = Thing("boat", "blue", "small", "plain", 40, 34, 7.0)
    c = Thing("key", "blue", "small", "plain", 58, 30, 6.0)
    assert miniworld.relation(a, b) == "left of"
    assert miniworld.relation(b, a) == "right of"
    assert miniworld.relation(a, a) == ""
    assert miniworld.between(Scene((a, b, c), "sand", "paint", 0), 1) == (0, 2)
    assert a.place == "left"
    assert b.place == "middle"
    assert c.place == "right"


@pytest.mark.parametrize("kind", miniworld.QUESTION_KINDS)
def test_question_answers_hold_in_the_scene(kind: str) -> None:
    """Colour questions are answered again here, by walking the relations that the words name."""
    asked = 0
    for index in range(300):
        question = miniworld.question(kind, index)
        scene = miniworld.pool(kind).scene(index)
        assert len(question.answers) == (1 if kind == "gqa" else 10)
        if not question.text.startswith("what color is"):
            continue
        asked += 1
        words = question.text.rstrip("?").replace("to the ", "").replace("on the left side", "left")
        words = words.replace("on the right side", "right").replace("on top of", "above")
        for said, link in (("over", "above"), ("under", "below"), ("beneath", "below")):
            words = words.replace(f" {said} ", f" {link} ")
        noun = words.split()[-1]
        shape = next((s for s, ways in miniworld.SYNONYMS.items() if noun in ways), noun)
        at = next(t for t in scene.things if t.shape == shape)
        for link in reversed(words.split("the object ")[1:]):
            name = link.split(" the ")[0].strip()
            name = name.removesuffix(" the")
            at = next(
                t
                for t in scene.things
                if t is not at and t.shape not in miniworld.CONTAINERS and miniworld.relation(t, at) == name
            )
        usual = Counter(question.answers).most_common(1)[0][0]
        assert usual in miniworld.SYNONYMS.get(at.colour, (at.colour,)), question
    assert kind == "okvqa" or asked > 20


def test_questions_are_balanced_and_annotators_disagree_as_stated() -> None:
    questions = [miniworld.question("vqav2", i) for i in range(1500)]
    types = Counter(q.answer_type for q in questions)
    assert 0.3 < types["yes/no"] / 1500 < 0.5
    assert 0.1 < types["number"] / 1500 < 0.3
    yes = sum(
        Counter(q.answers).most_common(1)[0][0] == "yes" for q in questions if q.answer_type == "yes/no"
    )
    assert 0.44 < yes / types["yes/no"] < 0.56
    minority = [
        a != "yes"
        for q in questions
        if q.answer_type == "yes/no"
        for a in q.answers
        if q.answers.count("yes") > 5
    ]
    assert abs(np.mean(minority) - miniworld.DISAGREEMENT["mistake"]) < 0.02


def test_gqa_is_two_relations_deep_and_okvqa_needs_a_fact() -> None:
    for index in range(100):
        assert miniworld.question("gqa", index).text.count("the object") == 2
        text = miniworld.question("okvqa", index).text
        assert "used for" in text or "found" in text or "made of" in text


def test_picture_shows_the_scene() -> None:
    scene = Scene((Thing("ball", "red", "large", "plain", 20, 40, 11.0),), "plain", "paint", 5)
    image = miniworld.render(scene).astype(int)
    assert image.shape == (64, 64, 3)
    assert np.abs(image[35:46, 15:26].mean((0, 1)) - miniworld.COLOURS["red"]).max() < 15
    assert image[5, 50].std() < 15  # grey
    mask = miniworld.object_masks(scene)[0]
    assert abs(mask.sum() - np.pi * (0.98 * 11) ** 2) < 20
    ys, xs = np.nonzero(mask)
    assert abs(xs.mean() - 20) < 0.5
    assert abs(ys.mean() - 40) < 0.5


def test_every_shape_looks_different() -> None:
    masks = {s: _mask(s, 11.0, 0.0) > 0.5 for s in miniworld.SHAPES}
    for one, other in itertools.combinations(masks, 2):
        union = (masks[one] | masks[other]).sum()
        assert (masks[one] & masks[other]).sum() / union < 0.8, (one, other)


def test_masks_never_share_a_pixel_and_things_do_not_touch() -> None:
    for index in range(200):
        scene = miniworld.pool("foundation").scene(index)
        assert miniworld.object_masks(scene).sum(0).max() <= 1
        for a, b in itertools.combinations(scene.things, 2):
            if a.shape in miniworld.CONTAINERS or b.shape in miniworld.CONTAINERS:
                continue
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius - 0.5


def test_same_world_in_another_process() -> None:
    code = "from evlgen import miniworld; print(miniworld.version())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == miniworld.version()


def test_unknown_pool_is_named() -> None:
    with pytest.raises(UserError, match=r"'cocoo'.*coco_val"):
        miniworld.pool("cocoo")
