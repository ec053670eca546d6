"""A tiny Q-Former, and the same computed by transformers' BLIP-2.

The reference knows none of the short cuts of `evlgen.qformer`: it runs transformers' Q-Former on queries and
text side by side, with a full mask that says which may attend to which.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertConfig, Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from evlgen.bert import as_checkpoint
from evlgen.config import QFormerConfig
from evlgen.interop.convert import qformer_names
from evlgen.qformer import QFormer

TINY = QFormerConfig(
    encoder_width=10,
    width=12,
    num_layers=3,
    num_heads=3,
    intermediate=20,
    max_positions=16,
    num_queries=4,
    vocab_size=30,
    embed_dim=6,
    dropout=0.0,
)


DECODE = 29


def loud_qformer() -> QFormer:
    """Float64, in eval mode, with weights large enough that every term matters."""
    torch.manual_seed(0)
    model = QFormer(TINY).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.3))
    return model


def some_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Features (5, 9, 10), text ids (5, 8), mask (5, 8)."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(5, 9, 10, dtype=torch.float64, generator=generator)
    ids = torch.randint(3, 29, (5, 8), generator=generator)
    mask = torch.arange(8) < torch.tensor([8, 5, 6, 3, 8])[:, None]
    return features, ids.masked_fill(~mask, 0), mask


def as_transformers(model: QFormer) -> Blip2QFormerModel:
    """transformers' Q-Former with the same weights."""
    config = model.config
    other = Blip2QFormerModel(
        Blip2QFormerConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate,
            max_position_embeddings=config.max_positions,
            cross_attention_frequency=config.cross_attention_every,
            encoder_hidden_size=config.encoder_width,
            use_qformer_text_input=True,
            attn_implementation="eager",
        )
    )
    tensors = as_checkpoint(model.state_dict(), qformer_names(config, "transformers"))
    prefix = "qformer."  # the queries, the words and the heads are not in there
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    other.double().load_state_dict(state)
    return other.eval()


def run_reference(
    model: QFormer, features: Tensor, ids: Tensor, mask: Tensor, sees: str
) -> tuple[Tensor, Tensor]:
    """Queries (B, Q, D) and text (B, T, D) run side by side; ``sees``: "separate", "all" or "causal"."""
    queries, length = model.config.num_queries, ids.shape[1]
    words = model.words(ids) + model.positions[:length]
    x = torch.cat([model.queries.expand(len(ids), -1, -1), words], 1)
    allowed = torch.ones(len(ids), queries + length, queries + length, dtype=torch.bool)
    allowed[:, :, queries:] = mask[:, None]
    if sees != "all":
        allowed[:, :queries, queries:] = False
    if sees == "separate":
        allowed[:, queries:, :queries] = False
    if sees == "causal":
        allowed[:, queries:, queries:] &= torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.zeros(allowed.shape, dtype=x.dtype).masked_fill(~allowed, torch.finfo(x.dtype).min)
    out = as_transformers(model)(
        x, query_length=queries, attention_mask=bias[:, None], encoder_hidden_states=features
    ).last_hidden_state
    return out[:, :queries], out[:, queries:]


def reference_logits(model: QFormer, hidden: Tensor) -> Tensor:
    """transformers' language-model head, tied to the word embeddings."""
    config = BertConfig(vocab_size=model.config.vocab_size, hidden_size=model.config.width)
    head = BertLMPredictionHead(config).double()
    head.transform.dense = model.generation_dense
    head.transform.LayerNorm = model.generation_norm
    head.decoder.weight, head.decoder.bias = model.words.weight, model.generation_bias
    logits: Tensor = head(hidden)
    return logits
