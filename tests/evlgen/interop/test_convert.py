"""Checkpoints of the published forms, tiny and random, against the models of transformers they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    OPTConfig,
)
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from evlgen.config import QFormerConfig, RunConfig, TomeFormerConfig, to_json
from evlgen.connectors import build_connector
from evlgen.errors import UserError
from evlgen.interop.convert import Layout, checkpoint_names, convert, main
from evlgen.interop.run_folders import read_run_config
from evlgen.model import (
    CaptionModel,
    init_from_stage1,
    load_trained,
)
from evlgen.qformer import QFormer
from evlgen.runs.folder import write_json
from evlgen.stage1 import Stage1Model
from tests.evlgen import tiny

TOMEFORMER = dataclasses.replace(tiny.TOMEFORMER, r=0)
VOCABULARY = 23
QFORMER = dataclasses.replace(tiny.QFORMER, num_layers=3, num_heads=4)


def randomise(*modules: nn.Module) -> None:
    """Float64, eval mode, and weights large enough that every term matters."""
    generator = torch.Generator().manual_seed(5)
    for module in modules:
        module.double().eval().requires_grad_(False)
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in module.state_dict().items()}


def write_config(path: Path, config: RunConfig) -> Path:
    write_json(path, to_json(config))
    return path


def caption_model(connector: TomeFormerConfig | QFormerConfig) -> CaptionModel:
    language = tiny.language(dtype=torch.float64)
    return CaptionModel(tiny.encoder(), build_connector(connector), language).double().eval()


def save_as_lavis(path: Path, state: Mapping[str, Tensor]) -> Path:
    """As its runner does: what was trained, beside the optimiser and the rest."""
    rest = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "config": {"run": {}}}
    torch.save({"model": dict(state), **rest, "scaler": None, "epoch": 3}, path)
    return path


# ---------------------------------------------------------------------------------------- EVLGen's


@dataclasses.dataclass
class Theirs:
    """The authors' model, put together from transformers' parts; merging is left out (r = 0)."""

    ln_vision: nn.LayerNorm
    proj: nn.Linear
    connector: BertModel
    llm_proj: nn.Linear

    def soft_prompt(self, features: Tensor) -> Tensor:
        hidden = self.connector(inputs_embeds=self.proj(self.ln_vision(features))).last_hidden_state
        prompt: Tensor = self.llm_proj(hidden)
        return prompt

    def state(self, projection: str) -> dict[str, Tensor]:
        bert = {  # their BERT has no word embeddings
            key: value for key, value in prefixed("VLconnector", self.connector).items() if "word_" not in key
        }
        parts = prefixed("ln_vision", self.ln_vision) | prefixed("VL_proj", self.proj) | bert
        return parts | prefixed(projection, self.llm_proj)


@pytest.fixture
def theirs() -> Theirs:
    config = BertConfig(
        vocab_size=7,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    model = Theirs(
        nn.LayerNorm(tiny.WIDTH),
        nn.Linear(tiny.WIDTH, 16),
        BertModel(config, add_pooling_layer=False),
        nn.Linear(16, 16),
    )
    randomise(model.ln_vision, model.proj, model.connector, model.llm_proj)
    return model


def test_help_names_what_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "evlgen.interop.convert [-h] CHECKPOINT OUT" in capsys.readouterr().out


@pytest.mark.parametrize("projection", ["opt_proj", "llm_proj"])
def test_evlgen(tmp_path: Path, theirs: Theirs, projection: str) -> None:
    path = save_as_lavis(tmp_path / "checkpoint_3.pth", theirs.state(projection))
    config = RunConfig(TOMEFORMER, language="mini-opt")
    code = main(
        [str(path), str(tmp_path / "out"), "--config", str(write_config(tmp_path / "c.json", config))]
    )
    assert code == 0
    model = caption_model(TOMEFORMER)
    load_trained(model, tmp_path / "out" / "connector.safetensors")
    features = tiny.features(3, torch.float64)
    with torch.no_grad():
        expected = theirs.soft_prompt(features)
        torch.testing.assert_close(model.soft_prompt(features), expected, rtol=0, atol=1e-10)
    assert read_run_config(tmp_path / "out" / "config.json") == config
    assert not (tmp_path / "out" / "temporal.safetensors").exists()


def test_half_precision_is_read_exactly(tmp_path: Path, theirs: Theirs) -> None:
    state = {key: value.half() for key, value in theirs.state("opt_proj").items()}
    save_file(state, tmp_path / "flat.safetensors")  # not below "model", and not a .pth
    tensors = convert(tmp_path / "flat.safetensors", TOMEFORMER).tensors
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert tensors["projection.weight"].equal(state["opt_proj.weight"].float())


def test_video_model(tmp_path: Path, theirs: Theirs, caplog: pytest.LogCaptureFixture) -> None:
    temporal = {
        "visual_encoder.blocks.0.temporal_merge.alpha": torch.tensor(0.25),
        "visual_encoder.blocks.0.temporal_merge.query.weight": torch.randn(4, 8),
        "visual_encoder.blocks.11.temporal_merge.key.bias": torch.randn(4),
    }
    frozen = {"visual_encoder.blocks.0.attn.qkv.weight": torch.zeros(3, 3)}
    path = save_as_lavis(tmp_path / "video.pth", theirs.state("opt_proj") | temporal | frozen)
    config = write_config(tmp_path / "c.json", RunConfig(TOMEFORMER))
    assert main([str(path), str(tmp_path / "out"), "--config", str(config)]) == 0
    written = load_file(tmp_path / "out" / "temporal.safetensors")
    assert written.keys() == {key.removeprefix("visual_encoder.") for key in temporal}
    assert all(written[key.removeprefix("visual_encoder.")].equal(value) for key, value in temporal.items())
    assert "unknown" not in caplog.text


# ---------------------------------------------------------------------------------------- BLIP-2's


def qformer_config(text: bool) -> Blip2QFormerConfig:
    return Blip2QFormerConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=16,
        encoder_hidden_size=tiny.WIDTH,
        use_qformer_text_input=text,
        attn_implementation="eager",
    )


def as_lavis(qformer: Blip2QFormerModel) -> dict[str, Tensor]:
    """LAVIS's names for transformers' Q-Former."""
    state = {}
    for key, value in qformer.state_dict().items():
        key = key.replace("layernorm.", "embeddings.LayerNorm.")
        state["Qformer.bert." + key.replace("attention.attention.", "attention.self.")] = value
    return state


def test_lavis_stage2(tmp_path: Path) -> None:
    norm, projection = nn.LayerNorm(tiny.WIDTH), nn.Linear(16, 16)
    reference = Blip2QFormerModel(qformer_config(text=False))
    queries = torch.randn(1, 4, 16, dtype=torch.float64)
    randomise(norm, projection, reference)
    state = prefixed("ln_vision", norm) | as_lavis(reference) | prefixed("t5_proj", projection)
    path = save_as_lavis(tmp_path / "stage2.pth", state | {"query_tokens": queries})
    converted = convert(path, QFORMER)
    assert converted.stage == "caption"
    assert converted.unknown == ()
    model = caption_model(QFORMER)
    model.load_state_dict(converted.tensors)
    features = tiny.features(3, torch.float64)
    with torch.no_grad():
        hidden = reference(queries.expand(3, -1, -1), encoder_hidden_states=norm(features)).last_hidden_state
        torch.testing.assert_close(model.soft_prompt(features), projection(hidden), rtol=0, atol=1e-10)


def test_lavis_stage1(tmp_path: Path) -> None:
    """Queries, text, matching and generation, then the start of a stage 2."""
    reference = Blip2QFormerModel(qformer_config(text=True))
    norm, itm = nn.LayerNorm(tiny.WIDTH), nn.Linear(16, 2)
    vision_proj, text_proj = nn.Linear(16, 8), nn.Linear(16, 8)
    words, positions = nn.Embedding(VOCABULARY, 16), nn.Embedding(16, 16)
    head = BertLMPredictionHead(BertConfig(vocab_size=VOCABULARY, hidden_size=16))
    randomise(reference, norm, itm, vision_proj, text_proj, words, positions, head)
    head.decoder.weight = words.weight
    queries = torch.randn(1, 4, 16, dtype=torch.float64)
    state = {
        **prefixed("ln_vision", norm),
        **as_lavis(reference),
        **prefixed("Qformer.bert.embeddings.word_embeddings", words),
        **prefixed("Qformer.bert.embeddings.position_embeddings", positions),
        "Qformer.bert.embeddings.position_ids": torch.arange(16)[None],
        **prefixed("Qformer.cls.predictions", head),
        "Qformer.cls.predictions.bias": head.decoder.bias,
        **prefixed("vision_proj", vision_proj),
        **prefixed("text_proj", text_proj),
        **prefixed("itm_head", itm),
        "temp": torch.tensor(0.04, dtype=torch.float64),
        "query_tokens": queries,
    }
    path = save_as_lavis(tmp_path / "stage1.pth", state)
    config = write_config(tmp_path / "c.json", RunConfig(QFORMER, stage="represent"))
    assert main([str(path), str(tmp_path / "out"), "--config", str(config)]) == 0
    converted = convert(path, QFORMER)
    assert converted.unknown == ()
    assert isinstance(converted.connector, QFormerConfig)
    connector = build_connector(converted.connector, VOCABULARY)
    assert isinstance(connector, QFormer)
    model = Stage1Model(tiny.encoder(), connector, 1).double().eval()
    load_trained(model, tmp_path / "out" / "connector.safetensors")

    features, ids = tiny.features(3, torch.float64), torch.randint(1, VOCABULARY, (3, 6))
    mask = torch.ones(3, 6, dtype=torch.bool)
    image, text = norm(features), words(ids) + positions.weight[:6]
    q = queries.expand(3, -1, -1)
    with torch.no_grad():

        def close(got: Tensor, expected: Tensor) -> None:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)

        seen = reference(q, encoder_hidden_states=image).last_hidden_state
        close(model.embed_images(features), nn.functional.normalize(vision_proj(seen), dim=-1))
        read = reference(text, query_length=0).last_hidden_state
        close(connector.encode_texts(ids, mask), read[:, 0])
        close(connector.text_projection(read), text_proj(read))
        both = torch.cat([q, text], 1)
        fused = reference(both, query_length=4, encoder_hidden_states=image).last_hidden_state
        close(
            connector.matching_head(connector.encode_pairs(connector.project_image(image), ids, mask)),
            itm(fused[:, :4]),
        )
        sees = torch.ones(10, 10).tril().bool()
        sees[:4, :4] = True
        bias = torch.zeros(3, 1, 10, 10, dtype=torch.float64).masked_fill(
            ~sees, torch.finfo(torch.float64).min
        )
        written = reference(both, query_length=4, attention_mask=bias, encoder_hidden_states=image)
        _, cache = connector.encode_images(connector.project_image(image), 3)
        close(connector.decode_texts(cache, ids, mask), head(written.last_hidden_state[:, 4:]))
        assert float(connector.log_temperature.exp()) == pytest.approx(0.04, rel=1e-12)

        second = caption_model(QFORMER)
        init_from_stage1(second, tmp_path / "out" / "connector.safetensors")
        close(second.connector(second.norm(features)), seen)

    untied = state | {"Qformer.cls.predictions.decoder.weight": head.decoder.weight + 1}
    with pytest.raises(UserError, match=r"decoder.weight is not tied"):
        convert(save_as_lavis(tmp_path / "untied.pth", untied), QFORMER)
    with pytest.raises(UserError, match="temp is 0: a temperature must be above 0"):
        convert(save_as_lavis(tmp_path / "cold.pth", state | {"temp": torch.tensor(0.0)}), QFORMER)


def blip2_config(text: bool) -> Blip2Config:
    return Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=tiny.WIDTH,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            layer_norm_eps=1e-5,  # LAVIS's, and ours
        ).to_dict(),
        qformer_config=qformer_config(text).to_dict(),
        text_config=OPTConfig(
            vocab_size=11,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
        ).to_dict(),
        num_query_tokens=4,
        image_text_hidden_size=8,
    )


def test_transformers(tmp_path: Path) -> None:
    blip = Blip2ForConditionalGeneration(blip2_config(text=False))
    randomise(blip)
    blip.query_tokens.normal_()
    blip.save_pretrained(tmp_path / "blip")
    converted = convert(tmp_path / "blip", QFORMER)
    assert converted.unknown == ()
    model = caption_model(QFORMER)
    model.load_state_dict(converted.tensors)
    features = tiny.features(3, torch.float64)
    with torch.no_grad():
        hidden = blip.qformer(
            blip.query_tokens.expand(3, -1, -1),
            encoder_hidden_states=blip.vision_model.post_layernorm(features),
        ).last_hidden_state
        expected = blip.language_projection(hidden)
        torch.testing.assert_close(model.soft_prompt(features), expected, rtol=0, atol=1e-10)


def test_transformers_has_no_whole_stage1(tmp_path: Path) -> None:
    """Its retrieval model keeps neither the temperature nor the generation head."""
    blip = Blip2ForImageTextRetrieval(blip2_config(text=True))
    blip.save_pretrained(tmp_path / "blip")
    with pytest.raises(UserError, match=r"temp is missing, expected \(\)"):
        convert(tmp_path / "blip", QFORMER)


# ---------------------------------------------------------------------------------------- mistakes


def test_another_architecture(tmp_path: Path, theirs: Theirs) -> None:
    path = save_as_lavis(tmp_path / "x.pth", theirs.state("opt_proj"))
    with pytest.raises(
        UserError, match=r"x.pth: another.* ln_vision.weight has shape \(8,\), expected \(1408,\)"
    ):
        convert(path)
    wide = dataclasses.replace(TOMEFORMER, intermediate=48)
    key = r"VLconnector.encoder.layer.0.intermediate.dense.weight has shape \(32, 16\), expected \(48, 16\)"
    with pytest.raises(UserError, match=key):
        convert(path, wide)
    deep = dataclasses.replace(TOMEFORMER, num_layers=3)
    with pytest.raises(
        UserError, match=r"VLconnector.encoder.layer.2.attention.self.query.weight is missing"
    ):
        convert(path, deep)
    shallow = dataclasses.replace(TOMEFORMER, num_layers=1)
    with pytest.raises(UserError, match="another architecture: 2 layers, expected 1"):
        convert(path, shallow)
    with pytest.raises(UserError, match=r"keys VLconnector.\* are no qformer"):
        convert(path, QFORMER)
    state = theirs.state("opt_proj")
    del state["opt_proj.weight"], state["opt_proj.bias"]
    with pytest.raises(UserError, match=r"opt_proj.weight is missing"):
        convert(save_as_lavis(tmp_path / "y.pth", state), TOMEFORMER)


def test_command_line(
    tmp_path: Path, theirs: Theirs, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def run(*arguments: str) -> str:
        assert main([*arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    path, out = tmp_path / "x.pth", str(tmp_path / "out")
    assert "no such file" in run(str(tmp_path / "none.pth"), out)
    torch.save({"weights": nn.Linear(2, 2)}, path)  # a pickle with code
    assert "holds Python objects beside its tensors" in run(str(path), out)
    torch.save({"model": {"backbone.weight": torch.zeros(2)}}, path)
    assert "no checkpoint that is known: has backbone.weight" in run(str(path), out)
    write_json(tmp_path / "bad.json", {"connector": {"kind": "tomeformer", "layers": 3}})
    assert "connector.layers: no such key" in run(str(path), out, "--config", str(tmp_path / "bad.json"))

    extra = {"SimCSE.pooler.weight": torch.zeros(2), "VLconnector.pooler.dense.bias": torch.zeros(16)}
    save_as_lavis(path, theirs.state("opt_proj") | extra)
    config = write_config(tmp_path / "c.json", RunConfig(QFORMER))
    assert "are no qformer" in run(str(path), out, "--config", str(config))
    config = write_config(tmp_path / "c.json", RunConfig(TOMEFORMER))
    assert not (tmp_path / "out").exists()
    assert main([str(path), out, "--config", str(config)]) == 0
    assert all(key in caplog.text for key in extra)


@pytest.mark.parametrize("layout", ["evlgen", "lavis", "transformers"])
def test_paper_scale(tmp_path: Path, layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """The default configurations, in their real shapes: views of one number, which take no room."""
    connector = TomeFormerConfig() if layout == "evlgen" else QFormerConfig()
    projection = "language_projection" if layout == "transformers" else "opt_proj"
    with torch.device("meta"):
        inside = build_connector(connector).state_dict()
    shapes = {f"connector.{name}": tuple(tensor.shape) for name, tensor in inside.items()}
    shapes |= {"norm.weight": (1408,), "norm.bias": (1408,)}
    shapes |= {"projection.weight": (2560, 768), "projection.bias": (2560,)}
    state = {}
    for ours, shape in shapes.items():
        keys = checkpoint_names(connector, layout, projection)[ours]
        state |= {key: torch.ones(()).expand(shape[0] // len(keys), *shape[1:]) for key in keys}
    if layout == "evlgen":
        state["VLconnector.embeddings.token_type_embeddings.weight"] = torch.ones(()).expand(2, 768)
    else:
        state["query_tokens"] = torch.ones(()).expand(1, 32, 768)
    converted = convert(save_as_lavis(tmp_path / "paper.pth", state))
    assert converted.connector == connector
    assert {name: tuple(tensor.shape) for name, tensor in converted.tensors.items()} == shapes
    assert converted.language == "opt-2.7b"

    state |= {f"{projection}.weight": torch.zeros(9, 768), f"{projection}.bias": torch.zeros(9)}
    path = save_as_lavis(tmp_path / "paper.pth", state)
    assert main([str(path), str(tmp_path / "out")]) == 2
    assert "which LLM has width 9? name it with --language" in capsys.readouterr().err
