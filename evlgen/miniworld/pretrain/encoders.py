"""The image encoders: ``mini-vit`` learns by contrast with phrases, ``mini-clip`` by distillation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedTokenizerFast

from evlgen import miniworld
from evlgen.backbones.vision import CLIP_MEAN, CLIP_STD, MiniViT, MiniViTConfig, mini_clip_config, normalised
from evlgen.miniworld import Scene, Thing
from evlgen.miniworld.pretrain.loop import Report, descend

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class VisionPretraining:
    steps: int = 2600
    batch_size: int = 96
    lr: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    negatives: int = 4  # altered phrases for each true one
    text_width: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Distillation:
    steps: int = 4000
    batch_size: int = 64
    lr: float = 2e-3
    warmup_steps: int = 150
    weight_decay: float = 0.05
    class_weight: float = 0.3  # of the class token's loss beside the patches'
    seed: int = 0


ATTRIBUTES = ("shape", "colour", "size", "texture", "place")
CHOICES: dict[str, tuple[str, ...]] = {
    "colour": tuple(miniworld.COLOURS),
    "size": miniworld.SIZES,
    "texture": miniworld.TEXTURES,
    "place": tuple(itertools.chain.from_iterable(miniworld.PLACES)),
}


class TextTower(nn.Module):
    """The contrastive partner of the image encoder: one transformer layer over words, mean-pooled."""

    def __init__(self, vocab_size: int, width: int, max_words: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.randn(max_words, width) * 0.02)
        self.layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, ids: Tensor) -> Tensor:
        """(T, L) word ids, 0 is padding -> (T, width) unit vectors."""
        padding = ids == 0
        x = self.layer(self.words(ids) + self.positions[: ids.shape[1]], src_key_padding_mask=padding)
        pooled = x.masked_fill(padding[..., None], 0).sum(1) / (~padding).sum(1, keepdim=True)
        return F.normalize(self.out(pooled), dim=-1)


class Contrast(nn.Module):
    """Image encoder, text tower and the projections between them."""

    def __init__(self, vision: MiniViT, vocab_size: int, width: int) -> None:
        super().__init__()
        self.vision = vision
        seen = vision.config.width
        self.text = TextTower(vocab_size, width)
        self.patch_out = nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, width))
        self.class_out = nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, width))
        self.log_scale = nn.Parameter(torch.tensor([math.log(10.0), math.log(10.0)]))

    def forward(self, pixels: Tensor, phrases: Tensor, owner: Tensor, captions: Tensor) -> Tensor:
        """Sum of the three losses.

        Args:
            pixels: (B, 3, H, W) in 0..1.
            phrases: (P, 1 + K, L) word ids: a true phrase, then K altered ones.
            owner: (P,) the image of each true phrase.
            captions: (B, L) word ids, one true caption an image.
        """
        features = self.vision(pixels)
        patch_scale, class_scale = self.log_scale.clamp(max=math.log(100.0)).exp()
        patches = F.normalize(self.patch_out(features[:, 1:]), dim=-1)  # (B, N, C)
        true, altered = phrases.shape[0], phrases.shape[1] - 1
        texts = self.text(phrases.flatten(0, 1)).view(true, 1 + altered, -1)
        # every true phrase against every image: (P, B), a phrase scores by log-sum-exp over patches
        scores = torch.einsum("pc,bnc->pbn", texts[:, 0] * patch_scale, patches).logsumexp(-1)
        find_image = F.cross_entropy(scores, owner)
        # every image against its phrase, the altered ones, and the true phrases of other images
        own = torch.einsum("pkc,pnc->pkn", texts[:, 1:] * patch_scale, patches[owner]).logsumexp(-1)  # (P, K)
        others = scores[:, owner].T.masked_fill(owner[:, None] == owner[None], -torch.inf)  # (P, P)
        right = scores.gather(1, owner[:, None])
        find_phrase = F.cross_entropy(torch.cat([right, own, others], 1), torch.zeros_like(owner))
        classes = F.normalize(self.class_out(features[:, 0]), dim=-1)
        pairs = classes @ self.text(captions).T * class_scale  # (B, B)
        target = torch.arange(len(pairs))
        whole = (F.cross_entropy(pairs, target) + F.cross_entropy(pairs.T, target)) / 2
        return find_image + find_phrase + 0.5 * whole


def facts_of(thing: Thing) -> dict[str, str]:
    if thing.shape in miniworld.CONTAINERS:
        return {"shape": thing.shape, "colour": thing.colour, "place": thing.place}
    return {name: getattr(thing, name) for name in ATTRIBUTES}


def phrase(facts: dict[str, str], rng: Any) -> str:
    words = [
        miniworld.SYNONYMS.get(facts[name], (facts[name],))
        for name in ("size", "texture", "colour", "shape")
        if name in facts
    ]
    if "place" in facts:
        words.append(miniworld.PLACE_PHRASES[facts["place"]])
    return " ".join(rng.choice(options) for options in words)


def contrast_phrases(scene: Scene, rng: Any, negatives: int) -> list[list[str]]:
    """For each thing, and for the background, a true phrase and ``negatives`` ones that are false here."""
    everything = [facts_of(thing) for thing in scene.things]
    groups = []
    for facts in everything:
        mentioned = {n: v for n, v in facts.items() if n == "shape" or rng.random() < 0.8}
        group = [phrase(mentioned, rng)]
        while len(group) <= negatives:
            name = rng.choice(["shape", "shape", *mentioned])  # the hardest to see
            options = CHOICES.get(name)
            if options is None:
                options = (
                    miniworld.CONTAINERS if mentioned["shape"] in miniworld.CONTAINERS else miniworld.SHAPES
                )
            altered = {**mentioned, name: rng.choice(options)}
            if not any(altered.items() <= other.items() for other in everything):
                group.append(phrase(altered, rng))
        groups.append(group)
    grounds = [b for b in miniworld.BACKGROUNDS if b != scene.background]
    wrong = [rng.choice(grounds) for _ in range(negatives)]
    groups.append([rng.choice(miniworld.BACKGROUND_PHRASES[b]) for b in [scene.background, *wrong]])
    return groups


def word_ids(vocabulary: dict[str, int], texts: list[str]) -> Tensor:
    """(T, L) ids of texts without punctuation, padded with 0; a plain look-up, as this is done often."""
    rows = [[vocabulary[word] for word in text.split()[:32]] for text in texts]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return torch.from_numpy(ids)


def pixels_of(images: list[npt.NDArray[np.uint8]]) -> Tensor:
    """(H, W, 3) uint8 images -> (B, 3, H, W) float32 in 0..1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def pretrain_vision(tokenizer: PreTrainedTokenizerFast, setup: VisionPretraining, report: Report) -> Contrast:
    """Train ``mini-vit``; the same setup gives the same bits on one machine type with one thread."""
    torch.manual_seed(setup.seed)
    model = Contrast(MiniViT(MiniViTConfig()), len(tokenizer), setup.text_width)
    pool, vocabulary = miniworld.pool("foundation"), tokenizer.get_vocab()

    def loss(step: int) -> Tensor:
        indices = range(step * setup.batch_size, (step + 1) * setup.batch_size)
        images, phrases, owner, captions = [], [], [], []
        for place, index in enumerate(indices):
            scene = pool.scene(index)
            rng = miniworld.random_stream("contrast", setup.seed, index)
            images.append(miniworld.render(scene))
            captions.append(miniworld.caption(scene, rng))
            groups = contrast_phrases(scene, rng, setup.negatives)
            phrases += groups
            owner += [place] * len(groups)
        pixels = pixels_of(images)
        ids = word_ids(vocabulary, list(itertools.chain.from_iterable(phrases)))
        found: Tensor = model(
            pixels,
            ids.view(len(phrases), 1 + setup.negatives, -1),
            torch.tensor(owner),
            word_ids(vocabulary, captions),
        )
        return found

    descend("mini-vit", model, map(loss, range(setup.steps)), setup, report)
    return model


class Distilled(nn.Module):
    """CLIP's image encoder and two heads that predict a teacher's features.

    One head reads the second-to-last layer, which is the one used later (like that of CLIP ViT-L/14 in
    BLIP-2), the other the last, which a CLIP has as well. The teacher's features are whitened: a few
    directions hold most of their variance, and those that tell shapes apart are not among them.

    Args:
        teacher: (B, 3, H, W) pixels in 0..1 -> (B, 1 + N, width) features.
        pixels: images from which the moments of the teacher's features are taken.
        class_weight: of the class token's loss beside the patches'.
    """

    def __init__(self, model: CLIPVisionModel, teacher: Encode, pixels: Tensor, class_weight: float) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher
        self.class_weight = class_weight
        features = teacher(pixels)
        width = model.config.hidden_size
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, features.shape[-1])) for _ in range(2)
        )
        patches = features[:, 1:].flatten(0, 1)
        self.mean = patches.mean(0)
        variances, directions = torch.linalg.eigh((patches - self.mean).T.cov())
        # directions of hardly any variance are left small: they are noise
        self.whitening = directions / (variances + 1e-3 * variances.max()).sqrt()
        self.class_mean, self.class_deviation = features[:, 0].mean(0), features[:, 0].std(0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Mean squared error of what the heads predict of the teacher's features, summed over the two."""
        layers = self.model(normalised(pixels, CLIP_MEAN, CLIP_STD), output_hidden_states=True).hidden_states
        wanted = self.teacher(pixels)
        classes = (wanted[:, 0] - self.class_mean) / self.class_deviation
        patches = (wanted[:, 1:] - self.mean) @ self.whitening
        loss = torch.zeros(())
        for head, hidden in zip(self.heads, layers[-2:], strict=True):
            predicted = head(hidden)
            of_class = F.mse_loss(predicted[:, 0], classes)
            loss = loss + F.mse_loss(predicted[:, 1:], patches) + self.class_weight * of_class
        return loss


@torch.no_grad()
def _positions_start(model: CLIPVisionModel) -> None:
    """Give the patches of an untrained CLIP sines and cosines of their row and column as positions, in place.

    They are as large as the patches' own embeddings. CLIP's small random ones took long to be distinguished.
    """
    positions = getattr(model, "vision_model", model).embeddings.position_embedding.weight
    side, width = math.isqrt(len(positions) - 1), positions.shape[1]
    row, column = (c.flatten().float() for c in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    frequency = torch.logspace(math.log10(2.0), math.log10(0.2), width // 4)
    angles = [row[:, None] * frequency, column[:, None] * frequency]
    positions[1:] = 0.3 * torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1)


def read_mini_vit(path: Path) -> Encode:
    """The encoder in a file that `build_one` wrote, frozen."""
    model = MiniViT(MiniViTConfig())
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    model.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        features: Tensor = model(pixels)
        return features

    return encode


def pretrain_clip(teacher: Encode, setup: Distillation, report: Report) -> CLIPVisionModel:
    """Train ``mini-clip`` to predict the features of ``teacher``, mini-vit; no text, no label."""
    torch.manual_seed(setup.seed)
    pool = miniworld.pool("foundation")
    other = pixels_of([miniworld.render(pool.scene(10_000_000 + i)) for i in range(200)])
    student = CLIPVisionModel(mini_clip_config())
    _positions_start(student)
    model = Distilled(student, teacher, other, setup.class_weight)

    def loss(step: int) -> Tensor:
        indices = range(step * setup.batch_size, (step + 1) * setup.batch_size)
        found: Tensor = model(pixels_of([miniworld.render(pool.scene(i)) for i in indices]))
        return found

    descend("mini-clip", model, map(loss, range(setup.steps)), setup, report)
    return student
