"""Plain references: what one gets from transformers and ToMe's published algorithm, without further thought.

They take the weights of this project's connectors and compute the same (the tests say so): a benchmark then
compares two ways to compute one thing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    OPTConfig,
)

from evlgen import tomeformer
from evlgen.backbones.eva import EvaConfig, EvaViT
from evlgen.bert import as_checkpoint, split_heads
from evlgen.config import QFormerConfig, TomeFormerConfig
from evlgen.interop.convert import qformer_names
from evlgen.merging import merge_schedule
from evlgen.model import CaptionModel
from evlgen.qformer import QFormer
from evlgen.tomeformer import TomeFormer

EAGER: dict[str, Any] = {"attn_implementation": "eager"}


class ReferenceTomeFormer(nn.Module):
    """``BertModel`` with eager attention; a hook takes the keys; merging before feed-forward."""

    def __init__(self, config: TomeFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = merge_schedule(config.num_layers, config.r)
        self.projection = nn.Linear(config.input_width, config.width)
        bert: Any = BertModel(
            BertConfig(
                vocab_size=2,
                hidden_size=config.width,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.intermediate,
                max_position_embeddings=config.max_positions,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                **EAGER,
            ),
            add_pooling_layer=False,
        )
        self.bert: Any = bert
        self.keys: list[Tensor] = []
        for layer in bert.encoder.layer:
            layer.attention.self.key.register_forward_hook(lambda module, args, out: self.keys.append(out))

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D_in) -> (B, N_out, D)."""
        x: Tensor = self.bert.embeddings(inputs_embeds=self.projection(features))
        for layer, r in zip(self.bert.encoder.layer, self.schedule, strict=True):
            x = layer.attention(x)[0]
            key = split_heads(self.keys.pop(), self.config.num_heads).mean(1)  # (B, N, D / heads)
            x = merge(x, key, r, self.config.class_token)
            x = layer.feed_forward_chunk(x)
        return x

    @torch.no_grad()
    def load(self, ours: TomeFormer) -> None:
        """Copy the weights of a TomeFormer."""
        self.projection.load_state_dict(ours.input_projection.state_dict())
        tensors = as_checkpoint(ours.state_dict(), tomeformer.bert_names(ours.config.num_layers))
        for name, parameter in self.bert.named_parameters():
            if name in tensors:  # not the word embeddings, and of the segments' only the first
                parameter[: len(tensors[name])] = tensors[name]


def merge(x: Tensor, metric: Tensor, r: int, class_token: bool) -> Tensor:
    """ToMe's bipartite soft matching and plain mean, as its paper describes them: gather and scatter.

    Args:
        x: (B, N, D).
        metric: (B, N, C).
    """
    if r == 0:
        return x
    with torch.no_grad():
        metric = metric / metric.norm(dim=-1, keepdim=True)
        scores = metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)  # (B, even, odd)
        if class_token:
            scores[:, 0] = -torch.inf
        best, link = scores.max(-1)
        order = best.argsort(dim=-1, descending=True)[..., None]  # (B, even, 1)
        merged, unmerged = order[:, :r], order[:, r:].sort(dim=1)[0]
        target = link[..., None].gather(1, merged)  # (B, r, 1)
    width = x.shape[-1]
    even, odd = x[:, ::2], x[:, 1::2]
    kept = even.gather(1, unmerged.expand(-1, -1, width))
    moved = even.gather(1, merged.expand(-1, -1, width))
    odd = odd.scatter_reduce(1, target.expand(-1, -1, width), moved, reduce="mean")
    return torch.cat([kept, odd], 1)


class ReferenceQFormer(nn.Module):
    """``Blip2QFormerModel`` with eager attention and BLIP-2's learnt queries, as in stage 2."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, config.num_queries, config.width))
        self.model = Blip2QFormerModel(_qformer_config(config))

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D_in) -> (B, Q, D)."""
        queries = self.queries.expand(len(features), -1, -1)
        output: Tensor = self.model(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        return output

    @torch.no_grad()
    def load(self, ours: QFormer) -> None:
        """Copy the weights of a Q-Former without text branch."""
        self.queries.copy_(ours.queries[None])
        _copy_qformer(self.model, ours)


class ReferenceCaptioner(nn.Module):
    """``Blip2ForConditionalGeneration`` with eager attention, of which stage 2 trains what BLIP-2 trains.

    Image encoder and language model are frozen and in evaluation mode, but for the encoder's last LayerNorm,
    which transformers counts among its parts and BLIP-2 trains.

    Args:
        image_id: the token that stands where the soft prompt goes.
        dtype: of the frozen parts.
    """

    def __init__(
        self,
        vision: EvaConfig,
        qformer: QFormerConfig,
        language: OPTConfig,
        image_id: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        vision_config = Blip2VisionConfig(
            hidden_size=vision.width,
            intermediate_size=vision.intermediate,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_heads,
            image_size=vision.image_size,
            patch_size=vision.patch,
        )
        config: Any = Blip2Config(
            vision_config=vision_config.to_dict(),
            qformer_config=_qformer_config(qformer).to_dict(),
            text_config=language.to_dict(),
            num_query_tokens=qformer.num_queries,
            image_token_index=image_id,
            **EAGER,
        )
        self.blip: Any = Blip2ForConditionalGeneration(config)
        encoder = self.blip.vision_model
        encoder.post_layernorm = nn.LayerNorm(vision.width)  # transformers' has the encoder's epsilon
        for frozen in (encoder.embeddings, encoder.encoder, self.blip.language_model):
            frozen.to(dtype).requires_grad_(False)

    def train(self, mode: bool = True) -> ReferenceCaptioner:
        """The frozen parts stay in evaluation mode: without dropout."""
        super().train(mode)
        self.blip.vision_model.eval()
        self.blip.language_model.eval()
        return self

    def forward(self, **inputs: Tensor) -> Tensor:
        """What transformers' processor gives, and labels -> the loss."""
        loss: Tensor = self.blip(**inputs).loss
        return loss

    @torch.no_grad()
    def load(self, ours: CaptionModel, encoder: EvaViT) -> None:
        """Copy the weights of a captioner with a Q-Former, of its language model and of its image encoder."""
        assert isinstance(ours.connector, QFormer)
        _copy_encoder(self.blip.vision_model, encoder)
        self.blip.vision_model.post_layernorm.load_state_dict(ours.norm.state_dict())
        self.blip.query_tokens.copy_(ours.connector.queries[None])
        _copy_qformer(self.blip.qformer, ours.connector)
        self.blip.language_projection.load_state_dict(ours.projection.state_dict())
        self.blip.language_model.load_state_dict(ours.language.model.state_dict())


def _qformer_config(config: QFormerConfig) -> Blip2QFormerConfig:
    return Blip2QFormerConfig(
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        encoder_hidden_size=config.encoder_width,
        cross_attention_frequency=config.cross_attention_every,
        **EAGER,
    )


def _copy_qformer(theirs: Blip2QFormerModel, ours: QFormer) -> None:
    tensors = as_checkpoint(ours.state_dict(), qformer_names(ours.config, "transformers"))
    prefix = "qformer."  # the queries are not in there
    theirs.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    )


def _copy_encoder(theirs: Any, ours: Any) -> None:
    theirs.embeddings.class_embedding.copy_(ours.cls_token)
    theirs.embeddings.position_embedding.copy_(ours.pos_embed)
    theirs.embeddings.patch_embedding.load_state_dict(ours.patch_embed["proj"].state_dict())
    for layer, block in zip(theirs.encoder.layers, ours.blocks, strict=True):
        attention = block.attn
        layer.self_attn.qkv.weight.copy_(attention.qkv.weight)
        no_bias = torch.zeros_like(attention.q_bias)  # of the keys
        layer.self_attn.qkv.bias.copy_(torch.cat([attention.q_bias, no_bias, attention.v_bias]))
        layer.self_attn.projection.load_state_dict(attention.proj.state_dict())
        layer.layer_norm1.load_state_dict(block.norm1.state_dict())
        layer.layer_norm2.load_state_dict(block.norm2.state_dict())
        layer.mlp.load_state_dict(block.mlp.state_dict())  # both call them fc1 and fc2
