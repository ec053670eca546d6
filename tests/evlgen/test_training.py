import dataclasses
import json
import logging
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from evlgen import training
from evlgen.backbones.language import word_tokenizer
from evlgen.config import OptimConfig, RunConfig
from evlgen.data.pairs import draw_batch, encode_texts
from evlgen.data.sampling import epoch_order, hashed, pairs_of_step
from evlgen.errors import UserError
from evlgen.model import weights_checksum
from evlgen.optimizer import build_optimizer, learning_rate
from evlgen.runs.folder import CONNECTOR, METRICS, read_metrics
from evlgen.runtime import checkpoints, files
from evlgen.runtime.progress import Progress
from evlgen.training import train
from tests.evlgen import tiny

PAPER = OptimConfig()  # 250K steps, warm-up 5,000, 1e-6 -> 1e-4 -> 1e-5


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder: Path, config: RunConfig, **others: object) -> dict[str, float]:
    return train(config, folder, tiny.training_data(), model=tiny.model_of(config), **others)  # type: ignore[arg-type]


def timeless(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "samples_per_second"} for line in read_metrics(folder)]


def weights(folder: Path) -> bytes:
    return (folder / CONNECTOR).read_bytes()


# ------------------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-6),
        (2500, 5.05e-5),  # half of the warm-up
        (5000, 1e-4),
        (66_250, 1e-5 + 9e-5 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the cosine
        (127_500, 5.5e-5),  # half
        (250_000, 1e-5),
    ],
)
def test_learning_rate_is_the_papers(step, expected):
    assert learning_rate(step, PAPER) == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_learning_rate_stays_in_range_and_rises_once(warmup, steps):
    optim = dataclasses.replace(PAPER, warmup_steps=warmup, steps=steps)
    rates = [learning_rate(step, optim) for step in range(steps)]
    assert all(1e-6 <= rate <= 1e-4 * (1 + 1e-12) for rate in rates)
    peak = min(warmup, steps - 1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_weight_decay_is_for_matrices_only():
    model = tiny.caption_model(tiny.QFORMER)
    decayed, spared = build_optimizer(model, PAPER).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert decayed["betas"] == (0.9, 0.999)
    assert all(names[id(p)].endswith(("weight", "queries")) for p in decayed["params"])
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


# ---------------------------------------------------------------------------------------- data order


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 17))
@settings(max_examples=50)
def test_every_epoch_sees_every_pair_once(seed, total, batch_size):
    steps = math.ceil(3 * total / batch_size)
    parts = [pairs_of_step(seed, step, batch_size, total) for step in range(steps)]
    epochs, indices = (np.concatenate(column) for column in zip(*parts, strict=True))
    assert list(epochs) == sorted(epochs)
    for epoch in range(3):
        assert sorted(indices[epochs == epoch]) == list(range(total))


def test_order_is_random_and_differs_between_epochs_and_seeds():
    orders = [tuple(epoch_order(seed, epoch, 500)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    correlation = np.corrcoef(orders[0], np.arange(500))[0, 1]
    assert abs(correlation) < 0.15


def test_hash_is_pinned_and_well_spread():
    """These numbers must never change: the order of the data of every finished run hangs on them."""
    assert hashed(0).tolist() == [16294208416658607535]
    assert hashed(1, 2, 3).tolist() == hashed(1, 2, np.array([3], np.uint64)).tolist()
    bits = np.unpackbits(hashed(5, np.arange(4096, dtype=np.uint64)).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.005


def test_batch_has_the_features_and_the_caption_of_its_pairs():
    pools = (tiny.pairs("web", 20, seed=1), tiny.pairs("coco", 10, captions=3, views=2, seed=2))
    chosen, seen = set(), set()
    for step in range(12):
        batch = draw_batch(pools, 7, step, 6)
        epoch, index = pairs_of_step(7, step, 6, 30)
        assert batch.text_mask.any(0).all()  # no column of padding alone
        for row in range(6):
            pool, place = (pools[0], index[row]) if index[row] < 20 else (pools[1], index[row] - 20)
            length = int(batch.text_mask[row].sum())
            captions = [
                pool.text_ids[place, c, : pool.lengths[place, c]].tolist()
                for c in range(pool.text_ids.shape[1])
            ]
            assert batch.text_ids[row, :length].tolist() in captions
            views = [
                np.array_equal(batch.images[row], pool.features[v, place].astype(np.float32))
                for v in range(len(pool.features))
            ]
            assert sum(views) == 1
            if pool is pools[1]:
                chosen.add((int(index[row]), captions.index(batch.text_ids[row, :length].tolist())))
                seen.add((int(index[row]), views.index(True)))
        assert (epoch == step * 6 // 30).all()
    assert len({place for place, _ in chosen}) == 10
    assert len(chosen) > 10  # another epoch, another caption
    assert len(seen) > 10  # and another view


def test_batch_of_a_step_is_the_same_whatever_was_drawn_before():
    pools = tiny.training_data().source.pools
    first = draw_batch(pools, 0, 5, 8)
    for step in (9, 2, 7):
        draw_batch(pools, 0, step, 8)
    again = draw_batch(pools, 0, 5, 8)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.text_ids, again.text_ids)


def test_long_captions_are_cut_but_closed():
    tokenizer = word_tokenizer([tiny.WORDS])
    newline = tokenizer.convert_tokens_to_ids("\n")
    ids, lengths = encode_texts(tokenizer, ["a red ball on the grass", "a ball"], 4, newline)
    assert tokenizer.decode(ids[0][:3]) == "a red ball"
    assert ids[0, 3] == newline
    assert ids[1].tolist() == [*tokenizer("a ball", add_special_tokens=False)["input_ids"], newline, 0]
    assert lengths.tolist() == [4, 3]


# ------------------------------------------------------------------------------------------ the loop


@pytest.mark.parametrize(
    "change",
    [{}, {"connector": tiny.QFORMER}, {"connector": tiny.QFORMER, "stage": "represent"}],
    ids=["tomeformer", "qformer", "represent"],
)
def test_training_lowers_the_loss_and_leaves_the_language_model_alone(tmp_path, change):
    config = tiny.run_config(steps=40, eval_every=20, lr=1e-2, **change)
    model = tiny.model_of(config)
    language = getattr(model, "language", None)
    before = weights_checksum(language.model) if language else None
    result = train(config, tmp_path, tiny.training_data(), model=model)
    lines = read_metrics(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert result["val_loss"] == lines[-1]["val_loss"]
    assert (result["steps"], result["samples"]) == (40, 320)
    if language:
        assert weights_checksum(language.model) == before
        assert result["gap"] == pytest.approx(result["shuffled_loss"] - result["val_loss"])
    else:
        assert 0 <= result["retrieval@1"] <= 100


def test_metrics_have_what_the_tables_need(tmp_path):
    run(tmp_path, tiny.run_config())
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all({"loss", "lr", "grad_norm", "samples_per_second"} <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "gap" in line] == [6, 12]
    measured = {"val_loss", "shuffled_loss", "gap", "cosine", "effective_rank", "attention_entropy"}
    assert measured <= lines[-1].keys()
    assert [line["lr"] for line in lines] == [learning_rate(s, tiny.run_config().optim) for s in range(12)]


def test_loss_of_a_line_is_the_mean_since_the_line_before(tmp_path, monkeypatch):
    run(tmp_path / "all", tiny.run_config())
    monkeypatch.setattr(training, "_LOG_POINTS", 4)  # 12 steps: a line every third
    run(tmp_path / "few", tiny.run_config(eval_every=100, checkpoint_every=100))
    all_losses = [line["loss"] for line in read_metrics(tmp_path / "all")]
    few = {line["step"]: line["loss"] for line in read_metrics(tmp_path / "few")}
    assert list(few) == [1, 3, 6, 9, 12]
    assert few[3] == pytest.approx(sum(all_losses[1:3]) / 2)
    assert few[12] == pytest.approx(sum(all_losses[9:12]) / 3)


def test_same_run_gives_the_same_bits_and_another_seed_others(tmp_path):
    config = tiny.run_config(connector=dataclasses.replace(tiny.TOMEFORMER, dropout=0.2, metric="random"))
    for past, name in enumerate(("a", "b")):
        model = tiny.model_of(config)
        torch.manual_seed(past)  # the state of the global generator does not matter
        train(config, tmp_path / name, tiny.training_data(), model=model)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b")
    run(tmp_path / "c", dataclasses.replace(config, seed=1))
    ours, other = (load_file(tmp_path / name / CONNECTOR) for name in ("a", "c"))
    assert not torch.equal(ours["norm.weight"], other["norm.weight"])


def test_validation_does_not_change_the_training(tmp_path):
    config = tiny.run_config(connector=dataclasses.replace(tiny.TOMEFORMER, dropout=0.2))
    run(tmp_path / "a", config)
    run(tmp_path / "b", dataclasses.replace(config, optim=dataclasses.replace(config.optim, eval_every=1)))
    ours, other = (load_file(tmp_path / name / CONNECTOR) for name in ("a", "b"))
    assert all(torch.equal(ours[name], other[name]) for name in ours)


def test_gradient_is_clipped_only_if_asked(tmp_path):
    run(tmp_path / "free", tiny.run_config(clip_norm=0.0))
    run(tmp_path / "tight", tiny.run_config(clip_norm=1e-3))
    run(tmp_path / "wide", tiny.run_config(clip_norm=1e9))
    assert timeless(tmp_path / "free") == timeless(tmp_path / "wide")
    assert timeless(tmp_path / "free")[0]["grad_norm"] > 1e-3  # the norm before clipping
    assert timeless(tmp_path / "free")[-1]["loss"] != timeless(tmp_path / "tight")[-1]["loss"]


def test_bf16_trains_in_half_precision_and_keeps_weights_in_full(tmp_path):
    dtypes = set()
    model = tiny.caption_model()
    model.connector.layers[0].feed_forward.up.register_forward_hook(lambda _m, _i, out: dtypes.add(out.dtype))
    result = train(tiny.run_config(precision="bf16"), tmp_path, tiny.training_data(), model=model)
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert math.isfinite(result["val_loss"])


def test_progress_goes_through_the_phases(tmp_path):
    seen: list[Progress] = []
    run(tmp_path, tiny.run_config(), progress=seen.append)
    assert [p.step for p in seen if p.phase == "train"] == list(range(1, 13))
    assert [p.step for p in seen if p.phase == "validate"] == [6, 12]
    assert all(p.steps == 12 and p.loss is not None and p.rate > 0 for p in seen)


def test_stage2_starts_from_stage1(tmp_path):
    first = tiny.run_config(connector=tiny.QFORMER, stage="represent")
    run(tmp_path / "one", first)
    second = dataclasses.replace(tiny.run_config(connector=tiny.QFORMER, steps=1, lr=0.0), init_from=first)
    run(tmp_path / "two", second, init_folder=tmp_path / "one")
    ours, theirs = (load_file(tmp_path / name / CONNECTOR) for name in ("two", "one"))
    shared = [name for name in ours if name in theirs]
    assert "connector.queries" in shared
    assert "norm.weight" in shared
    assert "connector.words.weight" not in ours
    for name in shared:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)  # one tiny step
    with pytest.raises(UserError, match="init_from"):
        run(tmp_path / "three", second)


def test_stage1_with_losses_left_out(tmp_path):
    """ITC and ITM do not move the head of the LM; parts of an accumulation add up; the log says which."""
    base = tiny.run_config(connector=tiny.QFORMER, stage="represent", steps=4, eval_every=2)
    before = tiny.stage1_model().state_dict()
    for accumulate in (1, 2):
        config = dataclasses.replace(
            base, objectives=("itc", "itm"), optim=dataclasses.replace(base.optim, accumulate=accumulate)
        )
        folder = tmp_path / str(accumulate)
        result = train(config, folder, tiny.training_data(), model=tiny.model_of(config))
        assert {name for name in result if name.startswith("val_")} == {"val_loss", "val_itc", "val_itm"}
        after = load_file(folder / CONNECTOR)
        for name in ("generation_dense.weight", "generation_bias"):
            assert torch.equal(after[f"connector.{name}"], before[f"connector.{name}"])
        assert not torch.equal(after["connector.queries"], before["connector.queries"])
    lm = dataclasses.replace(base, objectives=("lm",))
    train(lm, tmp_path / "lm", tiny.training_data(), model=tiny.model_of(lm))
    lines = read_metrics(tmp_path / "lm")
    assert [name for name in lines[-1] if name.startswith(("val_", "retrieval"))] == ["val_loss", "val_lm"]
    for objectives, message in ((), "is empty"), (("lm", "lm"), "more than once"):
        wrong = dataclasses.replace(base, objectives=objectives)
        with pytest.raises(UserError, match=message):
            train(wrong, tmp_path / "wrong", tiny.training_data(), model=tiny.model_of(wrong))


def test_weights_carry_the_config(tmp_path):
    run(tmp_path, tiny.run_config())
    with safe_open(tmp_path / CONNECTOR, "pt") as file:
        metadata = json.loads(file.metadata()["evlgen"])
        assert {name.split(".")[0] for name in file.keys()} == {"norm", "connector", "projection"}  # noqa: SIM118
    assert json.loads(metadata["config"])["optim"]["steps"] == 12
    assert len(metadata["config_hash"]) == 16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny.run_config(precision="fp16"), "fp16"),
        (tiny.run_config(steps=0), "optim.steps"),
        (tiny.run_config(connector=dataclasses.replace(tiny.TOMEFORMER, input_width=10)), "width 10"),
    ],
)
def test_wrong_configs_are_refused_before_anything_is_done(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_divergence_is_reported_with_its_step(tmp_path):
    data = tiny.training_data()
    data.source.pools[0].features[:] = np.inf
    with pytest.raises(FloatingPointError, match=r"step 1\b.*optim\.lr"):
        train(tiny.run_config(), tmp_path, data, model=tiny.caption_model())


# --------------------------------------------------------------------------------- killed and resumed

# Dropout and random matchings: whatever a generator's state could spoil is in this run.
FRAGILE = tiny.run_config(connector=dataclasses.replace(tiny.TOMEFORMER, dropout=0.2, metric="random"))


def train_until_killed(folder: str, at_replace: int, at_step: int) -> None:
    """In a process of its own: die by SIGKILL at the given file operation or step."""
    torch.set_num_threads(1)
    count = 0
    replace = os.replace

    def deadly_replace(source: object, target: object) -> None:
        nonlocal count
        if Path(str(target)).name != METRICS:
            if count == at_replace:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
        replace(source, target)  # type: ignore[arg-type]

    def deadly_step(progress: Progress) -> None:
        if progress.step == at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly_replace  # type: ignore[assignment]
    run(Path(folder), FRAGILE, progress=deadly_step)


@pytest.fixture(scope="module")
def spawn():
    """Processes that start at once, because a server has imported everything for them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.evlgen.test_training", "evlgen.training", "tests.evlgen.tiny"])

    def start(target: object, *arguments: object) -> int | None:
        process = context.Process(target=target, args=arguments)  # type: ignore[arg-type]
        process.start()
        process.join(120)
        assert process.exitcode is not None
        return process.exitcode

    return start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run(folder, FRAGILE)
    torch.set_num_threads(before)
    return folder


# 3 checkpoints: checksums, the new file, rotation (not the first time), its name, checksums; then the weights
FILE_OPERATIONS = 4 + 5 + 5 + 1


@pytest.mark.parametrize(
    ("at_replace", "at_step"), [*((i, -1) for i in range(FILE_OPERATIONS)), (-1, 2), (-1, 7), (-1, 12)]
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, spawn, undisturbed, at_replace, at_step):
    assert spawn(train_until_killed, str(tmp_path), at_replace, at_step) == -signal.SIGKILL
    assert not (tmp_path / CONNECTOR).exists()
    result = run(tmp_path, FRAGILE)
    last_checkpoint = max(at_step // 4 * 4 if at_step < 12 else 8, 0) if at_step > 0 else None
    if last_checkpoint is not None:
        assert result["resumed_from"] == last_checkpoint
    assert weights(tmp_path) == weights(undisturbed)
    assert timeless(tmp_path) == timeless(undisturbed)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {path.name for path in undisturbed.iterdir()}  # no temporary files


def test_the_kills_above_cover_every_file_operation(tmp_path, spawn):
    assert spawn(train_until_killed, str(tmp_path), FILE_OPERATIONS, -1) == 0


def test_a_kill_from_outside_in_the_middle(tmp_path, undisturbed):
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=train_until_killed, args=(str(tmp_path), -1, -1))
    process.start()
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path)) < 5 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.join()
    run(tmp_path, FRAGILE)
    assert weights(tmp_path) == weights(undisturbed)
    assert timeless(tmp_path) == timeless(undisturbed)


def interrupted(folder: Path, at_step: int) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == at_step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, FRAGILE, progress=stop)


@pytest.mark.parametrize("points", [150, 3], ids=["a line each step", "losses between lines"])
@pytest.mark.parametrize("at_step", [1, 6, 7, 12])
def test_a_stop_leaves_a_checkpoint_of_its_step(tmp_path, monkeypatch, points, at_step):
    monkeypatch.setattr(training, "_LOG_POINTS", points)
    monkeypatch.setattr(training, "_PROGRESS_SECONDS", 0.0)

    def stop(progress: Progress) -> None:
        if progress.step == at_step:
            raise training.Stop

    run(tmp_path / "whole", FRAGILE)
    with pytest.raises(training.Stop):
        run(tmp_path / "stopped", FRAGILE, progress=stop)
    assert run(tmp_path / "stopped", FRAGILE)["resumed_from"] == at_step
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert timeless(tmp_path / "stopped") == timeless(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no checksums"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, undisturbed, caplog, damage):
    interrupted(tmp_path, 10)
    newest = tmp_path / checkpoints.CURRENT
    if damage == "no checksums":
        (tmp_path / checkpoints.CHECKSUMS).unlink()
    else:
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes({"flip": bytes(data), "truncate": bytes(data[:-100]), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        result = run(tmp_path, FRAGILE)
    assert str(newest) in caplog.text
    assert result["resumed_from"] == (0 if damage == "no checksums" else 4)
    assert weights(tmp_path) == weights(undisturbed)
    assert timeless(tmp_path) == timeless(undisturbed)


def test_checkpoints_hold_no_code(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "pwned"),))

    checkpoints.save_checkpoint(tmp_path, {"step": Evil()})
    assert checkpoints.load_checkpoint(tmp_path) is None
    assert not (tmp_path / "pwned").exists()


def test_a_line_cut_short_and_lines_after_the_checkpoint_are_dropped(tmp_path, undisturbed):
    interrupted(tmp_path, 7)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 7, "loss": 1.5}\n{"step": 8, "lo')
    run(tmp_path, FRAGILE)
    assert timeless(tmp_path) == timeless(undisturbed)


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = run(tmp_path, FRAGILE)
    before = weights(tmp_path)
    (tmp_path / CONNECTOR).unlink()
    monkeypatch.setattr(training, "_update", None)
    again = run(tmp_path, FRAGILE)
    assert again == {**first, "resumed_from": 12, "train_seconds": again["train_seconds"]}
    assert weights(tmp_path) == before


def test_training_time_adds_up_over_resumptions_without_validation(tmp_path, monkeypatch):
    clock = 0.0

    def tick(*_: object) -> None:
        nonlocal clock
        clock += 1.0

    monkeypatch.setattr(training.time, "perf_counter", lambda: clock)
    update, validate = training._update, training.validate
    monkeypatch.setattr(training, "_update", lambda *a, **k: (tick(), update(*a, **k))[1])
    monkeypatch.setattr(training, "validate", lambda *a: ([tick() for _ in range(100)], validate(*a))[1])
    interrupted(tmp_path, 10)  # ten seconds, of which the two after the checkpoint at 8 are lost
    assert run(tmp_path, FRAGILE)["train_seconds"] == 12.0


@pytest.mark.parametrize("change", ["config", "data"])
def test_another_runs_checkpoint_is_refused(tmp_path, change):
    interrupted(tmp_path, 6)
    config, data = FRAGILE, tiny.training_data()
    if change == "config":
        config = dataclasses.replace(config, seed=3)
    else:
        data = dataclasses.replace(data, fingerprint="other")
    with pytest.raises(UserError, match="another run"):
        train(config, tmp_path, data, model=tiny.model_of(config))


def test_a_full_disk_is_a_clear_line_and_loses_nothing(tmp_path, monkeypatch, undisturbed):
    fsync, count = files.os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 9:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as raised:
        run(tmp_path, FRAGILE)
    assert str(tmp_path) in str(raised.value)
    assert not list(tmp_path.glob(".*.tmp"))
    monkeypatch.undo()
    assert run(tmp_path, FRAGILE)["resumed_from"] > 0
    assert weights(tmp_path) == weights(undisturbed)
