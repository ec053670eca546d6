"""The figures of the model card, measured on scenes and texts that no model has seen, and its page."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from evlgen import miniworld
from evlgen.miniworld.pretrain.encoders import (
    ATTRIBUTES,
    Contrast,
    Encode,
    facts_of,
    phrase,
    pixels_of,
    word_ids,
)
from evlgen.miniworld.pretrain.language import MaskedPretraining, mask_words, padded
from evlgen.miniworld.pretrain.probes import linear_probe, thing_features


def vision_card(encode: Encode, train: int = 3000, test: int = 1000) -> dict[str, float]:
    """Linear probes (percent right) on images the encoder has not seen: what a thing's patches hold of it."""
    features, values = thing_features(encode, 0, train)
    unseen, truth = thing_features(encode, train, train + test)
    return {f"probe {n}": linear_probe(features, values[n], unseen, truth[n]) for n in ATTRIBUTES}


@torch.no_grad()
def retrieval_card(model: Contrast, tokenizer: PreTrainedTokenizerFast, count: int = 200) -> dict[str, float]:
    """Percent of captions, and of phrases, whose own image ranks first among ``count`` unseen ones."""
    pool, vocabulary = miniworld.pool("probe"), tokenizer.get_vocab()
    scenes = [pool.scene(10_000 + i) for i in range(count)]
    pixels = pixels_of([miniworld.render(s) for s in scenes])
    features = model.eval().vision(pixels)
    rngs = [miniworld.random_stream("retrieval", i) for i in range(count)]
    captions = word_ids(vocabulary, [miniworld.caption(s, r) for s, r in zip(scenes, rngs, strict=True)])
    phrases = word_ids(
        vocabulary, [phrase(facts_of(s.things[0]), r) for s, r in zip(scenes, rngs, strict=True)]
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


@torch.no_grad()
def language_card(model: nn.Module, tokenizer: PreTrainedTokenizerFast, count: int = 300) -> dict[str, float]:
    """What the language model knows, on documents it has not read.

    Returns perplexity of a caption without context, behind notes of the same scene and behind notes of
    another one; the percent of nouns right where a caption has just named a colour (binding: which thing of
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
def answer_text(model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    """Greedy short answers (at most 4 words) to prompts that end in "Short answer:"."""
    newline = tokenizer.convert_tokens_to_ids("\n")
    rows = [list(row) for row in tokenizer(prompts)["input_ids"]]
    starts = [len(row) for row in rows]
    for _ in range(4):
        ids = padded(rows)
        logits = model(input_ids=ids, use_cache=False).logits
        for i, row in enumerate(rows):
            row.append(int(logits[i, len(row) - 1].argmax()))
    answers = []
    for row, start in zip(rows, starts, strict=True):
        words = list(itertools.takewhile(lambda token: token != newline, row[start:]))
        answers.append(str(tokenizer.decode(words)).strip())
    return answers


@torch.no_grad()
def masked_card(
    model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, count: int, setup: MaskedPretraining
) -> dict[str, float]:
    """Percent of masked words predicted right, and their perplexity, in ``count`` unseen documents."""
    generator = torch.Generator().manual_seed(1)
    right, asked_for, loss = 0, 0, 0.0
    for first in range(0, count, 50):
        texts = ["".join(miniworld.document(300_000_000 + i)) for i in range(first, first + 50)]
        ids = padded([row[: setup.max_words] for row in tokenizer(texts)["input_ids"]])
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
        "mini-clip": "image encoder, CLIP architecture, patch 8, 65 tokens of width 64, has learnt "
        "to predict mini-vit's features; its own, and the probes, are of the second-to-last of 5 layers",
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
