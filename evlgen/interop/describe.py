"""What a trained run says of images: captions and answers, decoded as in its evaluation."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from evlgen.config import RunConfig
from evlgen.data.images import UnreadableImage, open_image, resized
from evlgen.errors import UserError
from evlgen.evaluation import merge_maps
from evlgen.interop import merge_pictures
from evlgen.interop.run_folders import read_run_config, trained_weights
from evlgen.model import CaptionModel, build_model, evaluating, load_trained
from evlgen.runs.folder import CONFIG
from evlgen.runtime.device import STATED, chosen, device_called, enough_memory
from evlgen.runtime.files import write_atomic
from evlgen.tomeformer import TomeFormer
from evlgen.training import autocast

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Describer:
    """A trained run on a device.

    Attributes:
        name: the run's folder's.
        side: pixels a side of the images that it takes.
    """

    name: str
    config: RunConfig
    model: CaptionModel
    device: torch.device

    @property
    def side(self) -> int:
        """Pixels a side of the images that it takes."""
        return self.model.encoder.vision.image_size

    def features(self, images: Pixels) -> torch.Tensor:
        """(B, S, S, 3) uint8 -> (B, N, D_in), for the other methods."""
        return self.model.encode(torch.from_numpy(images).to(self.device))

    def captions(self, features: torch.Tensor) -> list[str]:
        """A caption for each image."""
        with autocast(self.device, self.config.optim.precision):
            return self.model.caption(features, self.config.evaluation)

    def answers(self, features: torch.Tensor, question: str) -> list[str]:
        """The answer to one question for each image."""
        with autocast(self.device, self.config.optim.precision):
            return self.model.answer(features, [question] * len(features), self.config.evaluation)

    def check_merging(self) -> None:
        """Whether `groups` has something to give.

        Raises:
            UserError: the connector merges nothing, or the patches do not form a square.
        """
        if not isinstance(self.model.connector, TomeFormer):
            raise UserError(
                f"--explain: run {self.name} has the connector {self.config.connector.kind!r}, which merges "
                "no tokens; leave --explain out, or choose a run of EVLGen with --run"
            )
        if merge_maps.grid_side(self.model.encoder.vision.tokens) is None:
            raise UserError(f"--explain: the patches of {self.config.vision} do not form a square")

    def groups(self, features: torch.Tensor) -> merge_maps.Labels:
        """Which soft token each patch ends in, (B, side, side), if `check_merging` has passed."""
        connector = self.model.connector
        assert isinstance(connector, TomeFormer)
        side = merge_maps.grid_side(features.shape[1])
        assert side is not None
        with evaluating(self.model), autocast(self.device, self.config.optim.precision):
            _, trace = connector(self.model.norm(features), return_trace=True)
        return merge_maps.groups_of(trace.source.cpu().numpy()).reshape(len(features), side, side)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the language model's tokenizer has no token for."""
        tokenizer = self.model.language.tokenizer
        unknown = tokenizer.unk_token_id

        def knows(word: str) -> bool:
            return unknown not in tokenizer(word, add_special_tokens=False)["input_ids"]

        return [word for word in dict.fromkeys(re.findall(r"\w+", text)) if not knows(word)]


@dataclass(frozen=True)
class Told:
    """What a run says of an image.

    Attributes:
        question: empty for a caption.
        text: the caption or the answer.
        run: id of the run, or the name of its folder.
        picture: the file with its merge map, if one was drawn.
    """

    path: Path
    question: str
    text: str
    run: str
    picture: Path | None = None

    def as_json(self) -> dict[str, str]:
        """Without what is empty."""
        line = {"path": str(self.path), "question": self.question, "text": self.text, "run": self.run}
        line["picture"] = str(self.picture or "")
        return {key: value for key, value in line.items() if value or key == "text"}


def describe_images(
    describer: Describer,
    paths: Sequence[Path],
    question: str = "",
    batch: int = 32,
    pictures: Mapping[Path, Path] | None = None,
) -> Iterator[Told | str]:
    """Caption images, or answer a question about each, in their order; a line for one that cannot be read.

    Args:
        question: empty: captions.
        batch: images at once.
        pictures: image -> file to draw its merge map into; None or empty: nothing is drawn.

    Raises:
        UserError: a picture cannot be written.
    """
    for start in range(0, len(paths), batch):
        some = [(path, _read(path, describer.side, bool(pictures))) for path in paths[start : start + batch]]
        whole = [image.pixels for _, image in some if not isinstance(image, str)]
        told: Iterator[str] = iter(())
        groups: Iterator[merge_maps.Labels] = iter(())
        if whole:
            with enough_memory("--batch 1 needs the least, --device cpu another memory"):
                features = describer.features(np.stack(whole))
                texts = describer.answers(features, question) if question else describer.captions(features)
                groups = iter(describer.groups(features) if pictures else ())
            told = iter(texts)
        for path, image in some:
            if isinstance(image, str):
                yield image
                continue
            text, drawn = next(told), None
            if pictures and image.shown is not None:
                drawn = pictures[path]
                lines = [question, text] if question else [text]
                content = io.BytesIO()
                merge_pictures.picture(image.shown, next(groups), lines).save(content, "PNG")
                write_atomic(drawn, content.getvalue())
            yield Told(path, question, text, describer.name, drawn)


@dataclass(frozen=True, eq=False)
class _Image:
    """An image as the encoder takes it, and as it is shown beside its merge map (None: it is not)."""

    pixels: Pixels
    shown: Pixels | None


def _read(path: Path, side: int, is_shown: bool) -> _Image | str:
    """The image in a file, or what is wrong with it. Large ones are not kept: a batch of them is memory."""
    try:
        image = open_image(path)
    except UnreadableImage as error:
        return f"{error}: not read"
    pixels = resized(np.asarray(image), side)
    if not is_shown:
        return _Image(pixels, None)
    image.thumbnail((merge_pictures.SIDE, merge_pictures.SIDE))
    return _Image(pixels, np.asarray(image))


def load(folder: Path, device: str = "") -> Describer:
    """The trained run in a folder, its files verified.

    Args:
        device: of torch; empty: a GPU if there is one.

    Raises:
        UserError: no such device, or as `evlgen.interop.from_run`.
    """
    place = _device(device)
    config = read_run_config(folder / CONFIG)
    if config.stage != "caption":
        raise UserError(
            f"{folder}: a run of the stage {config.stage!r} has no language model; take one that captions"
        )
    weights = trained_weights(folder)
    model = build_model(config)
    assert isinstance(model, CaptionModel)
    load_trained(model, weights)
    model.to(place)
    model.encoder.vision.model.to(place)
    model.language.model.to(place)
    return Describer(folder.name, config, model.eval(), place)


def _device(name: str) -> torch.device:
    if not name:
        return chosen()
    device = device_called(name)
    os.environ[STATED] = name  # the frozen models are built in the precision that suits it
    return device
