"""The model as one of transformers: its forward and generate against `CaptionModel` and the bare LLM, its
folder, and what its image processor takes."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    T5Config,
)

from evlgen.backbones.eva import EvaConfig
from evlgen.backbones.language import FrozenLanguage, word_tokenizer
from evlgen.backbones.vision import ImageEncoder, MiniViTConfig, build_vision
from evlgen.config import ConnectorConfig, EvalConfig, RunConfig, TomeFormerConfig, to_json
from evlgen.errors import UserError
from evlgen.interop import transformers_model as subject
from evlgen.interop.convert import checkpoint_names
from evlgen.interop.convert import main as convert_main
from evlgen.interop.processor import EVLGenImageProcessor, EVLGenProcessor
from evlgen.interop.run_folders import read_run_config
from evlgen.interop.transformers_model import EVLGenConfig, EVLGenForConditionalGeneration, from_run
from evlgen.model import CaptionModel, build_model, load_trained, save_trained
from evlgen.runs.folder import read_json, write_json
from tests.evlgen import folders, tiny

ENCODERS: dict[str, dict[str, Any]] = {
    "mini-vit": {
        "kind": "mini-vit",
        **to_json(MiniViTConfig(24, stem_width=8, width=tiny.WIDTH, num_layers=1, intermediate=16)),
    },
    "eva-vit": {
        "kind": "eva-vit",
        **to_json(EvaConfig(42, 14, tiny.WIDTH, num_layers=1, num_heads=2, intermediate=16)),
    },
    "clip": {
        "kind": "clip",
        "image_size": 24,
        "patch_size": 8,
        "num_channels": 3,
        "hidden_size": tiny.WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",  # not the default
        "layer_norm_eps": 1e-3,
    },
}
PROMPTING = {"bos_position": "first", "bos": 1, "pad": 0, "end": 3}
TOKENIZER = word_tokenizer([tiny.WORDS])
SIZES = {"vocab_size": len(TOKENIZER), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "max_position_embeddings": 64}


def text_config(architecture: str) -> PretrainedConfig:
    if architecture == "opt":
        return OPTConfig(**SIZES, **SPECIAL, ffn_dim=32, word_embed_proj_dim=16)
    if "t5" in architecture:
        shape = {"vocab_size": len(TOKENIZER), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
        flan = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        return T5Config(**shape, num_layers=2, dropout_rate=0.1, **(flan if "flan" in architecture else {}))
    return LlamaConfig(**SIZES, **SPECIAL, intermediate_size=32, tie_word_embeddings=False)


def model_of(
    architecture: str = "opt",
    connector: ConnectorConfig = tiny.TOMEFORMER,
    encoder: str = "mini-vit",
    bos_position: str = "first",
) -> EVLGenForConditionalGeneration:
    """In float32, eval mode, with weights large enough that every term matters."""
    torch.manual_seed(0)
    prompting: dict[str, Any] = {**PROMPTING, "bos_position": bos_position}
    if "t5" in architecture:
        prompting |= {"bos_position": "none", "bos": None, "decoder_start": 2}  # not the padding
    config = EVLGenConfig(to_json(connector), ENCODERS[encoder], text_config(architecture), prompting)
    model = EVLGenForConditionalGeneration(config)
    if architecture == "flan-t5":  # its head is not its embeddings, as transformers first has it
        head = model.language_model.lm_head
        head.weight = torch.nn.Parameter(torch.randn_like(head.weight), requires_grad=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.eval()
    return model


def rounded(features: Tensor) -> Tensor:
    """As a run rounds them, whether they come from a cache or not."""
    return features.half().to(features.dtype)


def pixels(count: int, size: int = 24) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that is finished, though it has learnt nothing: ``run`` below `tmp_path`."""
    return finished(tmp_path / "run", 96)


def finished(folder: Path, input_width: int, r: int = 20, **names: str) -> Path:
    """Write the folder of a run; ``names`` are those of its encoder and LLM if not the default ones."""
    connector = TomeFormerConfig(
        input_width=input_width, width=16, num_layers=2, num_heads=2, intermediate=32, max_positions=80, r=r
    )
    config = RunConfig(connector, evaluation=EvalConfig(beams=2, min_length=3, max_length=6), **names)  # type: ignore[arg-type]
    torch.manual_seed(0)
    save_trained(build_model(config), folder / "connector.safetensors", {})
    write_json(folder / "config.json", to_json(config))
    return folder


# ------------------------------------------------------------------------------------ forward, generate


@pytest.mark.parametrize("architecture", ["opt", "llama"])
@pytest.mark.parametrize("bos_position", ["first", "after_prompt", "none"])
def test_forward(architecture: str, bos_position: str) -> None:
    """Against the bare LLM over a sequence put together by hand, and against `CaptionModel.loss`."""
    model = model_of(architecture, bos_position=bos_position).double()
    images, llm = pixels(3).double(), model.language_model
    ids = torch.randint(4, 20, (3, 5))
    mask = torch.arange(5) < torch.tensor([5, 2, 4])[:, None]
    labels = ids.masked_fill(~mask, -100)
    out = model(images, ids, mask.long(), labels)
    assert out.logits.shape == (3, 6, len(TOKENIZER))

    total, count = torch.tensor(0.0, dtype=torch.float64), 0
    for got, image, row, length in zip(out.logits, images, ids, (5, 2, 4), strict=True):
        embed = llm.get_input_embeddings()
        soft = model.caption_model.soft_prompt(rounded(model.vision(image[None])))[0]
        bos = embed(torch.tensor([1]))
        front = {"first": [bos, soft], "after_prompt": [soft, bos], "none": [soft]}[bos_position]
        logits = llm(inputs_embeds=torch.cat([*front, embed(row[:length])])[None]).logits[0]
        logits = logits[-length - 1 :]  # from the last position in front of the text
        torch.testing.assert_close(got[: length + 1], logits, rtol=0, atol=1e-10)
        total, count = total + F.cross_entropy(logits[:-1], row[:length], reduction="sum"), count + length
    torch.testing.assert_close(out.loss, total / count, rtol=0, atol=1e-10)
    expected = model.caption_model(rounded(model.vision(images)), ids, mask)
    torch.testing.assert_close(out.loss, expected, rtol=0, atol=1e-10)

    assert model(images, ids).loss is None
    last = model(images, ids, labels=ids.masked_fill(torch.arange(5) < 4, -100)).loss
    torch.testing.assert_close(last, F.cross_entropy(model(images, ids).logits[:, 4], ids[:, 4]))
    with pytest.raises(UserError, match="behind the texts"):
        model(images, ids, mask.long().flip(1))


@pytest.mark.parametrize("architecture", ["t5", "flan-t5"])
def test_forward_of_an_encoder_decoder(architecture: str) -> None:
    """The encoder reads soft prompt and end token; the decoder starts from its own token."""
    model = model_of(architecture, encoder="clip").double()
    images, llm = pixels(3).double(), model.language_model
    ids = torch.randint(4, 20, (3, 5))
    mask = torch.arange(5) < torch.tensor([5, 2, 4])[:, None]
    out = model(images, ids, mask.long(), ids)
    assert out.logits.shape == (3, 6, len(TOKENIZER))
    end = llm.get_input_embeddings()(torch.tensor([PROMPTING["end"]]))
    losses = []
    for got, image, row, length in zip(out.logits, images, ids, (5, 2, 4), strict=True):
        soft = model.caption_model.soft_prompt(rounded(model.vision(image[None])))[0]
        written = torch.cat([torch.tensor([2]), row[:length]])[None]
        logits = llm(inputs_embeds=torch.cat([soft, end])[None], decoder_input_ids=written).logits[0]
        torch.testing.assert_close(got[: length + 1], logits, rtol=0, atol=1e-10)
        losses.append(F.cross_entropy(logits[:-1], row[:length], reduction="none"))
    torch.testing.assert_close(out.loss, torch.cat(losses).mean(), rtol=0, atol=1e-10)
    expected = model.caption_model(rounded(model.vision(images)), ids, mask)
    torch.testing.assert_close(out.loss, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ["opt", "llama"])
def test_texts_that_do_not_go_with_the_images(architecture: str) -> None:
    model, images = model_of(architecture), pixels(3)
    none, two = torch.zeros(3, 0, dtype=torch.long), torch.full((2, 4), 5)
    with pytest.raises(UserError, match=r"^input_ids: texts of no token"):
        model(images, none, labels=none)
    for call in (model, model.generate):
        with pytest.raises(UserError, match=r"^input_ids: shape \(2, 4\).* each of the 3 images"):
            call(images, two)
        with pytest.raises(UserError, match=r"^attention_mask: shape \(3, 2\), expected .*\(3, 4\)"):
            call(images, torch.full((3, 4), 5), torch.ones(3, 2))
    how = {"num_beams": 2, "max_new_tokens": 4}
    assert model.generate(images, none, none, **how).equal(model.generate(images, **how))


def test_words_can_be_added() -> None:
    model = model_of("opt")
    model.resize_token_embeddings(len(TOKENIZER) + 3)
    assert model(pixels(2), torch.full((2, 4), 5)).logits.shape[-1] == len(TOKENIZER) + 3


@pytest.mark.parametrize("architecture", ["opt", "llama", "t5"])
@pytest.mark.parametrize("bos_position", ["first", "after_prompt"])
def test_generate(architecture: str, bos_position: str) -> None:
    """As `CaptionModel` captions and answers, prompts padded in front."""
    model = model_of(architecture, bos_position=bos_position)
    apart = architecture == "t5"
    captioner = CaptionModel(
        model.caption_model.encoder,
        model.caption_model.connector,
        FrozenLanguage(
            model.language_model,
            TOKENIZER,
            16,
            "none" if apart else bos_position,  # type: ignore[arg-type]
            PROMPTING["end"],  # type: ignore[arg-type]
            "",
            is_encoder_decoder=apart,
            has_plain_head=not apart,
        ),
    ).eval()
    captioner.load_state_dict(model.caption_model.state_dict())
    images = pixels(3)
    features = rounded(model.vision(images))
    decoding = EvalConfig(beams=3, min_length=2, max_length=6, answer_max_length=5)

    def decode(ids: Tensor) -> list[str]:
        rows = [row[: row.index(3)] if 3 in row else row for row in ids.tolist()]
        return [text.strip() for text in TOKENIZER.batch_decode(rows, skip_special_tokens=True)]

    ids = model.generate(images, num_beams=3, min_new_tokens=2, max_new_tokens=6)
    assert decode(ids) == captioner.caption(features, decoding)

    questions = ["what is it?", "it?", "what is the blue ball on the grass?"]
    prompts = [f"Question: {question} Short answer:" for question in questions]
    encoded = TOKENIZER(
        prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    encoded.pop("token_type_ids", None)
    how = {"num_beams": 3, "min_new_tokens": 1, "max_new_tokens": 5, "length_penalty": 0.0}
    together = model.generate(images, **encoded, **how)
    assert decode(together) == captioner.answer(features, questions, decoding)
    if apart:
        rows = TOKENIZER(prompts, add_special_tokens=False)["input_ids"]
        closed = {"input_ids": [[*row, PROMPTING["end"]] for row in rows]}  # as T5's tokenizer does
        behind = TOKENIZER.pad(closed, padding_side="right", return_tensors="pt")
        again = model.generate(images, **behind, **how, return_dict_in_generate=True)
        assert again.sequences.equal(together)
    else:
        with pytest.raises(UserError, match="padding in front"):
            model.generate(images, encoded.input_ids, encoded.attention_mask.flip(1))
    assert not model.training


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_only_the_connector_learns() -> None:
    model = model_of().train()
    assert model.caption_model.training
    assert not any(part.training for part in (*model.vision.modules(), *model.language_model.modules()))
    before = {name: value.clone() for name, value in model.vision.state_dict().items()}
    model(
        pixels(2), torch.tensor([[5, 6, 3], [7, 8, 3]]), labels=torch.tensor([[5, 6, 3], [7, 8, 3]])
    ).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("caption_model."), name
    assert all(
        value.equal(model.vision.state_dict()[name]) for name, value in before.items()
    )  # batch norms too
    model.generate(pixels(1), max_new_tokens=2)
    assert model.caption_model.training  # as before
    with pytest.raises(ValueError, match="does not support"):
        model.gradient_checkpointing_enable()


# ------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("connector", [tiny.TOMEFORMER, tiny.QFORMER], ids=["tomeformer", "qformer"])
@pytest.mark.parametrize("architecture", ["opt", "llama", "t5", "flan-t5"])
def test_saved_and_loaded(
    tmp_path: Path, architecture: str, connector: ConnectorConfig, encoder: str
) -> None:
    """Bit for bit, the LLM's tied and untied weights among them."""
    model = model_of(architecture, connector, encoder)
    model.generation_config.num_beams = 4
    model.save_pretrained(tmp_path)
    loaded = EVLGenForConditionalGeneration.from_pretrained(tmp_path)
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(value.equal(again[name]) for name, value in state.items())
    images, ids = pixels(2, model.config.image_size), torch.tensor([[5, 6], [7, 3]])
    torch.testing.assert_close(loaded(images, ids).logits, model(images, ids).logits)
    assert loaded.generation_config.num_beams == 4
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    assert not loaded.training
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == (architecture in ("opt", "t5"))
    torch.testing.assert_close(
        loaded.generate(images, max_new_tokens=4), model.generate(images, max_new_tokens=4)
    )


def test_half_precision_is_for_the_frozen_parts(tmp_path: Path) -> None:
    model = model_of()
    model.language_model.half()
    model.vision.half()
    model.save_pretrained(tmp_path)
    for dtype, wanted in (("auto", torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float64,) * 2):
        loaded = EVLGenForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in loaded.language_model.parameters()} == {wanted}
        assert {p.dtype for p in loaded.vision.parameters()} == {wanted}
        for name, value in model.caption_model.state_dict().items():
            again = loaded.caption_model.state_dict()[name]
            assert again.dtype == (torch.float64 if wanted == torch.float64 else torch.float32)
            assert again.equal(value.to(again.dtype))
        if wanted != torch.float16:  # the CPU convolves in every type but this
            ids = torch.tensor([[5, 6]])
            out = loaded(pixels(1), ids, labels=ids)
            assert out.loss.isfinite()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["caption_model.connector.positions"], tensors["vision.class_token"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="2 tensors are missing, the first is caption_model"):
        EVLGenForConditionalGeneration.from_pretrained(tmp_path)


def test_the_defaults_are_the_paper() -> None:
    config = EVLGenConfig()
    assert config.image_size == 224
    with torch.device("meta"):
        model = EVLGenForConditionalGeneration(config)
    assert sum(p.numel() for p in model.language_model.parameters()) == 2_651_596_800  # OPT-2.7B
    assert model.caption_model.projection.weight.shape == (2560, 768)
    assert len(model.vision.blocks) == 39


def test_wrong_configurations() -> None:
    with pytest.raises(UserError, match=r"vision\.kind 'vit': there are eva-vit, mini-vit, clip"):
        EVLGenForConditionalGeneration(
            EVLGenConfig(to_json(tiny.TOMEFORMER), {"kind": "vit"}, text_config("opt"), PROMPTING)
        )
    with pytest.raises(UserError, match=r"connector\.layers: no such key"):
        EVLGenForConditionalGeneration(
            EVLGenConfig(
                {"kind": "qformer", "layers": 2}, ENCODERS["mini-vit"], text_config("opt"), PROMPTING
            )
        )
    with pytest.raises(UserError, match="only T5 is supported, not 'bart'"):
        EVLGenForConditionalGeneration(EVLGenConfig(text_config={"model_type": "bart"}))
    for wrong in ({"depth": 3}, {"hidden_act": None}):
        fields = {key: value for key, value in {**ENCODERS["clip"], **wrong}.items() if value is not None}
        with pytest.raises(UserError, match=rf"vision\.{next(iter(wrong))}: of clip exactly these"):
            EVLGenForConditionalGeneration(EVLGenConfig(to_json(tiny.TOMEFORMER), fields, text_config("opt")))
    with pytest.raises(UserError, match=r"wants \(batch, 3, 24, 24\)"):
        model_of()(pixels(1, 18), torch.tensor([[5]]))


# ---------------------------------------------------------------------------------------------- a run


def test_the_example(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The example of the module's docstring, as it stands."""
    assert subject.__doc__ is not None
    block = subject.__doc__.split("a question about it::\n\n")[1].split("\n\n")[0]
    example = textwrap.dedent(block)
    monkeypatch.chdir(run.parent)
    Image.new("RGB", (90, 41), "red").save("photo.png")
    names: dict[str, Any] = {}
    exec(example, names)
    caption, answer = map(ast.literal_eval, capsys.readouterr().out.splitlines())
    model, features = (
        names["model"],
        build_vision("mini-vit").encode(np.full((1, 64, 64, 3), (255, 0, 0), np.uint8)),
    )
    evaluation = EvalConfig(beams=2, min_length=3, max_length=6)
    captioner = CaptionModel(
        ImageEncoder("mini-vit"), model.caption_model.connector, subject.build_language("mini-opt")
    )
    captioner.load_state_dict(model.caption_model.state_dict())
    assert caption == captioner.caption(features, evaluation)
    assert answer == captioner.answer(features, ["What color is the ball?"], evaluation)

    for part in (model, names["processor"]):
        part.save_pretrained("folder")
    loaded = AutoModelForImageTextToText.from_pretrained("folder")
    assert isinstance(loaded, EVLGenForConditionalGeneration)
    assert all(value.equal(loaded.state_dict()[name]) for name, value in model.state_dict().items())
    trained = load_file(run / "connector.safetensors")
    assert all(value.equal(loaded.caption_model.state_dict()[name]) for name, value in trained.items())
    images = AutoImageProcessor.from_pretrained("folder")
    assert isinstance(images, EVLGenImageProcessor)
    assert (images.size, images.image_mean, images.image_std) == (64, [0.0] * 3, [1.0] * 3)
    processor = AutoProcessor.from_pretrained("folder")
    assert isinstance(processor, EVLGenProcessor)
    photo = Image.open("photo.png")
    assert processor.batch_decode(loaded.generate(**processor(photo, return_tensors="pt"))) == caption
    asked = processor(photo, text="What color is the ball?", return_tensors="pt")
    assert processor.batch_decode(loaded.generate(**asked)) == answer
    ids = AutoTokenizer.from_pretrained("folder").encode("a red ball", add_special_tokens=False)
    assert ids == names["tokenizer"].encode("a red ball", add_special_tokens=False)


@pytest.mark.parametrize(
    ("vision", "language"), [("clip", "t5"), ("clip", "flan-t5"), ("mini-clip", "mini-opt")]
)
def test_runs_with_clip_and_t5(tmp_path: Path, vision: str, language: str) -> None:
    """From the folders of the frozen models: as `CaptionModel` captions and answers, and saved for itself."""
    names, width, size = {"vision": vision, "language": language}, 64, 64
    if vision == "clip":
        width, size = tiny.WIDTH, 24
        shape = {"hidden_size": width, "intermediate_size": 16, "num_attention_heads": 2}
        clip = CLIPVisionModel(CLIPVisionConfig(**shape, num_hidden_layers=3, image_size=size, patch_size=8))
        clip.save_pretrained(tmp_path / "clip")
        names["vision"] = str(tmp_path / "clip")
    if "t5" in language:
        names["language"] = str(folders.write(language, tmp_path / language))
    folder = finished(tmp_path / "run", width, r=2, **names)
    model, processor, tokenizer = from_run(folder)

    config = read_run_config(folder / "config.json")
    captioner = build_model(config)
    load_trained(captioner, folder / "connector.safetensors")
    assert isinstance(captioner, CaptionModel)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    features = build_vision(names["vision"]).encode(images)

    decode = processor.batch_decode
    inputs = processor(images, return_tensors="pt")
    captions = captioner.caption(features, config.evaluation)
    assert decode(model.generate(**inputs)) == captions
    questions = ["a red ball?", "a boat?"]
    asked = processor(images, text=questions, return_tensors="pt")
    assert decode(model.generate(**asked)) == captioner.answer(features, questions, config.evaluation)
    prompts = tokenizer(
        [f"Question: {question} Short answer:" for question in questions],
        add_special_tokens="t5" in language,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    prompts.pop("token_type_ids", None)
    answers = model.generate(
        **inputs, **prompts, num_beams=2, min_new_tokens=1, max_new_tokens=10, length_penalty=0.0
    )
    assert decode(answers) == captioner.answer(features, questions, config.evaluation)

    for part in (model, processor):
        part.save_pretrained(tmp_path / "whole")
    loaded = EVLGenForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert all(value.equal(loaded.state_dict()[name]) for name, value in model.state_dict().items())
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    pixel_values = inputs.pixel_values
    torch.testing.assert_close(loaded(pixel_values, ids).logits, model(pixel_values, ids).logits)
    again = EVLGenProcessor.from_pretrained(tmp_path / "whole")
    assert again.batch_decode(loaded.generate(**again(images, return_tensors="pt"))) == captions
    asked = again(images, text=questions, return_tensors="pt")
    answers = captioner.answer(features, questions, config.evaluation)
    assert again.batch_decode(loaded.generate(**asked)) == answers


def test_from_a_converted_checkpoint(run: Path, tmp_path: Path) -> None:
    """Authors' names -> evlgen.interop.convert -> from_run."""
    trained = load_file(run / "connector.safetensors")
    connector = read_run_config(run / "config.json").connector
    state: dict[str, Tensor] = {}
    for ours, keys in checkpoint_names(connector, "evlgen", "opt_proj").items():
        state |= dict(zip(keys, trained[ours].chunk(len(keys)), strict=True))
    key = "VLconnector.embeddings.token_type_embeddings.weight"
    state[key] = torch.cat([state[key], torch.zeros_like(state[key])])
    torch.save({"model": {name: value.clone() for name, value in state.items()}}, tmp_path / "theirs.pth")
    arguments = [str(tmp_path / "theirs.pth"), str(tmp_path / "out"), "--config", str(run / "config.json")]
    assert convert_main(arguments) == 0
    model, _, _ = from_run(tmp_path / "out")
    assert all(value.equal(model.caption_model.state_dict()[name]) for name, value in trained.items())


def test_runs_that_cannot_be_taken(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.config.json: no such file"):
        from_run(tmp_path / "none")
    stored = read_json(run / "config.json")
    assert stored is not None

    def expect(message: str, **changes: Any) -> None:
        write_json(run / "config.json", {**stored, **changes})
        with pytest.raises(UserError, match=message):
            from_run(run)

    expect("takes image features of width 8, mini-vit gives 96", connector=to_json(tiny.TOMEFORMER))
    expect("of the stage 'represent'", connector=to_json(tiny.QFORMER), stage="represent")
    layers = stored["connector"]["num_layers"]
    deeper = {**stored["connector"], "num_layers": layers + 1}
    expect(
        rf"safetensors: is not of the model in config.json: .*\.{layers}\..* has shape none, expected",
        connector=deeper,
    )
    shallower = {**stored["connector"], "num_layers": layers - 1}
    expect(rf"is not of the model .*\.{layers - 1}\..* has shape \(.*\), expected none", connector=shallower)
    (run / "connector.safetensors").unlink()
    expect("has not finished its training")
