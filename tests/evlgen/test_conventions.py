"""The authors' conventions, each against numbers of a formulation of its own or of `transformers`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from evlgen.backbones import language as languages
from evlgen.backbones.eva import EvaConfig, EvaViT
from evlgen.backbones.vision import ImageEncoder, build_clip, build_eva, build_vision, halve_products
from evlgen.config import EvalConfig, OptimConfig, RunConfig
from evlgen.connectors import build_connector
from evlgen.conventions import INNER_EPOCH, connector_of
from evlgen.data.batches import TrainingData, load_training_data
from evlgen.evaluation.decoding import answer_all
from evlgen.merging import Matching, bipartite_soft_matching
from evlgen.model import CaptionModel, build_model, evaluating
from evlgen.optimizer import learning_rate
from evlgen.stage1 import hard_negatives
from evlgen.training import Stop, train
from experiments import EXPERIMENTS, load
from experiments.scales import evlgen, get
from tests.evlgen import folders, real_weights, tiny

FAMILIES = ("opt", "llama")
LONG = "a red ball on the grass a blue boat on the grass a pink star"
CAPTIONS = ("a red ball on the grass", "a boat", LONG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return functools.cache(lambda family: folders.write(family, tmp_path_factory.mktemp(family)))


def captioner(path: Path, conventions: str = "authors", seed: int = 2) -> CaptionModel:
    frozen = languages.load_language(path, torch.float64)
    frozen = languages.with_conventions(frozen, conventions, str(path))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    model = CaptionModel(tiny.encoder(), build_connector(tiny.TOMEFORMER), frozen).double()
    with torch.no_grad():
        model.projection.weight.mul_(8)  # so that captions differ
    return model


def encoded(path: Path, most: int, conventions: str = "authors") -> tuple[Tensor, Tensor]:
    """(B, T) ids and mask of `CAPTIONS` as training has them."""
    from evlgen.data.batches import _texts

    ids, lengths = _texts(str(path), conventions, most).encode(CAPTIONS)  # type: ignore[arg-type]
    longest = int(lengths.max())
    mask = torch.arange(longest) < torch.from_numpy(lengths.astype(np.int64))[:, None]
    return torch.from_numpy(ids[:, :longest].astype(np.int64)), mask


# ----------------------------------------------------------------------------------------- who has them


def test_the_papers_scale_has_them_and_no_other() -> None:
    for scale, expected in (("paper", "authors"), ("bridge", "plain"), ("mini", "plain"), ("smoke", "plain")):
        for name in EXPERIMENTS:
            if (scale, name) == ("bridge", "table2"):
                continue  # it has but one language model
            for row in load(name, scale).rows:
                for config in (row.config, row.config.init_from):
                    assert config is None or config.conventions == expected, (scale, name, row.label)


def test_vicuna_is_the_authors() -> None:
    run = evlgen("paper", language=get("paper").languages[1])
    assert (run.optim.batch_size, run.optim.steps, run.optim.warmup_steps) == (160, 60_000, 2000)
    assert evlgen("paper").optim.batch_size == 1600


# ------------------------------------------------------------------------------------------ text and loss


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most", [12, 32])
def test_texts_are_cut_as_their_tokenizer_cuts_them(
    folder: Callable[[str], Path], family: str, most: int
) -> None:
    ids, mask = encoded(folder(family), most)
    tokenizer = languages.text_tokenizer(str(folder(family)))[0]
    end = "\n" if family == "opt" else "</s>"
    whole = tokenizer([text + end for text in CAPTIONS], truncation=True, max_length=most)["input_ids"]
    if family == "llama":  # its first token is exchanged for </s> and carries no label
        whole = [row[1:] for row in whole]
    else:
        assert all(row[0] == tokenizer.convert_tokens_to_ids("</s>") for row in whole)
    assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == whole
    end_id = languages.text_manners(str(folder(family)), "authors")[1]
    assert (whole[2][-1] == end_id) == (most == 32)  # a long caption loses its end
    assert whole[1][-1] == end_id


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_transformers_with_their_labels(
    folder: Callable[[str], Path], family: str
) -> None:
    model, (ids, mask) = captioner(folder(family)).eval(), encoded(folder(family), 12)
    features = tiny.features(3, torch.float64)
    llm, soft = model.language.model, model.soft_prompt(features)
    special = 2  # </s>
    if family == "llama":
        text = F.pad(ids, (1, 0), value=special)
        labels = F.pad(ids.masked_fill(~mask, -100), (1, 0), value=-100)
        seen = F.pad(mask, (1, 0), value=True)
    else:
        text, labels, seen = ids, ids.masked_fill(~mask, -100), mask
        assert (labels[:, 0] == special).all()
    embeds = torch.cat([soft, llm.get_input_embeddings()(text)], 1)
    labels = torch.cat([torch.full(soft.shape[:2], -100), labels], 1)
    attention = torch.cat([torch.ones(soft.shape[:2], dtype=torch.long), seen.long()], 1)
    logits = llm(inputs_embeds=embeds, attention_mask=attention).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert abs(model(features, ids, mask) - expected) < 1e-10
    own = llm(inputs_embeds=embeds, attention_mask=attention, labels=labels).loss  # in float32
    assert abs(model(features, ids, mask) - own) < 1e-4
    plain_ids, plain_mask = encoded(folder(family), 12, "plain")
    plain = captioner(folder(family), "plain").eval()(features, plain_ids, plain_mask)
    assert abs(plain - expected) > 1e-3


# --------------------------------------------------------------------------------------------- decoding


def old_beam_search(
    model: CaptionModel,
    start: Tensor,
    *,
    beams: int,
    shortest: int,
    longest: int,
    length_penalty: float,
    penalty: float = 1.0,
    dummy: int,
) -> list[int]:
    """Beam search of one example as `transformers` had it in 2023, with ``dummy`` in front.

    Args:
        start: (P, D) embeddings of the prompt.
        shortest, longest: lengths that count the dummy.
    """
    llm, end = model.language.model, model.language.end_id
    embed = llm.get_input_embeddings()
    rows, scores = [[dummy]], [0.0]
    ended: list[tuple[float, list[int]]] = []
    while True:
        found: list[tuple[float, int, list[int]]] = []
        for row, score in zip(rows, scores, strict=True):
            inputs = torch.cat([start, embed(torch.tensor(row[1:], dtype=torch.long))])
            with torch.no_grad():
                log_p = llm(inputs_embeds=inputs[None]).logits[0, -1].float().log_softmax(-1)
            for token in set(row):
                log_p[token] = log_p[token] * penalty if log_p[token] < 0 else log_p[token] / penalty
            if len(row) < shortest:
                log_p[end] = -math.inf
            found += [(score + float(value), token, row) for token, value in enumerate(log_p)]
        found = sorted(found, key=lambda one: -one[0])[: 2 * beams]
        rows, scores = [], []
        length = len(found[0][2])
        for rank, (score, token, row) in enumerate(found):
            if token == end:
                if rank < beams:
                    ended.append((score / len(row) ** length_penalty, row))
            elif len(rows) < beams:
                rows.append([*row, token])
                scores.append(score)
        ended = sorted(ended, key=lambda one: -one[0])[:beams]
        if len(ended) == beams and ended[-1][0] >= found[0][0] / (length + 1) ** length_penalty:
            break
        if length + 1 == longest:
            ended += [(s / len(r) ** length_penalty, r) for s, r in zip(scores, rows, strict=True)]
            break
    return max(ended, key=lambda one: one[0])[1][1:]


def prefer_end(model: CaptionModel, by: float) -> None:
    """Add to the logit of the closing token, so that captions end at all."""
    head = model.language.model.get_output_embeddings()
    bias = torch.zeros(head.out_features, dtype=head.weight.dtype)
    bias[model.language.end_id] = by
    head.bias = torch.nn.Parameter(bias, requires_grad=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("by", [0.0, 2.0, 4.0])
def test_captions_and_answers_are_those_of_the_old_search(
    folder: Callable[[str], Path], family: str, seed: int, by: float
) -> None:
    model = captioner(folder(family), seed=seed).eval()
    prefer_end(model, by)
    evaluation = EvalConfig(beams=3, min_length=4, max_length=9, answer_max_length=6)
    features, tokenizer = tiny.features(4, torch.float64, seed) * 3, model.language.tokenizer
    search = functools.partial(
        old_beam_search, model, beams=3, dummy=model.language.model.config.bos_token_id
    )
    embed = model.language.model.get_input_embeddings()
    soft, bos = model.soft_prompt(features), embed(torch.tensor([2]))  # </s>, also Vicuna's
    expected = [
        search(
            torch.cat([one, bos]),
            shortest=4,
            longest=9,
            length_penalty=1.0,
            penalty=1.5 if family == "llama" else 1.0,
        )
        for one in soft
    ]
    assert model.caption(features, evaluation) == [
        text.strip() for text in tokenizer.batch_decode(expected, skip_special_tokens=True)
    ]
    question = "What is the RED ball (left)?"
    ids = tokenizer("Question: what is the red ball left? Short answer:", add_special_tokens=False)[
        "input_ids"
    ]
    asked = embed(torch.tensor(ids))
    expected = [
        search(
            torch.cat([one, bos, asked]),
            shortest=1,
            # the limit of OPT's answers is one of new tokens, Vicuna's counts the dummy
            longest=6 if family == "llama" else 7,
            length_penalty=0.0,
        )
        for one in soft
    ]
    assert model.answer(features, [question] * 4, evaluation) == [
        text.strip() for text in tokenizer.batch_decode(expected, skip_special_tokens=True)
    ]


def test_the_old_search_differs_from_todays(folder: Callable[[str], Path]) -> None:
    """Lengths that count one token more are seen in the texts: 29 new tokens for 30."""
    evaluation = EvalConfig(beams=2, min_length=8, max_length=30)
    for conventions, longest in (("plain", 30), ("authors", 29)):
        model = captioner(folder("opt"), conventions).eval()
        prefer_end(model, -1e4)
        kept: list[Tensor] = []
        llm = model.language.model
        whole = llm.generate
        llm.generate = lambda whole=whole, kept=kept, **given: kept.append(whole(**given)) or kept[-1]
        model.caption(tiny.features(1, torch.float64), evaluation)
        assert kept[0].shape[1] == longest


def test_questions_are_cleaned_on_their_way(folder: Callable[[str], Path]) -> None:
    asked: list[str] = []

    class Listening:
        norm = torch.nn.LayerNorm(1)

        def answer(self, shown: Tensor, questions: list[str], evaluation: EvalConfig) -> list[str]:
            asked.extend(questions)
            return [""] * len(questions)

    question = 'What is the MAN (left) wearing: "a hat"; no. 1 * ~2#!?'
    for conventions in ("plain", "authors"):
        config = RunConfig(conventions=conventions)  # type: ignore[arg-type]
        answer_all(Listening(), config, torch.zeros(1, 2, 2), np.arange(1), [question])  # type: ignore[arg-type]
    assert asked == [question, "what is the man left wearing a hat no 1  2?"]


# ---------------------------------------------------------------------------------------------- training


def test_dropout_of_the_language_model_is_transformers_own(folder: Callable[[str], Path]) -> None:
    model, (ids, mask) = captioner(folder("opt")), encoded(folder("opt"), 12)
    features = tiny.features(3, torch.float64)
    calm = captioner(folder("opt")).eval()(features, ids, mask)
    model.train()
    torch.manual_seed(5)
    found = model(features, ids, mask)
    prompt = model.soft_prompt(features)
    torch.manual_seed(5)
    llm = model.language.model.train()
    embeds = torch.cat([prompt, llm.get_input_embeddings()(ids[:, :-1])], 1)
    logits = llm(inputs_embeds=embeds).logits[:, -ids.shape[1] :]
    expected = F.cross_entropy(logits[mask], ids[mask])
    assert abs(found - expected) < 1e-10
    assert abs(found - calm) > 1e-3
    with evaluating(model):
        assert not model.language.model.training
        assert abs(model(features, ids, mask) - calm) < 1e-10
    assert model.language.model.training
    assert abs(model(features, ids, mask) - found) > 1e-3
    assert not captioner(folder("opt"), "plain").train().language.model.training


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Dropout of the language model included: it is drawn from (seed, step), also where it is recomputed."""
    config = dataclasses.replace(tiny.run_config(), conventions="authors")
    recomputed = dataclasses.replace(config.optim, gradient_checkpointing=True)
    pools = tiny.training_data()

    def run(name: str, stop_at: int | None, config: RunConfig = config) -> bytes:
        (tmp_path / name).mkdir(exist_ok=True)

        def progress(now: object) -> None:
            if getattr(now, "step", 0) == stop_at:
                raise Stop

        model = captioner(folder("opt"))
        model.float()
        model.language.model.float()
        train(config, tmp_path / name, pools, progress, model=model)
        return (tmp_path / name / "connector.safetensors").read_bytes()

    whole = run("whole", None)
    with pytest.raises(Stop):
        run("stopped", 5)
    assert run("stopped", None) == whole
    run("recomputed", None, dataclasses.replace(config, optim=recomputed))
    first, second = (load_file(tmp_path / name / "connector.safetensors") for name in ("whole", "recomputed"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_cosine_moves_in_steps() -> None:
    """Against LAVIS's scheduler: warm-up in the first inner epoch, then a cosine of the inner epoch."""
    optim = OptimConfig()  # 250K, 5K of warm-up
    for config, steps in (
        (optim, 250_000),
        (dataclasses.replace(optim, steps=60_000, warmup_steps=2000), 60_000),
    ):
        for step in (0, 1, 1999, 2000, 4999, 5000, 9999, 10_000, 123_456, 55_000, steps - 1):
            epoch, most = step // 5000, steps // 5000
            if epoch == 0:
                warm = 1e-6 + (1e-4 - 1e-6) * step / config.warmup_steps
                expected = min(1e-4, warm)
            else:
                expected = (1e-4 - 1e-5) * 0.5 * (1.0 + math.cos(math.pi * epoch / most)) + 1e-5
            assert learning_rate(step, config, "authors") == pytest.approx(expected, rel=1e-12)
    assert INNER_EPOCH == 5000
    assert learning_rate(5001, optim, "authors") == learning_rate(9999, optim, "authors")
    assert learning_rate(5001, optim) != learning_rate(9999, optim)


def test_negatives_are_drawn_by_the_softmax_of_the_others() -> None:
    """Where the true pair dominates: softmax + 1e-4 without it afterwards would draw all alike."""
    others = torch.tensor(
        [[0.0, 4.0, 2.0, 0.0], [1.0, 0.0, 3.0, 3.0], [0.0, 0.0, 0.0, 5.0], [2.0, 1.0, 0.0, 0.0]]
    )
    similarity = others.clone().fill_diagonal_(60.0)
    expected = torch.zeros(4, 4)
    for row in range(4):
        columns = [c for c in range(4) if c != row]
        expected[row, columns] = others[row, columns].softmax(0)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([hard_negatives(similarity, generator) for _ in range(4000)])
    shares = torch.stack([torch.bincount(draws[:, row], minlength=4) / 4000 for row in range(4)])
    assert (shares - expected).abs().max() < 0.03
    assert (shares.diagonal() == 0).all()
    before = similarity.softmax(1) + 1e-4
    before.fill_diagonal_(0)
    assert (before / before.sum(1, keepdim=True) - 1 / 3).masked_fill(torch.eye(4) > 0, 0).abs().max() < 0.01


# --------------------------------------------------------------------------------------------- precision


def theirs(metric: Tensor, r: int, dtype: torch.dtype) -> set[tuple[int, int]]:
    """ToMe's links of one sequence with a class token, written out; similarities are rounded to ``dtype``."""
    unit = metric.float() / metric.float().norm(dim=-1, keepdim=True)
    even, odd = unit[::2].to(dtype), unit[1::2].to(dtype)
    scores = (even.double() @ odd.double().T).to(dtype).float()
    scores[0] = -math.inf  # the class token
    best, link = scores.max(-1)
    order = sorted(range(len(best)), key=lambda i: (-float(best[i]), i))[:r]
    return {(2 * i, 2 * int(link[i]) + 1) for i in order}


def links(matching: Matching, tokens: int) -> set[tuple[int, int]]:
    place = matching.destination[0].tolist()
    odd = {place[i]: i for i in range(1, tokens, 2)}
    return {(i, odd[place[i]]) for i in range(0, tokens, 2) if place[i] in odd}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_similarities_in_half_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(64, generator=generator)
    differ = 0
    for _ in range(20):
        metric = common + 0.1 * torch.randn(33, 64, generator=generator)  # alike, as BERT's keys are
        half = links(bipartite_soft_matching(metric[None], 8, dtype=dtype), 33)
        single = links(bipartite_soft_matching(metric[None], 8), 33)
        assert single == theirs(metric, 8, torch.float32)
        assert len(half ^ theirs(metric, 8, dtype)) <= 2  # a sum may round the other way
        differ += half != single
    assert differ > 3


def test_half_precision_is_that_of_mixed_precision() -> None:
    features = tiny.features(256)
    run = RunConfig(connector=tiny.TOMEFORMER, conventions="authors")
    assert connector_of(run).similarity == "half"  # type: ignore[union-attr]
    assert connector_of(dataclasses.replace(run, conventions="plain")).similarity == "single"  # type: ignore[union-attr]
    own = dataclasses.replace(run, connector=dataclasses.replace(tiny.TOMEFORMER, similarity="single"))
    assert connector_of(own).similarity == "single"  # type: ignore[union-attr]

    def source(similarity: str, mixed: bool) -> Tensor:
        torch.manual_seed(3)
        connector = build_connector(dataclasses.replace(tiny.TOMEFORMER, similarity=similarity)).eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return connector(features, return_trace=True)[1].source

    assert torch.equal(source("half", False), source("single", False))  # nothing is in half there
    assert not torch.equal(source("half", True), source("single", True))


EVA = EvaConfig(image_size=28, patch=7, width=64, num_layers=8, num_heads=4, intermediate=128)


def eva(half: bool, mixed: bool) -> EvaViT:
    torch.manual_seed(4)
    model = EvaViT(EVA).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    if mixed:
        halve_products(model, torch.float16)
    return model.half() if half and not mixed else model


@torch.no_grad()
def test_an_encoder_in_half_precision_adds_in_single() -> None:
    pixels = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(5))
    exact = eva(False, False).double()(pixels.double())
    mixed = eva(True, True)
    found = mixed(pixels)
    assert found.dtype == torch.float32
    with torch.autocast("cpu", torch.float16):  # as LAVIS runs it: weights of products in half, autocast
        reference = eva(True, True)(pixels)
    errors = [float((one.double() - exact).norm() / exact.norm()) for one in (found, reference)]
    worse = float((eva(True, False)(pixels.half()).double() - exact).norm() / exact.norm())
    assert errors[0] == pytest.approx(errors[1], rel=0.2)
    assert errors[0] < 0.7 * worse
    assert (found - reference).norm() / exact.norm() < 1e-3


@torch.no_grad()
def test_encoders_from_files_add_in_single(tmp_path: Path) -> None:
    real_weights.write(tmp_path, ("eva-clip-g", "clip-vit-l"))
    pixels = np.random.default_rng(0).integers(256, size=(2, 224, 224, 3), dtype=np.uint8)
    for build, name in ((build_eva, "eva_vit_g.pth"), (build_clip, "clip-vit-large-patch14")):
        single = build(tmp_path / name, dtype=torch.float32)
        half = build(tmp_path / name, dtype=torch.float16)
        mixed = build(tmp_path / name, dtype=torch.float16, single_residual=True)
        shown = pixels[:, : single.image_size, : single.image_size]
        exact = single.encode(shown)
        errors = [float((one.encode(shown) - exact).norm() / exact.norm()) for one in (half, mixed)]
        assert errors[1] < errors[0] < 0.02
        assert len({one.fingerprint for one in (half, mixed)}) == 2


# ----------------------------------------------------------------------------------------- as a run has it


def test_a_configuration_alone_decides(folder: Callable[[str], Path]) -> None:
    """Data and model of a run that says `authors` fit together: texts begin as the model wants it."""
    config = RunConfig(
        connector=dataclasses.replace(tiny.TOMEFORMER, input_width=96, max_positions=65, r=20),
        language=str(folder("opt")),
        data=dataclasses.replace(RunConfig().data, pools=(("coco", 6),)),
        evaluation=EvalConfig(validation=4, beams=2),
    )
    for conventions in ("plain", "authors"):
        run = dataclasses.replace(config, conventions=conventions)  # type: ignore[arg-type]
        data: TrainingData = load_training_data(run)
        model = build_model(run)
        assert isinstance(model, CaptionModel)
        begins = data.validation.text_ids[..., 0] == 2
        assert begins.all() == (conventions == "authors")
        assert model.language.manners.scores_bos == (conventions == "authors")
        assert data.validation.lengths.max() <= run.data.max_text_tokens


def test_streamed_features_are_not_rounded() -> None:
    pixels = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
    vision = build_vision("mini-vit")
    exact = vision.features(pixels)
    assert torch.equal(ImageEncoder(vision, "authors")(pixels), exact)
    assert torch.equal(ImageEncoder(vision)(pixels), exact.half().float())
    assert not torch.equal(exact, exact.half().float())
