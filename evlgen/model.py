"""Image features + connector + language model: what is trained, and how it captions and answers.

Only the LayerNorm on the image features, the connector and the projection to the width of the language model
are trained (PAPER). The language model is not a submodule of what is trained: parameters, state dict and
training mode of a model here are those of the trained parts alone, so nothing can thaw it by accident.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from evlgen.backbones.language import (
    FrozenLanguage,
    build_language,
    text_reader,
    text_tokenizer,
)
from evlgen.backbones.pretrained import tensors_hash
from evlgen.config import (
    EvalConfig,
    QFormerConfig,
    RunConfig,
)
from evlgen.connector_base import Connector
from evlgen.connectors import build_connector
from evlgen.errors import UserError
from evlgen.miniworld import PROMPT
from evlgen.qformer import QFormer
from evlgen.runtime.files import write_atomic
from evlgen.stage1 import Stage1Model


class CaptionModel(nn.Module):
    """Frozen features -> LayerNorm -> connector -> projection -> soft prompt of a frozen language model.

    Args:
        connector: gives (B, N_out, D) from (B, N, D_in).
        language: the frozen language model; its parameters are set to need no gradient.
        feature_width: D_in.
    """

    def __init__(self, connector: Connector, language: FrozenLanguage, feature_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_width)
        self.connector = connector
        self.projection = nn.Linear(connector.config.width, language.width)
        language.model.eval().requires_grad_(False)
        self.language = language  # a plain dataclass, which torch does not look into

    # ------------------------------------------------------------------------------------- training

    def soft_prompt(self, features: Tensor) -> Tensor:
        """(B, N, D_in) image features -> (B, N_out, D_llm)."""
        prompt: Tensor = self.projection(self.connector(self.norm(features)))
        return prompt

    def loss(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Mean cross-entropy (nats) of the text tokens, given the image (PAPER: the only loss).

        Args:
            features: (B, N, D_in).
            text_ids: (B, T) int64, right-padded, each text closed by a newline.
            text_mask: (B, T) bool, False at padding.
        """
        return self.token_losses(self.soft_prompt(features), text_ids, text_mask).mean()

    def forward(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """As `loss`."""
        return self.loss(features, text_ids, text_mask)

    def token_losses(self, prompt: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Cross-entropy (nats, float32 at least) of every text token, (K,) for K tokens in the mask.

        The soft prompt, the beginning-of-sequence token and padding carry no label. Padding stands behind the
        text, where a causal model never looks, so no attention mask is needed.

        Args:
            prompt: (B, N_out, D_llm).
        """
        length = text_ids.shape[1]
        labelled = text_mask.flatten().nonzero()[:, 0]
        # Of a decoder, position P - 1 + t foretells text token t; T5's writes from its first position on.
        with self._precision():
            if self.language.has_plain_head:
                hidden = self.read(prompt, text_ids).last_hidden_state[:, -length:]  # (B, T, D_llm)
                hidden = hidden.flatten(0, 1).index_select(0, labelled)  # the (K, D_llm) that have a label
                logits = self.language.model.get_output_embeddings()(hidden)
            else:
                logits = self.read(prompt, text_ids, with_head=True).logits[:, -length:]  # (B, T, V)
                logits = logits.flatten(0, 1).index_select(0, labelled)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return F.cross_entropy(logits, text_ids.flatten().index_select(0, labelled), reduction="none")

    def read(self, prompt: Tensor, text_ids: Tensor, with_head: bool = False, **options: Any) -> Any:
        """What the language model makes of a prompt (B, N_out, D_llm) and a text (B, T).

        Args:
            with_head: up to the logits; an encoder-decoder always gives them.
            options: of the model's forward, such as ``output_attentions``.

        Returns:
            The output of `transformers`. Its last T positions foretell the text.
        """
        llm = self.language.model
        if self.language.is_encoder_decoder:
            shifted = F.pad(text_ids[:, :-1], (1, 0), value=llm.generation_config.decoder_start_token_id)
            inputs, _ = self._ask(prompt, [[]] * len(prompt))
            return llm(inputs_embeds=inputs, decoder_input_ids=shifted, use_cache=False, **options)
        body = llm if with_head else llm.base_model
        return body(inputs_embeds=self.inputs(prompt, text_ids), use_cache=False, **options)

    def inputs(self, prompt: Tensor, text_ids: Tensor) -> Tensor:
        """What a decoder reads: beginning-of-sequence token, soft prompt (P positions), text.

        Args:
            prompt: (B, N_out, D_llm).
            text_ids: (B, T) int64.

        Returns:
            (B, P + T - 1, D_llm): the last token of the longest text predicts nothing.
        """
        return torch.cat([self._prefix(prompt), self._embed(text_ids[:, :-1])], 1)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Where the trained parts run in mixed precision, a language model in fp16 or bf16 keeps its own.

        The two may differ: T5 overflows in fp16.
        """
        dtype, device = self.language.model.dtype, self.norm.weight.device.type
        if dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(device):
            return torch.autocast(device, dtype)
        return contextlib.nullcontext()

    def _embed(self, ids: Tensor) -> Tensor:
        """(..., T) ids -> (..., T, D_llm)."""
        embedded: Tensor = self.language.model.get_input_embeddings()(ids)
        return embedded

    def _prefix(self, prompt: Tensor) -> Tensor:
        """Soft prompt and beginning-of-sequence token, where the language model wants it: (B, P, D_llm)."""
        prompt = prompt.to(self.language.model.dtype)
        if self.language.bos_position == "none":
            return prompt
        bos_id = self.language.tokenizer.bos_token_id
        bos = self._embed(torch.full((len(prompt), 1), bos_id, device=prompt.device))  # (B, 1, D_llm)
        return torch.cat([bos, prompt] if self.language.bos_position == "first" else [prompt, bos], 1)

    # ----------------------------------------------------------------------------------- generation

    def caption(self, features: Tensor, evaluation: EvalConfig) -> list[str]:
        """Captions by beam search, ended by a newline (PAPER: beam 5, 8 to 30 tokens).

        Lengths are in generated tokens: at least ``min_length`` in front of the newline, at most
        ``max_length`` with it.

        Args:
            features: (B, N, D_in).
        """
        with evaluating(self):
            soft, lengths = self.soft_prompt(features), (evaluation.min_length, evaluation.max_length)
            with self._precision():
                return self._generate(*self._ask(soft, [[]] * len(soft)), evaluation.beams, *lengths, 1.0)

    def answer(self, features: Tensor, questions: Sequence[str], evaluation: EvalConfig) -> list[str]:
        """Short answers (PAPER: "Question: {} Short answer:", beam 5, 1 to 10 tokens, length penalty 0).

        Args:
            features: (B, N, D_in), one image a question.
        """
        with evaluating(self):
            rows = self.language.tokenizer([PROMPT.format(q) for q in questions], add_special_tokens=False)
            soft, lengths = self.soft_prompt(features), (1, evaluation.answer_max_length)
            with self._precision():
                return self._generate(*self._ask(soft, rows["input_ids"]), evaluation.beams, *lengths, 0.0)

    def _ask(self, prompt: Tensor, questions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """All that is read before the first word is written: (B, P + L, D_llm) and its mask (B, P + L).

        Args:
            prompt: (B, N_out, D_llm).
            questions: token ids; an encoder-decoder's are closed by ``</s>``, an empty one, too (LAVIS).
        """
        if self.language.is_encoder_decoder:
            questions = [[*row, self.language.end_id] for row in questions]
        return self._append_left_padded(self._prefix(prompt), questions)

    def _append_left_padded(self, prefix: Tensor, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Prefix (B, P, D) and texts, padded in front: (B, P + L, D) and their mask (B, P + L)."""
        device = prefix.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        longest = int(lengths.max())
        padded = [list(row) + [0] * (longest - len(row)) for row in rows]
        ids = torch.tensor(padded, dtype=torch.long, device=device)  # (B, L)
        right = torch.cat([prefix, self._embed(ids)], 1)  # padding behind
        place = torch.arange(right.shape[1], device=device) - (longest - lengths)[:, None]  # (B, P + L)
        source = (place % right.shape[1])[..., None].expand_as(right)  # a rotation brings it to the front
        return right.gather(1, source), (place >= 0).long()

    def _generate(
        self, prompt: Tensor, mask: Tensor, beams: int, shortest: int, longest: int, length_penalty: float
    ) -> list[str]:
        """Beam search after a prompt of embeddings (B, P, D_llm) with its mask (B, P), padding in front."""
        llm, tokenizer = self.language.model, self.language.tokenizer
        options: dict[str, Any] = {}
        if not self.language.is_encoder_decoder:
            cache = options["past_key_values"] = DynamicCache(config=llm.config)
            if prompt.shape[1] > 1:
                # The beams of an example share its prompt: it is read once, not once a beam.
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                llm.base_model(
                    inputs_embeds=prompt[:, :-1],
                    attention_mask=mask[:, :-1],
                    position_ids=positions[:, :-1],
                    past_key_values=cache,
                    use_cache=True,
                )
                cache.batch_repeat_interleave(beams)
        generated = llm.generate(  # with embeddings as the prompt, only new tokens are returned
            inputs_embeds=prompt,
            attention_mask=mask,
            **options,
            generation_config=GenerationConfig(
                num_beams=beams,
                do_sample=False,
                min_new_tokens=shortest,
                max_new_tokens=longest,
                length_penalty=length_penalty,
                eos_token_id=self.language.end_id,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
            ),
        )
        if self.language.is_encoder_decoder:
            generated = generated[:, 1:]  # the token that its decoder starts from
        end = self.language.end_id
        rows = [[*itertools.takewhile(lambda token: token != end, row)] for row in generated.tolist()]
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


Model = CaptionModel | Stage1Model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside, the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


# ------------------------------------------------------------------------------------------- building


def build_model(config: RunConfig) -> Model:
    """The untrained model of a run. Weights come from torch's global generator: seed it before.

    Raises:
        UserError: the stage does not fit the connector, or something has a name that does not exist.
    """
    width = config.connector.input_width
    if config.stage == "caption":
        return CaptionModel(build_connector(config.connector), build_language(config.language), width)
    if not isinstance(config.connector, QFormerConfig):
        raise UserError("stage 'represent': it is a stage of the Q-Former; set connector.kind to qformer")
    tokenizer, _ = text_tokenizer(text_reader(config))
    connector = build_connector(config.connector, len(tokenizer) + 1)  # one id more than words: [DEC]
    assert isinstance(connector, QFormer)
    class_id = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    return Stage1Model(connector, width, int(class_id), config.objectives)


# ------------------------------------------------------------------------------------ saving, looking


def save_trained(model: Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the trained parts (norm, connector, projection) as safetensors, atomically.

    Args:
        metadata: goes into the header as JSON under one key, ``evlgen``: the order of several keys would
            be random, and the same weights would not give the same bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomic(path, save(tensors, metadata={"evlgen": json.dumps(dict(metadata), sort_keys=True)}))


def load_trained(model: Model, path: Path) -> None:
    """Read what `save_trained` wrote.

    Raises:
        UserError: the file is missing, damaged, or of another model.
    """
    tensors = _read_tensors(path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: is not of this model: {' '.join(str(error).split())[:300]}") from error


def init_from_stage1(model: CaptionModel, path: Path) -> None:
    """Start stage 2 where stage 1 ended: LayerNorm, queries and Q-Former; text branch and heads are dropped.

    Args:
        path: the ``connector.safetensors`` of a run of the stage ``represent``.

    Raises:
        UserError: the file is missing, damaged or does not fit, or the connector is no Q-Former.
    """
    tensors = _read_tensors(path)
    if not isinstance(model.connector, QFormer):
        raise UserError(f"init_from {path}: stage 1 can only be followed by a Q-Former")
    norm = {name: tensors[f"norm.{name}"] for name in ("weight", "bias") if f"norm.{name}" in tensors}
    if len(norm) != 2 or norm["weight"].shape != model.norm.weight.shape:
        raise UserError(f"{path}: has no LayerNorm for image features of width {len(model.norm.weight)}")
    model.norm.load_state_dict(norm)
    prefix = "connector."
    model.connector.load_stage1(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the run it belongs to has not finished its training") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); delete it, then run again") from error


def parameter_counts(model: Model) -> dict[str, int]:
    """Parameters of each part: ``norm``, ``connector``, ``projection`` (trained), ``language`` (frozen)."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    if isinstance(model, CaptionModel):
        counts["language (frozen)"] = sum(p.numel() for p in model.language.model.parameters())
    return counts


def weights_checksum(module: Any) -> str:
    """Hex SHA-256 over names and bytes of all parameters and buffers: equal only for equal bits."""
    return tensors_hash(module.state_dict())
