"""What goes into the model of `evlgen.interop.transformers_model` and what comes out, as in `transformers`.

Images of any size and mode become pixels, questions become the prompts that runs are asked with, and what was
generated becomes text without its closing token.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor, bfloat16
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from evlgen.backbones.vision import CLIP_MEAN, CLIP_STD
from evlgen.conventions import PLAIN, prompt_of
from evlgen.data.images import UnreadableImage, as_rgb, open_image
from evlgen.errors import UserError

# A question that is in a prompt already, BLIP-2's or that of the examples of `transformers`.
_ASKED = re.compile(r"\s*question:\s*(.*?)\s*(short )?answer:\s*", re.IGNORECASE | re.DOTALL)


class EVLGenImageProcessor(BaseImageProcessor):
    """Images of any size -> pixels for the image encoder: bicubic to a square, scaled, normalised (PAPER).

    Args:
        size: pixels of a side (paper: 224; miniature: 64).
        image_mean, image_std: of the channels, in 0..1 (default: CLIP's, as in the paper).
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        size: int = 224,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.image_mean, self.image_std = size, list(image_mean), list(image_std)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """``pixel_values``, (B, 3, size, size) float32.

        Args:
            images: an image or a sequence of them, of any sizes. An image is one of PIL in any mode, the path
                of a file, or an array or tensor of shape (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4,
                uint8, uint16, or float in 0..1. An array of four dimensions is a batch. As in training,
                images are turned upright and transparency is laid on white (`evlgen.data.images.as_rgb`).
            return_tensors: ``"pt"`` for torch, ``"np"`` for numpy.

        Raises:
            UserError: there are no images, or one of them is none of these.
        """
        single = isinstance(images, Image.Image | str | Path) or (hasattr(images, "ndim") and images.ndim < 4)
        several = [images] if single else list(images)
        if not several:
            raise UserError("images: the list is empty; one at least is needed")
        pixels = [self._pixels(image, index) for index, image in enumerate(several)]
        return BatchFeature({"pixel_values": np.stack(pixels)}, tensor_type=return_tensors)

    def _pixels(self, image: Any, index: int) -> npt.NDArray[np.float32]:
        """(3, size, size)."""
        picture = _opened(image, index).resize((self.size, self.size), Image.Resampling.BICUBIC)
        scaled = np.asarray(picture, dtype=np.float32) / 255
        mean, std = (np.array(each, dtype=np.float32) for each in (self.image_mean, self.image_std))
        return ((scaled - mean) / std).transpose(2, 0, 1).astype(np.float32, copy=False)


def _opened(image: Any, index: int) -> Image.Image:
    """Any image in RGB."""
    where = f"image {index}"
    if isinstance(image, str | Path):
        try:
            return open_image(Path(image).expanduser(), f"{where}: {image}")
        except UnreadableImage as error:
            raise UserError(str(error)) from error
    picture = image if isinstance(image, Image.Image) else _as_picture(image, index)
    if 0 in picture.size:
        raise UserError(f"{where}: is empty, {picture.width} x {picture.height} pixels")
    try:
        return as_rgb(picture)
    except Exception as error:  # PIL raises nearly anything for damaged files, which it reads only now
        raise UserError(f"{where}: {str(error) or type(error).__name__}") from error


def _as_picture(image: Any, index: int) -> Image.Image:
    if not isinstance(image, np.ndarray | Tensor):
        raise UserError(f"image {index}: is a {type(image).__name__}; give a PIL image, a path or an array")
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        if image.dtype == bfloat16:  # which numpy does not have
            image = image.float()
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in (3, 4)):
        raise UserError(
            f"image {index}: has shape {array.shape}; (H, W) or (H, W, C) with C = 1, 3 or 4 is expected"
        )
    if np.issubdtype(array.dtype, np.floating):
        if array.size and not (array.min() >= 0 and array.max() <= 1):
            raise UserError(
                f"image {index}: floats from {array.min():g} to {array.max():g}; 0 to 1 is expected"
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype == np.uint16:
        array = (array / 257).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(
            f"image {index}: has type {array.dtype}; uint8, uint16 or floats in 0..1 are expected"
        )
    if 0 in array.shape:
        raise UserError(f"image {index}: is empty, shape {array.shape}")
    return Image.fromarray(array)


# ---------------------------------------------------------------------------------------------- processor


def _asked(chat: Sequence[dict[str, Any]]) -> tuple[Any, str]:
    """The image of a chat, and the text of its last message."""
    if chat[-1].get("role") != "user":
        raise UserError("chat: its last message is not the user's; runs continue no answers")
    images: list[Any] = []
    text = ""
    for message in chat:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found = (
            part.get(key) for part in parts for key in ("image", "path", "url") if part["type"] == "image"
        )
        images += [one for one in found if one is not None]
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
    if len(images) != 1:
        raise UserError(f"chat: shows {len(images)} images; a run is asked about one")
    return images[0], text.strip()


class EVLGenProcessor(ProcessorMixin):
    """Images and questions -> what `EVLGenForConditionalGeneration` takes; what it generates -> text.

    ``processor(image)`` asks for a caption, ``processor(image, text="What colour is the ball?")`` for an
    answer.

    Args:
        image_processor: see `EVLGenImageProcessor`.
        tokenizer: the language model's. It is copied: padding of prompts has to be in front.
        end: the token that closes a caption or an answer.
        cleans_questions: questions are cleaned as BLIP's (`evlgen.conventions.clean_question`).
        closes: a prompt is closed by the tokenizer's end token (T5).
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        end: int | None = None,
        cleans_questions: bool = False,
        closes: bool = False,
    ) -> None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "left"
        self.end, self.cleans_questions, self.closes = end, cleans_questions, closes
        super().__init__(image_processor, tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes."""
        return ["pixel_values", "input_ids", "attention_mask"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        *,
        as_questions: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """``pixel_values``, and with texts ``input_ids`` and ``attention_mask``, (B, T) int64.

        Args:
            images: see `EVLGenImageProcessor.preprocess`; of one image and several texts, or several images
                and one text, the one goes with each of the others. None: texts alone.
            text: a question, or one for each image. It is put into the prompt that runs are asked with,
                unless it is in one already (``Question: ... Short answer:``). Empty or None: a caption.
            return_tensors: ``"pt"`` for torch, ``"np"`` for numpy.
            as_questions: False: texts are taken as they are, to be continued.
            kwargs: for the tokenizer.

        Raises:
            UserError: neither images nor texts, texts that are not one an image, some empty and some not, or
                see `EVLGenImageProcessor.preprocess`.
        """
        if images is None and text is None:
            raise UserError("neither images nor text: one of them is needed")
        data: dict[str, Any] = {}
        if images is not None:
            data |= self.image_processor(images)
        if text is not None:
            if not isinstance(text, Iterable):
                raise UserError(f"text: {text!r} is a {type(text).__name__}; give questions as strings")
            texts = [text] if isinstance(text, str) else list(text)
            if not texts:
                raise UserError("text: the list is empty; give a text, or one for each image, or None")
            if wrong := [one for one in texts if not isinstance(one, str)]:
                raise UserError(
                    f"text: {wrong[0]!r} is a {type(wrong[0]).__name__}; give questions as strings"
                )
            if images is not None:
                count = len(data["pixel_values"])
                if len(texts) == 1:
                    texts = texts * count
                elif count == 1:
                    data["pixel_values"] = np.repeat(data["pixel_values"], len(texts), axis=0)
                elif len(texts) != count:
                    raise UserError(f"text: {len(texts)} texts for {count} images; give one, or one for each")
            data |= self._prompts(texts, as_questions, kwargs)
        return BatchFeature(data, tensor_type=return_tensors)

    def _prompts(self, texts: list[str], as_questions: bool, options: dict[str, Any]) -> dict[str, Any]:
        empty = [not one.strip() for one in texts]
        if any(empty) and not all(empty):
            raise UserError(
                f"text: text {empty.index(True)} is empty, which asks for a caption, and others are not; "
                "ask for captions and for answers one after the other"
            )
        if all(empty):
            ids = np.zeros((len(texts), 0), np.int64)
            return {"input_ids": ids, "attention_mask": ids}
        if as_questions:
            texts = [self.question_prompt(one) for one in texts]
        options = {
            "add_special_tokens": self.closes,
            "padding": True,
            "return_token_type_ids": False,
            **options,
        }
        found = self.tokenizer(texts, return_tensors="np", **options)
        return {key: value.astype(np.int64) for key, value in found.items()}

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        chat_template: str | None = None,
        tokenize: bool = True,
        return_tensors: str | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """What a chat asks, as pipelines of `transformers` give it: the question of its last message, on the
        one image that it shows.

        Runs know no chats: earlier questions and answers are not read.

        Args:
            conversation: messages, or a list of such lists. The content of a message is a text or a list of
                ``{"type": "text", "text": ...}`` and ``{"type": "image", ...}`` with a PIL image under
                ``image`` or a path under ``path`` or ``url``.
            tokenize: False: the prompts as texts.

        Raises:
            UserError: no image or several, or the last message is not the user's.
        """
        chats = [conversation] if isinstance(conversation[0], dict) else list(conversation)
        asked = [_asked(chat) for chat in chats]
        if not tokenize:
            prompts = [self.question_prompt(text) if text else "" for _, text in asked]
            return prompts[0] if chats[0] is conversation else prompts
        images, texts = zip(*asked, strict=True)
        return self(list(images), list(texts), return_tensors, **(processor_kwargs or {}))

    def question_prompt(self, question: str) -> str:
        """A question as runs are asked it."""
        asked = _ASKED.fullmatch(question)
        how = dataclasses.replace(PLAIN, cleans_questions=self.cleans_questions)
        return prompt_of((asked[1] if asked else question).strip(), how)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        """Texts of generated ids, (B, T), without the token that closes a text and what follows it."""
        rows = sequences.tolist() if hasattr(sequences, "tolist") else [list(row) for row in sequences]
        cut = [row[: row.index(self.end)] if self.end in row else row for row in rows]
        texts = self.tokenizer.batch_decode(cut, skip_special_tokens=skip_special_tokens, **kwargs)
        return [text.strip() for text in texts]

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """The text of one row of generated ids, or the texts of several, as `batch_decode`."""
        rows = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        if rows and isinstance(rows[0], list):
            return self.batch_decode(rows, **kwargs)
        return self.batch_decode([rows], **kwargs)[0]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """As `batch_decode`, for pipelines of `transformers`."""
        return self.batch_decode(generated_outputs, skip_special_tokens, **kwargs)
