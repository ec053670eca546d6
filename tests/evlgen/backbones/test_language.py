"""Language models of the paper from folders in the true formats, through the whole captioner."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration, MambaConfig, MambaForCausalLM

from evlgen import model as models
from evlgen.backbones import language as subject
from evlgen.config import DataConfig, EvalConfig
from evlgen.connectors import build_connector
from evlgen.data.batches import load_training_data
from evlgen.data.pairs import encode_texts
from evlgen.diagnostics import attention_to_prompt, validate
from evlgen.errors import UserError
from evlgen.miniworld import PROMPT
from evlgen.model import CaptionModel, build_model
from evlgen.runtime.sources import SOURCES
from tests.evlgen import folders, tiny
from tests.evlgen.test_model import QUESTIONS, assert_batch_is_as_alone, blip2_of

DECODING = EvalConfig(beams=3, min_length=4, max_length=7, answer_max_length=5)
CAPTIONS = ("a red ball on the grass", "a boat", "a blue tree")
ALL = (*folders.FAMILIES, "bloom")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Path of a family's folder, written once."""
    return functools.cache(lambda family: folders.write(family, tmp_path_factory.mktemp(family)))


def captioner(path: Path, dtype: torch.dtype = torch.float64, llm: torch.dtype | None = None) -> CaptionModel:
    frozen = subject.load_language(path, llm or dtype)
    torch.manual_seed(2)
    model = CaptionModel(tiny.encoder(), build_connector(tiny.TOMEFORMER), frozen).to(dtype)
    with torch.no_grad():
        model.projection.weight.mul_(8)  # so that captions differ
    return model


def encoded(model: CaptionModel, texts=CAPTIONS) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and mask as training has them."""
    ids, lengths = encode_texts(model.language.tokenizer, texts, 12, model.language.end_id)
    longest = int(lengths.max())
    mask = torch.arange(longest) < torch.from_numpy(lengths.astype(np.int64))[:, None]
    return torch.from_numpy(ids[:, :longest].astype(np.int64)), mask


# ---------------------------------------------------------------------------------- tokens and facts


@pytest.mark.parametrize(
    ("family", "bos", "end", "width"),
    [
        ("opt", "after_prompt", "Ċ", 16),
        ("opt-narrow", "after_prompt", "Ċ", 8),
        ("llama", "after_prompt", "<0x0A>", 16),
        ("gpt2", "none", "Ċ", 16),
        ("t5", "none", "</s>", 16),
        ("flan-t5", "none", "</s>", 16),
    ],
)
def test_what_each_family_is_told_by_its_folder(folder, family, bos, end, width):
    frozen = subject.load_language(folder(family))
    assert (frozen.bos_position, frozen.width) == (bos, width)
    assert frozen.tokenizer.convert_ids_to_tokens(frozen.end_id) == end
    assert frozen.is_encoder_decoder == ("t5" in family)
    embeddings = frozen.model.get_input_embeddings()
    assert 0 <= frozen.tokenizer.pad_token_id < embeddings.num_embeddings
    assert frozen.model.dtype == torch.float32
    assert not frozen.model.training
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    tokenizer, end_id = subject.text_tokenizer(str(folder(family)))
    assert end_id == frozen.end_id
    assert tokenizer.get_vocab() == frozen.tokenizer.get_vocab()


@pytest.mark.parametrize("family", folders.FAMILIES)
def test_training_texts_are_what_the_tokenizer_makes_of_caption_and_end(folder, family):
    """LAVIS hands caption + newline (T5: the caption) to the tokenizer, and gets special tokens with it."""
    tokenizer, end_id = subject.text_tokenizer(str(folder(family)))
    ids, lengths = encode_texts(tokenizer, CAPTIONS, 32, end_id)
    whole = tokenizer([text if "t5" in family else text + "\n" for text in CAPTIONS])["input_ids"]
    if family.startswith(("opt", "llama")):
        assert all(row[0] == tokenizer.bos_token_id for row in whole)
        whole = [row[1:] for row in whole]
    assert [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)] == whole


def test_llama_pieces_are_those_of_sentencepiece(folder):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder("llama") / "tokenizer.model"))
    tokenizer, end_id = subject.text_tokenizer(str(folder("llama")))
    assert pieces.encode("\n")[-1] == end_id != pieces.encode("\n")[0]  # a space comes first
    for text in CAPTIONS:
        assert pieces.encode(text + "\n") == [*tokenizer(text, add_special_tokens=False)["input_ids"], end_id]


def test_llama_tokenizer_json_ends_captions_alike(folder, tmp_path):
    """Other LLaMAs come with tokenizer.json instead."""
    tokenizer, end_id = subject.text_tokenizer(str(folder("llama")))
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(folder("llama") / "config.json", tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    assert subject.text_tokenizer(str(tmp_path))[1] == end_id


def test_a_tokenizer_without_newline_is_refused(folder, tmp_path):
    shutil.copytree(folder("t5"), tmp_path, dirs_exist_ok=True)
    shutil.copy(folder("gpt2") / "config.json", tmp_path)
    with pytest.raises(UserError, match="no token for a newline"):
        subject.text_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["mini-opt", "opt", "flan-t5"])
def test_loading_draws_no_random_numbers(folder, name):
    """Else a connector's first weights would depend on what was loaded before."""
    subject.forget_languages()
    place = name if name == "mini-opt" else str(folder(name))
    before = torch.get_rng_state()
    subject.build_language(place)
    assert torch.equal(torch.get_rng_state(), before)


# ----------------------------------------------------------------------------------------------- loss


def naive_logits(model: CaptionModel, feature: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logits that predict one text, (T, V), from the whole sequence as LAVIS builds it."""
    llm, tokenizer = model.language.model, model.language.tokenizer
    embed, soft = llm.get_input_embeddings(), model.soft_prompt(feature[None])
    if model.language.is_encoder_decoder:
        end = embed(torch.tensor([[tokenizer.eos_token_id]]))
        return llm(inputs_embeds=torch.cat([soft, end], 1), labels=ids[None]).logits[0]
    bos = tokenizer("")["input_ids"]  # what the tokenizer puts in front of a text
    text = embed(torch.tensor([[*bos, *ids.tolist()]], dtype=torch.long))
    logits = llm(inputs_embeds=torch.cat([soft, text], 1)).logits[0]
    return logits[-len(ids) - 1 : -1]


@pytest.mark.parametrize("family", ALL)
def test_loss_equals_the_whole_model_one_text_at_a_time(folder, family):
    model = captioner(folder(family))
    if model.language.is_encoder_decoder:
        model.language.model.config.decoder_start_token_id = 0  # T5's, which the reference reads here
    features, (ids, mask) = tiny.features(3, torch.float64), encoded(model)
    assert len(set(mask.sum(1).tolist())) > 1
    losses = []
    for feature, row, kept in zip(features, ids, mask, strict=True):
        text = row[kept]
        assert text[-1] == model.language.end_id
        losses.append(F.cross_entropy(naive_logits(model, feature, text), text, reduction="none"))
    assert abs(model(features, ids, mask) - torch.cat(losses).mean()) < 1e-10


@pytest.mark.parametrize("family", ALL)
def test_padding_and_batch_do_not_change_the_loss(folder, family):
    model = captioner(folder(family))
    features, (ids, mask) = tiny.features(3, torch.float64), encoded(model)
    longer = F.pad(ids, (0, 4), value=7), F.pad(mask, (0, 4))
    alone = [
        model.token_losses(model.soft_prompt(features[i : i + 1]), ids[i : i + 1, :n], mask[i : i + 1, :n])
        for i, n in enumerate(mask.sum(1).tolist())
    ]
    expected = torch.cat(alone).mean()
    assert abs(model(features, ids, mask) - expected) < 1e-10
    assert abs(model(features, *longer) - expected) < 1e-10


@pytest.mark.parametrize("family", ["opt", "flan-t5", "t5"])
@torch.no_grad()
def test_loss_and_captions_equal_those_of_transformers_blip2(folder, family):
    frozen = subject.load_language(folder(family), torch.float64)
    torch.manual_seed(2)
    connector = build_connector(tiny.QFORMER, vocab_size=20)  # its text branch is not used
    model = CaptionModel(tiny.encoder(), connector, frozen).double().eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.4)
    model.projection.weight.mul_(5)
    ids, mask = encoded(model)
    prefer(model, frozen.end_id, 0.0)
    frozen.model.config.decoder_start_token_id = 0
    blip = blip2_of(model)
    features: list[torch.Tensor] = []
    blip.vision_model.post_layernorm.register_forward_pre_hook(lambda _m, args: features.append(args[0]))
    inputs = {
        "pixel_values": torch.randn(3, 3, 8, 8, dtype=torch.float64),
        "input_ids": torch.full((3, 4), blip.config.image_token_index),
    }
    labels = ids.masked_fill(~mask, -100)
    tokenizer, end = frozen.tokenizer, frozen.end_id
    # OPT's beginning of sequence, T5's end of what the encoder reads
    special = tokenizer.eos_token_id if frozen.is_encoder_decoder else tokenizer.bos_token_id
    prompt = inputs["input_ids"] = F.pad(inputs["input_ids"], (0, 1), value=special)
    if frozen.is_encoder_decoder:
        output = blip(**inputs, attention_mask=torch.ones_like(prompt), labels=labels)
        expected, texts = output.loss, output.logits
        assert abs(expected - F.cross_entropy(texts[mask], ids[mask])) < 1e-10
    else:
        inputs["input_ids"] = torch.cat([prompt, ids], 1)
        attention = torch.cat([torch.ones_like(prompt), mask.long()], 1)
        texts = blip(**inputs, attention_mask=attention).logits[:, -ids.shape[1] - 1 : -1]
        expected = F.cross_entropy(texts[mask], ids[mask])  # their own loss is in float32
    assert abs(model(features[0], ids, mask) - expected) < 1e-10
    generated = blip.generate(
        **{**inputs, "input_ids": prompt},
        attention_mask=torch.ones_like(prompt),
        num_beams=3,
        min_new_tokens=4,
        max_new_tokens=7,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=0,
    )
    newest = generated[:, 1:] if frozen.is_encoder_decoder else generated[:, -7:]
    rows = [row[: row.index(end)] if end in row else row for row in newest.tolist()]
    written = [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    captions = model.caption(features[0], DECODING)
    assert captions == written
    assert len(set(captions)) > 1


# ----------------------------------------------------------------------------------------- generation


def prefer(model: CaptionModel, token: int, amount: float) -> None:
    """Make a token more (or less) likely everywhere; special tokens and those without a text never appear."""
    tokenizer, size = model.language.tokenizer, model.language.model.config.vocab_size
    special = {*tokenizer.all_special_ids, *range(len(tokenizer), size)} - {token, *range(size, 999)}

    def shift(_module: object, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., sorted(special)] -= 1e4
        logits[..., token] += amount
        return logits

    model.language.model.lm_head.register_forward_hook(shift)


@pytest.mark.parametrize("family", folders.FAMILIES)
def test_lengths_count_new_tokens_in_front_of_the_end(folder, family, monkeypatch):
    seen: list[list[int]] = []
    for amount, caption, answer in ((1e3, 4, 1), (-1e3, 7, 5)):
        model = captioner(folder(family))
        tokenizer = model.language.tokenizer
        monkeypatch.setattr(
            tokenizer, "batch_decode", lambda rows, **_: seen.extend(rows) or ["" for _ in rows]
        )
        prefer(model, model.language.end_id, amount)
        seen.clear()
        model.caption(tiny.features(2, torch.float64), DECODING)
        assert [len(row) for row in seen] == [caption] * 2
        seen.clear()
        model.answer(tiny.features(2, torch.float64), QUESTIONS[:2], DECODING)
        assert [len(row) for row in seen] == [answer] * 2


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", folders.FAMILIES)
def test_texts_in_a_batch_are_those_alone(folder, family, beams):
    model, decoding = captioner(folder(family)), dataclasses.replace(DECODING, beams=beams)
    prefer(model, model.language.end_id, 0.0)
    assert_batch_is_as_alone(model, decoding)


@pytest.mark.parametrize("family", folders.FAMILIES)
def test_greedy_answers_equal_a_plain_loop(folder, family):
    """Token by token, the question behind the soft prompt as the tokenizer gives it with special tokens."""
    model = captioner(folder(family))
    decoding = dataclasses.replace(DECODING, beams=1)
    prefer(model, model.language.end_id, 0.0)
    llm, tokenizer, end = model.language.model, model.language.tokenizer, model.language.end_id
    embed, features = llm.get_input_embeddings(), tiny.features(4, torch.float64) * 3
    for feature, question in zip(features, QUESTIONS, strict=True):
        read = torch.tensor([tokenizer(PROMPT.format(question))["input_ids"]])
        written: list[int] = []
        with torch.no_grad():
            before = torch.cat([model.soft_prompt(feature[None]), embed(read)], 1)
            while len(written) < 5 and end not in written:
                if model.language.is_encoder_decoder:
                    so_far = torch.tensor([[0, *written]])
                    logits = llm(inputs_embeds=before, decoder_input_ids=so_far).logits[0, -1]
                else:
                    so_far = embed(torch.tensor([written], dtype=torch.long))
                    logits = llm(inputs_embeds=torch.cat([before, so_far], 1)).logits[0, -1]
                if not written:
                    logits[end] = -torch.inf  # one token at least
                written.append(int(logits.argmax()))
        expected = tokenizer.decode([i for i in written if i != end], skip_special_tokens=True).strip()
        assert model.answer(feature[None], [question], decoding) == [expected]


def test_a_folders_own_generation_settings_do_not_count(folder, tmp_path):
    shutil.copytree(folder("opt"), tmp_path, dirs_exist_ok=True)
    settings = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "max_new_tokens": 1, "eos_token_id": 5}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    features = tiny.features(3, torch.float64)
    expected = captioner(folder("opt")).caption(features, DECODING)
    assert captioner(tmp_path).caption(features, DECODING) == expected


# ------------------------------------------------------------------------------- training, precision


@pytest.mark.parametrize("family", folders.FAMILIES)
def test_a_training_step_leaves_the_language_model_as_it_is(folder, family):
    model, batch = captioner(folder(family)), (tiny.features(3, torch.float64),)
    batch += encoded(model)
    before = models.weights_checksum(model.language.model)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    first = model(*batch)
    assert torch.equal(first, model(*batch))  # no dropout
    first.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)
    optimizer.step()
    assert model(*batch) < first
    assert models.weights_checksum(model.language.model) == before


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["opt", "llama", "flan-t5"])
def test_half_precision_keeps_its_own_type_under_autocast(folder, family, half):
    """The trained parts in the other half precision: T5 would overflow in fp16."""
    model = captioner(folder(family), torch.float32, half)
    other = torch.bfloat16 if half == torch.float16 else torch.float16
    seen: dict[str, set[torch.dtype]] = {"trained": set(), "frozen": set()}
    for name, module in (("trained", model.connector), ("frozen", model.language.model)):
        for part in module.modules():
            if isinstance(part, torch.nn.Linear):
                part.register_forward_hook(lambda _m, _i, out, name=name: seen[name].add(out.dtype))
    expected = captioner(folder(family), torch.float32)(tiny.features(3), *encoded(model))
    with torch.autocast("cpu", other):
        loss = model(tiny.features(3), *encoded(model))
        assert len(model.caption(tiny.features(2), DECODING)) == 2
    assert seen["trained"] == {other}
    assert half in seen["frozen"]
    assert seen["frozen"] <= {half, torch.float32}  # T5 keeps some in float32
    assert loss.dtype == torch.float32
    assert abs(loss - expected) < 0.05 * expected
    loss.backward()
    assert model.projection.weight.grad.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_run_is_tokenised_and_built_for_its_language_model(folder, family, tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path))
    connector = dataclasses.replace(tiny.TOMEFORMER, input_width=96, max_positions=65)
    config = tiny.run_config(
        connector=connector,
        language=str(folder(family)),
        data=DataConfig(pools=(("coco", 6),), max_text_tokens=20),
        evaluation=EvalConfig(validation=4),
    )
    data, model = load_training_data(config), build_model(config)
    assert model.language is subject.build_language(config.language)
    ids, lengths = data.source.pools[0].text_ids, data.source.pools[0].lengths
    last = np.take_along_axis(ids, lengths[..., None] - 1, 2)
    assert (last == model.language.end_id).all()
    assert (np.where(np.arange(20) < lengths[..., None], ids, -1) == model.language.end_id).sum(2).max() == 1
    figures = validate(model, data.validation)
    assert all(np.isfinite(value) for value in figures.values())
    assert 0 < figures["attention_entropy"] <= 1


def test_attention_of_t5_is_the_decoders_over_the_soft_prompt(folder):
    model = captioner(folder("t5"))
    (ids, mask), llm = encoded(model), model.language.model
    prompt = model.soft_prompt(tiny.features(3, torch.float64)).detach()
    found = attention_to_prompt(model, prompt, ids, mask)
    llm.set_attn_implementation("eager")
    end = llm.get_input_embeddings()(torch.tensor([[1]]))
    masses, entropies = [], []
    for i in range(3):
        text = F.pad(ids[i][mask[i]][None, :-1], (1, 0), value=0)
        inputs = torch.cat([prompt[i : i + 1], end], 1)
        output = llm(inputs_embeds=inputs, decoder_input_ids=text, output_attentions=True)
        for layer in output.cross_attentions:  # (1, heads, T, 5 + 1)
            share = layer[0, :, :, :5] / layer[0, :, :, :5].sum(-1, keepdim=True)
            masses.append(1 - layer[0, :, :, 5].flatten())
            entropies.append(-(share * share.log()).sum(-1).flatten())
    assert found.mass == pytest.approx(float(torch.cat(masses).mean()))
    assert found.entropy == pytest.approx(float(torch.cat(entropies).mean()) / np.log(5))


# --------------------------------------------------------------------------------- files and mistakes


def test_names_of_the_paper_are_found_below_the_folder_of_weights(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(tmp_path))
    for name, family in (("opt-2.7b", "opt"), ("vicuna-7b", "llama"), ("flan-t5-xl", "flan-t5")):
        shutil.copytree(folder(family), tmp_path / SOURCES[name].path)
        frozen = subject.build_language(name)
        assert frozen.model.config.model_type == family.removeprefix("flan-")
        assert subject.build_language(name) is frozen


@pytest.mark.parametrize("name", ["opt-2.7b", "opt-6.7b", "vicuna-7b", "vicuna-13b", "flan-t5-xl"])
def test_missing_weights_are_named_with_their_source(name, tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=rf"{name}.* is missing; get it from .*EVLGEN_WEIGHTS") as raised:
        subject.build_language(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_forms_of_the_weights_are_equal(folder, tmp_path, form, shards):
    shutil.copytree(folder("opt"), tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    suffix, stem = (".bin", "pytorch_model") if form == "bin" else (".safetensors", "model")
    index = {}
    for i in range(shards):
        name = f"{stem}{suffix}" if shards == 1 else f"{stem}-{i + 1:05}-of-{shards:05}{suffix}"
        part = {key: value for j, (key, value) in enumerate(state.items()) if j % shards == i}
        index |= dict.fromkeys(part, name)
        if form == "bin":
            torch.save(part, tmp_path / name)
        else:
            save_file(part, tmp_path / name, {"format": "pt"})
    if shards > 1:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (tmp_path / f"{stem}{suffix}.index.json").write_text(text)
    found = subject.load_language(tmp_path).model
    expected = subject.load_language(folder("opt")).model
    assert models.weights_checksum(found) == models.weights_checksum(expected)


class Executed:
    """A pickle that runs a function when it is read."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def spoil(path: Path, how: str) -> None:
    weights = path / "model.safetensors"
    if how == "pickle":
        weights.unlink()
        torch.save({"lm_head.weight": Executed(path / "witness")}, path / "pytorch_model.bin")
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how in ("shape", "missing"):
        state, key = load_file(weights), "model.decoder.layers.1.fc1.weight"
        value = state.pop(key)
        save_file(
            state | ({key: value[:5].contiguous()} if how == "shape" else {}), weights, {"format": "pt"}
        )
    elif how == "no config":
        (path / "config.json").unlink()
    elif how == "bad config":
        (path / "config.json").write_text('{"model_type": "nonesuch"}')
    elif how == "no weights":
        weights.unlink()
    elif how == "no tokenizer":
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (path / name).unlink()
    elif how == "bart":
        small = {"d_model": 16, "vocab_size": 340, "encoder_layers": 1, "decoder_layers": 1}
        BartForConditionalGeneration(BartConfig(**small)).save_pretrained(path)
    elif how == "mamba":
        weights.unlink()
        MambaForCausalLM(MambaConfig(vocab_size=340, hidden_size=16, num_hidden_layers=1)).save_pretrained(
            path
        )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("pickle", "its weights cannot be loaded"),
        ("cut", "its weights cannot be loaded"),
        ("shape", r"layers\.1\.fc1\.weight has shape \(5, 16\), expected \(32, 16\)"),
        ("missing", r"layers\.1\.fc1\.weight is missing"),
        ("no config", "no config.json"),
        ("bad config", "no model that transformers knows"),
        ("no weights", "no weights in this folder"),
        ("no tokenizer", "its tokenizer"),
        ("bart", "only T5 is supported, not 'bart'"),
        ("mamba", "recurrent"),
    ],
)
def test_mistakes_give_one_line(folder, tmp_path, how, message):
    path = tmp_path / "folder"
    shutil.copytree(folder("opt"), path)
    spoil(path, how)
    with pytest.raises(UserError, match=message) as raised:
        subject.load_language(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (path / "witness").exists()


def test_a_name_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"no such language model; there are: mini-opt, .*vicuna-7b.* folder"):
        subject.build_language(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such language model"):
        subject.build_language("eva-clip-g")
