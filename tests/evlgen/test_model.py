import dataclasses

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    GenerationConfig,
)

from evlgen import model as subject
from evlgen.backbones.vision import FrozenVision, ImageEncoder, MiniViT, MiniViTConfig
from evlgen.config import (
    EvalConfig,
    LinearConfig,
    PerceiverConfig,
    PoolConfig,
    RunConfig,
    from_json,
    to_json,
)
from evlgen.connectors import build_connector
from evlgen.errors import UserError
from evlgen.miniworld import PROMPT
from evlgen.model import CaptionModel
from tests.evlgen import tiny
from tests.evlgen.qformers import as_transformers

ARCHITECTURES = ("opt", "llama")
BOS = ("first", "after_prompt", "none")
DECODING = EvalConfig(beams=3, min_length=4, max_length=7, answer_max_length=5)
QUESTIONS = ("what is it?", "what is the blue ball on the grass?", "it?", "what is the tree?")


PIXELS_CONNECTOR = dataclasses.replace(tiny.TOMEFORMER, max_positions=65, r=20)


def vision() -> FrozenVision:
    torch.manual_seed(3)
    shape = MiniViTConfig(stem_width=4, width=tiny.WIDTH, num_layers=2, num_heads=2, intermediate=16)
    return FrozenVision(MiniViT(shape).eval().requires_grad_(False), tiny.WIDTH, 65, "tiny")


def pixels(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)


def captioner_of_pixels() -> CaptionModel:
    model = CaptionModel(ImageEncoder(vision()), build_connector(PIXELS_CONNECTOR), tiny.language())
    with torch.no_grad():
        model.projection.weight.mul_(20)
    return model


def texts(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random right-padded (B, T) ids and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 15, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, 0), mask


def naive_inputs(model: CaptionModel, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """One example's whole sequence of embeddings, written down from the definition of the BOS positions."""
    embed = model.language.model.get_input_embeddings()
    soft = model.soft_prompt(features[None])[0]
    bos, text = embed(torch.tensor([1])), embed(ids)
    position = model.language.bos_position
    order = {"first": [bos, soft, text], "after_prompt": [soft, bos, text], "none": [soft, text]}[position]
    return torch.cat(order)


def prefer(model: CaptionModel, token: int, amount: float) -> None:
    """Make a token more (or less) likely everywhere; special tokens never appear."""

    def shift(_module: object, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., :3] -= 1e4
        logits[..., token] += amount
        return logits

    model.language.model.lm_head.register_forward_hook(shift)


# ----------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bos_position", BOS)
def test_loss_equals_cross_entropy_over_the_whole_sequence(architecture, bos_position):
    model = tiny.caption_model(architecture=architecture, bos_position=bos_position, dtype=torch.float64)
    features, (ids, mask) = tiny.features(3, torch.float64), texts([5, 2, 7])
    losses = []
    for i in range(3):  # one at a time, without padding, all logits
        text = ids[i][mask[i]]
        inputs = naive_inputs(model, features[i], text)
        logits = model.language.model(inputs_embeds=inputs[None]).logits[0]
        start = len(inputs) - len(text)
        losses.append(F.cross_entropy(logits[start - 1 : -1], text, reduction="none"))
    expected = torch.cat(losses).mean()
    assert abs(model(features, ids, mask) - expected) < 1e-10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradient_equal_those_of_transformers(architecture):
    model = tiny.caption_model(architecture=architecture, dtype=torch.float64)
    features, (ids, mask) = tiny.features(2, torch.float64), texts([6, 6])
    prompt = model.soft_prompt(features)
    embed = model.language.model.get_input_embeddings()
    inputs = torch.cat([embed(torch.ones(2, 1, dtype=torch.long)), prompt, embed(ids)], 1)
    labels = torch.cat([torch.full((2, inputs.shape[1] - 6), -100), ids], 1)
    expected = model.language.model(inputs_embeds=inputs, labels=labels).loss
    loss = model(features, ids, mask)
    assert abs(loss - expected) < 1e-6  # transformers computes it in float32
    weight = model.projection.weight
    (ours,), (theirs,) = torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight)
    assert ours.abs().max() > 1e-6
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def blip2_of(model: CaptionModel) -> Blip2ForConditionalGeneration:
    """transformers' BLIP-2 with the weights of a Q-Former captioner, and a random image encoder in front."""
    connector, language = model.connector, model.language
    config = Blip2Config(
        vision_config={
            "hidden_size": tiny.WIDTH,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
            "layer_norm_eps": model.norm.eps,
        },
        qformer_config={"hidden_size": 16, "encoder_hidden_size": tiny.WIDTH, "num_attention_heads": 2},
        text_config=language.model.config.to_dict(),
        num_query_tokens=connector.config.num_queries,
        image_token_index=len(language.tokenizer) - 1,  # no text of these tests has it
    )
    blip = Blip2ForConditionalGeneration(config).double()
    for parameter in blip.vision_model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # transformers starts it at next to nothing
    blip.language_model = language.model
    blip.qformer = as_transformers(connector)
    blip.query_tokens.data = connector.queries.data[None]
    blip.language_projection.load_state_dict(model.projection.state_dict())
    blip.vision_model.post_layernorm.load_state_dict(model.norm.state_dict())
    return blip.double().eval()


def test_loss_and_captions_equal_those_of_transformers_blip2():
    """The whole way: LayerNorm, Q-Former, projection, soft prompt, BOS, text, beam search."""
    frozen = tiny.language("opt", "after_prompt", torch.float64)
    torch.manual_seed(2)
    connector = build_connector(tiny.QFORMER, vocab_size=20)  # its text branch is not used
    model = CaptionModel(tiny.encoder(), connector, frozen).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
        model.projection.weight.mul_(5)  # so that the captions differ
    blip = blip2_of(model)
    features: list[torch.Tensor] = []
    blip.vision_model.post_layernorm.register_forward_pre_hook(lambda _m, args: features.append(args[0]))
    pixels = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    ids, mask = texts([6, 3, 5, 6, 1, 4])
    image = torch.full((6, 4), blip.config.image_token_index)
    prompt = F.pad(image, (0, 1), value=1)  # BOS
    labels = torch.cat([torch.full_like(prompt, -100), ids.masked_fill(~mask, -100)], 1)
    with torch.no_grad():
        expected = blip(
            pixel_values=pixels,
            input_ids=torch.cat([prompt, ids], 1),
            attention_mask=torch.cat([torch.ones_like(prompt), mask.long()], 1),
            labels=labels,
        ).loss
        assert abs(model(features[0], ids, mask) - expected) < 1e-6  # theirs is computed in float32
        generated = blip.generate(
            pixel_values=pixels,
            input_ids=prompt,
            num_beams=3,
            min_new_tokens=4,
            max_new_tokens=7,
            eos_token_id=frozen.end_id,
            pad_token_id=0,
        )
    newest = generated[:, prompt.shape[1] :] if generated.shape[1] > 7 else generated
    written = frozen.tokenizer.batch_decode(newest, skip_special_tokens=True)
    captions = model.caption(features[0], DECODING)
    assert captions == [text.split("\n")[0].strip() for text in written]
    assert len(set(captions)) > 1


def test_padding_does_not_change_the_loss():
    model = tiny.caption_model(dtype=torch.float64)
    features, (ids, mask) = tiny.features(2, torch.float64), texts([4, 3])
    longer = F.pad(ids, (0, 5), value=9), F.pad(mask, (0, 5))
    assert abs(model(features, ids, mask) - model(features, *longer)) < 1e-12


def test_head_is_computed_only_where_there_is_a_label():
    model = tiny.caption_model()
    seen = []
    model.language.model.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape))
    ids, mask = texts([5, 2, 7])
    model(tiny.features(3), ids, mask)
    assert seen == [(5 + 2 + 7, 16)]


def test_soft_prompt_has_the_width_of_the_language_model_and_the_tokens_of_the_connector():
    assert tiny.caption_model().soft_prompt(tiny.features(2)).shape == (2, 9 - 2 - 2, 16)
    assert tiny.caption_model(tiny.QFORMER).soft_prompt(tiny.features(2)).shape == (2, 4, 16)


# -------------------------------------------------------------------------------------- image encoder


def test_pixels_and_their_cached_features_are_the_same_to_a_model():
    model = captioner_of_pixels()
    features = vision().encode(pixels(3).numpy()).to(torch.float16).float()  # as a cache holds them
    ids, mask = texts([5, 4, 6])
    assert model.encode(pixels(3)).equal(features)
    assert model(pixels(3), ids, mask) == model(features, ids, mask)
    assert model.caption(pixels(3), DECODING) == model.caption(features, DECODING)
    assert model.answer(pixels(3), QUESTIONS[:3], DECODING) == model.answer(features, QUESTIONS[:3], DECODING)


def test_an_encoder_is_loaded_only_for_pixels():
    config = RunConfig(connector=tiny.TOMEFORMER, vision="no such encoder")
    model = subject.build_model(config)
    model.soft_prompt(model.encode(tiny.features(2)))
    assert "encoder" not in subject.parameter_counts(model)
    with pytest.raises(UserError, match="no such image encoder"):
        model.encode(pixels(1))


def test_loading_an_encoder_draws_no_random_numbers():
    model = subject.build_model(RunConfig(connector=dataclasses.replace(tiny.TOMEFORMER, input_width=96)))
    before = torch.get_rng_state()
    model.encode(pixels(1))
    assert torch.get_rng_state().equal(before)


def test_what_is_trained_inside_the_encoder_is_a_part_of_the_model(tmp_path):
    """A module between two frozen blocks: it has a gradient, is saved and loaded; the frozen ones do not."""

    def captioner() -> CaptionModel:
        model = captioner_of_pixels()
        between = model.encoder.between = torch.nn.Linear(tiny.WIDTH, tiny.WIDTH)
        blocks = model.encoder.vision.model.blocks
        blocks[0].register_forward_hook(lambda _module, _inputs, x: x + between(x))
        return model

    model = captioner()
    ids, mask = texts([5, 4])
    model(pixels(2), ids, mask).backward()
    assert model.encoder.between.weight.grad.abs().sum() > 0
    assert {name.split(".")[0] for name in model.state_dict()} == {
        *("encoder", "norm", "connector", "projection")
    }
    assert all(p.grad is None for p in model.encoder.vision.model.parameters())
    assert subject.parameter_counts(model)["encoder"] == tiny.WIDTH * (tiny.WIDTH + 1)
    with torch.no_grad():
        assert not model.encode(pixels(2)).requires_grad
        model.encoder.between.weight.add_(1.0)
    subject.save_trained(model, tmp_path / "connector.safetensors", {})
    other = captioner()
    subject.load_trained(other, tmp_path / "connector.safetensors")
    assert other.encode(pixels(2)).equal(model.encode(pixels(2)))
    assert not captioner().encode(pixels(2)).equal(model.encode(pixels(2)))


# --------------------------------------------------------------------------------------------- frozen


OTHERS = (
    LinearConfig(input_width=tiny.WIDTH, width=12, num_layers=2),
    PerceiverConfig(
        input_width=tiny.WIDTH,
        width=16,
        num_layers=2,
        num_heads=2,
        intermediate=32,
        max_positions=16,
        num_latents=4,
    ),
)


@pytest.mark.parametrize("connector", [tiny.TOMEFORMER, tiny.QFORMER, *OTHERS], ids=lambda c: c.kind)
def test_only_norm_connector_and_projection_train(connector):
    model = tiny.caption_model(connector)
    before = subject.weights_checksum(model.language.model)
    model.train()
    assert not model.language.model.training
    assert not any(p.requires_grad for p in model.language.model.parameters())
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"norm", "connector", "projection"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids, mask = texts([5, 4])
    model(tiny.features(2), ids, mask).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for _, p in model.named_parameters() if p.ndim > 1
    )
    optimizer.step()
    assert subject.weights_checksum(model.language.model) == before


def test_dropout_of_the_language_model_is_never_active():
    model = tiny.caption_model()  # its OPT has dropout 0.1
    model.train()
    ids, mask = texts([5, 4])
    first, second = (model(tiny.features(2), ids, mask) for _ in range(2))
    assert torch.equal(first, second)


def test_checksum_sees_a_single_bit():
    model = tiny.language().model
    before = subject.weights_checksum(model)
    weight = next(model.parameters()).data.view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert subject.weights_checksum(model) != before


def test_parameter_counts_tell_trained_from_frozen():
    model = tiny.caption_model()
    counts = subject.parameter_counts(model)
    assert counts["norm"] == 2 * tiny.WIDTH
    assert counts["projection"] == 16 * 16 + 16
    assert counts["language (frozen)"] == sum(p.numel() for p in model.language.model.parameters())
    trained = sum(p.numel() for p in model.parameters())
    assert counts["norm"] + counts["connector"] + counts["projection"] == trained


# ----------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lengths_count_generated_tokens_only(architecture):
    model = tiny.caption_model(architecture=architecture)
    prefer(model, model.language.end_id, 1e3)
    assert [len(text.split()) for text in model.caption(tiny.features(2), DECODING)] == [4, 4]
    assert [len(text.split()) for text in model.answer(tiny.features(2), QUESTIONS[:2], DECODING)] == [1, 1]
    model = tiny.caption_model(architecture=architecture)
    prefer(model, model.language.end_id, -1e3)
    assert [len(text.split()) for text in model.caption(tiny.features(2), DECODING)] == [7, 7]
    assert [len(text.split()) for text in model.answer(tiny.features(2), QUESTIONS[:2], DECODING)] == [5, 5]


def assert_batch_is_as_alone(model: CaptionModel, decoding: EvalConfig) -> None:
    """Captions and answers of four images, questions of several lengths."""
    features = tiny.features(4, torch.float64) * 3
    single = [model.caption(features[i : i + 1], decoding)[0] for i in range(4)]
    assert model.caption(features, decoding) == single
    assert len(set(single)) > 1
    single = [model.answer(features[i : i + 1], [QUESTIONS[i]], decoding)[0] for i in range(4)]
    assert model.answer(features, QUESTIONS, decoding) == single
    assert len(set(single)) > 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bos_position", BOS)
def test_batches_and_left_padding_do_not_change_a_text(architecture, bos_position):
    model = tiny.caption_model(architecture=architecture, bos_position=bos_position, dtype=torch.float64)
    assert_batch_is_as_alone(model, DECODING)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bos_position", BOS)
def test_answers_equal_plain_generation_from_the_whole_sequence(architecture, bos_position):
    model = tiny.caption_model(architecture=architecture, bos_position=bos_position, dtype=torch.float64)
    features, llm, tokenizer = tiny.features(4, torch.float64), model.language.model, model.language.tokenizer
    for i, question in enumerate(QUESTIONS):
        ids = torch.tensor(tokenizer(PROMPT.format(question), add_special_tokens=False)["input_ids"])
        settings = GenerationConfig(
            num_beams=3,
            min_new_tokens=1,
            max_new_tokens=5,
            length_penalty=0.0,
            eos_token_id=model.language.end_id,
            pad_token_id=0,
        )
        with torch.no_grad():
            inputs = naive_inputs(model, features[i], ids)
            out = llm.generate(
                inputs_embeds=inputs[None],
                attention_mask=torch.ones(1, len(inputs), dtype=torch.long),
                generation_config=settings,
            )
        expected = tokenizer.decode(out[0], skip_special_tokens=True).split("\n")[0].strip()
        assert model.answer(features[i : i + 1], [question], DECODING) == [expected]


def test_beam_search_is_exact_when_the_beam_is_as_wide_as_the_vocabulary():
    model = tiny.caption_model(dtype=torch.float64)
    prefer(model, model.language.end_id, -1e3)
    size = len(model.language.tokenizer)
    decoding = dataclasses.replace(DECODING, beams=size, min_length=1, max_length=2)
    features, embed = tiny.features(1, torch.float64), model.language.model.get_input_embeddings()

    def log_probabilities(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            inputs = naive_inputs(model, features[0], torch.tensor(ids, dtype=torch.long))
            return model.language.model(inputs_embeds=inputs[None]).logits[0, -1].log_softmax(-1)

    assert embed.num_embeddings == size
    first = log_probabilities([])
    scores = {
        (a, b): first[a] + second for a in range(size) for b, second in enumerate(log_probabilities([a]))
    }
    best = max(scores, key=lambda pair: float(scores[pair]))
    assert model.caption(features, decoding) == [model.language.tokenizer.decode(list(best))]
    greedy = int(first.argmax())
    assert scores[best] >= max(scores[greedy, b] for b in range(size))


def test_more_beams_find_more_likely_captions():
    model = tiny.caption_model(dtype=torch.float64)
    prefer(model, model.language.end_id, -1e3)  # captions of the same length
    features = tiny.features(8, torch.float64)
    scores = []
    for beams in (1, 5):
        found = model.caption(features, dataclasses.replace(DECODING, beams=beams))
        ids = torch.tensor(model.language.tokenizer(found, add_special_tokens=False)["input_ids"])
        losses = model.token_losses(model.soft_prompt(features), ids, torch.ones_like(ids, dtype=torch.bool))
        scores.append(-losses.view(8, -1).sum(1))
    assert (scores[1] >= scores[0] - 1e-9).all()
    assert (scores[1] > scores[0] + 1e-3).any()


def test_generation_leaves_the_training_mode_alone_and_ignores_dropout():
    model = tiny.caption_model(dataclasses.replace(tiny.TOMEFORMER, dropout=0.5))
    model.train()
    first = model.caption(tiny.features(3), DECODING)
    assert model.caption(tiny.features(3), DECODING) == first
    assert model.training
    assert model.connector.training


def test_the_prompt_is_read_once_for_all_beams():
    model = tiny.caption_model()
    rows = []
    model.language.model.base_model.decoder.register_forward_pre_hook(
        lambda _m, _a, kwargs: (
            rows.append(tuple(kwargs["inputs_embeds"].shape[:2]))
            if kwargs.get("inputs_embeds") is not None
            else None
        ),
        with_kwargs=True,
    )
    model.caption(tiny.features(2), DECODING)
    assert rows[0] == (2, 5)  # BOS and five soft tokens, all but the last
    assert all(length == 1 for _, length in rows[1:])


# -------------------------------------------------------------------------------------------- stage 1


def test_stage1_puts_a_class_token_in_front_and_decodes_from_an_id_that_no_word_has():
    model = tiny.stage1_model()
    vocabulary = model.connector.config.vocab_size - 1
    ids, mask = texts([5, 3])
    seen = {}
    model.connector.encode_texts = lambda i, m: seen.update(ids=i, mask=m) or torch.zeros(2, 16)
    model.embed_texts(ids, mask)
    assert torch.equal(seen["ids"][:, 0], torch.tensor([1, 1]))
    assert torch.equal(seen["ids"][:, 1:], ids)
    assert seen["mask"].sum(1).tolist() == [6, 4]
    assert model.decode_id == vocabulary
    assert not (ids == model.decode_id).any()


def test_stage1_loss_is_the_sum_of_three_and_reaches_every_parameter():
    model = tiny.stage1_model()
    ids, mask = texts([5, 3, 4])
    batch = (tiny.features(3), ids, mask)
    parts = model.losses(*batch, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    total = model(*batch)
    assert torch.isclose(total, parts.itc + parts.itm + parts.lm)
    total.backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []


# ------------------------------------------------------------------------------------------- building


def test_what_is_saved_is_what_is_trained(tmp_path):
    model, other = tiny.caption_model(), tiny.caption_model()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    path, again = tmp_path / "connector.safetensors", tmp_path / "again.safetensors"
    metadata = dict.fromkeys("abcdefgh", "x")
    subject.save_trained(model, path, metadata)
    subject.load_trained(other, path)
    subject.save_trained(other, again, metadata)
    assert again.read_bytes() == path.read_bytes()
    assert subject.weights_checksum(other) == subject.weights_checksum(model)


def test_stage2_starts_from_the_queries_of_stage1(tmp_path):
    first, second = tiny.stage1_model(), tiny.caption_model(tiny.QFORMER)
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.5)
    path = tmp_path / "connector.safetensors"
    subject.save_trained(first, path, {})
    before = second.projection.weight.clone()
    subject.init_from_stage1(second, path)
    features = tiny.features(2)
    torch.testing.assert_close(
        second.connector(second.norm(features)), first.connector(first.norm(features)), rtol=0, atol=0
    )
    assert torch.equal(second.projection.weight, before)
    with pytest.raises(UserError, match="Q-Former"):
        subject.init_from_stage1(tiny.caption_model(), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [("missing", "has not finished"), ("bytes", "damaged"), ("other", "is not of this model")],
)
def test_unusable_weights_are_named(tmp_path, damage, message):
    path = tmp_path / "connector.safetensors"
    if damage == "bytes":
        path.write_bytes(b"\x00" * 100)
    if damage == "other":
        save_file({"norm.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=message) as raised:
        subject.load_trained(tiny.caption_model(), path)
    assert str(path) in str(raised.value)


def test_connector_starts_from_bert_weights(tmp_path):
    bert = BertModel(
        BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        )
    )
    path = tmp_path / "bert.safetensors"
    save_file(bert.state_dict(), path)
    for config in (tiny.TOMEFORMER, tiny.QFORMER):
        connector = build_connector(dataclasses.replace(config, init=str(path)))
        ours = connector.layers[1].feed_forward.up.weight
        assert torch.equal(ours, bert.encoder.layer[1].intermediate.dense.weight)
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        build_connector(dataclasses.replace(tiny.TOMEFORMER, init="nowhere.safetensors"))


def test_text_branch_depends_on_the_stage_alone():
    config = dataclasses.replace(tiny.QFORMER, vocab_size=50)
    names = [name for name, _ in build_connector(config).named_parameters()]
    assert not any("text" in name or "words" in name for name in names)


@pytest.mark.parametrize(
    "connector", [*OTHERS, PoolConfig(input_width=tiny.WIDTH, rows=1, columns=1)], ids=lambda c: c.kind
)
def test_a_run_with_any_connector_has_a_json_form(connector):
    config = RunConfig(connector=connector, objectives=("lm",))
    assert from_json(to_json(config)) == config
    assert connector.input_width == tiny.WIDTH


def test_stage1_needs_a_qformer():
    for other in OTHERS:
        with pytest.raises(UserError, match=r"connector\.kind"):
            subject.build_model(RunConfig(connector=other, stage="represent", language=""))
    with pytest.raises(UserError, match=r"connector\.kind"):
        subject.build_model(RunConfig(connector=tiny.TOMEFORMER, stage="represent", language=""))
