"""Frozen large language models and their tokenizers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from evlgen.backbones.pip_models import unpacked
from evlgen.backbones.pretrained import first_line, load_transformers, read_config, weights_fingerprint
from evlgen.backbones.vision import file_hash
from evlgen.config import Conventions
from evlgen.conventions import PLAIN, Family, Manners, manners
from evlgen.errors import UserError
from evlgen.runs.identity import MINI_BERT
from evlgen.runtime.device import chosen
from evlgen.runtime.sources import PIP_MODELS, SOURCES, find_weights, names, shipped_file
from evlgen.runtime.text import has_mark

BosPosition = Literal["first", "after_prompt", "none"]

_MINI = ("mini-opt", "mini-llama")
ENCODER_DECODERS = ("t5", "mt5")
PLAIN_HEADS = ("opt", "llama")


@dataclass(frozen=True)
class FrozenLanguage:
    """A frozen language model, and how it is prompted.

    A decoder gets the soft prompt, then the question if there is one, and continues. The encoder of an
    encoder-decoder (T5) gets soft prompt and question, closed by ``</s>``; its decoder writes.

    Attributes:
        width: width of its token embeddings, the soft prompt's width.
        bos_position: where the beginning-of-sequence token goes: ``first`` (in front of the soft prompt),
            ``after_prompt`` (between the soft prompt and the text, as LAVIS does for OPT and LLaMA) or
            ``none`` (T5, GPT-2). It carries no label: the loss is on the text alone (PAPER), except in the
            authors' own loop for OPT (``manners.scores_bos``), where it is the first token of the text.
        end_id: the token that ends a caption and an answer: a newline, for an encoder-decoder ``</s>``.
        fingerprint: hash of the weights.
        is_encoder_decoder: see above.
        has_plain_head: logits are the output embeddings times the last hidden state and nothing else, so
            they can be computed at labelled positions only.
        manners: how it is trained and asked, by the conventions of the run.
        own_bos_id: begins a sequence in place of the tokenizer's token.
    """

    model: Any  # a transformers language model: PreTrainedModel does not type generate()
    tokenizer: Any  # a transformers tokenizer
    width: int
    bos_position: BosPosition
    end_id: int
    fingerprint: str
    is_encoder_decoder: bool = False
    has_plain_head: bool = True
    manners: Manners = PLAIN
    own_bos_id: int | None = None

    @property
    def bos_id(self) -> int | None:
        """The token that begins a sequence."""
        found: int | None = self.tokenizer.bos_token_id if self.own_bos_id is None else self.own_bos_id
        return found


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the words of ``texts``: lower case, punctuation and newline are tokens.

    Ids: 0 ``<pad>``, 1 ``</s>`` (beginning and end, as in OPT), 2 ``<unk>``, then the words by alphabet.
    """
    split = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    words: set[str] = set()
    for text in texts:
        words.update(word for word, _ in split.pre_tokenize_str(text.lower()))
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}
    return _finish(Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), split)


def _finish(tokenizer: Tokenizer, split: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def mini_model(name: str, vocab_size: int) -> nn.Module:
    """Untrained LLM of the miniature: ``mini-opt`` (OPT architecture) or ``mini-llama`` (LLaMA, as Vicuna).

    Raises:
        UserError: unknown name.
    """
    if name == "mini-opt":
        return OPTForCausalLM(
            OPTConfig(
                vocab_size=vocab_size,
                hidden_size=96,
                word_embed_proj_dim=96,
                ffn_dim=384,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=256,
                dropout=0.0,
                attention_dropout=0.0,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
    if name == "mini-llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=96,
                intermediate_size=256,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                # slow rotations enough to compare words over a whole text (see induction_start)
                rope_parameters={"rope_type": "default", "rope_theta": 1e5},
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
    raise UserError(f"language {name!r}: no such language model; there are: mini-opt, mini-llama")


MASK_ID = 2  # ``<unk>``, which no text of the miniworld needs


def mini_bert_config(vocab_size: int) -> BertConfig:
    """The miniature's bert-base-uncased, from which its connectors start: 4 layers of width 96."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.08,  # BERT's 0.02 is for width 768: here it needs twice the steps
        pad_token_id=0,
    )


def build_language(name: str, conventions: Conventions = "plain") -> FrozenLanguage:
    """The frozen language model called ``name``, in eval mode, with its tokenizer; the same weights always.

    No random number is drawn: weights initialised afterwards do not depend on whether it was there already.

    Args:
        name: of the miniature or of `evlgen.runtime.sources.SOURCES`, or the folder of any decoder-only
            model of `transformers` or of a T5, a GGUF file, or a model in the hub's cache. Large ones run in
            fp16 or bf16 on a GPU, in float32 without one.
        conventions: of the run that it is used in.

    Raises:
        UserError: unknown name, or its weights are missing or unfit.
    """
    with torch.random.fork_rng(devices=[]):
        found = _mini_language(name) if name in _MINI else _large_language(language_folder(name))
    return with_conventions(found, conventions, name)


def with_conventions(language: FrozenLanguage, conventions: Conventions, where: str) -> FrozenLanguage:
    """The same language model, trained and asked by ``conventions``.

    Raises:
        UserError: its tokenizer lacks a token; ``where`` names the model.
    """
    if conventions == "plain":
        return language
    how = manners(conventions, _family(language.model.config))
    is_first = language.bos_position == "first"  # the authors put the token behind the soft prompt
    language = dataclasses.replace(
        language, manners=how, bos_position="after_prompt" if is_first else language.bos_position
    )
    if how.ends_with_eos:
        eos = _eos(language.tokenizer, where)
        language = dataclasses.replace(language, end_id=eos, own_bos_id=eos)
    return language


def _family(config: Any) -> Family:
    """The family of a language model, from its configuration in `transformers`."""
    if config.model_type == "bert":
        return "bert"
    if config.is_encoder_decoder:
        return "encoder-decoder"
    return "opt" if config.model_type == "opt" else "decoder"


def _eos(tokenizer: Any, where: str) -> int:
    found: int | None = tokenizer.eos_token_id
    if found is None:
        raise UserError(
            f"{where}: its tokenizer has no eos token, which closes a text where conventions = authors"
        )
    return found


def forget_languages() -> None:
    """Let the next `build_language` build anew: the object given out before has been changed."""
    _mini_language.cache_clear()
    _large_language.cache_clear()


def text_tokenizer(name: str) -> tuple[Any, int]:
    """Tokenizer of the language model or BERT ``name`` and the token that ends a text, without its weights.

    BERT's texts, of stage 1, end with ``[SEP]``.

    Raises:
        UserError: as `build_language` or `bert_folder`.
    """
    if name in (*_MINI, MINI_BERT):
        tokenizer = mini_tokenizer()
        return tokenizer, closing_newline(tokenizer, name)
    path = bert_folder(name) if name in names("bert") else language_folder(name)
    return load_tokenizer(path, read_config(path))


def text_manners(name: str, conventions: Conventions) -> tuple[Any, int, Manners]:
    """`text_tokenizer` by the conventions of a run, and how the model is trained by them.

    Raises:
        UserError: as `text_tokenizer`; or the tokenizer lacks a token.
    """
    tokenizer, end_id = text_tokenizer(name)
    if conventions == "plain":
        return tokenizer, end_id, PLAIN
    if name == MINI_BERT:
        return tokenizer, end_id, manners(conventions, "bert")
    if name in _MINI:
        family: Family = "opt" if name == "mini-opt" else "decoder"
    else:
        family = _family(read_config(bert_folder(name) if name in names("bert") else language_folder(name)))
    how = manners(conventions, family)
    return tokenizer, _eos(tokenizer, name) if how.ends_with_eos else end_id, how


def language_folder(name: str) -> Path:
    """Folder of a language model: see `model_folder`.

    Raises:
        UserError: there is none; the message says what there is, or where it was searched for.
    """
    if (found := model_folder(name)) is not None:
        return found
    if name in names("language"):
        return find_weights(name)
    known = ", ".join([*_MINI, *names("language"), "smollm2-135m"])
    raise UserError(
        f"language {name!r}: no such language model; there are: {known}, or a folder, a .gguf file, or a "
        "model in the hub's cache"
    )


def bert_folder(name: str) -> Path:
    """Folder of a BERT: a path, or the name of one that is installed, in EVLGEN_WEIGHTS or the hub's cache.

    Raises:
        UserError: there is none; the message says where it was searched for.
    """
    if (found := model_folder(name)) is not None:
        return found
    if name in names("bert"):
        return find_weights(name)
    known = ", ".join([*names("bert"), "minilm-l6"])
    raise UserError(
        f"BERT {name!r}: no such model; there are: mini-bert, {known}, or a folder, a .safetensors file, or "
        "a model in the hub's cache"
    )


def model_folder(name: str) -> Path | None:
    """Folder of a model: unpacked from an installed package or a GGUF file, a path, or found by its name.

    Names are looked up in EVLGEN_WEIGHTS and in the hub's cache.

    Returns:
        None if there is nothing: then `evlgen.runtime.sources.find_weights` can say what is missing.
    """
    if name in PIP_MODELS or name.endswith(".gguf"):
        return unpacked(name)
    if name in SOURCES:
        with contextlib.suppress(UserError):
            return find_weights(name)
    elif Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    with contextlib.suppress(HFValidationError, LocalEntryNotFoundError):
        return Path(snapshot_download(name, local_files_only=True))
    return None


@functools.cache
def _mini_language(name: str) -> FrozenLanguage:
    tokenizer = mini_tokenizer()
    model = mini_model(name, len(tokenizer))
    path = shipped_file(f"{name}.safetensors")
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()}, strict=False)
    model.eval().requires_grad_(False)
    return FrozenLanguage(model, tokenizer, 96, "first", closing_newline(tokenizer, name), file_hash(path))


@functools.cache
def mini_tokenizer() -> PreTrainedTokenizerFast:
    """The miniature's tokenizer, shipped beside the weights."""
    path = shipped_file("mini-tokenizer.json")
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


# ---------------------------------------------------------------------------- models of `transformers`


@functools.lru_cache(maxsize=1)  # there is seldom room for two
def _large_language(path: Path) -> FrozenLanguage:
    return load_language(path)


def load_language(path: Path, dtype: torch.dtype | None = None) -> FrozenLanguage:
    """A language model from its folder (``config.json``, weights, tokenizer), on the CPU.

    Args:
        dtype: None is what the machine runs it in, see `build_language`.

    Raises:
        UserError: the folder lacks something, cannot be read, or is not of a language model.
    """
    config = read_config(path)
    is_encoder_decoder = bool(config.is_encoder_decoder)
    if is_encoder_decoder and config.model_type not in ENCODER_DECODERS:
        raise UserError(f"{path}: of the encoder-decoders only T5 is supported, not {config.model_type!r}")
    tokenizer, end_id = load_tokenizer(path, config)
    model_class = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    model = load_transformers(model_class, path, config, dtype or _default_dtype(config.model_type))
    if getattr(model, "_is_stateful", False):
        raise UserError(
            f"{path}: {config.model_type!r} is a recurrent model, which beam search cannot branch"
        )
    # A folder may come with settings of its own, such as a repetition penalty: only a run's settings count.
    start = getattr(config, "decoder_start_token_id", None)
    if is_encoder_decoder and start is None:
        start = tokenizer.pad_token_id  # T5's convention
    model.generation_config = GenerationConfig(decoder_start_token_id=start)
    return FrozenLanguage(
        model=model,
        tokenizer=tokenizer,
        width=model.get_input_embeddings().weight.shape[1],
        bos_position="after_prompt" if _adds_bos(tokenizer) and not is_encoder_decoder else "none",
        end_id=end_id,
        fingerprint=weights_fingerprint(path),
        is_encoder_decoder=is_encoder_decoder,
        has_plain_head=config.model_type in PLAIN_HEADS,
    )


def _default_dtype(model_type: str) -> torch.dtype:
    """On a GPU OPT runs in fp16 (PAPER), the others in bf16 as they were trained (T5 overflows in fp16)."""
    if chosen().type == "cpu":
        return torch.float32
    return torch.float16 if model_type == "opt" else torch.bfloat16


def load_tokenizer(path: Path, config: Any) -> tuple[Any, int]:
    """The tokenizer in a model's folder, with a padding token, and the id that ends a text (BERT's: [SEP]).

    Args:
        config: the model's, from `evlgen.backbones.pretrained.read_config`.

    Raises:
        UserError: there is none that can be read, or it has no token that could end a text.
    """
    tokenizer = _read_tokenizer(path, config)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= config.get_text_config().vocab_size:
        # LLaMA has none, Vicuna's has no embedding. Padding is masked: any token will do.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError(f"{path}: its tokenizer has neither of the tokens pad, unk and eos")
    if config.model_type == "bert":
        if None in (tokenizer.cls_token_id, tokenizer.sep_token_id):
            raise UserError(f"{path}: its tokenizer lacks one of the tokens [CLS] and [SEP]")
        return tokenizer, tokenizer.sep_token_id
    if not config.is_encoder_decoder:
        return tokenizer, closing_newline(tokenizer, str(path))
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: its tokenizer has no eos token")
    return tokenizer, tokenizer.eos_token_id


def _read_tokenizer(path: Path, config: Any) -> Any:
    for name in ("vocab.txt", "merges.txt"):  # the mark would become part of the first token
        if (file := path / name).is_file() and has_mark(file):
            raise UserError(f"{file}: begins with a byte order mark; save it as UTF-8 without one")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, config=config, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a missing package, a damaged file, a class that does not exist
        raise UserError(
            f"{path}: its tokenizer cannot be loaded ({first_line(error)}); tokenizer.json, vocab.json with "
            "merges.txt, or tokenizer.model is expected; for the last one, pip install 'evlgen[llm]'"
        ) from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise UserError(f"{path}: its tokenizer knows no words; are tokenizer files missing?")
    return tokenizer


def closing_newline(tokenizer: Any, where: str) -> int:
    """The token that a newline behind a word becomes.

    A newline on its own will not do: SentencePiece puts a space in front of it.

    Raises:
        UserError: there is no such token; ``where`` names the tokenizer.
    """
    words = ("a", "dog", "left")
    plain = tokenizer(list(words), add_special_tokens=False)["input_ids"]
    closed = tokenizer([word + "\n" for word in words], add_special_tokens=False)["input_ids"]
    ends = {row[-1] if row[:-1] == start else None for row, start in zip(closed, plain, strict=True)}
    end = ends.pop()
    if ends or end is None or end == tokenizer.unk_token_id:
        raise UserError(f"{where}: its tokenizer has no token for a newline, which ends a caption")
    assert isinstance(end, int)
    return end


def _adds_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][0] == bos
