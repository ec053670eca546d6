"""What the processor makes of images, of questions, and of what was generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evlgen.backbones.language import mini_tokenizer
from evlgen.backbones.vision import CLIP_MEAN, CLIP_STD, build_vision
from evlgen.errors import UserError
from evlgen.interop.processor import EVLGenImageProcessor, EVLGenProcessor

# ------------------------------------------------------------------------------------------------ images


def test_is_that_of_the_paper() -> None:
    """Bicubic to 224 x 224, CLIP's mean and deviation, from a photo of odd sides."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (171, 333, 3), dtype=np.uint8))
    got = EVLGenImageProcessor()(photo, return_tensors="pt").pixel_values
    assert got.shape == (1, 3, 224, 224)
    assert got.dtype == torch.float32
    small = np.asarray(photo.resize((224, 224), Image.Resampling.BICUBIC)).astype(np.float64)
    for channel in range(3):
        expected = (small[..., channel] / 255 - CLIP_MEAN[channel]) / CLIP_STD[channel]
        np.testing.assert_allclose(got[0, channel].numpy(), expected, atol=1e-5)


def test_leaves_miniature_images_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    vision = build_vision("mini-vit")
    processor = EVLGenImageProcessor(64, vision.mean, vision.std)
    got = vision.model(processor(images, return_tensors="pt").pixel_values)
    torch.testing.assert_close(got, vision.encode(images))


def test_images_of_any_kind(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)
    processor = EVLGenImageProcessor(8, (0.0,) * 3, (1.0,) * 3)

    def run(image: Any) -> np.ndarray:
        pixels: np.ndarray = processor(image).pixel_values
        assert pixels.shape[1:] == (3, 8, 8)
        return pixels

    expected = run(Image.fromarray(colour))
    opaque = np.concatenate([colour, np.full((9, 13, 1), 255, np.uint8)], 2)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    same = [
        colour,
        torch.from_numpy(colour),
        colour.transpose(2, 0, 1),
        colour.astype(np.float32) / 255,
        colour.astype(np.uint16) * 257,
        opaque,
        Image.fromarray(opaque),
        colour[None],
        tmp_path / "colour.png",
        [str(tmp_path / "colour.png")],
    ]
    for image in same:
        np.testing.assert_array_equal(run(image), expected)
    grey = rng.integers(0, 256, (9, 13), dtype=np.uint8)
    expected_grey = run(np.repeat(grey[..., None], 3, 2))
    for image in (
        grey,
        grey[..., None],
        grey[None],
        Image.fromarray(grey),
        Image.fromarray(grey).convert("LA"),
    ):
        np.testing.assert_array_equal(run(image), expected_grey)
    half = torch.ones(3, 9, 13, dtype=torch.bfloat16)
    np.testing.assert_array_equal(run(half), run(half.float()))
    mixed = run([Image.fromarray(colour), grey, Image.new("P", (1, 40))])
    np.testing.assert_array_equal(mixed[:2], np.concatenate([expected, expected_grey]))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images: the list is empty"),
        (np.zeros((0, 8, 8, 3), np.uint8), "images: the list is empty"),
        (["none.png"], r"image 0: none\.png: No such file"),
        ([b"bytes"], "image 0: is a bytes"),
        ([np.zeros((4, 4), np.uint8), np.zeros((2, 5, 5), np.uint8)], r"image 1: has shape \(2, 5, 5\)"),
        (np.zeros(4, np.uint8), r"image 0: has shape \(4,\)"),
        (np.full((4, 4, 3), 255.0), "floats from 255 to 255; 0 to 1"),
        (np.full((4, 4, 3), np.nan), "floats from nan"),
        (np.zeros((4, 4), np.int64), "has type int64"),
        (np.zeros((0, 4, 3), np.uint8), "is empty"),
        (Image.new("RGB", (0, 4)), "is empty, 0 x 4"),
    ],
)
def test_names_mistakes(images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EVLGenImageProcessor()(images, return_tensors="pt")


def test_transparency_is_laid_on_white_and_photos_are_upright() -> None:
    processor = EVLGenImageProcessor(8, (0.0,) * 3, (1.0,) * 3)
    clear = np.zeros((8, 8, 4), np.uint8)
    for image in (clear, Image.fromarray(clear), Image.new("LA", (8, 8), (0, 0))):
        assert (processor(image).pixel_values == 1).all()
    half = np.full((8, 8, 4), (0, 0, 0, 128), np.uint8)
    assert processor(half).pixel_values.max() == pytest.approx(127 / 255, abs=0.01)
    deep = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    assert (processor(deep).pixel_values == 1).all()
    lying = Image.new("RGB", (16, 8))
    lying.paste("red", (0, 0, 8, 8))
    lying.getexif()[0x112] = 6  # what is left belongs on top
    pixels = processor(lying).pixel_values[0]
    assert pixels[0, 0].min() > 0.5
    assert pixels[0, -1].max() < 0.5


# ------------------------------------------------------------------------------------------------- texts

PROCESSOR = EVLGenProcessor(EVLGenImageProcessor(8, (0.0,) * 3, (1.0,) * 3), mini_tokenizer(), end=3)
IMAGES = [Image.new("RGB", size, "red") for size in ((8, 8), (90, 7), (5, 33))]


def ids_of(text: str) -> list[int]:
    ids: list[int] = mini_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


def test_questions_are_put_into_the_prompt_of_runs() -> None:
    asked = ids_of("Question: is the ball red? Short answer:")
    for text in (
        "is the ball red?",
        ["  Is the ball red? "] * 3,
        "Question: is the ball red? Short answer:",
        "question: is the ball red? Answer: ",
    ):
        found = PROCESSOR(IMAGES, text=text, return_tensors="pt")
        assert found["pixel_values"].shape == (3, 3, 8, 8)
        assert found["input_ids"].tolist() == [asked] * 3
        assert found["input_ids"].dtype == torch.int64
        assert found["attention_mask"].tolist() == [[1] * len(asked)] * 3
    plain = PROCESSOR(IMAGES[0], text="a picture of", as_questions=False)
    assert plain["input_ids"].tolist() == [ids_of("a picture of")]


def test_questions_of_several_lengths_are_padded_in_front() -> None:
    questions = ["is it red?", "what color is the ball on the left?"]
    found = PROCESSOR(IMAGES[0], text=questions, return_tensors="np")
    assert len(found["pixel_values"]) == 2
    for row, kept, question in zip(found["input_ids"], found["attention_mask"], questions, strict=True):
        asked = ids_of(f"Question: {question} Short answer:")
        assert row[-len(asked) :].tolist() == asked
        assert kept.tolist() == [0] * (len(row) - len(asked)) + [1] * len(asked)


def test_no_question_asks_for_a_caption() -> None:
    assert set(PROCESSOR(IMAGES)) == {"pixel_values"}
    for text in ("", ["", " ", ""]):
        found = PROCESSOR(IMAGES, text=text, return_tensors="pt")
        assert found["input_ids"].shape == (3, 0)


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (None, None, "neither images nor text"),
        (IMAGES, ["is it red?"] * 2, "2 texts for 3 images"),
        (IMAGES, ["is it red?", "", "is it?"], "text 1 is empty"),
        (IMAGES, [["is it red?"]], r"is a list; give questions as strings"),
        (IMAGES, 5, r"5 is a int; give questions as strings"),
        (IMAGES, [], r"text: the list is empty"),
    ],
)
def test_names_mistakes_in_texts(images: Any, text: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PROCESSOR(images, text=text)


def test_texts_end_at_the_closing_newline() -> None:
    ids = [[*ids_of("a red ball"), 3, *ids_of("and"), 0], [*ids_of("a blue boat on the sand")]]
    ids[1] += [0] * (len(ids[0]) - len(ids[1]))
    for rows in (ids, torch.tensor(ids), np.array(ids)):
        assert PROCESSOR.batch_decode(rows) == ["a red ball", "a blue boat on the sand"]
        assert PROCESSOR.decode(rows[0]) == "a red ball"
        assert PROCESSOR.post_process_image_text_to_text(rows)[0] == "a red ball"
