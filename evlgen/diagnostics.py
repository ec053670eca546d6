"""Is the image used? Measurements of collapse, logged during training; `evlgen.collapse` judges by them.

A captioner has collapsed if the language model writes the same whatever the image. This is measured, not
declared:

- ``val_loss``, ``shuffled_loss``: loss on held-out captions (nats a token) with the right image, and with
  another image of the set. ``gap`` is the second less the first, what the image is worth.
- ``blind_loss``: the same loss with one soft prompt for all images, the mean of theirs: what the captions
  cost without any image. A right prompt must do better than this; a wrong one often does worse.
- ``cosine``: mean cosine between the soft prompts of two images, each flattened to one vector; 1 if all are
  alike.
- ``effective_rank``: of the matrix of soft prompts, one row an image: exp of the entropy of its normalised
  singular values (Roy & Vetterli, 2007); 1 if all are multiples of one, at most the number of images.
- ``attention_entropy``: entropy of the language model's attention over the soft tokens, as a share of the
  largest possible (log N_out), averaged over text positions, heads and layers; 1 if it looks at all alike.
  ``attention_mass`` is the share of its attention that goes to the soft tokens at all.

The attention is the language model's and not the connector's, since it means the same for every connector.
Cosine and rank do not decide anything (prompts may differ in ways that nobody reads, and good ones may be
very alike); the gap does.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evlgen.data.pairs import PairPool, plain_batch
from evlgen.data.sampling import SHUFFLE, hashed
from evlgen.model import CaptionModel, Model, evaluating
from evlgen.stage1 import Stage1Model

# ------------------------------------------------------------------------------------------- measures


def derangement(count: int, seed: int = 0) -> Tensor:
    """Permutation of range(count) that leaves nothing in its place: one cycle through all, in random order.

    Raises:
        ValueError: ``count`` is 1, for which there is none.
    """
    if count < 2:
        raise ValueError("one image cannot be shuffled")
    order = np.argsort(hashed(SHUFFLE, seed, np.arange(count, dtype=np.uint64)), kind="stable")
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    return torch.from_numpy(partner)


def pairwise_cosine(prompts: Tensor) -> float:
    """Mean cosine over all pairs of different images; (M, N, D) soft prompts."""
    unit = torch.nn.functional.normalize(prompts.flatten(1).double(), dim=1)  # (M, N * D)
    count = len(unit)
    # the sum over all ordered pairs is the square of the sum; take the M of each with itself away
    together = float(unit.sum(0).square().sum())
    return (together - float(unit.square().sum())) / (count * (count - 1))


def effective_rank(prompts: Tensor) -> float:
    """exp of the entropy of the normalised singular values of (M, N, D) soft prompts, one row an image."""
    matrix = prompts.flatten(1).double()
    values = torch.linalg.svdvals(matrix)
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(share).sum().exp())


@dataclass(frozen=True)
class Attention:
    """How the language model attends to the soft prompt.

    Attributes:
        entropy: over the soft tokens, as a share of log(N_out).
        mass: share of all attention.
    """

    entropy: float
    mass: float


def attention_to_prompt(
    model: CaptionModel, prompt: Tensor, text_ids: Tensor, text_mask: Tensor
) -> Attention:
    """Attention from the text positions to the soft tokens, averaged over layers and heads.

    For an encoder-decoder it is the decoder's cross-attention to the encoder's output.

    Args:
        prompt: (B, N_out, D_llm); N_out at least 2.
        text_ids, text_mask: as in `CaptionModel.forward`.
    """
    llm, tokens = model.language.model, prompt.shape[1]
    first = 1 if model.language.bos_position == "first" else 0
    before = llm.config._attn_implementation
    llm.set_attn_implementation("eager")  # the others do not return attention probabilities
    try:
        output = model.language_output(prompt, text_ids, output_attentions=True)
    finally:
        llm.set_attn_implementation(before)
    entropy, mass = [], []
    layers = output.cross_attentions if model.language.is_encoder_decoder else output.attentions
    for probabilities in layers:  # (B, heads, P + T - 1, P + T - 1), cross-attention: (B, heads, T, P)
        writing = probabilities[:, :, -text_ids.shape[1] :, first : first + tokens].double()
        total = writing.sum(-1)  # (B, heads, T), from (B, heads, T, N_out)
        share = writing / total[..., None].clamp(min=1e-12)
        chosen = text_mask[:, None].expand_as(total)
        entropy.append(torch.special.entr(share).sum(-1)[chosen].mean())
        mass.append(total[chosen].mean())
    scale = float(np.log(tokens))
    return Attention(float(torch.stack(entropy).mean()) / scale, float(torch.stack(mass).mean()))


# ----------------------------------------------------------------------------------------- validation


def validate(model: Model, pool: PairPool, batch_size: int = 32, seed: int = 0) -> dict[str, float]:
    """All measurements of a model on held-out pairs; the names are the keys of ``metrics.jsonl``.

    The stage ``caption`` has those in the docstring of this module. The stage ``represent`` has ``val_loss``
    (the sum), ``val_itc``, ``val_itm``, ``val_lm`` and ``retrieval@1`` (percent, mean of image-to-text and
    text-to-image, among all pairs of the set). A loss that is not trained is not measured, and without ITC
    there is no retrieval. The same model and pool give the same numbers: global random generators are not
    used.
    """
    with evaluating(model):
        if isinstance(model, CaptionModel):
            return _validate_captions(model, pool, batch_size, seed)
        return _validate_represent(model, pool, batch_size, seed)


_ATTENTION_EXAMPLES = 64


def _validate_captions(model: CaptionModel, pool: PairPool, batch_size: int, seed: int) -> dict[str, float]:
    device = model.norm.weight.device
    by_length = np.argsort(pool.lengths[:, 0], kind="stable")  # so that little of a batch is padding
    indices = [by_length[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    batches = [plain_batch(pool, index).to(device) for index in indices]
    found = torch.cat([model.soft_prompt(model.encode(batch.images)).float() for batch in batches])
    prompts = found[torch.from_numpy(np.argsort(by_length)).to(device)]  # (M, N_out, D_llm), as in the pool
    other = prompts[derangement(len(prompts), seed).to(device)]
    mean = prompts.mean(0, keepdim=True)
    sums, tokens = np.zeros(3), 0
    for index, batch in zip(indices, batches, strict=True):
        blind = mean.expand(len(index), -1, -1)
        losses = [
            model.token_losses(prompt, batch.text_ids, batch.text_mask, batch.text_places)
            for prompt in (prompts[index], other[index], blind)
        ]
        sums += [float(one.double().sum()) for one in losses]
        tokens += len(losses[0])
    right, shuffled, blind_loss = (sums / tokens).tolist()
    few = np.arange(min(_ATTENTION_EXAMPLES, len(pool)))
    batch = plain_batch(pool, few).to(device)
    attention = attention_to_prompt(model, prompts[few], batch.text_ids, batch.text_mask)
    return {
        "val_loss": right,
        "shuffled_loss": shuffled,
        "gap": shuffled - right,
        "blind_loss": blind_loss,
        "cosine": pairwise_cosine(prompts),
        "effective_rank": effective_rank(prompts),
        "attention_entropy": attention.entropy,
        "attention_mass": attention.mass,
    }


def _validate_represent(model: Stage1Model, pool: PairPool, batch_size: int, seed: int) -> dict[str, float]:
    device = model.norm.weight.device
    generator = torch.Generator(device).manual_seed(seed)  # of the hard negatives
    names = model.objectives
    sums, count = np.zeros(len(names)), 0
    images, texts = [], []
    for start in range(0, len(pool), batch_size):
        batch = plain_batch(pool, np.arange(start, min(start + batch_size, len(pool)))).to(device)
        if "itc" in names:
            images.append(model.embed_images(batch.images))
            texts.append(model.embed_texts(batch.text_ids, batch.text_mask))
        size = len(batch.text_ids)
        if size > 1:  # negatives come from the batch
            losses = model.losses(batch.images, batch.text_ids, batch.text_mask, generator)
            sums += size * np.array([float(getattr(losses, name)) for name in names])
            count += size
    means: list[float] = (sums / max(count, 1)).tolist()
    total = functools.reduce(operator.add, means)  # Python's sum() of floats depends on its version
    found = {"val_loss": total} | {f"val_{name}": m for name, m in zip(names, means, strict=True)}
    if "itc" in names:
        similarity = model.similarity(torch.cat(images), torch.cat(texts))  # (M, M)
        truth = torch.arange(len(similarity), device=device)
        hits = [float((similarity.argmax(axis) == truth).double().mean()) for axis in (0, 1)]
        found["retrieval@1"] = 100 * sum(hits) / 2
    return found
