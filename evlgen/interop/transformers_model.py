"""The whole model as one of `transformers`: image encoder, connector and LLM in a folder that stands alone.

A finished run captions a photo::

    from PIL import Image
    from evlgen.interop import from_run
    model, processor, tokenizer = from_run("run")
    ids = model.generate(**processor(Image.open("photo.png"), return_tensors="pt"))
    print(tokenizer.batch_decode(ids, skip_special_tokens=True))

Each of the three has ``save_pretrained(folder)``, all into the same folder. It then holds everything, the
frozen parts as well, and needs neither the run nor ``EVLGEN_WEIGHTS``; to keep the trained parts alone, keep
the run's ``connector.safetensors``. With this module imported the three are read again by their own
``from_pretrained`` or by ``AutoModelForImageTextToText``, ``AutoImageProcessor`` and ``AutoTokenizer``::

    model = EVLGenForConditionalGeneration.from_pretrained(folder)
    processor = EVLGenImageProcessor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    BatchFeature,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    GenerationMixin,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import CausalLMOutput

from evlgen.backbones.eva import EvaConfig, EvaViT
from evlgen.backbones.language import ENCODER_DECODERS, PLAIN_HEADS, FrozenLanguage, build_language
from evlgen.backbones.pretrained import first_mismatch, read_state
from evlgen.backbones.vision import (
    CLIP_MEAN,
    CLIP_STD,
    ClipViT,
    FrozenVision,
    ImageEncoder,
    MiniViT,
    MiniViTConfig,
    build_vision,
)
from evlgen.config import TomeFormerConfig, from_json, to_json
from evlgen.connectors import build_connector
from evlgen.errors import UserError
from evlgen.interop.run_folders import read_run_config, trained_weights
from evlgen.model import CaptionModel, evaluating, load_trained
from evlgen.runs.folder import CONFIG

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


class EVLGenConfig(PretrainedConfig):
    """What `EVLGenForConditionalGeneration` is made of; the defaults are the paper's, with OPT-2.7B.

    Args:
        connector: ``kind`` and the fields of that connector's configuration (`evlgen.config`).
        vision: ``kind`` (``eva-vit``, ``mini-vit`` or ``clip``) and the fields of that encoder's
            configuration; CLIP's layers are those in front of its last one, which is not there.
        text_config: of the LLM, a causal one or T5: a configuration of `transformers` or its fields with
            ``model_type``.
        prompting: how the LLM is prompted: ``bos_position`` (see `FrozenLanguage`), and the token ids
            ``bos``, ``pad`` and ``end``, which ends a caption; of T5 also ``decoder_start``.
    """

    model_type = "evlgen"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  # as all of transformers' models have it

    def __init__(
        self,
        connector: dict[str, Any] | None = None,
        vision: dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        prompting: dict[str, Any] | None = None,
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
            weight = next(self.vision.parameters())
            features = self.vision(pixel_values.to(weight.device, weight.dtype))
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
            input_ids: (B, T) int64 prompts, without the beginning-of-sequence token; None: a caption. T5's
                may be closed by ``</s>`` or not.
            attention_mask: (B, T), 1 at the prompt and 0 at padding, which is in front of it (for T5 on
                either side).
            generation_config: None: the model's own, from the run (PAPER: beam 5, 8 to 30 tokens).
            kwargs: for `transformers`' ``generate``: ``num_beams``, ``max_new_tokens``, ``do_sample``, ...

        Returns:
            (B, new tokens) int64, or what ``return_dict_in_generate`` asks for. The prompt is not repeated,
            nor the token that T5's decoder starts from.

        Raises:
            UserError: padding behind a prompt, prompts that are not one an image, or images of another size.
        """
        if input_ids is not None:
            _check_texts(pixel_values, input_ids, attention_mask)
            if input_ids.shape[1] == 0:  # no prompts
                input_ids = attention_mask = None
        with evaluating(self):
            prompt = self.soft_prompt(pixel_values)
            decoding = {"generation_config": generation_config or self.generation_config, **kwargs}
            if self.config.text_config.is_encoder_decoder:
                return self._write_apart(prompt, input_ids, attention_mask, decoding)
            if input_ids is None:
                input_ids, attention_mask = (
                    torch.zeros(len(prompt), 0, dtype=torch.long, device=prompt.device),
                    None,
                )
            inputs = self.caption_model.inputs_embeds(prompt, F.pad(input_ids, (0, 1)))  # (B, P + T, D_llm)
            mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
            if attention_mask is not None:
                if not bool(attention_mask[:, -1].all()):
                    raise UserError("attention_mask: generate wants padding in front (padding_side='left')")
                mask[:, mask.shape[1] - input_ids.shape[1] :] = attention_mask
            return self.language_model.generate(inputs_embeds=inputs, attention_mask=mask, **decoding)

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
) -> tuple[EVLGenForConditionalGeneration, EVLGenImageProcessor, PreTrainedTokenizerFast]:
    """Model, image processor and tokenizer of a finished run, or of a folder that `evlgen.interop.convert`
    has made.

    The frozen parts are the ones that the run names. All models in this process that were built from the same
    names share them: moving one of these to another device or dtype moves the parts of all.

    Args:
        folder: has ``config.json`` and ``connector.safetensors``.

    Raises:
        UserError: a file is missing, damaged or does not fit, the run is of stage 1, or weights are missing.
    """
    folder = Path(folder)
    run = read_run_config(folder / CONFIG)
    if run.stage != "caption":
        raise UserError(
            f"{folder}: a run of the stage {run.stage!r} has no language model; take one that captions"
        )
    vision, language = build_vision(run.vision), build_language(run.language, run.conventions)
    if run.connector.input_width != vision.width:
        raise UserError(
            f"{folder}: connector: takes image features of width {run.connector.input_width}, "
            f"{run.vision} gives {vision.width}"
        )
    connector = dataclasses.replace(run.connector, init="random")  # its weights are in the file
    tokenizer = language.tokenizer
    prompting = {
        "bos_position": language.bos_position,
        "bos": language.bos_id,
        "pad": tokenizer.pad_token_id,
        "end": language.end_id,
    }
    if language.is_encoder_decoder:
        prompting["decoder_start"] = language.model.generation_config.decoder_start_token_id
    config = EVLGenConfig(
        connector=to_json(connector),
        vision=_encoder_fields(vision.model),
        text_config=copy.deepcopy(language.model.config),
        prompting=prompting,
    )
    with torch.device("meta"):  # every part is replaced
        model = EVLGenForConditionalGeneration(config)
    model.language_model, model.vision = language.model, vision.model
    model.caption_model = CaptionModel(
        ImageEncoder(vision), build_connector(connector), model._frozen_language()
    )
    _load_trained(model.caption_model, trained_weights(folder))
    model.generation_config.num_beams = run.evaluation.beams
    model.generation_config.min_new_tokens = run.evaluation.min_length
    model.generation_config.max_new_tokens = run.evaluation.max_length
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)  # the parts may have been on different ones
    processor = EVLGenImageProcessor(config.image_size, vision.mean, vision.std)
    return model.eval(), processor, tokenizer


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


# ------------------------------------------------------------------------------------ image processor


class EVLGenImageProcessor(BaseImageProcessor):
    """Images of any size -> pixels for the image encoder: bicubic to a square, scaled, normalised (PAPER).

    Args:
        size: pixels of a side (paper: 224; miniature: 64).
        image_mean, image_std: of the channels, in 0..1 (default: CLIP's, as in the paper).
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        size: int = 224,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.image_mean, self.image_std = size, list(image_mean), list(image_std)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """``pixel_values``, (B, 3, size, size) float32.

        Args:
            images: an image or a sequence of them. An image is one of PIL in any mode of 8 bits, or an array
                or tensor of shape (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4, uint8 or float in 0..1.
                An array of four dimensions is a batch. Transparency is dropped.
            return_tensors: ``"pt"`` for torch, ``"np"`` for numpy.

        Raises:
            UserError: there are no images, or one of them is none of these.
        """
        single = isinstance(images, Image.Image) or (hasattr(images, "ndim") and images.ndim < 4)
        several = [images] if single else list(images)
        if not several:
            raise UserError("images: the list is empty; one at least is needed")
        pixels = [self._pixels(image, index) for index, image in enumerate(several)]
        return BatchFeature({"pixel_values": np.stack(pixels)}, tensor_type=return_tensors)

    def _pixels(self, image: Any, index: int) -> npt.NDArray[np.float32]:
        """(3, size, size)."""
        picture = image if isinstance(image, Image.Image) else _as_picture(image, index)
        if picture.mode[0] in "IF":
            raise UserError(f"image {index}: has mode {picture.mode}; convert it to 8 bits a channel")
        if 0 in picture.size:
            raise UserError(f"image {index}: is empty, {picture.width} x {picture.height} pixels")
        picture = picture.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        scaled = np.asarray(picture, dtype=np.float32) / 255
        mean, std = (np.array(each, dtype=np.float32) for each in (self.image_mean, self.image_std))
        return ((scaled - mean) / std).transpose(2, 0, 1).astype(np.float32, copy=False)


def _as_picture(image: Any, index: int) -> Image.Image:
    if not isinstance(image, np.ndarray | Tensor):
        raise UserError(f"image {index}: is a {type(image).__name__}; give a PIL image or an array")
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in (3, 4)):
        raise UserError(
            f"image {index}: has shape {array.shape}; (H, W) or (H, W, C) with C = 1, 3 or 4 is expected"
        )
    if np.issubdtype(array.dtype, np.floating):
        if array.size and not (array.min() >= 0 and array.max() <= 1):
            raise UserError(
                f"image {index}: floats from {array.min():g} to {array.max():g}; 0 to 1 is expected"
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(f"image {index}: has type {array.dtype}; uint8 or floats in 0..1 are expected")
    if 0 in array.shape:
        raise UserError(f"image {index}: is empty, shape {array.shape}")
    return Image.fromarray(array)


AutoConfig.register(EVLGenConfig.model_type, EVLGenConfig, exist_ok=True)
AutoModelForImageTextToText.register(EVLGenConfig, EVLGenForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(EVLGenConfig, slow_image_processor_class=EVLGenImageProcessor, exist_ok=True)
