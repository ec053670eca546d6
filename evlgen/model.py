"""The captioner from top to bottom: image encoder -> LayerNorm -> connector -> projection -> language model.

LayerNorm, connector and projection are trained, image encoder and language model are frozen (PAPER). The
frozen models are not submodules: parameters, state dict and training mode of a model cover its trained parts
only, so nothing can unfreeze a frozen one by accident.
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
from transformers import DynamicCache

from evlgen.backbones.beams import check_room, decoding_options, generation_config
from evlgen.backbones.language import (
    FrozenLanguage,
    build_language,
    text_tokenizer,
)
from evlgen.backbones.pretrained import tensors_hash
from evlgen.backbones.vision import ImageEncoder
from evlgen.config import (
    EvalConfig,
    QFormerConfig,
    RunConfig,
)
from evlgen.connector_base import Connector
from evlgen.connectors import build_connector
from evlgen.conventions import Task, connector_of, prompt_of
from evlgen.errors import UserError
from evlgen.qformer import QFormer
from evlgen.runs.identity import text_reader
from evlgen.runtime.files import write_atomic
from evlgen.stage1 import Stage1Model


class CaptionModel(nn.Module):
    """The captioner of the paper, also BLIP-2's second stage if the connector is a Q-Former.

    Args:
        encoder: the frozen image encoder, (B, S, S, 3) uint8 pixels -> (B, N, D_in) features.
        connector: (B, N, D_in) -> (B, N_out, D).
        language: the frozen language model; its parameters are set to need no gradient.
    """

    def __init__(self, encoder: ImageEncoder, connector: Connector, language: FrozenLanguage) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(connector.config.input_width)
        self.connector = connector
        self.projection = nn.Linear(connector.config.width, language.width)
        language.model.eval().requires_grad_(False)
        self.language = language  # a plain dataclass, which torch does not look into

    def train(self, mode: bool = True) -> CaptionModel:
        """Training mode of the trained parts; by the authors' conventions of the language model, too.

        There its dropout is active, as it is in the authors' code: every update seeds it.
        """
        super().train(mode)
        self.language.model.train(mode and self.language.manners.dropout)
        return self

    # ------------------------------------------------------------------------------------- training

    def forward(
        self, images: Tensor, text_ids: Tensor, text_mask: Tensor, text_places: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy (nats) of the text tokens, given the image (PAPER: the only loss).

        Args:
            images: (B, S, S, 3) uint8 pixels, or their cached features, (B, N, D_in) float.
            text_ids: (B, T) int64, right-padded, each text closed by a newline.
            text_mask: (B, T) bool, False at padding.
            text_places: see `evlgen.data.pairs.Batch`; without it a GPU is waited for.
        """
        features = self.encode(images)  # (B, N, D_in)
        prompt = self.soft_prompt(features)  # (B, N_out, D_llm)
        return self.token_losses(prompt, text_ids, text_mask, text_places).mean()

    def encode(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 pixels -> (B, N, D_in) features; features from a cache pass as they are."""
        features: Tensor = self.encoder(images)
        return features.to(self.norm.weight.device)

    def soft_prompt(self, features: Tensor) -> Tensor:
        """(B, N, D_in) image features -> (B, N_out, D_llm)."""
        prompt: Tensor = self.projection(self.connector(self.norm(features)))
        return prompt

    def token_losses(
        self, prompt: Tensor, text_ids: Tensor, text_mask: Tensor, text_places: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy (nats, float32 at least) of every text token, (K,) for K tokens in the mask.

        The soft prompt, the beginning-of-sequence token and padding carry no label. Padding stands behind the
        text, where a causal model never looks, so no attention mask is needed.

        Args:
            prompt: (B, N_out, D_llm).
            text_places: as in `forward`.
        """
        length = text_ids.shape[1]
        labelled = text_mask.flatten().nonzero()[:, 0] if text_places is None else text_places
        # A decoder predicts text token t at position P - 1 + t, T5's decoder at position t.
        with self._precision():
            if self.language.has_plain_head:
                output = self.language_output(prompt, text_ids)
                hidden = output.last_hidden_state[:, -length:]  # (B, T, D_llm)
                hidden = hidden.flatten(0, 1).index_select(0, labelled)  # the (K, D_llm) that have a label
                logits = self.language.model.get_output_embeddings()(hidden)
            else:
                output = self.language_output(prompt, text_ids, with_head=True)
                logits = output.logits[:, -length:]  # (B, T, V)
                logits = logits.flatten(0, 1).index_select(0, labelled)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return F.cross_entropy(logits, text_ids.flatten().index_select(0, labelled), reduction="none")

    def language_output(
        self, prompt: Tensor, text_ids: Tensor, with_head: bool = False, **options: Any
    ) -> Any:
        """Output of the language model, as `transformers` gives it; its last T positions predict the text.

        Args:
            prompt: (B, N_out, D_llm).
            text_ids: (B, T) int64.
            with_head: compute the logits, too; an encoder-decoder always does.
            options: for the model's forward, such as ``output_attentions``.
        """
        llm = self.language.model
        if self.language.is_encoder_decoder:
            shifted = F.pad(text_ids[:, :-1], (1, 0), value=llm.generation_config.decoder_start_token_id)
            embeds, _ = self.generation_inputs(prompt, [[]] * len(prompt))
            return llm(inputs_embeds=embeds, decoder_input_ids=shifted, use_cache=False, **options)
        body = llm if with_head else llm.base_model
        embeds = self.inputs_embeds(prompt, text_ids)
        if llm.config.model_type == "opt":
            # OPT would sum up a mask of ones, which has no fixed order, hence no fixed bits, on a GPU.
            options["position_ids"] = torch.arange(embeds.shape[1], device=embeds.device)[None]
        return body(inputs_embeds=embeds, use_cache=False, **options)

    def inputs_embeds(self, prompt: Tensor, text_ids: Tensor) -> Tensor:
        """Input embeddings of a decoder: soft prompt with beginning-of-sequence token (P positions), text.

        Args:
            prompt: (B, N_out, D_llm).
            text_ids: (B, T) int64.

        Returns:
            (B, P + T - 1, D_llm): the last token of the longest text predicts nothing.
        """
        if self.language.manners.scores_bos:  # the text begins with it
            prefix = prompt.to(self.language.model.dtype)
        else:
            prefix = self._with_bos(prompt)
        return torch.cat([prefix, self._embed_tokens(text_ids[:, :-1])], 1)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """No autocast for a language model in half precision: it computes in its own (T5 overflows in fp16).

        Autocast would change no product. But on a GPU it has each norm take its input in float32, a copy that
        the backward pass keeps.
        """
        dtype, device = self.language.model.dtype, self.norm.weight.device.type
        if dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(device):
            return torch.autocast(device, enabled=False)
        return contextlib.nullcontext()

    def _embed_tokens(self, ids: Tensor) -> Tensor:
        """(..., T) ids -> (..., T, D_llm)."""
        embedded: Tensor = self.language.model.get_input_embeddings()(ids)
        return embedded

    def _with_bos(self, prompt: Tensor) -> Tensor:
        """(B, P, D_llm): the soft prompt with the beginning-of-sequence token, where there is one."""
        prompt = prompt.to(self.language.model.dtype)
        bos_id = self.language.bos_id
        if self.language.bos_position == "none" or bos_id is None:
            return prompt
        bos = self._embed_tokens(torch.full((len(prompt), 1), bos_id, device=prompt.device))  # (B, 1, D_llm)
        return torch.cat([bos, prompt] if self.language.bos_position == "first" else [prompt, bos], 1)

    # ----------------------------------------------------------------------------------- generation

    def caption(self, images: Tensor, evaluation: EvalConfig) -> list[str]:
        """Captions by beam search, ended by a newline (PAPER: beam 5, 8 to 30 tokens).

        Lengths are in generated tokens: at least ``min_length`` before the newline, at most ``max_length``
        including it. By the authors' conventions one token more counts, and Vicuna ends with ``</s>``
        (`evlgen.conventions`).

        Args:
            images: (B, S, S, 3) uint8 pixels, or their features, (B, N, D_in) float.
        """
        with evaluating(self):
            prompt = self.soft_prompt(self.encode(images))
            with self._precision():
                inputs = self.generation_inputs(prompt, [[]] * len(prompt))
                return self._generate(*inputs, evaluation, "caption")

    def answer(self, images: Tensor, questions: Sequence[str], evaluation: EvalConfig) -> list[str]:
        """Short answers (PAPER: "Question: {} Short answer:", beam 5, 1 to 10 tokens, length penalty 0).

        Args:
            images: as in `caption`, one image a question.
        """
        with evaluating(self):
            asked = [prompt_of(question, self.language.manners) for question in questions]
            rows = self.language.tokenizer(asked, add_special_tokens=False)
            prompt = self.soft_prompt(self.encode(images))
            with self._precision():
                inputs = self.generation_inputs(prompt, rows["input_ids"])
                return self._generate(*inputs, evaluation, "answer")

    def generation_inputs(self, prompt: Tensor, questions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """``inputs_embeds`` (B, P + L, D_llm) and ``attention_mask`` (B, P + L) for ``generate``.

        Args:
            prompt: (B, N_out, D_llm).
            questions: token ids. An encoder-decoder's are closed by ``</s>``, empty ones included (LAVIS).
        """
        if self.language.is_encoder_decoder:
            questions = [[*row, self.language.end_id] for row in questions]
        return self._append_left_padded(self._with_bos(prompt), questions)

    def _append_left_padded(self, prefix: Tensor, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Prefix (B, P, D) and texts with padding in front: (B, P + L, D) and their mask (B, P + L)."""
        device = prefix.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        longest = int(lengths.max())
        padded = [list(row) + [0] * (longest - len(row)) for row in rows]
        ids = torch.tensor(padded, dtype=torch.long, device=device)  # (B, L)
        right = torch.cat([prefix, self._embed_tokens(ids)], 1)  # padding behind
        place = torch.arange(right.shape[1], device=device) - (longest - lengths)[:, None]  # (B, P + L)
        source = (place % right.shape[1])[..., None].expand_as(right)  # a rotation brings it to the front
        return right.gather(1, source), (place >= 0).long()

    def _generate(self, prompt: Tensor, mask: Tensor, evaluation: EvalConfig, task: Task) -> list[str]:
        """Beam search from embeddings (B, P, D_llm) and their mask (B, P), with padding in front."""
        llm, tokenizer = self.language.model, self.language.tokenizer
        settings = generation_config(self.language, evaluation, task)
        options = decoding_options(self.language, settings, task)
        if not self.language.is_encoder_decoder:
            check_room(llm.config, prompt.shape[1], settings, "question" if task == "answer" else "caption")
        if not self.language.is_encoder_decoder:
            cache = options["past_key_values"] = DynamicCache(config=llm.config)
            if prompt.shape[1] > 1:
                # The beams of an example share its prompt, so it is processed once and not once a beam.
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                llm.base_model(
                    inputs_embeds=prompt[:, :-1],
                    attention_mask=mask[:, :-1],
                    position_ids=positions[:, :-1],
                    past_key_values=cache,
                    use_cache=True,
                )
                cache.batch_repeat_interleave(evaluation.beams)
        generated = llm.generate(  # with embeddings as the prompt, only new tokens are returned
            inputs_embeds=prompt, attention_mask=mask, **options
        )
        if self.language.is_encoder_decoder:
            generated = generated[:, 1:]  # the token that its decoder starts from
        end = self.language.end_id
        rows = [[*itertools.takewhile(lambda token: token != end, row)] for row in generated.tolist()]
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


Model = CaptionModel | Stage1Model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the context, the former mode after it."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


# ------------------------------------------------------------------------------------------- building


def build_model(config: RunConfig) -> Model:
    """The untrained model of a run. Seed torch's global generator before: it draws the weights.

    Raises:
        UserError: the stage does not fit the connector, or something has a name that does not exist.
    """
    encoder = ImageEncoder(config.vision, config.conventions)
    if config.stage == "caption":
        language = build_language(config.language, config.conventions)
        return CaptionModel(encoder, build_connector(connector_of(config)), language)
    if not isinstance(config.connector, QFormerConfig):
        raise UserError("stage 'represent': it is a stage of the Q-Former; set connector.kind to qformer")
    tokenizer, _ = text_tokenizer(text_reader(config))
    connector = build_connector(config.connector, len(tokenizer) + 1)  # one id more than words: [DEC]
    assert isinstance(connector, QFormer)
    class_id = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    return Stage1Model(encoder, connector, int(class_id), config.objectives)


# ------------------------------------------------------------------------------------ saving and loading


def save_trained(model: Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the trained parts (norm, connector, projection) as safetensors, atomically.

    Args:
        metadata: for the header, as JSON under the one key ``evlgen``: safetensors writes several keys in
            random order, so the same weights would not give the same bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomic(path, save(tensors, metadata={"evlgen": json.dumps(dict(metadata), sort_keys=True)}))


def load_trained(model: Model, path: Path) -> None:
    """Load what `save_trained` wrote.

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
    """Parameters of each part: ``norm``, ``connector``, ``projection`` (trained), ``language (frozen)``.

    Of the image encoder only what is trained is counted: where features are cached it is not loaded at all.
    """
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    if not counts["encoder"]:
        del counts["encoder"]
    if isinstance(model, CaptionModel):
        counts["language (frozen)"] = sum(p.numel() for p in model.language.model.parameters())
    return counts


def weights_checksum(module: Any) -> str:
    """Hex SHA-256 over names and bytes of all parameters and buffers: equal only for equal bits."""
    return tensors_hash(module.state_dict())
