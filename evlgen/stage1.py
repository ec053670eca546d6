"""Stage 1 of BLIP-2: its three losses, and the model that they train.

Which tokens may attend to which is what distinguishes the losses (Li et al., "BLIP-2", 2023, figure 2):

- image-text contrastive (ITC): queries and text do not see each other (`QFormer.encode_images`,
  `QFormer.encode_texts`);
- image-text matching (ITM): everything sees everything (`QFormer.encode_pairs`);
- image-grounded text generation (LM): queries see only themselves, text sees the queries and the text before
  it (`QFormer.decode_texts`).
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evlgen import limits
from evlgen.backbones.vision import ImageEncoder
from evlgen.config import Objective
from evlgen.errors import UserError
from evlgen.qformer import KeyValue, QFormer
from evlgen.runtime.distributed import ALONE, Ranks

OBJECTIVES: tuple[Objective, ...] = typing.get_args(Objective)  # in the order of their passes


@dataclass(frozen=True, eq=False)
class Stage1Losses:
    """The losses of stage 1: scalars in nats, None if not computed. BLIP-2 minimises their plain sum."""

    itc: Tensor | None
    itm: Tensor | None
    lm: Tensor | None

    @property
    def total(self) -> Tensor:
        """Sum of the computed ones."""
        return add_present((self.itc, self.itm, self.lm))


def add_present(losses: Iterable[Tensor | None]) -> Tensor:
    """Sum of the losses that are not None; at least one must not be."""
    first, *others = (loss for loss in losses if loss is not None)
    return sum(others, first)


def check_objectives(objectives: Sequence[Objective]) -> None:
    """Refuse losses of stage 1 that cannot be summed.

    Raises:
        UserError: the list is empty, or a loss is unknown or repeated.
    """
    limits.objectives(objectives)
    for name in objectives:
        if name not in OBJECTIVES:
            raise UserError(f"objectives: {name!r} is not one of {', '.join(OBJECTIVES)}")


def stage1_losses(
    qformer: QFormer,
    features: Tensor,
    text_ids: Tensor,
    text_mask: Tensor,
    decode_id: int,
    label_smoothing: float = 0.1,
    generator: torch.Generator | None = None,
    ranks: Ranks = ALONE,
    objectives: Sequence[Objective] = OBJECTIVES,
) -> Stage1Losses:
    """The losses of BLIP-2's first stage on one batch.

    Negatives come from this batch. As in BLIP-2, another image's caption is a negative even where it fits.

    With several ranks the negatives come from the batches of all ranks, as in BLIP-2's code, and each loss is
    the mean over this rank's rows. BLIP-2's code cuts the gradient of the other ranks' embeddings in ITC.
    Here gradients flow back to all ranks: their sum over ranks is the gradient of the joint batch.

    A loss that is not in ``objectives`` is not computed, and neither are the passes that only it needs.
    Without ITC nothing trains the similarities from which ITM draws its hard negatives: they are then drawn
    uniformly.

    Args:
        features: (B, N, D_in).
        text_ids: (B, T) int64, right-padded to the longest, T at most 32 in BLIP-2. The first token is [CLS],
            whose output represents the text; the last one ends it.
        text_mask: (B, T) bool, False at padding.
        decode_id: replaces the first token in the LM pass ([DEC]).
        label_smoothing: of ITC (PAPER) and of the LM (BLIP-2's code).
        generator: samples the hard negatives; None: torch's global one. With several ranks it must have the
            same state on all of them: each samples for the joint batch and keeps its own rows.
        ranks: the processes that compute the losses of a joint batch, B rows each.
        objectives: the losses to compute.

    Raises:
        UserError: the Q-Former has no text branch; a batch of one pair, which has no negatives; or wrong
            objectives (`check_objectives`).
    """
    if not qformer.config.vocab_size:
        raise UserError("stage 1 needs a Q-Former with a text branch: set vocab_size")
    check_objectives(objectives)
    batch = len(features)
    if batch * ranks.size < 2 and tuple(objectives) != ("lm",):
        raise UserError(
            "batch_size = 1: stage 1 takes its negatives from the batch (or, with optim.accumulate, from a "
            "part of it), which needs at least 2 pairs"
        )

    image = qformer.project_image(features)
    itc = itm = lm = None
    if "itc" in objectives or "lm" in objectives:
        queries, cache = qformer.encode_images(image, batch)  # (B, Q, D)
    pairs = batch * ranks.size
    similarity = torch.zeros(pairs, pairs, device=text_ids.device)  # uniform negatives without ITC
    if "itc" in objectives:
        itc, to_text = contrastive_loss(qformer, queries, text_ids, text_mask, label_smoothing, ranks)
        if "itm" in objectives:
            similarity = ranks.gather(to_text.detach())  # (C, C)
    if "itm" in objectives:
        itm = matching_loss(qformer, features, image, text_ids, text_mask, similarity, generator, ranks)
    if "lm" in objectives:
        lm = generation_loss(qformer, cache, text_ids, text_mask, decode_id, label_smoothing)
    return Stage1Losses(itc, itm, lm)


def contrastive_loss(
    qformer: QFormer,
    queries: Tensor,
    text_ids: Tensor,
    text_mask: Tensor,
    label_smoothing: float,
    ranks: Ranks,
) -> tuple[Tensor, Tensor]:
    """Image-text contrastive loss (ITC).

    Args:
        queries: (B, Q, D), from `QFormer.encode_images`.

    Returns:
        the loss, and the (B, C) similarities of this rank's images to the texts of all ranks, divided by the
        temperature.
    """
    texts = qformer.encode_texts(text_ids, text_mask)  # (B, D)
    image_embedding = F.normalize(qformer.image_projection(queries), dim=-1)  # (B, Q, E)
    text_embedding = F.normalize(qformer.text_projection(texts), dim=-1)  # (B, E)
    temperature = qformer.log_temperature.exp()
    to_text = image_text_similarity(image_embedding, ranks.gather(text_embedding)) / temperature  # (B, C)
    if ranks.size == 1:
        to_image = to_text.T
    else:  # this rank's texts to the images of all ranks, C = size * B
        to_image = image_text_similarity(ranks.gather(image_embedding), text_embedding).T / temperature
    target = _own_pairs(len(queries), ranks, to_text.device)
    itc = 0.5 * (
        F.cross_entropy(to_text, target, label_smoothing=label_smoothing)
        + F.cross_entropy(to_image, target, label_smoothing=label_smoothing)
    )
    return itc, to_text


def matching_loss(
    qformer: QFormer,
    features: Tensor,
    image: list[Tensor | None],
    text_ids: Tensor,
    text_mask: Tensor,
    similarity: Tensor,
    generator: torch.Generator | None,
    ranks: Ranks,
) -> Tensor:
    """Image-text matching loss (ITM): each pair, its text with a wrong image, its image with a wrong text.

    Args:
        image: keys and values, from `QFormer.project_image`.
        similarity: (C, C) of all images and texts, from which the wrong ones are sampled.
    """
    batch = len(features)
    own = torch.arange(batch, device=similarity.device)
    target = _own_pairs(batch, ranks, similarity.device)
    other_image = hard_negatives(similarity.T, generator)[target]  # (B,) for each text
    other_text = hard_negatives(similarity, generator)[target]  # (B,) for each image
    all_ids, all_mask = ranks.gather_padded(text_ids), ranks.gather_padded(text_mask)  # (C, T)
    if ranks.size == 1:
        images = torch.cat([own, other_image, own])
        image3 = [None if layer is None else layer.index_select(0, images) for layer in image]
    else:  # other ranks send features, which are smaller than the keys and values of all layers
        wrong = qformer.project_image(ranks.gather(features).index_select(0, other_image))
        image3 = [
            None if mine is None or other is None else torch.cat([mine, other, mine])
            for mine, other in zip(image, wrong, strict=True)
        ]
    texts = torch.cat([target, target, other_text])
    fused = qformer.encode_pairs(
        image3, all_ids.index_select(0, texts), all_mask.index_select(0, texts)
    )  # (3 B, Q, D)
    matches = torch.arange(3 * batch, device=fused.device) < batch
    return F.cross_entropy(qformer.matching_head(fused).mean(1), matches.long())


def generation_loss(
    qformer: QFormer,
    cache: list[KeyValue],
    text_ids: Tensor,
    text_mask: Tensor,
    decode_id: int,
    label_smoothing: float,
) -> Tensor:
    """Image-grounded language modelling loss (LM): the text after the queries.

    Args:
        cache: the queries' keys and values, from `QFormer.encode_images`.
    """
    decoder_ids = torch.cat([torch.full_like(text_ids[:, :1], decode_id), text_ids[:, 1:]], 1)
    logits = qformer.decode_texts(cache, decoder_ids, text_mask)  # (B, T, V)
    labels = text_ids.masked_fill(~text_mask, -100)
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=label_smoothing
    )


def _own_pairs(batch: int, ranks: Ranks, device: torch.device) -> Tensor:
    """(B,) indices of this rank's pairs in the joint batch."""
    return torch.arange(batch, device=device) + ranks.index * batch


def image_text_similarity(image: Tensor, text: Tensor) -> Tensor:
    """Best cosine over the queries: unit vectors (B, Q, E) of images and (C, E) of texts -> (B, C)."""
    return (image @ text.T).amax(1)


@torch.no_grad()
def hard_negatives(similarity: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For each row of (B, B) similarities another column, sampled in proportion to the softmax of the others.

    The diagonal, the true pair, is taken out before the softmax (BLIP-2's code). If it were taken out
    afterwards, the others would share what little it leaves: with the 1e-4 of older code they would be drawn
    uniformly as soon as the true pair is found at all.

    Returns:
        (B,) int64.
    """
    weights = similarity.float().clone().fill_diagonal_(-10_000).softmax(1)
    # torch.multinomial, to the bit, without its checks, which a GPU is waited for
    return (weights / torch.empty_like(weights).exponential_(generator=generator)).argmax(1)


class Stage1Model(nn.Module):
    """BLIP-2's first stage: image encoder -> LayerNorm -> Q-Former with its text branch, no LLM.

    Args:
        encoder: the frozen image encoder, (B, S, S, 3) uint8 pixels -> (B, N, D_in) features.
        connector: a Q-Former whose ``vocab_size`` has room for one id more than the tokenizer: [DEC].
        class_id: [CLS], put in front of each text; its output represents the text.
        objectives: the losses to compute.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        connector: QFormer,
        class_id: int,
        objectives: Sequence[Objective] = OBJECTIVES,
    ) -> None:
        super().__init__()
        self.objectives = tuple(objectives)
        self.encoder = encoder
        self.norm = nn.LayerNorm(connector.config.input_width)
        self.connector = connector
        self.class_id = class_id
        self.decode_id = connector.config.vocab_size - 1

    def losses(
        self,
        images: Tensor,
        text_ids: Tensor,
        text_mask: Tensor,
        generator: torch.Generator | None = None,
        ranks: Ranks = ALONE,
    ) -> Stage1Losses:
        """ITC, ITM and image-grounded LM loss of a batch.

        Args:
            images: (B, S, S, 3) uint8 pixels, or their cached features, (B, N, D_in) float.
            text_ids: (B, T) int64, right-padded.
            text_mask: (B, T) bool, False at padding.
            generator: draws the hard negatives; None: torch's global one.
            ranks: the processes whose batches give the negatives.
        """
        ids, mask = self._with_class(text_ids, text_mask)
        return stage1_losses(
            self.connector,
            self.norm(self.encode(images)),
            ids,
            mask,
            self.decode_id,
            generator=generator,
            ranks=ranks,
            objectives=self.objectives,
        )

    def forward(
        self, images: Tensor, text_ids: Tensor, text_mask: Tensor, text_places: Tensor | None = None
    ) -> Tensor:
        """Sum of the losses; arguments as in `losses`. ``text_places`` is not needed."""
        return self.losses(images, text_ids, text_mask).total

    def encode(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 pixels -> (B, N, D_in) features; features from a cache pass as they are."""
        features: Tensor = self.encoder(images)
        return features.to(self.norm.weight.device)

    def embed_images(self, images: Tensor) -> Tensor:
        """Pixels (B, S, S, 3) or features (B, N, D_in) -> (B, Q, E) unit vectors of the contrastive space."""
        queries = self.connector(self.norm(self.encode(images)))
        return F.normalize(self.connector.image_projection(queries), dim=-1)

    def embed_texts(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """(B, T) ids -> (B, E) unit vectors of the contrastive space."""
        summary = self.connector.encode_texts(*self._with_class(text_ids, text_mask))
        return F.normalize(self.connector.text_projection(summary), dim=-1)

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """(B, Q, E) and (C, E) -> (B, C), the best of the queries (BLIP-2)."""
        return image_text_similarity(images, texts)

    def _with_class(self, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        return F.pad(text_ids, (1, 0), value=self.class_id), F.pad(text_mask, (1, 0), value=True)
