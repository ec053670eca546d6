"""Image features + connector + language model: what is trained, and how it captions and answers.

Only the LayerNorm on the image features, the connector and the projection to the width of the language model
are trained (PAPER). The language model is not a submodule of what is trained: parameters, state dict and
training mode of a model here are those of the trained parts alone, so nothing can thaw it by accident.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import BertModel, DynamicCache, GenerationConfig

from evlgen.config import ConnectorConfig, EvalConfig, RunConfig, TomeFormerConfig
from evlgen.data.miniworld import PROMPT
from evlgen.distributed import ALONE, Ranks
from evlgen.errors import UserError
from evlgen.files import write_atomic
from evlgen.language import FrozenLanguage, build_language, mini_tokenizer
from evlgen.qformer import QFormer, Stage1Losses, image_text_similarity, stage1_losses
from evlgen.tomeformer import TomeFormer

Connector = TomeFormer | QFormer


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
        inputs = self.inputs(prompt, text_ids)  # (B, P + T - 1, D_llm)
        hidden = self.language.model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        # Position P - 1 + t foretells text token t: (B, T, D_llm), then the (K, D_llm) that have a label
        hidden = hidden[:, -text_ids.shape[1] :]
        labelled = text_mask.flatten().nonzero()[:, 0]
        logits = self.language.model.get_output_embeddings()(hidden.flatten(0, 1).index_select(0, labelled))
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return F.cross_entropy(logits, text_ids.flatten().index_select(0, labelled), reduction="none")

    def inputs(self, prompt: Tensor, text_ids: Tensor) -> Tensor:
        """What the language model reads: beginning-of-sequence token, soft prompt (P positions), text.

        Args:
            prompt: (B, N_out, D_llm).
            text_ids: (B, T) int64.

        Returns:
            (B, P + T - 1, D_llm): the last token of the longest text predicts nothing.
        """
        return torch.cat([self._prefix(prompt), self._embed(text_ids[:, :-1])], 1)

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
            prefix = self._prefix(self.soft_prompt(features))
            mask = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
            return self._generate(
                prefix, mask, evaluation.beams, evaluation.min_length, evaluation.max_length, 1.0
            )

    def answer(self, features: Tensor, questions: Sequence[str], evaluation: EvalConfig) -> list[str]:
        """Short answers (PAPER: "Question: {} Short answer:", beam 5, 1 to 10 tokens, length penalty 0).

        Args:
            features: (B, N, D_in), one image a question.
        """
        with evaluating(self):
            prefix = self._prefix(self.soft_prompt(features))
            rows = self.language.tokenizer([PROMPT.format(q) for q in questions], add_special_tokens=False)
            prompt, mask = self._append_left_padded(prefix, rows["input_ids"])
            return self._generate(prompt, mask, evaluation.beams, 1, evaluation.answer_max_length, 0.0)

    def _append_left_padded(self, prefix: Tensor, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Prefix (B, P, D) and texts, padded in front: (B, P + L, D) and their mask (B, P + L)."""
        device = prefix.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        longest = int(lengths.max())
        padded = [list(row) + [0] * (longest - len(row)) for row in rows]
        right = torch.cat([prefix, self._embed(torch.tensor(padded, device=device))], 1)  # padding behind
        place = torch.arange(right.shape[1], device=device) - (longest - lengths)[:, None]  # (B, P + L)
        source = (place % right.shape[1])[..., None].expand_as(right)  # a rotation brings it to the front
        return right.gather(1, source), (place >= 0).long()

    def _generate(
        self, prompt: Tensor, mask: Tensor, beams: int, shortest: int, longest: int, length_penalty: float
    ) -> list[str]:
        """Beam search after a prompt of embeddings (B, P, D_llm) with its mask (B, P), padding in front."""
        llm, tokenizer = self.language.model, self.language.tokenizer
        cache = DynamicCache(config=llm.config)
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
        generated = llm.generate(
            inputs_embeds=prompt,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=GenerationConfig(
                num_beams=beams,
                do_sample=False,
                min_new_tokens=shortest,
                max_new_tokens=longest,
                length_penalty=length_penalty,
                eos_token_id=self.language.newline_id,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
            ),
        )
        rows = []
        for row in generated.tolist():  # with embeddings as the prompt, only new tokens are returned
            end = row.index(self.language.newline_id) if self.language.newline_id in row else len(row)
            rows.append(row[:end])
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


class RepresentModel(nn.Module):
    """BLIP-2's first stage: LayerNorm on the image features and a Q-Former with its text branch, no LLM.

    Args:
        connector: a Q-Former whose ``vocab_size`` has room for one id more than the tokenizer: [DEC].
        class_id: the token put in front of each text, whose output stands for it ([CLS]).
    """

    def __init__(self, connector: QFormer, feature_width: int, class_id: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_width)
        self.connector = connector
        self.class_id = class_id
        self.decode_id = connector.config.vocab_size - 1

    def losses(
        self,
        features: Tensor,
        text_ids: Tensor,
        text_mask: Tensor,
        generator: torch.Generator | None = None,
        ranks: Ranks = ALONE,
    ) -> Stage1Losses:
        """ITC, ITM and image-grounded LM loss of a batch; arguments as of `CaptionModel.loss`."""
        ids, mask = self._with_class(text_ids, text_mask)
        return stage1_losses(
            self.connector, self.norm(features), ids, mask, self.decode_id, generator=generator, ranks=ranks
        )

    def loss(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Sum of the three losses."""
        return self.losses(features, text_ids, text_mask).total

    def forward(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """As `loss`."""
        return self.loss(features, text_ids, text_mask)

    def embed_images(self, features: Tensor) -> Tensor:
        """(B, N, D_in) -> (B, Q, E) unit vectors of the contrastive space."""
        queries = self.connector(self.norm(features))
        return F.normalize(self.connector.image_projection(queries), dim=-1)

    def embed_texts(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """(B, T) ids -> (B, E) unit vectors of the contrastive space."""
        summary = self.connector.read(*self._with_class(text_ids, text_mask))
        return F.normalize(self.connector.text_projection(summary), dim=-1)

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """(B, Q, E) and (C, E) -> (B, C), the best of the queries (BLIP-2)."""
        return image_text_similarity(images, texts)

    def _with_class(self, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        return F.pad(text_ids, (1, 0), value=self.class_id), F.pad(text_mask, (1, 0), value=True)


Model = CaptionModel | RepresentModel


@contextmanager
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
    width = feature_width(config.connector)
    if config.stage == "caption":
        return CaptionModel(build_connector(config.connector), build_language(config.language), width)
    if isinstance(config.connector, TomeFormerConfig):
        raise UserError("stage 'represent': it is a stage of the Q-Former; set connector.kind to qformer")
    tokenizer = mini_tokenizer()
    connector = build_connector(config.connector, len(tokenizer) + 1)  # one id more than words: [DEC]
    assert isinstance(connector, QFormer)
    return RepresentModel(connector, width, int(tokenizer.bos_token_id))


def feature_width(config: ConnectorConfig) -> int:
    """Width of the image features that a connector takes."""
    return config.input_width if isinstance(config, TomeFormerConfig) else config.encoder_width


def build_connector(config: ConnectorConfig, vocab_size: int = 0) -> Connector:
    """Connector with random weights, or with BERT's where ``init`` names them.

    Args:
        config: its ``vocab_size`` is not used: whether there is a text branch depends on the stage alone.
        vocab_size: of the Q-Former's text branch; 0 leaves it out.

    Raises:
        UserError: the weights that ``init`` names cannot be had or do not fit.
    """
    if isinstance(config, TomeFormerConfig):
        connector: Connector = TomeFormer(config)
    else:
        connector = QFormer(dataclasses.replace(config, vocab_size=vocab_size))
    if config.init != "random":
        connector.load_bert(_bert_weights(config.init))
    return connector


def _bert_weights(name: str) -> dict[str, Tensor]:
    """BERT's tensors from a safetensors file, or from the model hub's cache under a model's name."""
    if name.endswith(".safetensors"):
        if not Path(name).exists():
            raise UserError(f"connector.init {name!r}: no such file")
        return load_file(name)
    try:
        return dict(BertModel.from_pretrained(name, use_safetensors=True).state_dict())
    except (OSError, ValueError) as error:
        raise UserError(
            f"connector.init {name!r}: not 'random', nor a .safetensors file, nor a BERT that can be loaded "
            f"({str(error).splitlines()[0]})"
        ) from error


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
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
