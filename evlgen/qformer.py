"""Q-Former, the connector of BLIP-2, and the three losses of its first training stage.

Learnable queries attend to each other in every layer and to the image in every second one. In stage 1 a text
branch shares the self-attention and has its own feed-forward; who may see whom is what tells the three losses
apart (Li et al., "BLIP-2", 2023, figure 2):

- contrastive (ITC): queries and text do not see each other;
- matching (ITM): everything sees everything;
- generation (LM): queries see only themselves, text sees the queries and the text before it.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evlgen.backbones.pretrained import first_mismatch
from evlgen.bert import (
    LAYER_NORM_EPS,
    CrossAttention,
    FeedForward,
    SelfAttention,
    attention_probabilities,
    bert_tensors,
    check_layers,
    init_bert,
    load_feed_forward,
    load_linear,
    load_self_attention,
    take,
)
from evlgen.config import Objective, QFormerConfig
from evlgen.errors import UserError
from evlgen.runtime.distributed import ALONE, Ranks

KeyValue = tuple[Tensor, Tensor]  # each (B, heads, N, D / heads)


@dataclass(frozen=True, eq=False)
class QFormerTrace:
    """What happened inside, for diagnostics.

    Attributes:
        attention: one for each cross-attention, the probabilities (B, heads, queries, image tokens).
    """

    attention: tuple[Tensor, ...]


class QFormer(nn.Module):
    """Image features -> one soft token a query. With ``vocab_size`` above 0 also the text branch of stage 1.

    Raises:
        UserError: a config value is wrong.
    """

    layers: Sequence[QFormerLayer]

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.queries = nn.Parameter(torch.randn(config.num_queries, width) * 0.02)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)  # of all embeddings, queries and text alike
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(QFormerLayer(config, index) for index in range(config.num_layers))  # type: ignore[assignment]
        if config.vocab_size:
            self.words = nn.Embedding(config.vocab_size, width)
            self.positions = nn.Parameter(torch.randn(config.max_positions, width) * 0.02)
            self.image_projection = nn.Linear(width, config.embed_dim)
            self.text_projection = nn.Linear(width, config.embed_dim)
            # BLIP-2 learns the temperature itself, which a large learning rate could drive below zero.
            self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
            self.matching_head = nn.Linear(width, 2)
            self.generation_dense = nn.Linear(width, width)
            self.generation_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.generation_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(init_bert)

    def forward(self, features: Tensor, return_trace: bool = False) -> Tensor | tuple[Tensor, QFormerTrace]:
        """(B, N, D_in) image features -> (B, num_queries, D) soft tokens.

        Args:
            return_trace: give (soft tokens, `QFormerTrace`) instead; the soft tokens are the same.
        """
        probabilities: list[Tensor] | None = [] if return_trace else None
        x, _ = self.see(self.project_image(features), len(features), probabilities)
        return x if probabilities is None else (x, QFormerTrace(tuple(probabilities)))

    # The passes below share their parts: the image is projected to keys and values once for all of them, and
    # the LM attends to the keys and values that `see` has left behind, for no query sees text in either.

    def project_image(self, features: Tensor) -> list[Tensor | None]:
        """(B, N, D_in) -> keys and values (B, N, 2 D) for each cross-attention, None in layers without."""
        return [None if layer.cross is None else layer.cross.key_value(features) for layer in self.layers]

    def see(
        self, image: list[Tensor | None], batch: int, probabilities: list[Tensor] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """The queries alone with the image.

        Args:
            image: from `project_image`.
            probabilities: a list to which the cross-attention probabilities are added.

        Returns:
            (B, Q, D) query outputs, and each layer's self-attention keys and values.
        """
        x = self.embed_queries(batch)
        cache = []
        for layer, image_layer in zip(self.layers, image, strict=True):
            query, key, value = layer.attention.project(x)
            x = layer.attention(x, query, key, value)
            x = layer.cross_attend(x, image_layer, probabilities)
            x = layer.feed_forward(x)
            cache.append((key, value))
        return x, cache

    def read(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """The text alone, bidirectional: (B, T) ids and bool mask -> (B, D), output at the first token."""
        x = self.embed_text(text_ids)  # (B, T, D)
        mask = text_mask[:, None, None, :]  # (B, 1, 1, T)
        for index, layer in enumerate(self.layers):
            query, key, value = layer.attention.project(x)
            if index == len(self.layers) - 1:  # of the last layer only the first token is used
                x, query = x[:, :1], query[:, :, :1]
            x = layer.attention(x, query, key, value, mask)
            x = layer.feed_text(x)
        return x[:, 0]

    def fuse(self, image: list[Tensor | None], text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Queries, image and text together, everything sees everything.

        Args:
            image: from `project_image`, B rows.
            text_ids: (B, T) int64.
            text_mask: (B, T) bool, False at padding.

        Returns:
            (B, Q, D) query outputs.
        """
        num_queries = self.config.num_queries
        x = torch.cat([self.embed_queries(len(text_ids)), self.embed_text(text_ids)], 1)  # (B, Q + T, D)
        mask = F.pad(text_mask, (num_queries, 0), value=True)[:, None, None, :]  # (B, 1, 1, Q + T)
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1  # of the last layer only the queries are used
            query, key, value = layer.attention.project(x)
            if last:
                x, query = x[:, :num_queries], query[:, :, :num_queries]
            x = layer.attention(x, query, key, value, mask)
            queries = layer.feed_forward(layer.cross_attend(x[:, :num_queries], image[index]))
            x = queries if last else torch.cat([queries, layer.feed_text(x[:, num_queries:])], 1)
        return x

    def write(self, cache: list[KeyValue], text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Text after the queries, causal: logits of the next token.

        Args:
            cache: from `see`.
            text_ids: (B, T) int64.
            text_mask: (B, T) bool, False at padding.

        Returns:
            (B, T, vocab_size) logits.
        """
        length = text_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=text_ids.device).tril()
        mask = F.pad(causal & text_mask[:, None, :], (self.config.num_queries, 0), value=True)[
            :, None
        ]  # (B, 1, T, Q + T)
        x = self.embed_text(text_ids)  # (B, T, D)
        for layer, (query_key, query_value) in zip(self.layers, cache, strict=True):
            query, key, value = layer.attention.project(x)
            key, value = (
                torch.cat([query_key, key], 2),
                torch.cat([query_value, value], 2),
            )  # (B, heads, Q + T, D / heads)
            x = layer.attention(x, query, key, value, mask)
            x = layer.feed_text(x)
        x = self.generation_norm(F.gelu(self.generation_dense(x)))
        return F.linear(x, self.words.weight, self.generation_bias)

    def embed_queries(self, batch: int) -> Tensor:
        """(B, Q, D)."""
        return self.dropout(self.norm(self.queries).expand(batch, -1, -1))

    def embed_text(self, text_ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D): words and positions, which count from the first text token."""
        length = text_ids.shape[1]
        if length > len(self.positions):
            raise UserError(f"max_positions = {len(self.positions)}: the text has {length} tokens")
        return self.dropout(self.norm(self.words(text_ids) + self.positions[:length]))

    def load_bert(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the weights of a transformers ``BertModel``, as BLIP-2 does.

        Both feed-forwards get BERT's, the generation head that of its masked LM if the checkpoint has one;
        queries, cross-attention and the other heads stay as they are. A vocabulary larger than BERT's keeps
        its own embeddings for the tokens that BERT does not have.

        Raises:
            UserError: a tensor is missing or has another shape; the message names the first one.
        """
        tensors = bert_tensors(state_dict)
        config, width = self.config, self.config.width
        check_layers(tensors, config.num_layers)
        load_linear(self.norm, tensors, "embeddings.LayerNorm")
        if config.vocab_size:
            words = "embeddings.word_embeddings.weight"
            known = min(len(tensors[words]) if words in tensors else config.vocab_size, config.vocab_size)
            with torch.no_grad():
                self.words.weight[:known] = take(tensors, words, (known, width))
                self.positions.copy_(
                    take(tensors, "embeddings.position_embeddings.weight", (config.max_positions, width))
                )
            head = "cls.predictions.transform"
            if f"{head}.dense.weight" in tensors:
                load_linear(self.generation_dense, tensors, f"{head}.dense")
                load_linear(self.generation_norm, tensors, f"{head}.LayerNorm")
                with torch.no_grad():
                    self.generation_bias[:known] = take(tensors, "cls.predictions.bias", (known,))
        for index, layer in enumerate(self.layers):
            load_self_attention(layer.attention, tensors, f"encoder.layer.{index}")
            load_feed_forward(layer.feed_forward, tensors, f"encoder.layer.{index}")
            if layer.text_feed_forward is not None:
                load_feed_forward(layer.text_feed_forward, tensors, f"encoder.layer.{index}")

    def load_stage1(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy what this Q-Former has from the weights of another one that went through stage 1.

        Raises:
            UserError: a tensor is missing or has another shape; the message names the first one.
        """
        if (wrong := first_mismatch(self, state_dict)) is not None:
            name, shape, wanted = wrong
            raise UserError(f"stage 1 weights: {name} has shape {shape}, the config wants {wanted}")
        self.load_state_dict({name: state_dict[name] for name in self.state_dict()})


class QFormerLayer(nn.Module):
    """Parts of one layer; the passes of `QFormer` put them together."""

    def __init__(self, config: QFormerConfig, index: int) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        self.attention = SelfAttention(width, config.num_heads, dropout)
        self.cross = (
            CrossAttention(width, config.encoder_width, config.num_heads, dropout)
            if index % config.cross_attention_every == 0
            else None
        )
        self.feed_forward = FeedForward(width, config.intermediate, dropout)
        self.text_feed_forward = (
            FeedForward(width, config.intermediate, dropout) if config.vocab_size else None
        )

    def cross_attend(
        self, x: Tensor, image: Tensor | None, probabilities: list[Tensor] | None = None
    ) -> Tensor:
        """(B, Q, D) queries to the image's keys and values (B, N, 2 D); unchanged in a layer without."""
        if self.cross is None or image is None:
            return x
        query, key, value = self.cross.project(x, image)
        if probabilities is not None:
            probabilities.append(attention_probabilities(query, key))
        attended: Tensor = self.cross(x, query, key, value)
        return attended

    def feed_text(self, x: Tensor) -> Tensor:
        """The text's feed-forward: (B, T, D) -> (B, T, D)."""
        assert self.text_feed_forward is not None, "no text branch: vocab_size is 0"
        fed: Tensor = self.text_feed_forward(x)
        return fed


# -------------------------------------------------------------------------------------------------- stage 1


OBJECTIVES: tuple[Objective, ...] = typing.get_args(Objective)  # in the order of their passes


@dataclass(frozen=True, eq=False)
class Stage1Losses:
    """The losses of stage 1, scalars in nats, None if left out; BLIP-2 minimises their plain sum."""

    itc: Tensor | None
    itm: Tensor | None
    lm: Tensor | None

    @property
    def total(self) -> Tensor:
        """Sum of those there are."""
        return add_present((self.itc, self.itm, self.lm))


def add_present(losses: Iterable[Tensor | None]) -> Tensor:
    """Sum of the losses that are not None; one at least must be there."""
    first, *others = (loss for loss in losses if loss is not None)
    return sum(others, first)


def check_objectives(objectives: Sequence[Objective]) -> None:
    """Refuse losses of stage 1 that cannot be summed.

    Raises:
        UserError: there is none, one comes twice, or one is unknown.
    """
    known = ", ".join(OBJECTIVES)
    if not objectives:
        raise UserError(f"objectives: is empty; stage 1 needs a loss, there are {known}")
    for name in objectives:
        if name not in OBJECTIVES:
            raise UserError(f"objectives: {name!r} is not one of {known}")
        if objectives.count(name) > 1:
            raise UserError(f"objectives: {name} is there more than once")


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

    Negatives come from this batch only. As in BLIP-2 a caption that fits another image of the batch counts as
    a negative of it all the same.

    With several ranks the negatives come from the batches of all of them, as in BLIP-2's code, and each loss
    is the mean over this rank's rows. Unlike BLIP-2's code, which cuts the gradient of the other ranks'
    embeddings in ITC, gradients go back to all ranks: the gradient is that of the joint batch.

    A loss that is left out is not computed, nor are the passes that it alone needs. Without ITC nothing
    trains the similarities by which ITM's hard negatives are drawn: then they are drawn uniformly.

    Args:
        features: (B, N, D_in).
        text_ids: (B, T) int64, padded on the right, T at most 32 in BLIP-2; the first token is the one whose
            output stands for the text ([CLS]) and a last one ends it.
        text_mask: (B, T) bool, False at padding.
        decode_id: token that takes the place of the first one in the LM pass ([DEC]).
        label_smoothing: of ITC (PAPER) and of the LM (BLIP-2's code).
        generator: for the sampling of hard negatives; None takes torch's global one. With several ranks it
            must be in the same state on all of them: each draws for the joint batch and keeps its rows.
        ranks: those that compute the losses of a joint batch together, B rows each.
        objectives: the losses to compute.

    Raises:
        UserError: the Q-Former has no text branch, there is no negative because there is one pair only, or
            the objectives are none or repeated.
    """
    if not qformer.config.vocab_size:
        raise UserError("stage 1 needs a Q-Former with a text branch: set vocab_size")
    check_objectives(objectives)
    batch = len(features)
    if batch * ranks.size < 2 and tuple(objectives) != ("lm",):
        raise UserError(
            "batch_size = 1: stage 1 takes its negatives from the batch (from a part of it, where it is "
            "accumulated), 2 at least"
        )
    longest = int(text_mask.sum(1).max())
    text_ids, text_mask = text_ids[:, :longest], text_mask[:, :longest]  # nothing sees the padding

    image = qformer.project_image(features)
    itc = itm = lm = None
    if "itc" in objectives or "lm" in objectives:
        seen, cache = qformer.see(image, batch)  # (B, Q, D)
    pairs = batch * ranks.size
    similarity = torch.zeros(pairs, pairs, device=text_ids.device)  # all alike, unless ITC knows better
    if "itc" in objectives:
        itc, to_text = _contrastive(qformer, seen, text_ids, text_mask, label_smoothing, ranks)
        if "itm" in objectives:
            similarity = ranks.gather(to_text.detach())  # (C, C)
    if "itm" in objectives:
        itm = _matching(qformer, features, image, text_ids, text_mask, similarity, generator, ranks)
    if "lm" in objectives:
        lm = _generation(qformer, cache, text_ids, text_mask, decode_id, label_smoothing)
    return Stage1Losses(itc, itm, lm)


def _contrastive(
    qformer: QFormer,
    seen: Tensor,
    text_ids: Tensor,
    text_mask: Tensor,
    label_smoothing: float,
    ranks: Ranks,
) -> tuple[Tensor, Tensor]:
    """ITC, and the similarities of this rank's images to all texts, (B, C), divided by the temperature."""
    image_embedding = F.normalize(qformer.image_projection(seen), dim=-1)  # (B, Q, E)
    text_embedding = F.normalize(qformer.text_projection(qformer.read(text_ids, text_mask)), dim=-1)  # (B, E)
    temperature = qformer.log_temperature.exp()
    to_text = image_text_similarity(image_embedding, ranks.gather(text_embedding)) / temperature  # (B, C)
    if ranks.size == 1:
        to_image = to_text.T
    else:  # C = size * B: all images for the texts of this rank
        to_image = image_text_similarity(ranks.gather(image_embedding), text_embedding).T / temperature
    target = _own_pairs(len(seen), ranks, to_text.device)
    itc = 0.5 * (
        F.cross_entropy(to_text, target, label_smoothing=label_smoothing)
        + F.cross_entropy(to_image, target, label_smoothing=label_smoothing)
    )
    return itc, to_text


def _matching(
    qformer: QFormer,
    features: Tensor,
    image: list[Tensor | None],
    text_ids: Tensor,
    text_mask: Tensor,
    similarity: Tensor,
    generator: torch.Generator | None,
    ranks: Ranks,
) -> Tensor:
    """ITM: the pair itself, its text with a wrong image, its image with a wrong text, in one batch of 3 B."""
    batch = len(features)
    own = torch.arange(batch, device=similarity.device)
    target = _own_pairs(batch, ranks, similarity.device)
    other_image = hard_negatives(similarity.T, generator)[target]  # (B,) for each text
    other_text = hard_negatives(similarity, generator)[target]  # (B,) for each image
    all_ids, all_mask = ranks.gather_padded(text_ids), ranks.gather_padded(text_mask)  # (C, T)
    if ranks.size == 1:
        images = torch.cat([own, other_image, own])
        image3 = [None if layer is None else layer.index_select(0, images) for layer in image]
    else:  # images of other ranks come as features, which are smaller than all layers' keys and values
        wrong = qformer.project_image(ranks.gather(features).index_select(0, other_image))
        image3 = [
            None if mine is None or other is None else torch.cat([mine, other, mine])
            for mine, other in zip(image, wrong, strict=True)
        ]
    texts = torch.cat([target, target, other_text])
    fused = qformer.fuse(
        image3, all_ids.index_select(0, texts), all_mask.index_select(0, texts)
    )  # (3 B, Q, D)
    matches = torch.arange(3 * batch, device=fused.device) < batch
    return F.cross_entropy(qformer.matching_head(fused).mean(1), matches.long())


def _generation(
    qformer: QFormer,
    cache: list[KeyValue],
    text_ids: Tensor,
    text_mask: Tensor,
    decode_id: int,
    label_smoothing: float,
) -> Tensor:
    """Image-grounded LM: the text after the queries, whose keys and values are in the cache."""
    decoder_ids = torch.cat([torch.full_like(text_ids[:, :1], decode_id), text_ids[:, 1:]], 1)
    logits = qformer.write(cache, decoder_ids, text_mask)  # (B, T, V)
    labels = text_ids.masked_fill(~text_mask, -100)
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=label_smoothing
    )


def _own_pairs(batch: int, ranks: Ranks, device: torch.device) -> Tensor:
    """(B,) numbers of this rank's pairs in the joint batch."""
    return torch.arange(batch, device=device) + ranks.index * batch


def image_text_similarity(image: Tensor, text: Tensor) -> Tensor:
    """Best cosine over the queries: unit vectors (B, Q, E) of images and (C, E) of texts -> (B, C)."""
    return (image @ text.T).amax(1)


@torch.no_grad()
def hard_negatives(similarity: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For each row of (B, B) similarities another column, sampled with probability softmax + 1e-4.

    The diagonal, the true pair, is never drawn.

    Returns:
        (B,) int64.
    """
    weights = similarity.float().softmax(1) + 1e-4
    weights.fill_diagonal_(0)
    return torch.multinomial(weights, 1, generator=generator)[:, 0]
