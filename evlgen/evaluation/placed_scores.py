"""Scores of captions by models that no package carries: SPICE and CLIPScore, where the user has placed them.

Below ``EVLGEN_WEIGHTS`` (docs/PAPER_SCALE.md): ``spice/`` with the two jars of Stanford CoreNLP 3.6.0 that
pycocoevalcap's SPICE parses with, and ``clip-vit-base-patch32/``, the folder of the CLIP that CLIPScore was
published with. Published sets of captions and one's own get these scores where the models are there; where
they are not, one line says so.

Whoever changes a score raises ``spice`` or ``clip_score`` in `evlgen.runs.behaviour.SCORERS`.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from evlgen.evaluation import java
from evlgen.evaluation.java import JavaError, Pair
from evlgen.runtime.paths import weights_folder

if TYPE_CHECKING:  # scoring without CLIP does not wait for torch
    from torch import Tensor

log = logging.getLogger(__name__)

# Scorer -> what its metrics are called behind the name of a set.
PLACED: Mapping[str, tuple[str, ...]] = {"spice": ("SPICE",), "clip_score": ("CLIPScore", "RefCLIPScore")}
SPICE_FOLDER, CLIP_FOLDER = "spice", "clip-vit-base-patch32"  # below EVLGEN_WEIGHTS
_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_UNPACKED = "stanford-corenlp-full-2015-12-09"  # the folder in the archive of the jars
_SPICE_HOURS = 12.0
_WEIGHT = 2.5  # of the cosine in CLIPScore (Hessel et al. 2021)
_PROMPT = "A photo depicts "  # in front of each text there
_BATCH = 64


def absent() -> dict[str, str]:
    """Scorer -> what it lacks on this machine, in words; empty if both can score."""
    lines = {}
    if (jars := _jars()) is not None:
        lines["spice"] = f"SPICE is left out: {jars}"
    elif java.find_java() is None:
        lines["spice"] = "SPICE is left out: no Java found"
    root = weights_folder()
    if root is None:
        lines["clip_score"] = "CLIPScore is left out: EVLGEN_WEIGHTS is not set"
    elif not (root / CLIP_FOLDER / "config.json").is_file():
        lines["clip_score"] = f"CLIPScore is left out: {root / CLIP_FOLDER} is no folder of a model"
    return lines


def say_once(lines: Sequence[str]) -> None:
    """Log what is left out; the same line once in a process."""
    for line in lines:
        _say(f"{line}; docs/PAPER_SCALE.md says what it needs")


@functools.cache
def _say(line: str) -> None:
    log.warning(line)


# ---------------------------------------------------------------------------------------------- SPICE


def _jars() -> str | None:
    """What is missing of SPICE's models, in words."""
    root = weights_folder()
    if root is None:
        return "EVLGEN_WEIGHTS is not set"
    missing = [name for name in _JARS if _jar(root, name) is None]
    return f"{' and '.join(missing)}: not in {root / SPICE_FOLDER}" if missing else None


def _jar(root: Path, name: str) -> Path | None:
    folder = root / SPICE_FOLDER
    return next((path for path in (folder / name, folder / _UNPACKED / name) if path.is_file()), None)


def spice(pairs: Sequence[Pair], program: Path) -> list[float]:
    """SPICE (0 to 1) of each caption with its references, all tokenized already; see `absent`.

    One process parses all of them.

    Raises:
        JavaError: it failed.
    """
    root = weights_folder()
    assert root is not None
    installed = java.package_file("spice")
    placed = [jar for name in _JARS if (jar := _jar(root, name)) is not None]
    classes = [installed / "spice-1.0.jar", *sorted((installed / "lib").glob("*.jar")), *placed]
    entries = [
        {"image_id": place, "test": caption, "refs": list(references)}
        for place, (caption, references) in enumerate(pairs)
    ]
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "captions.json", Path(folder) / "scores.json"
        given.write_text(json.dumps(entries), encoding="utf-8")
        arguments: list[str | Path] = [
            *java.JAVA_OPTIONS[1:],
            "-Xmx8G",
            "-cp",
            os.pathsep.join(map(str, classes)),
        ]
        arguments += ["edu.anu.spice.SpiceScorer", given, "-out", out, "-subset", "-silent"]
        try:
            java.run(program, arguments, timeout=3600 * _SPICE_HOURS)
            scored = {
                entry["image_id"]: float(entry["scores"]["All"]["f"]) for entry in json.loads(out.read_text())
            }
            return [scored[place] for place in range(len(pairs))]
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", b"") or b""
            why = said.decode(errors="replace").strip().splitlines()[:1] or [str(error)]
            raise JavaError(f"SPICE failed: {why[0]}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise JavaError(f"SPICE failed: its output is not as it must be ({error})") from error


# ------------------------------------------------------------------------------------------ CLIPScore


ImageKey = tuple[str, str, int]  # world, pool and index


@dataclass(frozen=True)
class Caption:
    """A caption of an image, and what people said of it."""

    image: ImageKey
    text: str
    references: tuple[str, ...]


def clip_scores(
    captions: Sequence[Caption], pixels: Callable[[ImageKey], npt.NDArray[np.uint8]]
) -> dict[Caption, tuple[float, float]]:
    """CLIPScore (0 to 2.5) and RefCLIPScore of each caption; see `absent`.

    CLIPScore is 2.5 times the cosine of the caption's and the image's embeddings, at least 0; RefCLIPScore
    the harmonic mean of it and the largest cosine of the caption with a reference, at least 0.

    Args:
        pixels: (H, W, 3) uint8 of an image.

    Raises:
        UserError: the model cannot be read, or an image is missing.
    """
    root = weights_folder()
    assert root is not None
    encoder = _Clip(root / CLIP_FOLDER)
    images = encoder.images(list(dict.fromkeys(one.image for one in captions)), pixels)
    texts = encoder.texts([text for one in captions for text in (one.text, *one.references)])
    found = {}
    for one in captions:
        caption = texts[one.text]
        score = _WEIGHT * max(float(caption @ images[one.image]), 0.0)
        nearest = max(0.0, *(float(caption @ texts[reference]) for reference in one.references))
        total = score + nearest
        found[one] = (score, 2 * score * nearest / total if total else 0.0)
    return found


class _Clip:
    """A CLIP of `transformers` from its folder; embeddings of length 1, as float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        # These import torch and transformers.
        import torch
        from transformers import AutoTokenizer, CLIPModel

        from evlgen.backbones import pretrained
        from evlgen.errors import UserError
        from evlgen.runtime import device

        self.device = device.chosen()
        config = pretrained.read_config(folder)
        if config.model_type != "clip":
            raise UserError(f"{folder}: a model of type {config.model_type!r}; CLIPScore needs a CLIP")
        self.model = pretrained.load_transformers(CLIPModel, folder, config, torch.float32).to(self.device)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder}: its tokenizer cannot be read ({pretrained.first_line(error)}); fetch it again"
            ) from error
        if len(self.tokenizer) != config.text_config.vocab_size:  # with no files it would be an empty one
            raise UserError(
                f"{folder}: its tokenizer has {len(self.tokenizer)} tokens, the model "
                f"{config.text_config.vocab_size}; fetch vocab.json, merges.txt, tokenizer_config.json again"
            )
        self.side = int(config.vision_config.image_size)
        self.length = int(config.text_config.max_position_embeddings)

    def images(
        self, keys: Sequence[ImageKey], read: Callable[[ImageKey], npt.NDArray[np.uint8]]
    ) -> dict[ImageKey, Tensor]:
        """(D,) of each image, in batches."""
        import torch

        from evlgen.backbones.vision import CLIP_MEAN, CLIP_STD, normalised

        found: dict[ImageKey, Tensor] = {}
        for start in range(0, len(keys), _BATCH):
            some = keys[start : start + _BATCH]
            pixels = np.stack([_cut(read(key), self.side) for key in some])  # (B, side, side, 3)
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device) / 255
            with torch.inference_mode():
                pooled = self.model.vision_model(normalised(batch, CLIP_MEAN, CLIP_STD)).pooler_output
                embedded = self.model.visual_projection(pooled)
            found.update(zip(some, _unit(embedded), strict=True))
        return found

    def texts(self, wanted: Sequence[str]) -> dict[str, Tensor]:
        """(D,) of each distinct text, in batches."""
        import torch

        found: dict[str, Tensor] = {}
        distinct = sorted(set(wanted), key=len)
        for start in range(0, len(distinct), _BATCH):
            some = distinct[start : start + _BATCH]
            tokens = self.tokenizer(
                [_PROMPT + text for text in some],
                padding=True,
                truncation=True,
                max_length=self.length,
                return_tensors="pt",
            ).to(self.device)
            with torch.inference_mode():
                pooled = self.model.text_model(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                ).pooler_output
                embedded = self.model.text_projection(pooled)
            found.update(zip(some, _unit(embedded), strict=True))
        return found


def _unit(embedded: Tensor) -> Tensor:
    """(B, D) with rows of length 1."""
    embedded = embedded.float().cpu()
    return embedded / embedded.norm(dim=-1, keepdim=True)


def _cut(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """The square in the middle, after the shorter side was resized to ``side`` (bicubic), as CLIP does it."""
    from PIL import Image

    height, width = image.shape[:2]
    shorter = min(height, width)
    size = (side * width // shorter, side * height // shorter)
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)  # as torchvision's CenterCrop
    return np.asarray(resized.crop((left, top, left + side, top + side)))
