"""What a run costs: multiply-accumulates (MACs), parameters and memory, counted on the real modules.

Everything runs on torch's meta device, with shapes alone: the paper's sizes are counted in seconds on any
machine, without weights.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from evlgen.backbones.eva import EvaConfig, EvaViT
from evlgen.backbones.language import mini_model, mini_tokenizer
from evlgen.backbones.vision import ClipViT, MiniViT, MiniViTConfig, mini_clip_config
from evlgen.config import ConnectorConfig, Objective, QFormerConfig, RunConfig
from evlgen.connector_base import Connector
from evlgen.connectors import build_connector
from evlgen.data.pairs import Batch
from evlgen.errors import UserError
from evlgen.model import CaptionModel, Model, evaluating
from evlgen.qformer import QFormer
from evlgen.runs.identity import MINI_BERT, text_reader
from evlgen.stage1 import OBJECTIVES, stage1_losses

BERT_VOCABULARY = 30_522

# -------------------------------------------------------------------------------- counting on any module


class MacCounter(TorchDispatchMode):
    """Counts the MACs of all matrix products and convolutions inside, whichever module computes them.

    Attributes:
        all: MACs so far.
        linear: those of an input with a weight of ``module``: its linear layers, also those that are no
            ``nn.Linear`` (``nn.MultiheadAttention``). Word embeddings are no such weight, even where a head
            is tied to them. Biases count nothing.
    """

    def __init__(
        self, module: nn.Module | None = None, include: Callable[[str], bool] = lambda name: True
    ) -> None:
        """
        Args:
            module: whose weights `linear` is about.
            include: whether products with a weight count as linear, given the name of the submodule within
                ``module`` that owns it.
        """
        super().__init__()
        self.all = self.linear = 0
        self._weights: set[int] = set()
        if module is not None:
            words = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
            self._weights = {
                _memory(weight)
                for name, weight in module.named_parameters()
                if id(weight) not in words and include(name.rpartition(".")[0])
            }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flops = flop_registry.get(func._overloadpacket)
        if flops is None:
            with self:  # it may consist of other operations
                output = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if output is NotImplemented else output
        output = func(*args, **kwargs)
        macs = flops(*args, **kwargs, out_val=output) // 2  # the registry takes a MAC for two operations
        self.all += macs
        self.linear += macs if self._weights and any(map(self._is_weight, args)) else 0
        return output

    def _is_weight(self, value: object) -> bool:
        """Whether an argument is a weight, possibly transposed, and not a bias."""
        return isinstance(value, Tensor) and value.ndim >= 2 and _memory(value) in self._weights


def _memory(tensor: Tensor) -> int:
    """The same number for a tensor and its views."""
    return tensor.untyped_storage()._cdata


def linear_macs(
    module: nn.Module, *inputs: Tensor, include: Callable[[str], bool] = lambda name: True
) -> int:
    """MACs of the products with weights in one forward pass; biases count nothing.

    Args:
        inputs: what the module is called with; only shapes and dtypes are used.
        include: see `MacCounter`.
    """
    module = _on_meta(module)
    with torch.no_grad(), MacCounter(module, include) as counter:
        module(*_all_on_meta(inputs))
    return counter.linear


def full_macs(module: nn.Module, *inputs: Tensor) -> int:
    """MACs of all products in one forward pass.

    Beside the linear layers these are the attention's two products and the similarities of token merging.
    """
    with torch.no_grad(), MacCounter() as counter:
        _on_meta(module)(*_all_on_meta(inputs))
    return counter.all


@dataclass(frozen=True)
class StepCost:
    """Cost of a forward and a backward pass.

    Attributes:
        output: shape of the output.
        linear_macs: see `linear_macs`.
        full_macs: see `full_macs`.
        training_macs: all products of both passes. The backward pass computes gradients of the parameters
            that are trained and of the inputs that require one: for a frozen module that is one product where
            a trained one has two.
        activations: bytes kept for the backward pass, without parameters: the tensors that autograd saves,
            each memory once, inputs too where it needs them. Temporary memory is not counted, so the peak is
            somewhat higher. On the meta device attention runs in its plain form, which keeps its
            probabilities; the fused kernels of a GPU keep less.
    """

    output: torch.Size
    linear_macs: int
    full_macs: int
    training_macs: int
    activations: int


def step_cost(
    module: nn.Module,
    *inputs: Tensor,
    include: Callable[[str], bool] = lambda name: True,
    backward: bool = True,
) -> StepCost:
    """Counts one forward and one backward pass, in the module's mode (training or not) and dtype.

    Args:
        inputs, include: see `linear_macs`.
        backward: False skips the backward pass; ``training_macs`` are then ``full_macs``.
    """
    module = _on_meta(module)
    kept = _Kept(module)
    with MacCounter(module, include) as counter:
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            output: Tensor = module(*_all_on_meta(inputs))
        linear, forward, activations = counter.linear, counter.all, kept.bytes()
        if backward:
            output.backward(torch.empty_like(output))
    return StepCost(output.shape, linear, forward, counter.all, activations)


class _Kept:
    """The memory that autograd saves, without parameters and buffers of ``module``."""

    def __init__(self, module: nn.Module) -> None:
        self.owned = {_memory(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is reused

    def pack(self, tensor: Tensor) -> Tensor:
        if _memory(tensor) not in self.owned:
            self.storages[_memory(tensor)] = tensor.untyped_storage()
        return tensor

    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Number of parameters, or of those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy of the module on the meta device; the module itself stays as it is."""
    if all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        return module
    return copy.deepcopy(module).to("meta")


def _all_on_meta(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().to("meta").requires_grad_(tensor.requires_grad) for tensor in inputs)


class _FullTexts(TorchDispatchMode):
    """Gives meta tensors, which have no values, those of texts without padding.

    A bool that is read from a tensor is true; a whole number is the length of the texts.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else self.length
        return func(*args, **(kwargs or {}))


# ------------------------------------------------------------------------------------------- connectors


def connector_macs(config: ConnectorConfig, tokens: int) -> int:
    """MACs of a connector for one image by the convention of the paper's table 5.

    Only linear layers count: no attention products, no embeddings, no projection in or out. At the paper's
    sizes 257 tokens give 11.877 G for the TomeFormer and 6.279 G for the Q-Former (stage 2). Of LLaVA's MLP
    the hidden layers count; a single linear layer is a projection and pooling has no layer: both give 0.

    Args:
        tokens: image tokens, including the class token.
    """
    connector, image = meta_connector(config), image_features(config, tokens)
    return linear_macs(connector, image, include=is_counted)


def is_counted(name: str) -> bool:
    """Whether the paper's convention counts a connector's linear layer of this name."""
    return name.startswith("layers.")


def meta_connector(config: ConnectorConfig) -> Connector:
    """The connector on the meta device, without the text branch of stage 1."""
    with torch.device("meta"):
        return build_connector(dataclasses.replace(config, init="random")).eval()


def image_features(config: ConnectorConfig, tokens: int) -> Tensor:
    """Features of one image on the meta device, (1, tokens, D_in)."""
    return torch.empty(1, tokens, config.input_width, device="meta")


# ---------------------------------------------------------------------------------------------- stage 1


class Stage1(nn.Module):
    """LayerNorm and Q-Former with text branch: image features (B, N, D_in) -> the loss of stage 1.

    Every text has ``text_tokens`` tokens. Negatives need a second pair, so B is at least 2. Per sample only
    the contrastive similarities depend on B: they take B * queries * embed_dim.

    Args:
        objectives: the losses to compute.
    """

    def __init__(
        self, config: QFormerConfig, text_tokens: int, objectives: Sequence[Objective] = OBJECTIVES
    ) -> None:
        super().__init__()
        if not config.vocab_size:
            raise UserError("stage 1 needs a Q-Former with a text branch: set vocab_size")
        self.norm = nn.LayerNorm(config.encoder_width)
        self.connector = QFormer(config)
        self.text_tokens, self.objectives = text_tokens, tuple(objectives)

    def forward(self, features: Tensor) -> Tensor:
        shape = (len(features), self.text_tokens)
        ids = torch.zeros(shape, dtype=torch.int64, device=features.device)
        mask = torch.ones(shape, dtype=torch.bool, device=features.device)
        decode_id = self.connector.config.vocab_size - 1
        with _FullTexts(self.text_tokens):
            losses = stage1_losses(
                self.connector, self.norm(features), ids, mask, decode_id, objectives=self.objectives
            )
        return losses.total


def with_text_branch(config: RunConfig) -> QFormerConfig:
    """The Q-Former of a run of stage 1, with the vocabulary of the scale: BERT's, or the miniature's.

    Raises:
        UserError: the connector is another one.
    """
    if not isinstance(config.connector, QFormerConfig):
        raise UserError("stage 'represent': it is a stage of the Q-Former; set connector.kind to qformer")
    words = len(mini_tokenizer()) if text_reader(config) == MINI_BERT else BERT_VOCABULARY
    return dataclasses.replace(config.connector, vocab_size=words + 1)  # [DEC]


@dataclass(frozen=True)
class Stage1Macs:
    """MACs of the parts of stage 1's passes, for one sample.

    Attributes:
        image: the image's keys and values for all cross-attentions.
        queries: the queries through all layers, without ``image``.
        text: the text through all layers.
        generation: the dense layer of the generation head.
        vocabulary: the text's logits over the vocabulary.
    """

    image: int
    queries: int
    text: int
    generation: int
    vocabulary: int


def stage1_macs(config: QFormerConfig, tokens: int, text_tokens: int) -> Stage1Macs:
    """Counts on the real modules; ``config`` needs a vocabulary.

    Args:
        tokens: image tokens, including the class token.
        text_tokens: tokens of each text.
    """
    with torch.device("meta"):
        qformer = QFormer(config).eval()
        features = torch.empty(1, tokens, config.encoder_width)
        ids = torch.zeros(1, text_tokens, dtype=torch.int64)
        mask = torch.ones(1, text_tokens, dtype=torch.bool)

    def counted(call: Callable[[], Any], include: Callable[[str], bool] = lambda name: True) -> int:
        with torch.no_grad(), MacCounter(qformer, include) as counter:
            call()
        return counter.linear

    image = qformer.project_image(features)
    _, cache = qformer.encode_images(image, 1)
    generation = counted(
        lambda: qformer.decode_texts(cache, ids, mask), lambda name: name == "generation_dense"
    )
    return Stage1Macs(
        image=counted(lambda: qformer.project_image(features)),
        queries=counted(lambda: qformer.encode_images(image, 1)),
        text=counted(lambda: qformer.decode_texts(cache, ids, mask)) - generation,
        generation=generation,
        vocabulary=text_tokens * config.width * config.vocab_size,
    )


# ------------------------------------------------------------------------------------- frozen models


def meta_vision(name: str) -> tuple[nn.Module, Tensor, int]:
    """The image encoder called ``name`` on the meta device, an image for it, and its number of tokens.

    Raises:
        UserError: its architecture is not known here.
    """
    with torch.device("meta"):
        if name == "mini-vit":
            mini = MiniViTConfig()
            model: nn.Module = MiniViT(mini)
            size, grid = mini.image_size, mini.image_size // 8
        elif name == "eva-clip-g":
            eva = EvaConfig()
            model, size, grid = EvaViT(eva), eva.image_size, eva.grid
        elif name in ("mini-clip", "clip-vit-l"):
            clip: Any = mini_clip_config() if name == "mini-clip" else _clip_vit_l()
            clip.num_hidden_layers -= 1  # the last one is not run
            size, grid = clip.image_size, clip.image_size // clip.patch_size
            model = ClipViT(CLIPVisionModel(clip), size)
        else:
            known = "mini-vit, mini-clip, eva-clip-g, clip-vit-l"
            raise UserError(f"vision {name!r}: its cost is not known; it is of {known}")
        pixels = torch.empty(1, 3, size, size)
    return model.eval().requires_grad_(False), pixels, 1 + grid**2


def _clip_vit_l() -> CLIPVisionConfig:
    """As in the folder of openai/clip-vit-large-patch14."""
    return CLIPVisionConfig(
        image_size=224,
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
    )


def meta_language(name: str) -> Any:
    """The language model called ``name`` on the meta device, a transformers causal LM.

    Raises:
        UserError: its architecture is not known here.
    """
    opt = {"opt-2.7b": (2560, 32, 32), "opt-6.7b": (4096, 32, 32)}  # width, layers, heads
    llama = {  # width, intermediate, layers, heads, heads of keys and values, words, tied to the head
        "vicuna-7b": (4096, 11008, 32, 32, 32, 32_000, False),
        "vicuna-13b": (5120, 13824, 40, 40, 40, 32_000, False),
        "smollm2-135m": (576, 1536, 30, 9, 3, 49_152, True),
    }
    with torch.device("meta"):
        if name in ("mini-opt", "mini-llama"):
            model: Any = mini_model(name, len(mini_tokenizer()))
        elif name in opt:
            width, layers, heads = opt[name]
            model = OPTForCausalLM(
                OPTConfig(
                    hidden_size=width,
                    word_embed_proj_dim=width,
                    ffn_dim=4 * width,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                )
            )
        elif name in llama:
            width, intermediate, layers, heads, shared, words, tied = llama[name]
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=words,
                    hidden_size=width,
                    intermediate_size=intermediate,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    num_key_value_heads=shared,
                    tie_word_embeddings=tied,
                )
            )
        else:
            known = ", ".join(["mini-opt", "mini-llama", *opt, *llama])
            raise UserError(f"language {name!r}: its cost is not known; it is of {known}")
    return model.eval().requires_grad_(False)


class _Reader(nn.Module):
    """A language model over a soft prompt and a text: (B, P + T - 1, D_llm) -> logits of the text."""

    def __init__(self, language: Any, text_tokens: int) -> None:
        super().__init__()
        self.language, self.text_tokens = language, text_tokens

    def forward(self, inputs: Tensor) -> Tensor:
        with _FullTexts(self.text_tokens):
            hidden = self.language.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            logits: Tensor = self.language.get_output_embeddings()(hidden[:, -self.text_tokens :])
        return logits


# ----------------------------------------------------------------------------------------- whole runs


@dataclass(frozen=True)
class RunCost:
    """What a run costs, for one sample.

    Attributes:
        soft_tokens: length of the soft prompt; 0 in stage 1, which has none.
        macs: of the connector, by the paper's convention (`connector_macs`); in stage 1 all its linear
            layers in one call of `evlgen.stage1.stage1_losses`, without the logits over the vocabulary.
        full_macs: all matrix products of the trained part: also attention, merging, projections, heads.
        trained, vision, language: parameters; the last two are frozen.
        activations: bytes that the trained part keeps for its backward pass.
        language_activations: bytes that the frozen language model keeps, as gradients pass through it.
        vision_macs: image encoder, forward.
        trained_macs: trained part, forward and backward.
        language_macs: language model, forward, and backward to its inputs.
    """

    soft_tokens: int
    macs: int
    full_macs: int
    trained: int
    vision: int
    language: int
    activations: int
    language_activations: int
    vision_macs: int
    trained_macs: int
    language_macs: int

    @property
    def step_flop(self) -> int:
        """Floating-point operations of a training step for one sample, two for each MAC."""
        return 2 * (self.vision_macs + self.trained_macs + self.language_macs)


def run_cost(config: RunConfig) -> RunCost:
    """Counts one training step of a run, without the run it starts from.

    Texts have their full length (``data.max_text_tokens``). Activations are in the run's precision; mixed
    precision counts as 2 bytes everywhere, although norms and softmax stay in 4.

    Raises:
        UserError: the cost of the image encoder or the language model is not known.
    """
    half = config.optim.precision != "fp32"
    connector = with_text_branch(config) if config.stage == "represent" else config.connector
    text = config.data.max_text_tokens
    return _run_cost(connector, config.vision, config.language, text, half, config.objectives)


@functools.cache
def _run_cost(
    connector: ConnectorConfig,
    vision: str,
    language: str,
    text: int,
    half: bool,
    objectives: tuple[Objective, ...],
) -> RunCost:
    dtype = torch.float16 if half else torch.float32
    encoder, pixels, tokens = meta_vision(vision)
    features = image_features(connector, tokens).to(dtype)
    if isinstance(connector, QFormerConfig) and connector.vocab_size:
        with torch.device("meta"):
            trained: nn.Module = Stage1(connector, text, objectives).to(dtype)
        pair = step_cost(trained, torch.cat([features, features]))  # expanded, both would be one memory
        step = StepCost(
            pair.output,
            pair.linear_macs // 2,
            pair.full_macs // 2,
            pair.training_macs // 2,
            pair.activations // 2,
        )
        soft_tokens = language_parameters = language_activations = language_macs = 0
    else:
        llm = meta_language(language)
        width = llm.get_input_embeddings().embedding_dim
        trained = trained_part(connector, width).to(dtype)
        step = step_cost(trained, features, include=lambda name: is_counted(name.removeprefix("1.")))
        soft_tokens = step.output[1]
        # in front of the text: soft prompt and beginning of sequence; its last token predicts nothing
        inputs = torch.empty(1, soft_tokens + text, width, device="meta", dtype=dtype, requires_grad=True)
        reading = step_cost(_Reader(llm.to(dtype), text), inputs)
        language_parameters = count_parameters(llm)
        language_activations, language_macs = reading.activations, reading.training_macs
    return RunCost(
        soft_tokens=soft_tokens,
        macs=step.linear_macs,
        full_macs=step.full_macs,
        trained=count_parameters(trained),
        vision=count_parameters(encoder),
        language=language_parameters,
        activations=step.activations,
        language_activations=language_activations,
        vision_macs=full_macs(encoder, pixels),
        trained_macs=step.training_macs,
        language_macs=language_macs,
    )


def trained_part(config: ConnectorConfig, language_width: int) -> nn.Sequential:
    """What captioning trains, on the meta device: LayerNorm, connector, projection; as `CaptionModel`."""
    connector = meta_connector(config).train()
    with torch.device("meta"):
        return nn.Sequential(
            nn.LayerNorm(image_features(config, 1).shape[-1]),
            connector,
            nn.Linear(config.width, language_width),
        )


def training_flops(model: Model, batch: Batch) -> float:
    """FLOPs of training on one pair of this batch, from an extra forward pass over the batch.

    A backward pass counts as two forward passes of what is trained, and as one of the frozen language model,
    which needs gradients of its inputs only. The frozen image encoder is not counted.
    """
    trained, frozen = MacCounter(), MacCounter()
    with evaluating(model):
        features = model.encode(batch.images)
        if isinstance(model, CaptionModel):
            with trained:
                prompt = model.soft_prompt(features)
            with frozen:
                model.token_losses(prompt, batch.text_ids, batch.text_mask, batch.text_places)
        else:
            with trained:
                model.losses(features, batch.text_ids, batch.text_mask)
    return 2 * (3 * trained.all + 2 * frozen.all) / len(batch.text_ids)
