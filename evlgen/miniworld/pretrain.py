"""Pre-training of the miniature's foundation models: its EVA-CLIP, CLIP, OPT, Vicuna and BERT.

``python sweeps/run.py foundation`` makes them from nothing; the results are shipped in
``evlgen/miniworld/weights/``.

``mini-vit`` learns from image-text pairs alone, as CLIP does: phrases of a description ("small striped
red boat at the top left") must find their image among those of the batch, and the image must tell a phrase
from others that differ in one word (as NegCLIP does). A phrase is held against every patch and scored by the
log-sum-exp over patches, so it is never told where a thing is or which patches show it. The class token is
trained with whole captions in the usual contrastive way. The text tower is dropped afterwards. ``mini-clip``,
whose plain patch embedding learns shapes far too slowly in this way (21% after 70,000 images), learns to tell
what ``mini-vit`` tells of each patch (feature distillation).

The language models learn from texts alone (:func:`evlgen.miniworld.document`), and start from an
induction circuit (:func:`induction_start`): a model of this size takes far longer than an hour to find one by
itself, and without it never learns which noun goes with which colour. BERT, from which the connectors start
as the paper's do, learns from the same kind of texts by masked words.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    CLIPVisionModel,
    LlamaForCausalLM,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from evlgen import miniworld
from evlgen.backbones.language import MASK_ID, mini_bert_config, mini_model, word_tokenizer
from evlgen.backbones.vision import (
    CLIP_MEAN,
    CLIP_STD,
    WEIGHTS,
    MiniViT,
    MiniViTConfig,
    clip_names,
    file_hash,
    load_mini_clip,
    mini_clip_config,
    normalised,
)
from evlgen.errors import UserError
from evlgen.miniworld import Scene, Thing
from evlgen.runtime.cpu import prepare_worker

Encode = Callable[[Tensor], Tensor]
Report = Callable[[str, int, int, float, float], None]  # phase, step, steps, loss, items a second


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


@dataclass(frozen=True)
class LanguagePretraining:
    steps: int = 5000
    batch_size: int = 32
    lr: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    head_weight: float = 0.3  # of a document's first part, which nothing foretells
    answer_weight: float = 5.0  # of short answers, a word among many
    seed: int = 0


@dataclass(frozen=True)
class MaskedPretraining:
    steps: int = 2500
    batch_size: int = 32
    lr: float = 2e-3
    warmup_steps: int = 300
    weight_decay: float = 0.05
    masked: float = 0.25  # share of the words
    max_words: int = 128
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


def _facts_of(thing: Thing) -> dict[str, str]:
    if thing.shape in miniworld.CONTAINERS:
        return {"shape": thing.shape, "colour": thing.colour, "place": thing.place}
    return {name: getattr(thing, name) for name in _ATTRIBUTES}


def _spell(facts: dict[str, str], rng: Any) -> str:
    words = [
        miniworld.SYNONYMS.get(facts[name], (facts[name],))
        for name in ("size", "texture", "colour", "shape")
        if name in facts
    ]
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
            name = rng.choice(["shape", "shape", *told])  # the hardest to see
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


def _word_ids(vocabulary: dict[str, int], texts: list[str]) -> Tensor:
    """(T, L) ids of texts without punctuation, padded with 0; a plain look-up, as this is done often."""
    rows = [[vocabulary[word] for word in text.split()[:32]] for text in texts]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return torch.from_numpy(ids)


def _pixels(images: list[npt.NDArray[np.uint8]]) -> Tensor:
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
            groups = _contrast_phrases(scene, rng, setup.negatives)
            phrases += groups
            owner += [place] * len(groups)
        pixels = _pixels(images)
        ids = _word_ids(vocabulary, list(itertools.chain.from_iterable(phrases)))
        found: Tensor = model(
            pixels,
            ids.view(len(phrases), 1 + setup.negatives, -1),
            torch.tensor(owner),
            _word_ids(vocabulary, captions),
        )
        return found

    _descend("mini-vit", model, map(loss, range(setup.steps)), setup, report)
    return model


class Distilled(nn.Module):
    """CLIP's image encoder and two heads that tell a teacher's features: from its second-to-last layer, which
    is what is used of it (as of CLIP ViT-L/14 in BLIP-2), and from its last, which a CLIP has as well.

    The teacher's features are whitened: a few directions hold most of their variance, and those that tell
    shapes are not among them.

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
        """Mean squared error between the teacher's features and what the heads tell, summed over the two."""
        layers = self.model(normalised(pixels, CLIP_MEAN, CLIP_STD), output_hidden_states=True).hidden_states
        wanted = self.teacher(pixels)
        classes = (wanted[:, 0] - self.class_mean) / self.class_deviation
        patches = (wanted[:, 1:] - self.mean) @ self.whitening
        loss = torch.zeros(())
        for head, hidden in zip(self.heads, layers[-2:], strict=True):
            told = head(hidden)
            of_class = F.mse_loss(told[:, 0], classes)
            loss = loss + F.mse_loss(told[:, 1:], patches) + self.class_weight * of_class
        return loss


@torch.no_grad()
def _positions_start(model: CLIPVisionModel) -> None:
    """Give the patches of an untrained CLIP sines and cosines of their row and column as positions, in place.

    They are as large as the patches' own embeddings. CLIP's small random ones took long to be told apart.
    """
    positions = getattr(model, "vision_model", model).embeddings.position_embedding.weight
    side, width = math.isqrt(len(positions) - 1), positions.shape[1]
    row, column = (c.flatten().float() for c in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    frequency = torch.logspace(math.log10(2.0), math.log10(0.2), width // 4)
    angles = [row[:, None] * frequency, column[:, None] * frequency]
    positions[1:] = 0.3 * torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1)


def _read_mini_vit(path: Path) -> Encode:
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
    """Train ``mini-clip`` to tell what ``teacher``, mini-vit, tells; no text, no label."""
    torch.manual_seed(setup.seed)
    pool = miniworld.pool("foundation")
    other = _pixels([miniworld.render(pool.scene(10_000_000 + i)) for i in range(200)])
    student = CLIPVisionModel(mini_clip_config())
    _positions_start(student)
    model = Distilled(student, teacher, other, setup.class_weight)

    def loss(step: int) -> Tensor:
        indices = range(step * setup.batch_size, (step + 1) * setup.batch_size)
        found: Tensor = model(_pixels([miniworld.render(pool.scene(i)) for i in indices]))
        return found

    _descend("mini-clip", model, map(loss, range(setup.steps)), setup, report)
    return student


# ------------------------------------------------------------------------------------------- language


def pretrain_language(
    name: str, tokenizer: PreTrainedTokenizerFast, setup: LanguagePretraining, report: Report
) -> nn.Module:
    """Train ``mini-opt`` or ``mini-llama`` on documents; every batch holds documents of like length."""
    torch.manual_seed(setup.seed)
    model = mini_model(name, len(tokenizer))
    induction_start(model)
    offset = 100_000_000 if name == "mini-llama" else 0  # the two have read different texts
    batches = _batches_by_length(lambda i: _weighted(tokenizer, *miniworld.document(i), setup), offset, setup)
    _descend(name, model, (document_loss(model, rows) for rows in batches), setup, report)
    return model


def pretrain_bert(
    tokenizer: PreTrainedTokenizerFast, setup: MaskedPretraining, report: Report
) -> BertForMaskedLM:
    """Train ``mini-bert`` to tell masked words of documents (Devlin et al., 2019), ``<unk>`` being the mask.

    Of the words that are asked for, 80% are masked, 10% are another word, 10% stay.
    """
    torch.manual_seed(setup.seed)
    generator = torch.Generator().manual_seed(setup.seed)
    model = BertForMaskedLM(mini_bert_config(len(tokenizer)))

    def read(index: int) -> tuple[list[int], None]:
        ids: list[int] = tokenizer("".join(miniworld.document(200_000_000 + index)))["input_ids"]
        return ids[: setup.max_words], None

    losses = (
        masked_loss(model, _padded([row for row, _ in rows]), setup.masked, generator)
        for rows in _batches_by_length(read, 0, setup)
    )
    _descend("mini-bert", model, losses, setup, report)
    return model


def masked_loss(model: BertForMaskedLM, ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Mean cross-entropy (nats) of the words asked for, ``share`` of all; (B, L) ids, 0 is padding."""
    masked, asked = mask_words(ids, share, model.config.vocab_size, generator)
    hidden = model.bert(input_ids=masked, attention_mask=(ids != 0).long()).last_hidden_state
    return F.cross_entropy(model.cls(hidden[asked]), ids[asked])


def mask_words(
    ids: Tensor, share: float, vocab_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(B, L) ids -> ids with some of them replaced, and a bool mask of those that are asked for."""
    draw = torch.rand(ids.shape, generator=generator)
    asked = (draw < share) & (ids > 2)  # no padding, no special tokens
    other = torch.randint(3, vocab_size, ids.shape, generator=generator)
    masked = torch.where(asked & (draw < 0.8 * share), MASK_ID, ids)
    return torch.where(asked & (draw >= 0.9 * share), other, masked), asked


def _batches_by_length(
    read: Callable[[int], tuple[list[int], Any]], offset: int, setup: LanguagePretraining | MaskedPretraining
) -> Iterator[list[tuple[list[int], Any]]]:
    """``setup.steps`` batches of documents; each holds documents of like length, so that little is padding.

    Args:
        read: number of a document -> its word ids, and whatever belongs to them.
        offset: number of the first document.
    """
    group = 16  # batches drawn together and sorted by length
    order = np.random.default_rng(setup.seed)
    for start in range(0, setup.steps, group):
        first = offset + start * setup.batch_size
        rows = sorted(map(read, range(first, first + group * setup.batch_size)), key=lambda row: len(row[0]))
        batches = [rows[i : i + setup.batch_size] for i in range(0, len(rows), setup.batch_size)]
        drawn = [batches[i] for i in order.permutation(len(batches))]
        yield from reversed(drawn[-(setup.steps - start) :])


@torch.no_grad()
def induction_start(model: Any) -> None:
    """Set the first head of the first two layers of an untrained LLM to an induction circuit, in place.

    Olsson et al., "In-context Learning and Induction Heads" (2022): the head of layer 0 looks at the word
    before and notes it; the head of layer 1 looks for the place whose note equals the present word, and
    foretells the word that stood there. "the red boat ... red" -> "boat". Large language models form this
    circuit early in training and read their context with it. Here it is given, everything else is random, and
    all of it is trained.

    With d the width of a head, the embedding is parted in three: dimensions [0, d) tell the position, [d, 2d)
    take the note, the others tell the word. The numbers below were chosen such that on random words both
    heads look mostly at the right place (``tests/evlgen/test_foundation.py``).

    Raises:
        TypeError: neither OPT nor LLaMA of transformers.
    """
    if not isinstance(model, OPTForCausalLM | LlamaForCausalLM):
        raise TypeError(f"no induction circuit is known for a {type(model).__name__}")
    opt = isinstance(model, OPTForCausalLM)
    body: Any = model.model.decoder if opt else model.model
    first, second = body.layers[0].self_attn, body.layers[1].self_attn
    first_out, second_out = (a.out_proj if opt else a.o_proj for a in (first, second))
    width, d = model.config.hidden_size, model.config.hidden_size // model.config.num_attention_heads
    note, word = slice(d, 2 * d), slice(2 * d, width)
    words = body.embed_tokens.weight
    words[:, note] = 0
    for head in (first, second):
        head.q_proj.weight[:d] = 0
        head.k_proj.weight[:d] = 0
        head.v_proj.weight[:d] = 0

    # Layer 0: the query of a place is the key of the place before it.
    if opt:
        words *= 3  # beside the positions
        words[:, :d] = 0
        positions = body.embed_positions.weight
        frequency = torch.logspace(math.log10(2.0), math.log10(0.1), d // 2)
        angle = torch.arange(len(positions))[:, None] * frequency
        positions *= 0.1
        positions[:, :d] = 0.09 * torch.stack([angle.cos(), angle.sin()], -1).flatten(1)
        positions[:, note] = 0
        first.k_proj.weight[:d, :d] = 2 * torch.eye(d)
        cos, sin = frequency.cos(), frequency.sin()
        for i in range(d // 2):  # turn each pair of the query back by one place
            pair = slice(2 * i, 2 * i + 2)
            turn = torch.tensor([[cos[i], sin[i]], [-sin[i], cos[i]]])
            first.q_proj.weight[pair, pair] = 2 * turn
        note_gain, match_gain, compared = 0.06, 2.2, torch.arange(d)
    else:
        words[:, 0] = 0.04  # the same in every word: rotary positions need something to turn
        frequency, half = body.rotary_emb.inv_freq, d // 2
        fast = 4 * (frequency > 0.08)
        first.k_proj.weight[:half, 0] = fast
        first.q_proj.weight[:half, 0] = fast * torch.cos(frequency)
        first.q_proj.weight[half:d, 0] = -fast * torch.sin(frequency)
        slow = torch.nonzero(frequency < 0.03).flatten()  # hardly turned over the length of a text
        note_gain, match_gain, compared = 0.02, 1.6, torch.cat([slow, slow + half])
    read = torch.linalg.qr(torch.randn(width - 2 * d, width - 2 * d))[0][:d]  # (d, words): what a note keeps
    first.v_proj.weight[:d, word] = read
    first_out.weight[:, :d] = 0
    first_out.weight[note, :d] = note_gain * torch.eye(d)

    # Layer 1: the query is the present word, the key is the note of the word before, the value is the word.
    second.q_proj.weight[compared, word] = match_gain * read[compared]
    second.k_proj.weight[compared, d + compared] = match_gain
    second.v_proj.weight[:d, word] = read
    second_out.weight[:, :d] = 0
    second_out.weight[word, :d] = 0.05 * read.T


def _weighted(
    tokenizer: PreTrainedTokenizerFast, head: str, rest: str, setup: LanguagePretraining
) -> tuple[list[int], list[float]]:
    """Word ids of a document, and the weight of each as a target (0 for the first)."""
    ids: list[int] = tokenizer(head)["input_ids"]
    weights = [0.0] + [setup.head_weight] * (len(ids) - 1)
    for line in rest.splitlines(keepends=True):
        question, mark, answer = line.partition("Short answer:")
        asked = tokenizer(question + mark, add_special_tokens=False)["input_ids"]
        told = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = ids + asked + told
        weights += [1.0] * len(asked) + [setup.answer_weight] * len(told)
    return ids, weights


def _padded(rows: list[Any]) -> Tensor:
    """Lists of numbers of any lengths -> (rows, longest), zeros behind the shorter ones."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def document_loss(model: nn.Module, rows: list[tuple[list[int], list[float]]]) -> Tensor:
    """Weighted mean cross-entropy of the next word (nats) over a batch of documents of any lengths."""
    ids, weights = _padded([row for row, _ in rows]), _padded([weight for _, weight in rows])
    # padding stands behind the text, which a causal model never looks at: no mask needed
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


# --------------------------------------------------------------------------------------------- shared


def _descend(
    name: str,
    model: nn.Module,
    losses: Iterable[Tensor],
    setup: VisionPretraining | Distillation | LanguagePretraining | MaskedPretraining,
    report: Report,
) -> None:
    """Train a model on losses, each computed when it is its turn; leaves it in eval mode."""
    optimizer = _optimizer(model, setup.lr, setup.weight_decay)
    model.train()
    started = time.perf_counter()
    for step, loss in enumerate(losses):
        _set_lr(optimizer, step, setup.steps, setup.warmup_steps, setup.lr)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == setup.steps - 1:
            rate = (step + 1) * setup.batch_size / (time.perf_counter() - started)
            report(name, step + 1, setup.steps, loss.item(), rate)
    model.eval()


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
    texts = ["".join(miniworld.document(i)) for i in range(8000)]
    texts += [
        *miniworld.IRRELEVANT,
        *miniworld.SHAPES,
        *map(miniworld.plural, miniworld.SHAPES),
        *miniworld.NUMBERS,
    ]
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
        ids = _padded(rows)
        logits = model(input_ids=ids, use_cache=False).logits
        for i, row in enumerate(rows):
            row.append(int(logits[i, len(row) - 1].argmax()))
    answers = []
    for row, start in zip(rows, starts, strict=True):
        words = list(itertools.takewhile(lambda token: token != newline, row[start:]))
        answers.append(str(tokenizer.decode(words)).strip())
    return answers


@torch.no_grad()
def language_card(model: nn.Module, tokenizer: PreTrainedTokenizerFast, count: int = 300) -> dict[str, float]:
    """What the language model knows, on documents it has not read.

    Returns perplexity of a caption without context, behind notes of the same scene and behind notes of
    another one; the percent of nouns right where a caption has just told a colour (binding: which thing of
    the notes has this colour?); and the percent of questions answered right from the notes, by kind, with
    the notes of another scene beside it (the level of guessing).
    """
    card: dict[str, float] = {}
    pool = miniworld.pool("probe")
    losses: dict[str, list[float]] = {"alone": [], "notes": [], "other notes": []}
    for index in range(count):
        rng = miniworld.random_stream("card", index)
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
    card["noun behind a colour, from notes"] = 100 * _noun_binding(model, tokenizer, count)
    for kind in miniworld.QUESTION_KINDS:
        right, guessed = 0, 0
        for first in range(0, count, 100):
            prompts, blind, answers = [], [], []
            for index in range(first, first + 100):
                rng = miniworld.random_stream("card", kind, index)
                scene, asked = miniworld.drawn_question(kind, 1_000_000 + index)
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


@torch.no_grad()
def masked_card(
    model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, count: int, setup: MaskedPretraining
) -> dict[str, float]:
    """Percent of masked words told right, and their perplexity, in ``count`` documents it has not read."""
    generator = torch.Generator().manual_seed(1)
    right, asked_for, loss = 0, 0, 0.0
    for first in range(0, count, 50):
        texts = ["".join(miniworld.document(300_000_000 + i)) for i in range(first, first + 50)]
        ids = _padded([row[: setup.max_words] for row in tokenizer(texts)["input_ids"]])
        masked, asked = mask_words(ids, setup.masked, model.config.vocab_size, generator)
        hidden = model.bert(input_ids=masked, attention_mask=(ids != 0).long()).last_hidden_state
        logits = model.cls(hidden[asked])
        loss += float(F.cross_entropy(logits, ids[asked], reduction="sum"))
        right += int((logits.argmax(-1) == ids[asked]).sum())
        asked_for += int(asked.sum())
    return {
        "masked words right": 100 * right / asked_for,
        "masked words, perplexity": math.exp(loss / asked_for),
    }


@torch.no_grad()
def _noun_binding(model: Any, tokenizer: PreTrainedTokenizerFast, count: int) -> float:
    """Share of colours in ``count`` captions, each behind its scene's notes, whose likeliest next word names
    a thing of that colour in the scene (only where the caption goes on with a noun)."""
    words = {i: miniworld.CANONICAL.get(word, word) for word, i in tokenizer.get_vocab().items()}
    nouns = {*miniworld.SHAPES, *miniworld.CONTAINERS}
    pool = miniworld.pool("probe")
    right = asked = 0
    for index in range(count):
        rng = miniworld.random_stream("binding", index)
        scene = pool.scene(index)
        head = miniworld.note(scene, rng) + "\n"
        start = len(tokenizer(head)["input_ids"])
        ids = tokenizer(head + miniworld.caption(scene, rng))["input_ids"]
        likeliest = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].argmax(-1)
        for place in range(start, len(ids) - 1):
            colour = words[ids[place]]
            if colour in miniworld.COLOURS and words[ids[place + 1]] in nouns:
                asked += 1
                guess = words[int(likeliest[place])]
                right += any(thing.shape == guess and thing.colour == colour for thing in scene.things)
    return right / asked


@torch.no_grad()
def thing_features(encode: Encode, first: int, last: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of every thing in the scenes ``first`` .. ``last`` of the pool ``probe``.

    Args:
        encode: (B, 3, H, W) pixels in 0..1 -> (B, 65, width) features.

    Returns:
        (T, width): the patch features averaged over the pixels that show the thing; and for each attribute
        the (T,) index of its value.
    """
    pool = miniworld.pool("probe")
    features, values = [], []
    for start in range(first, last, 100):
        scenes = [pool.scene(i) for i in range(start, min(last, start + 100))]
        pixels = _pixels([miniworld.render(s) for s in scenes])
        for scene, patches in zip(scenes, encode(pixels)[:, 1:], strict=True):
            for thing, mask in zip(scene.things, miniworld.object_masks(scene), strict=True):
                if thing.shape in miniworld.CONTAINERS:
                    continue
                # (64, 64) pixels -> share of each of the 8 x 8 patches
                cover = torch.from_numpy(mask.reshape(8, 8, 8, 8).mean((1, 3)).reshape(64).astype(np.float32))
                features.append(cover / cover.sum() @ patches)
                values.append(
                    [
                        ({"shape": miniworld.SHAPES} | _CHOICES)[n].index(getattr(thing, n))
                        for n in _ATTRIBUTES
                    ]
                )
    columns = torch.tensor(values).T
    return torch.stack(features), dict(zip(_ATTRIBUTES, columns, strict=True))


def linear_probe(train: Tensor, target: Tensor, test: Tensor, truth: Tensor) -> float:
    """Accuracy (percent) of multinomial logistic regression on standardised features."""
    mean, deviation = train.mean(0), train.std(0)
    one = [F.pad((x - mean) / deviation, (0, 1), value=1.0) for x in (train, test)]
    weights = torch.zeros(one[0].shape[1], int(target.max()) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(one[0] @ weights, target) + 1e-4 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return 100 * float(((one[1] @ weights).argmax(1) == truth).float().mean())


def vision_card(encode: Encode, train: int = 3000, test: int = 1000) -> dict[str, float]:
    """Linear probes (percent right) on images the encoder has not seen: what a thing's patches tell of it."""
    features, values = thing_features(encode, 0, train)
    unseen, truth = thing_features(encode, train, train + test)
    return {f"probe {n}": linear_probe(features, values[n], unseen, truth[n]) for n in _ATTRIBUTES}


@torch.no_grad()
def retrieval_card(model: Contrast, tokenizer: PreTrainedTokenizerFast, count: int = 200) -> dict[str, float]:
    """Percent of captions, and of phrases, whose own image ranks first among ``count`` unseen ones."""
    pool, vocabulary = miniworld.pool("probe"), tokenizer.get_vocab()
    scenes = [pool.scene(10_000 + i) for i in range(count)]
    pixels = _pixels([miniworld.render(s) for s in scenes])
    features = model.eval().vision(pixels)
    rngs = [miniworld.random_stream("retrieval", i) for i in range(count)]
    captions = _word_ids(vocabulary, [miniworld.caption(s, r) for s, r in zip(scenes, rngs, strict=True)])
    phrases = _word_ids(
        vocabulary, [_spell(_facts_of(s.things[0]), r) for s, r in zip(scenes, rngs, strict=True)]
    )
    classes = F.normalize(model.class_out(features[:, 0]), dim=-1)
    patches = F.normalize(model.patch_out(features[:, 1:]), dim=-1)
    whole = model.text(captions) @ classes.T
    scale = model.log_scale[0].exp()
    single = torch.einsum("pc,bnc->pbn", model.text(phrases) * scale, patches).logsumexp(-1)
    target = torch.arange(count)
    return {
        f"retrieval@1 of {count}, caption": 100 * float((whole.argmax(1) == target).float().mean()),
        f"retrieval@1 of {count}, phrase of one thing": 100
        * float((single.argmax(1) == target).float().mean()),
    }


# ---------------------------------------------------------------------------------------------- build


@dataclass(frozen=True)
class Budget:
    """How much the foundation models are trained, and on how much the card's figures rest."""

    vision: VisionPretraining
    clip: Distillation
    language: LanguagePretraining
    masked: MaskedPretraining
    card: int


BUDGETS = {
    "mini": Budget(VisionPretraining(), Distillation(), LanguagePretraining(), MaskedPretraining(), 1000),
    "smoke": Budget(
        VisionPretraining(steps=4, batch_size=8, warmup_steps=2),
        Distillation(steps=4, batch_size=8, warmup_steps=2),
        LanguagePretraining(steps=4, batch_size=8, warmup_steps=2),
        MaskedPretraining(steps=4, batch_size=8, warmup_steps=2),
        100,
    ),
}
NAMES = ("mini-vit", "mini-opt", "mini-llama", "mini-bert", "mini-clip")  # the longest first
TEACHERS = {"mini-clip": "mini-vit"}  # a model that learns from another's weights waits for them


def build_one(name: str, scale: str, out: Path, report: Report) -> dict[str, Any]:
    """Train one foundation model, write ``out/<name>.safetensors`` (fp16) and return its card.

    ``mini-clip`` reads its teacher, ``mini-vit``, from ``out``.
    """
    prepare_worker()
    budget = BUDGETS[scale]
    tokenizer = make_tokenizer()
    started = time.perf_counter()
    setup: Any
    model: nn.Module
    if name == "mini-vit":
        setup = budget.vision
        contrast = pretrain_vision(tokenizer, setup, report)
        model = contrast.vision
    elif name == "mini-clip":
        setup = budget.clip
        model = pretrain_clip(_read_mini_vit(out / "mini-vit.safetensors"), setup, report)
    elif name == "mini-bert":
        model, setup = pretrain_bert(tokenizer, budget.masked, report), budget.masked
    else:
        model = pretrain_language(name, tokenizer, budget.language, report)
        setup = budget.language
    seconds = time.perf_counter() - started
    path = out / f"{name}.safetensors"
    state = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    for tied in ("lm_head.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        state.pop(tied, None)  # to the word embeddings, or to another bias
    names = clip_names(model) if name == "mini-clip" else {key: key for key in state}
    save_file({names[key]: value for key, value in state.items()}, path)
    model.load_state_dict(
        {key: value.float() for key, value in state.items()}, strict=False
    )  # judge what is shipped
    with torch.random.fork_rng():
        if name == "mini-vit":
            figures = vision_card(model, 3 * budget.card, budget.card) | retrieval_card(contrast, tokenizer)
        elif name == "mini-clip":
            figures = vision_card(load_mini_clip(path).of_pixels, 3 * budget.card, budget.card)
        elif isinstance(model, BertForMaskedLM):
            figures = masked_card(model, tokenizer, budget.card, budget.masked)
        else:
            figures = language_card(model, tokenizer, max(100, budget.card // 100 * 50))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "setup": dataclasses.asdict(setup),
        "minutes": round(seconds / 60, 1),
        "world": miniworld.version(),
        "sha256": file_hash(path),
        "figures": {key: round(value, 2) for key, value in figures.items()},
    }


def _build_task(name: str, scale: str, out: str, queue: Any) -> dict[str, Any]:
    return build_one(name, scale, Path(out), lambda *line: queue.put(line))


def build(scale: str, out: Path, workers: int = 2, report: Report | None = None) -> dict[str, bool | None]:
    """Make all foundation models from nothing in ``out``: weights, tokenizer, ``card.json``, ``CARD.md``.

    Each model is trained by a process of its own with one thread, so that the bits do not depend on
    ``workers``.

    Returns:
        For each model whether its weights equal the shipped ones bit for bit (None: none are shipped).

    Raises:
        UserError: no budget is defined for ``scale``.
    """
    if scale not in BUDGETS:
        raise UserError(f"foundation: no scale {scale!r}; there are: {', '.join(BUDGETS)}")
    out.mkdir(parents=True, exist_ok=True)
    make_tokenizer().backend_tokenizer.save(str(out / "mini-tokenizer.json"))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(workers, mp_context=context) as pool:
        queue = manager.Queue()
        tasks: dict[str, Future[dict[str, Any]]] = {}
        while len(tasks) < len(NAMES) or not all(task.done() for task in tasks.values()) or not queue.empty():
            for name in NAMES:
                teacher = tasks.get(TEACHERS.get(name, ""))
                ready = name not in TEACHERS or (teacher is not None and teacher.done())
                if name not in tasks and ready:
                    if teacher is not None:
                        teacher.result()  # raises what went wrong there
                    tasks[name] = pool.submit(_build_task, name, scale, str(out), queue)
            try:
                line = queue.get(timeout=0.2)
            except Empty:
                continue
            if report is not None:
                report(*line)
        cards = {name: tasks[name].result() for name in NAMES}
    (out / "card.json").write_text(json.dumps(cards, indent=2) + "\n")
    (out / "CARD.md").write_text(card_page(cards))
    shipped = {name: WEIGHTS / f"{name}.safetensors" for name in NAMES}
    return {
        name: file_hash(path) == cards[name]["sha256"] if path.exists() else None
        for name, path in shipped.items()
    }


def card_page(cards: dict[str, Any]) -> str:
    """The model card as Markdown."""
    lines = [
        "# The miniature's foundation models",
        "",
        "Trained from nothing by `python sweeps/run.py foundation` on data that no experiment uses (the",
        "pool `foundation` and the documents of `evlgen/miniworld/pools.py`), then frozen. Stored in fp16.",
        "Figures are measured on the stored weights, with unseen scenes and texts.",
        "",
    ]
    what = {
        "mini-vit": "image encoder, patch 8, 65 tokens of width 96, contrastive image-text training",
        "mini-clip": "image encoder, CLIP architecture, patch 8, 65 tokens of width 64, has learnt to tell "
        "mini-vit's features; its own, and the probes, are of the second-to-last of 5 layers",
        "mini-opt": "causal language model, OPT architecture, texts only",
        "mini-llama": "causal language model, LLaMA architecture, other texts of the same kind",
        "mini-bert": "BERT, masked words of texts; the connectors start from it",
    }
    for name, card in cards.items():
        setup = card["setup"]
        lines += [
            f"## {name}",
            "",
            f"{what[name][0].upper()}{what[name][1:]}. {card['parameters']:,} parameters;",
            f"{setup['steps']:,} steps of {setup['batch_size']}, peak learning rate {setup['lr']:g},",
            f"{card['minutes']} minutes on one core.",
            f"World `{card['world']}`, weights sha256 `{card['sha256']}`.",
            "",
            "| measure | value |",
            "|---|---|",
            *(f"| {key} | {value:.2f} |" for key, value in card["figures"].items()),
            "",
        ]
    return "\n".join(lines)
