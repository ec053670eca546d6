"""An induction circuit to start a language model from."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import LlamaForCausalLM, OPTForCausalLM


@torch.no_grad()
def induction_start(model: Any) -> None:
    """Set the first head of the first two layers of an untrained LLM to an induction circuit, in place.

    Olsson et al., "In-context Learning and Induction Heads" (2022): the head of layer 0 looks at the word
    before and notes it; the head of layer 1 looks for the place whose note equals the present word, and
    predicts the word that stood there. "the red boat ... red" -> "boat". Large language models form this
    circuit early in training and read their context with it. Here it is given, everything else is random, and
    all of it is trained.

    With d the width of a head, the embedding is parted in three: dimensions [0, d) hold the position, [d, 2d)
    take the note, the others hold the word. The numbers below were chosen such that on random words both
    heads look mostly at the right place (``tests/evlgen/miniworld/test_pretrain.py``).

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
