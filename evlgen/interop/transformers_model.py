"""The whole model as one of `transformers`: image encoder, connector and LLM in a folder that stands alone.

A finished run captions a photo, and answers a question about it::

    from PIL import Image
    from evlgen.interop import from_run
    model, processor, tokenizer = from_run("run")
    photo = Image.open("photo.png")
    print(processor.batch_decode(model.generate(**processor(photo, return_tensors="pt"))))
    asked = processor(photo, text="What color is the ball?", return_tensors="pt")
    print(processor.batch_decode(model.generate(**asked)))

Model and processor have ``save_pretrained(folder)``, both into the same folder. It then holds everything, the
frozen parts and the tokenizer as well, and needs neither the run nor ``EVLGEN_WEIGHTS``; to keep the trained
parts alone, keep the run's ``connector.safetensors``. With this module imported they are read again by their
own ``from_pretrained``, by ``AutoModelForImageTextToText`` and ``AutoProcessor``, or by a pipeline::

    model = EVLGenForConditionalGeneration.from_pretrained(folder)
    processor = EVLGenProcessor.from_pretrained(folder)
    ask = pipeline("image-text-to-text", model=folder)  # ask("photo.png", text="What color is the ball?")
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    GenerationMixin,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutput

from evlgen.backbones.beams import check_room, decoding_options, generation_config
from evlgen.backbones.eva import EvaConfig, EvaViT
from evlgen.backbones.language import ENCODER_DECODERS, PLAIN_HEADS, FrozenLanguage, build_language
from evlgen.backbones.pretrained import first_mismatch, read_state
from evlgen.backbones.vision import (
    ClipViT,
    FrozenVision,
    ImageEncoder,
    MiniViT,
    MiniViTConfig,
    build_vision,
)
from evlgen.config import TomeFormerConfig, from_json, to_json
from evlgen.connectors import build_connector
from evlgen.conventions import Manners, Task, connector_of
from evlgen.errors import UserError
from evlgen.interop.processor import EVLGenImageProcessor, EVLGenProcessor
from evlgen.interop.run_folders import located, read_run_config, trained_weights
from evlgen.model import CaptionModel, evaluating, load_trained
from evlgen.runs.choice import changed_since
from evlgen.runs.folder import CONFIG
from evlgen.runtime.device import chosen
from evlgen.runtime.sources import fingerprint_of_weights

_ENCODERS: dict[str, tuple[Any, Any]] = {
    "eva-vit": (EvaViT, EvaConfig),
    "mini-vit": (MiniViT, MiniViTConfig),
}
_CLIP_FIELDS = (  # of `CLIPVisionConfig`, those that decide the features
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)


# Short answers (PAPER: 1 to 10 tokens, length penalty 0), where the run does not say otherwise.
_ANSWERING = {"min_new_tokens": 1, "max_new_tokens": 10, "length_penalty": 0.0}


class EVLGenConfig(PretrainedConfig):
    """What `EVLGenForConditionalGeneration` is made of; the defaults are the paper's, with OPT-2.7B.

    Args:
        connector: ``kind`` and the fields of that connector's configuration (`evlgen.config`).
        vision: ``kind`` (``eva-vit``, ``mini-vit`` or ``clip``) and the fields of that encoder's
            configuration; CLIP's layers are those in front of its last one, which is not there.
        text_config: of the LLM, a causal one or T5: a configuration of `transformers` or its fields with
            ``model_type``.
        prompting: how the LLM is prompted: ``bos_position`` (see `FrozenLanguage`), and the token ids
            ``bos``, ``pad`` and ``end``, which ends a caption; of T5 also ``decoder_start``. ``text_bos`` is
            the token that the tokenizer puts in front of a text by itself.
        answering: how answers are generated, where that differs from the ``generation_config``, which is for
            captions: fields of `GenerationConfig`.
        manners: how the LLM is asked by the conventions of the run: fields of `evlgen.conventions.Manners`.
        rounds_features: features of images are rounded to fp16, as in training (`ImageEncoder`).
    """

    model_type = "evlgen"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  # as all of transformers' models have it

    def __init__(
        self,
        connector: dict[str, Any] | None = None,
        vision: dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        prompting: dict[str, Any] | None = None,
        answering: dict[str, Any] | None = None,
        manners: dict[str, Any] | None = None,
        rounds_features: bool = True,
        **kwargs: Any,
    ) -> None:
        self.connector = connector or to_json(TomeFormerConfig())
        self.vision = vision or {"kind": "eva-vit", **to_json(EvaConfig())}
        if text_config is None:
            text_config = OPTConfig(
                hidden_size=2560,
                word_embed_proj_dim=2560,
                ffn_dim=10240,
                num_hidden_layers=32,
                num_attention_heads=32,
            )
        elif isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        # OPT's tokenizer: </s> begins a text, <pad> is 1, and 50118 is the newline.
        self.prompting = prompting or {"bos_position": "after_prompt", "bos": 2, "pad": 1, "end": 50118}
        self.answering = dict(_ANSWERING if answering is None else answering)
        self.manners = dict(manners or {})
        self.rounds_features = rounds_features
        super().__init__(**kwargs)

    @property
    def image_size(self) -> int:
        """Pixels of a side of the images."""
        size: int = self.vision["image_size"]
        return size


@dataclass(frozen=True)
class _SpecialTokens:
    """What `CaptionModel` asks of a tokenizer where it is given ids instead of texts."""

    bos_token_id: int | None
    pad_token_id: int | None


class EVLGenForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """`CaptionModel` with its frozen image encoder and LLM, all of them submodules.

    The frozen parts need no gradient and stay in eval mode. Loading in half precision is for them alone; the
    trained parts stay in float32 (PAPER: encoder and LLM in fp16). Gradient checkpointing is refused.

    Raises:
        UserError: the configuration is wrong.
    """

    config_class = EVLGenConfig
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["caption_model"]  # noqa: RUF012

    def __init__(self, config: EVLGenConfig) -> None:
        super().__init__(config)
        kind, writes_apart = config.text_config.model_type, config.text_config.is_encoder_decoder
        if writes_apart and kind not in ENCODER_DECODERS:
            raise UserError(f"text_config: of the encoder-decoders only T5 is supported, not {kind!r}")
        connector = from_json({"connector": config.connector}).connector
        # the LLM comes first: transformers takes a model's dtype from its first parameter
        model_class = AutoModelForSeq2SeqLM if writes_apart else AutoModelForCausalLM
        self.language_model = model_class.from_config(config.text_config)
        self.vision = _build_encoder(config.vision)
        self.caption_model = CaptionModel(
            ImageEncoder(
                FrozenVision(self.vision, connector.input_width, tokens=0, fingerprint="")
            ),  # for caches alone
            build_connector(dataclasses.replace(connector, init="random")),
            self._frozen_language(),
        )
        start = None
        if writes_apart:
            start = config.prompting.get("decoder_start", config.prompting["pad"])  # T5's convention
            self.language_model.generation_config = GenerationConfig(decoder_start_token_id=start)
        self.generation_config = GenerationConfig(
            bos_token_id=config.prompting["bos"],
            pad_token_id=config.prompting["pad"],
            eos_token_id=config.prompting["end"],
            decoder_start_token_id=start,
        )
        self.post_init()
        self.freeze()

    def _frozen_language(self) -> FrozenLanguage:
        """The LLM as `CaptionModel` wants it."""
        prompting, llm = self.config.prompting, self.language_model
        tokenizer = cast(Any, _SpecialTokens(prompting["bos"], prompting["pad"]))
        width = llm.get_input_embeddings().embedding_dim
        return FrozenLanguage(
            llm,
            tokenizer,
            width,
            prompting["bos_position"],
            prompting["end"],
            "",
            is_encoder_decoder=llm.config.is_encoder_decoder,
            has_plain_head=llm.config.model_type in PLAIN_HEADS,
        )

    def freeze(self) -> None:
        """The image encoder and the LLM need no gradient and are in eval mode."""
        for part in (self.vision, self.language_model):
            part.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> EVLGenForConditionalGeneration:
        """Training mode of the trained parts; the frozen ones stay in eval mode."""
        super().train(mode)
        self.vision.eval()
        self.language_model.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The LLM's."""
        return cast(nn.Module, self.language_model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        """The LLM's."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The LLM's head."""
        return cast(nn.Module, self.language_model.get_output_embeddings())

    def set_output_embeddings(self, value: nn.Module) -> None:
        """The LLM's head."""
        self.language_model.set_output_embeddings(value)

    def soft_prompt(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, N_out, D_llm).

        Raises:
            UserError: images of another size.
        """
        size = self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, size, size):
            raise UserError(
                f"pixel_values: shape {tuple(pixel_values.shape)}, the model wants (batch, 3, {size}, {size})"
            )
        with torch.no_grad():
            weight = max(self.vision.parameters(), key=lambda parameter: parameter.dtype.itemsize)
            features = self.vision(pixel_values.to(weight.device, weight.dtype))
        if self.config.rounds_features:
            features = features.to(torch.float16)
        return self.caption_model.soft_prompt(features.to(self.caption_model.norm.weight.dtype))

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Loss and logits of texts, given their images.

        Args:
            pixel_values: (B, 3, S, S), of `EVLGenImageProcessor`.
            input_ids: (B, T) int64 text tokens, without the beginning-of-sequence token, which is put where
                the LLM wants it. T5's decoder writes them.
            attention_mask: (B, T), 1 at text and 0 at padding, which is behind the text.
            labels: (B, T), `input_ids` with -100 at positions without a loss; padding never has one.

        Returns:
            ``loss`` (mean cross-entropy of the labelled tokens, nats; None without labels) and ``logits``
            (B, 1 + T, V): entry t predicts text token t, and the last one what follows them. There are none
            at the positions of the soft prompt, which predict nothing.

        Raises:
            UserError: padding in front of a text, texts of no token or not one an image, or images of another
                size.
        """
        _check_texts(pixel_values, input_ids, attention_mask)
        if input_ids.shape[1] == 0:
            raise UserError("input_ids: texts of no token; forward wants one at least")
        if attention_mask is not None and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            raise UserError(
                "attention_mask: forward wants the padding behind the texts (padding_side='right')"
            )
        # `language_output` drops the last token, which predicts nothing there; here it does
        text, keep = F.pad(input_ids, (0, 1)), input_ids.shape[1] + 1
        options = {} if self.config.text_config.is_encoder_decoder else {"logits_to_keep": keep}
        prompt = self.soft_prompt(pixel_values)
        output = self.caption_model.language_output(prompt, text, with_head=True, **options)
        logits = output.logits[:, -keep:]  # (B, 1 + T, V)
        loss = None
        if labels is not None:
            if attention_mask is not None:
                labels = labels.masked_fill(attention_mask == 0, -100)
            wide = torch.promote_types(logits.dtype, torch.float32)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).to(wide), labels.flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def generate(  # type: ignore[override]  # as transformers' own image-text models
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Caption images, or answer prompts about them.

        Args:
            pixel_values: (B, 3, S, S), of `EVLGenImageProcessor`.
            input_ids: (B, T) int64 prompts, as ``processor(images, text=questions)`` gives them; None or
                T = 0: captions. The beginning-of-sequence token, which the model puts where it belongs, is
                left out if a tokenizer has put one in front. T5's may be closed by ``</s>`` or not.
            attention_mask: (B, T), 1 at the prompt and 0 at padding, which is in front of it (for T5 on
                either side).
            generation_config: what it does not say is as in the model's own, which is the run's (PAPER:
                beam 5; captions of 8 to 30 tokens, answers to prompts of 1 to 10).
            kwargs: for `transformers`' ``generate``: ``num_beams``, ``max_new_tokens``, ``do_sample``, ...
                All lengths are those of the new tokens, also ``max_length``.

        Returns:
            (B, new tokens) int64, or what ``return_dict_in_generate`` asks for. The prompt is not repeated,
            nor the token that T5's decoder starts from.

        Raises:
            UserError: padding behind a prompt, prompts that are not one an image, or images of another size.
        """
        if input_ids is not None:
            _check_texts(pixel_values, input_ids, attention_mask)
            input_ids, attention_mask = self._without_bos(input_ids, attention_mask)
        task: Task = "caption" if input_ids is None else "answer"
        with evaluating(self):
            prompt = self.soft_prompt(pixel_values)
            decoding = self._decoding(generation_config, task, kwargs)
            if self.config.text_config.is_encoder_decoder:
                return self._write_apart(prompt, input_ids, attention_mask, decoding)
            if input_ids is None:
                input_ids, attention_mask = (
                    torch.zeros(len(prompt), 0, dtype=torch.long, device=prompt.device),
                    None,
                )
            inputs = self.caption_model.inputs_embeds(prompt, F.pad(input_ids, (0, 1)))  # (B, P + T, D_llm)
            settings = decoding["generation_config"]
            check_room(self.config.text_config, inputs.shape[1], settings, "input_ids")
            mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
            if attention_mask is not None:
                if not bool(attention_mask[:, -1].all()):
                    raise UserError("attention_mask: generate wants padding in front (padding_side='left')")
                mask[:, mask.shape[1] - input_ids.shape[1] :] = attention_mask
            return self.language_model.generate(inputs_embeds=inputs, attention_mask=mask, **decoding)

    def _without_bos(
        self, input_ids: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Prompts with the token that a tokenizer puts in front masked; None where nothing is left."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        begins = {self.config.prompting["bos"], self.config.prompting.get("text_bos")} - {None}
        if input_ids.shape[1] and begins and not self.config.text_config.is_encoder_decoder:
            first = mask.long().argmax(1, keepdim=True)  # of each prompt
            is_bos = torch.isin(
                input_ids.gather(1, first), torch.tensor(sorted(begins), device=input_ids.device)
            )
            mask = mask.scatter(1, first, mask.gather(1, first).masked_fill(is_bos, 0))
        if not mask.any():
            return None, None
        if not bool(mask.any(1).all()):
            raise UserError(
                "input_ids: some prompts are empty, which asks for captions, and others are not; "
                "ask for captions and for answers one after the other"
            )
        return input_ids, mask

    def _decoding(
        self, given: GenerationConfig | None, task: Task, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Arguments for the LLM's ``generate``: what was asked for, for the rest the run's own settings."""
        settings = GenerationConfig() if given is None else copy.deepcopy(given)
        rest = settings.update(**options)
        for limit in ("max", "min"):  # with embeddings as the prompt only new tokens are counted
            new, length = f"{limit}_new_tokens", f"{limit}_length"
            if getattr(settings, new) is None:
                setattr(settings, new, getattr(settings, length))
            setattr(settings, length, None)
        own = self.generation_config.to_dict()
        if task == "answer":
            own |= self.config.answering
        longest, shortest = settings.max_new_tokens, own.get("min_new_tokens")
        if longest is not None and shortest is not None:
            own["min_new_tokens"] = min(shortest, longest)  # a short limit that was asked for holds
        settings.update(**own, defaults_only=True)
        language = dataclasses.replace(self._frozen_language(), manners=self._manners())
        extra = decoding_options(language, settings, task)
        if extra.get("logits_processor") and rest.get("logits_processor"):
            rest["logits_processor"] = [*extra["logits_processor"], *rest["logits_processor"]]
        return {"generation_config": settings, **extra, **rest}

    def _manners(self) -> Manners:
        fields: dict[str, Any] = dict(self.config.manners)
        if "counts_start" in fields:  # JSON knows no tuples
            fields["counts_start"] = tuple(fields["counts_start"])
        return Manners(**fields)

    def _write_apart(
        self,
        prompt: Tensor,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        decoding: dict[str, Any],
    ) -> Any:
        """`generate` of an encoder-decoder: what its decoder writes behind the token it starts from."""
        rows: list[list[int]] = [[]] * len(prompt)
        if input_ids is not None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            asked = [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, mask, strict=True)]
            end = self.config.prompting["end"]
            # `generation_inputs` closes each
            rows = [row[:-1] if row[-1:] == [end] else row for row in asked]
        inputs, mask = self.caption_model.generation_inputs(prompt, rows)
        written = self.language_model.generate(inputs_embeds=inputs, attention_mask=mask, **decoding)
        if isinstance(written, Tensor):
            return written[:, 1:]
        written.sequences = written.sequences[:, 1:]
        return written

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
        """As in `transformers` (``dtype``, ``device_map``, ...).

        Raises:
            UserError: the weights are not whole; `transformers` would draw random ones for what is missing.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        name = pretrained_model_name_or_path
        loaded: Any = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise UserError(f"{name}: {len(missing)} tensors are missing, the first is {missing[0]}")
        model.freeze()  # transformers gives every tensor that it loads a gradient
        return (model, info) if wants_info else model


def _check_texts(pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> None:
    if input_ids.ndim != 2 or len(input_ids) != len(pixel_values):
        raise UserError(
            f"input_ids: shape {tuple(input_ids.shape)}; expected (batch, tokens), one text for each of the "
            f"{len(pixel_values)} images"
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise UserError(
            f"attention_mask: shape {tuple(attention_mask.shape)}, expected the shape of input_ids, "
            f"{tuple(input_ids.shape)}"
        )


def _build_encoder(fields: dict[str, Any]) -> nn.Module:
    kind, fields = fields.get("kind"), {key: value for key, value in fields.items() if key != "kind"}
    if kind == "clip":
        for key in fields.keys() ^ set(_CLIP_FIELDS):
            raise UserError(f"vision.{key}: of clip exactly these are expected: {', '.join(_CLIP_FIELDS)}")
        return ClipViT(CLIPVisionModel(CLIPVisionConfig(**fields)), fields["image_size"])
    if kind not in _ENCODERS:
        raise UserError(f"vision.kind {kind!r}: there are {', '.join([*_ENCODERS, 'clip'])}")
    module, config = _ENCODERS[kind]
    return cast(nn.Module, module(config(**fields)))


def _encoder_fields(encoder: nn.Module) -> dict[str, Any]:
    if isinstance(encoder, ClipViT):
        return {"kind": "clip", **{key: getattr(encoder.model.config, key) for key in _CLIP_FIELDS}}
    for kind, (module, _) in _ENCODERS.items():
        if isinstance(encoder, module):
            return {"kind": kind, **to_json(encoder.config)}
    raise UserError(
        f"{type(encoder).__name__}: this image encoder has no configuration in a transformers folder"
    )


# ----------------------------------------------------------------------------------------- from a run


def from_run(
    folder: str | Path,
) -> tuple[EVLGenForConditionalGeneration, EVLGenProcessor, PreTrainedTokenizerFast]:
    """Model, processor and tokenizer of a finished run, or of a folder that `evlgen.interop.convert`
    has made.

    The frozen parts are the ones that the run names. All models in this process that were built from the same
    names share them: moving one of these to another device or dtype moves the parts of all.

    If the behaviour of the code or the frozen weights are others than when the run was trained, a warning
    says so.

    Args:
        folder: has ``config.json`` and ``connector.safetensors``; or the id of a run in the run store, or the
            beginning of one.

    Raises:
        UserError: a file is missing, damaged or does not fit, the run is of stage 1, or weights are missing.
    """
    folder = located(folder)
    run = read_run_config(folder / CONFIG)
    if run.stage != "caption":
        raise UserError(
            f"{folder}: a run of the stage {run.stage!r} has no language model; take one that captions"
        )
    vision, language = (
        build_vision(run.vision, run.conventions),
        build_language(run.language, run.conventions),
    )
    if run.connector.input_width != vision.width:
        raise UserError(
            f"{folder}: connector: takes image features of width {run.connector.input_width}, "
            f"{run.vision} gives {vision.width}"
        )
    connector = dataclasses.replace(connector_of(run), init="random")  # its weights are in the file
    tokenizer = language.tokenizer
    prompting = {
        "bos_position": language.bos_position,
        "bos": language.bos_id,
        "pad": tokenizer.pad_token_id,
        "end": language.end_id,
        "text_bos": tokenizer.bos_token_id,
    }
    if language.is_encoder_decoder:
        prompting["decoder_start"] = language.model.generation_config.decoder_start_token_id
    config = EVLGenConfig(
        connector=to_json(connector),
        vision=_encoder_fields(vision.model),
        text_config=copy.deepcopy(language.model.config),
        prompting=prompting,
        manners=dataclasses.asdict(language.manners),
        rounds_features=run.conventions != "authors",
    )
    captions = generation_config(language, run.evaluation, "caption").to_dict()
    answers = generation_config(language, run.evaluation, "answer").to_dict()
    config.answering = {key: value for key, value in answers.items() if value != captions[key]}
    with torch.device("meta"):  # every part is replaced
        model = EVLGenForConditionalGeneration(config)
    model.language_model, model.vision = language.model, vision.model
    model.caption_model = CaptionModel(
        ImageEncoder(vision), build_connector(connector), model._frozen_language()
    )
    _load_trained(model.caption_model, trained_weights(folder))
    if changed := changed_since(folder, run, fingerprint_of_weights):
        warnings.warn(f"{folder}: was trained with {'; '.join(changed)}", stacklevel=2)
    model.generation_config.update(**{key: value for key, value in captions.items() if value is not None})
    device: Any = chosen()
    model.to(device)  # the parts may have been on different ones
    processor = EVLGenProcessor(
        EVLGenImageProcessor(config.image_size, vision.mean, vision.std),
        tokenizer,
        language.end_id,
        cleans_questions=language.manners.cleans_questions,
        closes=language.is_encoder_decoder,
    )
    return model.eval(), processor, processor.tokenizer


def _load_trained(model: CaptionModel, path: Path) -> None:
    """`load_trained`, which of another architecture names the first tensor that does not fit."""
    try:
        load_trained(model, path)
    except UserError as error:
        if not isinstance(error.__cause__, RuntimeError):  # missing or damaged
            raise
        state = read_state(path)
        if (wrong := first_mismatch(model, state)) is not None:
            key, found, wanted = wrong
            message = f"{key} has shape {'none' if found is None else found}, expected {wanted}"
        else:
            key = min(state.keys() - model.state_dict().keys())
            message = f"{key} has shape {tuple(state[key].shape)}, expected none"
        raise UserError(f"{path}: is not of the model in {CONFIG}: {message}") from error


AutoConfig.register(EVLGenConfig.model_type, EVLGenConfig, exist_ok=True)
AutoModelForImageTextToText.register(EVLGenConfig, EVLGenForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(EVLGenConfig, slow_image_processor_class=EVLGenImageProcessor, exist_ok=True)
AutoProcessor.register(EVLGenConfig, EVLGenProcessor, exist_ok=True)
