"""Pre-training of the miniature's foundation models: its EVA-CLIP, its OPT and its Vicuna.

``python sweeps/run.py foundation`` makes them from nothing; the results are shipped in ``evlgen/weights/``.

The image encoder learns from image-text pairs alone, as CLIP does: phrases of a description ("small striped
red boat at the top left") must find their image among those of the batch, and the image must tell a phrase
from others that differ in one word (as NegCLIP does). A phrase is held against every patch and scored by the
log-sum-exp over patches, so it is never told where a thing is or which patches show it. The class token is
trained with whole captions in the usual contrastive way. The text tower is dropped afterwards.

The language models learn from texts alone (:func:`evlgen.data.miniworld.document`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from evlgen.data import miniworld
from evlgen.data.miniworld import Scene, Thing
from evlgen.language import mini_model, word_tokenizer
from evlgen.vision import MiniViT, MiniViTConfig

Report = Callable[[str, int, int, float, float], None]  # phase, step, steps, loss, items a second


@dataclass(frozen=True)
class VisionPretraining:
    steps: int = 2400
    batch_size: int = 96
    lr: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    negatives: int = 4  # altered phrases for each true one
    text_width: int = 64
    seed: int = 0


@dataclass(frozen=True)
class LanguagePretraining:
    steps: int = 3000
    batch_size: int = 64
    lr: float = 3e-3
    warmup_steps: int = 150
    weight_decay: float = 0.05
    seed: int = 0


# --------------------------------------------------------------------------------------------- vision

_ATTRIBUTES = ("shape", "colour", "size", "texture", "place")
_CHOICES: dict[str, tuple[str, ...]] = {
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
        self.text = TextTower(vocab_size, width)
        self.patch_out = nn.Sequential(nn.LayerNorm(vision.config.width), nn.Linear(vision.config.width, width))
        self.class_out = nn.Sequential(nn.LayerNorm(vision.config.width), nn.Linear(vision.config.width, width))
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


def _facts_of(thing: Thing) -> dict[str, str]:
    if thing.shape in miniworld.CONTAINERS:
        return {"shape": thing.shape, "colour": thing.colour, "place": thing.place}
    return {name: getattr(thing, name) for name in _ATTRIBUTES}


def _spell(facts: dict[str, str], rng: Any) -> str:
    words = [miniworld.SYNONYMS.get(facts[name], (facts[name],)) for name in ("size", "texture", "colour", "shape") if name in facts]
    if "place" in facts:
        words.append(miniworld.PLACE_PHRASES[facts["place"]])
    return " ".join(rng.choice(options) for options in words)


def _contrast_phrases(scene: Scene, rng: Any, negatives: int) -> list[list[str]]:
    """For each thing, and for the background, a true phrase and ``negatives`` ones that are false here."""
    everything = [_facts_of(thing) for thing in scene.things]
    groups = []
    for facts in everything:
        told = {n: v for n, v in facts.items() if n == "shape" or rng.random() < 0.8}
        group = [_spell(told, rng)]
        while len(group) <= negatives:
            name = rng.choice(["shape", *told])
            options = _CHOICES.get(name)
            if options is None:
                options = miniworld.CONTAINERS if told["shape"] in miniworld.CONTAINERS else miniworld.SHAPES
            altered = {**told, name: rng.choice(options)}
            if not any(altered.items() <= other.items() for other in everything):
                group.append(_spell(altered, rng))
        groups.append(group)
    grounds = [b for b in miniworld.BACKGROUNDS if b != scene.background]
    wrong = [rng.choice(grounds) for _ in range(negatives)]
    groups.append([rng.choice(miniworld.BACKGROUND_PHRASES[b]) for b in [scene.background, *wrong]])
    return groups


def _word_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    ids: Tensor = encoded["input_ids"]
    return ids[:, :32]


def pretrain_vision(
    tokenizer: PreTrainedTokenizerFast, setup: VisionPretraining, report: Report
) -> MiniViT:
    """Train the image encoder; the same setup gives the same bits on one machine type with one thread."""
    torch.manual_seed(setup.seed)
    model = Contrast(MiniViT(MiniViTConfig()), len(tokenizer), setup.text_width)
    optimizer = _optimizer(model, setup.lr, setup.weight_decay)
    pool = miniworld.pool("foundation")
    started = time.perf_counter()
    model.train()
    for step in range(setup.steps):
        _set_lr(optimizer, step, setup.steps, setup.warmup_steps, setup.lr)
        indices = range(step * setup.batch_size, (step + 1) * setup.batch_size)
        images, phrases, owner, captions = [], [], [], []
        for place, index in enumerate(indices):
            scene = pool.scene(index)
            rng = miniworld._rng("contrast", setup.seed, index)
            images.append(miniworld.render(scene))
            captions.append(miniworld.caption(scene, rng))
            groups = _contrast_phrases(scene, rng, setup.negatives)
            phrases += groups
            owner += [place] * len(groups)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        ids = _word_ids(tokenizer, list(itertools.chain.from_iterable(phrases)))
        loss = model(
            pixels, ids.view(len(phrases), 1 + setup.negatives, -1), torch.tensor(owner), _word_ids(tokenizer, captions)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == setup.steps - 1:
            rate = (step + 1) * setup.batch_size / (time.perf_counter() - started)
            report("mini-vit", step + 1, setup.steps, loss.item(), rate)
    return model.vision.eval()


# ------------------------------------------------------------------------------------------- language


def pretrain_language(
    name: str, tokenizer: PreTrainedTokenizerFast, setup: LanguagePretraining, report: Report
) -> nn.Module:
    """Train ``mini-opt`` or ``mini-llama`` on documents; every batch holds documents of like length."""
    torch.manual_seed(setup.seed)
    model = mini_model(name, len(tokenizer))
    optimizer = _optimizer(model, setup.lr, setup.weight_decay)
    model.train()
    started = time.perf_counter()
    group = 16  # batches drawn together and sorted by length, so that little is padding
    order = np.random.default_rng(setup.seed)
    offset = 100_000_000 if name == "mini-llama" else 0  # the two have read different texts
    batches: list[list[list[int]]] = []
    for step in range(setup.steps):
        if not batches:
            first = offset + step * setup.batch_size
            documents = [miniworld.document(i) for i in range(first, first + group * setup.batch_size)]
            rows = sorted(tokenizer(documents)["input_ids"], key=len)
            batches = [rows[i : i + setup.batch_size] for i in range(0, len(rows), setup.batch_size)]
            batches = [batches[i] for i in order.permutation(len(batches))]
        rows = batches.pop()
        _set_lr(optimizer, step, setup.steps, setup.warmup_steps, setup.lr)
        loss = document_loss(model, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == setup.steps - 1:
            rate = (step + 1) * setup.batch_size / (time.perf_counter() - started)
            report(name, step + 1, setup.steps, loss.item(), rate)
    return model.eval()


def document_loss(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """Mean cross-entropy of the next word (nats) over a batch of documents of any lengths."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    # padding stands behind the text, which a causal model never looks at: no mask needed
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)


# --------------------------------------------------------------------------------------------- shared


def _optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def _set_lr(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup: int, peak: float) -> None:
    """Linear warm-up, then cosine to a hundredth of the peak."""
    if step < warmup:
        lr = peak * (step + 1) / warmup
    else:
        done = (step - warmup) / max(1, steps - warmup)
        lr = peak * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
    for group in optimizer.param_groups:
        group["lr"] = lr


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer over every word that the miniworld can say."""
    texts = [miniworld.document(i) for i in range(8000)]
    texts += [*miniworld.IRRELEVANT, *miniworld.SHAPES, *map(miniworld.plural, miniworld.SHAPES), *miniworld.NUMBERS]
    texts += [" ".join(ways) for ways in miniworld.SYNONYMS.values()] + [str(n) for n in range(10)]
    return word_tokenizer(texts)


# ----------------------------------------------------------------------------------------- model card


@torch.no_grad()
def answer_text(model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    """Greedy short answers (at most 4 words) to prompts that end in "Short answer:"."""
    newline = tokenizer.convert_tokens_to_ids("\n")
    rows = [list(row) for row in tokenizer(prompts)["input_ids"]]
    starts = [len(row) for row in rows]
    for _ in range(4):
        length = max(map(len, rows))
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        logits = model(input_ids=ids, use_cache=False).logits
        for i, row in enumerate(rows):
            row.append(int(logits[i, len(row) - 1].argmax()))
    answers = []
    for row, start in zip(rows, starts, strict=True):
        words = list(itertools.takewhile(lambda token: token != newline, row[start:]))
        answers.append(tokenizer.decode(words).strip())
    return answers


@torch.no_grad()
def language_card(model: nn.Module, tokenizer: PreTrainedTokenizerFast, count: int = 300) -> dict[str, float]:
    """What the language model knows, on documents it has not read.

    Returns perplexity of a caption without context, behind notes of the same scene and behind notes of
    another one, and the share of questions answered right from the notes, by kind, with the notes of
    another scene beside it (the level of guessing).
    """
    card: dict[str, float] = {}
    pool = miniworld.pool("probe")
    losses: dict[str, list[float]] = {"alone": [], "notes": [], "other notes": []}
    for index in range(count):
        rng = miniworld._rng("card", index)
        scene = pool.scene(index)
        text = miniworld.caption(scene, rng)
        heads = {
            "alone": "",
            "notes": miniworld.note(scene, rng) + "\n",
            "other notes": miniworld.note(pool.scene(index + count), rng) + "\n",
        }
        for name, head in heads.items():
            row = tokenizer(head + text + "\n")["input_ids"]
            start = len(tokenizer(head)["input_ids"])
            logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
            losses[name].append(F.cross_entropy(logits[start - 1 : -1], torch.tensor(row[start:])).item())
    for name, values in losses.items():
        card[f"caption perplexity, {name}"] = math.exp(float(np.mean(values)))
    for kind in miniworld.QUESTION_KINDS:
        right, guessed = 0, 0
        for first in range(0, count, 100):
            prompts, blind, answers = [], [], []
            for index in range(first, first + 100):
                rng = miniworld._rng("card", kind, index)
                scene, asked = miniworld._asked(kind, 1_000_000 + index)
                question = miniworld.PROMPT.format(asked.text)
                other = miniworld.pool(kind).scene(2_000_000 + index)
                prompts.append(miniworld.note(scene, rng) + "\n" + question)
                blind.append(miniworld.note(other, rng) + "\n" + question)
                answers.append((asked.answer, *asked.synonyms))
            right += sum(a in b for a, b in zip(answer_text(model, tokenizer, prompts), answers, strict=True))
            guessed += sum(a in b for a, b in zip(answer_text(model, tokenizer, blind), answers, strict=True))
        card[f"{kind} from notes"] = 100 * right / count
        card[f"{kind} from another scene's notes"] = 100 * guessed / count
    return card
