import dataclasses
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp  # here, so that forked ranks need not
from safetensors.torch import load_file

from evlgen import training
from evlgen.bookkeeping import TrainingState
from evlgen.config import LinearConfig, PerceiverConfig, RunConfig
from evlgen.data.batches import StepBatches
from evlgen.data.pairs import Batch, draw_batch, text_tokens
from evlgen.errors import UserError
from evlgen.runs.folder import CONNECTOR, read_metrics
from evlgen.runtime import distributed
from evlgen.runtime.distributed import ALONE, Ranks
from evlgen.training import train
from tests.evlgen import tiny

CAPTION = tiny.run_config(clip_norm=0.0)
REPRESENT = tiny.run_config(clip_norm=0.0, connector=tiny.QFORMER, stage="represent")
# Dropout and random matchings: whatever a generator's state could spoil is in this run.
FRAGILE = tiny.run_config(
    batch_size=12, connector=dataclasses.replace(tiny.TOMEFORMER, dropout=0.2, metric="random")
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def changed(config: RunConfig, **optim: object) -> RunConfig:
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **optim))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- several processes


def as_rank(
    rank: int, size: int, port: int, task: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    """In a process of its own, with the environment that torchrun gives it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert distributed.init_from_environment()
    task(rank, *arguments)
    distributed.close()


def together(task: Callable[..., None], *arguments: object, size: int = 2) -> list[int | None]:
    """Run ``task(rank, *arguments)`` on ranks that form a process group; returns their exit codes."""
    context = multiprocessing.get_context("fork")  # importing everything anew would take most of the time
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=as_rank, args=(rank, size, port, task, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def train_here(folder: Path, config: RunConfig, model: object = None) -> dict[str, float]:
    return train(config, folder, tiny.training_data(), model=model or tiny.model_of(config))  # type: ignore[arg-type]


def train_rank(rank: int, folder: str, config: RunConfig, killed: int = -1, at_step: int = -1) -> None:
    """Train; the rank ``killed`` dies by SIGKILL before the update that leads to ``at_step``."""
    update = training._update

    def deadly(state: TrainingState, *rest: object, **named: object) -> object:
        if rank == killed and state.step + 1 == at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(state, *rest, **named)  # type: ignore[arg-type]

    training._update = deadly  # type: ignore[assignment]
    result = train_here(Path(folder), config)
    torch.save(result, f"{folder}/result{rank}.pt")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / CONNECTOR)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def timeless(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "samples_per_second"} for line in read_metrics(folder)]


# ------------------------------------------------------------------------------------------ the joint batch


def parts_of(config: RunConfig, ranks: Ranks, step: int = 0) -> list[Batch]:
    pools, optim = tiny.training_data().source.pools, config.optim
    return [
        draw_batch(pools, config.seed, step, optim.batch_size, rows) for rows in training._parts(optim, ranks)
    ]


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2)])
def test_the_parts_of_all_ranks_are_the_batch_of_one_process(size, accumulate):
    config = tiny.run_config(batch_size=16, accumulate=accumulate)
    for step in (0, 2, 7):  # step 2 is of two epochs
        whole = draw_batch(tiny.training_data().source.pools, config.seed, step, 16)
        ranks = [parts_of(config, Ranks(index, size), step) for index in range(size)]
        rows = [part for parts in zip(*ranks, strict=True) for part in parts]
        assert torch.cat([part.images for part in rows]).equal(whole.images)
        ids = [ids[mask].tolist() for part in rows for ids, mask in zip(part.text_ids, part.text_mask)]  # noqa: B905
        assert ids == [i[m].tolist() for i, m in zip(whole.text_ids, whole.text_mask, strict=True)]
        tokens = text_tokens(tiny.training_data().source.pools, config.seed, step, 16)
        assert tokens == int(whole.text_mask.sum())


def gradients(config: RunConfig, ranks: Ranks) -> dict[str, torch.Tensor]:
    """This rank's summand of the loss and the gradient of the first update, in float64."""
    model = tiny.model_of(config).double()
    if config.stage == "caption":
        model = tiny.caption_model(config.connector, dtype=torch.float64)
    device = torch.device("cpu")
    state = training._begin(config, model, device, None, ranks)
    batches = [dataclasses.replace(b, images=b.images.double()) for b in parts_of(config, ranks)]
    tokens = None
    if config.optim.accumulate * ranks.size > 1:
        tokens = text_tokens(tiny.training_data().source.pools, config.seed, 0, config.optim.batch_size)
    loss, _ = training._update(state, StepBatches(batches, tokens), config, device, ranks, wants_norm=True)
    return {"loss": loss} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gradients_of_rank(rank: int, folder: str, configs: list[RunConfig]) -> None:
    with distributed.joined() as ranks:
        torch.save([gradients(config, ranks) for config in configs], f"{folder}/{rank}.pt")
        ranks.broadcast(None)


def test_two_ranks_have_loss_and_gradient_of_the_joint_batch(tmp_path):
    """Captions with another number of tokens on each rank; in stage 1 the negatives of both ranks."""
    some = dataclasses.replace(REPRESENT, objectives=("itm", "lm"))
    ours = [CAPTION, changed(CAPTION, accumulate=2), REPRESENT, changed(REPRESENT, accumulate=2), some]
    # In stage 1 the negatives are those of a part, so accumulation is compared with accumulation
    theirs = [CAPTION, CAPTION, REPRESENT, changed(REPRESENT, accumulate=2), some]
    counts = [int(parts_of(CAPTION, Ranks(index, 2))[0].text_mask.sum()) for index in range(2)]
    assert counts[0] != counts[1]
    # Before the ranks are forked, which then inherit what torch imports late
    expected_of = [gradients(config, ALONE) for config in theirs]
    assert together(gradients_of_rank, str(tmp_path), ours) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for one, other, joint in zip(first, second, expected_of, strict=True):
        torch.testing.assert_close(one.pop("loss") + other.pop("loss"), joint.pop("loss"), rtol=0, atol=1e-10)
        assert one.keys() == other.keys() == joint.keys()
        for name, expected in joint.items():
            assert one[name].equal(other[name])
            torch.testing.assert_close(one[name], expected, rtol=0, atol=1e-10)


def test_accumulation_has_loss_and_gradient_of_the_joint_batch():
    joint = gradients(CAPTION, ALONE)
    counts = {int(part.text_mask.sum()) for part in parts_of(changed(CAPTION, accumulate=4), ALONE)}
    assert len(counts) > 1
    for accumulate in (2, 4):
        ours = gradients(changed(CAPTION, accumulate=accumulate), ALONE)
        for name, expected in joint.items():
            torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-10)


def test_stage_1_takes_negatives_from_the_part():
    """The loss of two parts is what two batches of half the size have, not that of the whole."""
    config = changed(REPRESENT, accumulate=2)
    model = tiny.stage1_model().double()
    itc = []
    for part in parts_of(config, ALONE):
        generator = torch.Generator().manual_seed(0)
        losses = model.losses(part.images.double(), part.text_ids, part.text_mask, generator)
        itc.append(float(losses.itc.detach()))
    whole = parts_of(REPRESENT, ALONE)[0]
    joint = model.losses(whole.images.double(), whole.text_ids, whole.text_mask)
    assert sum(itc) / 2 < float(joint.itc.detach()) - 0.3  # log 4 against log 8, roughly


# ------------------------------------------------------------------------------------------------- training


def test_two_ranks_train_as_one_process(tmp_path):
    """fp32: 1e-5. Both ranks return the same; the files are those of one process."""
    config = tiny.run_config(accumulate=2)
    (tmp_path / "two").mkdir()
    assert together(train_rank, str(tmp_path / "two"), config) == [0, 0]
    train_here(tmp_path / "one", tiny.run_config())
    results = [torch.load(tmp_path / "two" / f"result{rank}.pt") for rank in range(2)]
    assert results[0] == results[1]
    assert results[0]["samples"] == 96
    for ours, theirs in zip(timeless(tmp_path / "two"), timeless(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    left = {path.name for path in (tmp_path / "two").iterdir()} - {"result0.pt", "result1.pt"}
    assert left == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert together(train_rank, str(folder), FRAGILE, size=3) == [0, 0, 0]
    return folder


@pytest.mark.parametrize("killed", [0, 1])
def test_killed_ranks_end_with_the_same_bits(tmp_path, undisturbed, killed):
    """Three ranks: the sum of three numbers depends on their order, which DistributedDataParallel changes."""
    codes = together(train_rank, str(tmp_path), FRAGILE, killed, 7, size=3)
    assert codes[killed] == -signal.SIGKILL
    assert all(codes)
    assert not (tmp_path / CONNECTOR).exists()
    assert together(train_rank, str(tmp_path), FRAGILE, size=3) == [0, 0, 0]
    assert torch.load(tmp_path / "result1.pt")["resumed_from"] == 4
    assert same(weights(tmp_path), weights(undisturbed))
    assert timeless(tmp_path) == timeless(undisturbed)


def test_ranks_draw_dropout_of_their_own(tmp_path, undisturbed):
    """One process with the same dropout on the joint batch would be a coincidence."""
    train_here(tmp_path, FRAGILE)
    assert not same(weights(tmp_path), weights(undisturbed))


def test_another_number_of_processes_is_allowed_and_said(tmp_path, caplog):
    assert -signal.SIGKILL in together(train_rank, str(tmp_path), FRAGILE, 0, 7)
    with caplog.at_level(logging.WARNING):
        result = train_here(tmp_path, FRAGILE)
    assert "2 processes until step 4, 1 from here on" in caplog.text
    assert (result["resumed_from"], result["steps"]) == (4, 12)


def test_sharded_language_model_gives_the_bits_of_a_whole_one(tmp_path):
    """FSDP2 on the CPU; with bf16 and gradient checkpointing, as at the scale where it is needed."""
    config = tiny.run_config(precision="bf16", gradient_checkpointing=True)
    for name in ("replicate", "shard"):
        (tmp_path / name).mkdir()
        ours = changed(config, llm_placement=name)
        assert together(train_rank, str(tmp_path / name), ours) == [0, 0]
    assert same(weights(tmp_path / "shard"), weights(tmp_path / "replicate"))
    assert timeless(tmp_path / "shard") == timeless(tmp_path / "replicate")


# ------------------------------------------------------------------------------------------------ one process


@pytest.mark.parametrize("case", ["opt", "llama", "qformer", "represent", "linear", "perceiver"])
def test_gradient_checkpointing_changes_memory_and_not_a_bit(tmp_path, case):
    tomeformer = dataclasses.replace(tiny.TOMEFORMER, dropout=0.2, metric="random")
    qformer = dataclasses.replace(tiny.QFORMER, dropout=0.2)
    mlp = LinearConfig(input_width=tiny.WIDTH, width=64, num_layers=3)
    perceiver = PerceiverConfig(
        input_width=tiny.WIDTH,
        width=16,
        num_layers=2,
        num_heads=2,
        intermediate=32,
        max_positions=16,
        num_latents=4,
    )
    others = {"opt": tomeformer, "llama": tomeformer, "linear": mlp, "perceiver": perceiver}
    kept = []
    for recompute in (False, True):
        config = tiny.run_config(
            steps=4,
            gradient_checkpointing=recompute,
            connector=others.get(case, qformer),
            stage="represent" if case == "represent" else "caption",
        )
        model = tiny.model_of(config)
        if case == "llama":
            model = tiny.caption_model(tomeformer, "llama")
        bytes_kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal bytes_kept
            bytes_kept += tensor.numel() * tensor.element_size()
            return tensor

        # Hooks from outside do not see what the blocks save for their own second pass
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            train_here(tmp_path / str(recompute), config, model)
        kept.append(bytes_kept)
    assert same(weights(tmp_path / "True"), weights(tmp_path / "False"))
    assert timeless(tmp_path / "True") == timeless(tmp_path / "False")
    assert kept[1] < 0.6 * kept[0]


def test_fp16_scaler_is_resumed(tmp_path, monkeypatch):
    """On the CPU, where it is slow and refused; the loss scale falls at the first overflow."""
    monkeypatch.setattr(training, "_check", lambda *_: None)
    config = tiny.run_config(precision="fp16")

    def begin(*arguments: object) -> TrainingState:
        state = begin_as_ever(*arguments)  # type: ignore[arg-type]
        state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
        return state

    begin_as_ever = training._begin
    monkeypatch.setattr(training, "_begin", begin)
    train_here(tmp_path / "whole", config)
    scales = [line["loss_scale"] for line in read_metrics(tmp_path / "whole")]
    assert len(set(scales)) > 2  # fell and grew again

    def stop(progress: training.Progress) -> None:
        if progress.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", tiny.training_data(), stop, model=tiny.model_of(config))
    assert train_here(tmp_path / "cut", config)["resumed_from"] == 4
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


def test_batch_that_cannot_be_split_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"batch_size 8: cannot be split evenly .* multiple of 3"):
        train_here(tmp_path, tiny.run_config(accumulate=3))
    with pytest.raises(UserError, match=r"optim\.accumulate is 0"):
        train_here(tmp_path, tiny.run_config(accumulate=0))


def test_environment_without_others_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not distributed.init_from_environment()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not distributed.init_from_environment()
    with distributed.joined() as ranks:
        assert ranks == ALONE
    distributed.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_PORT": None}, "MASTER_PORT not"),
        ({"RANK": "first"}, "whole numbers.*first"),
        ({"RANK": "2"}, "RANK is 2"),
    ],
)
def test_environment_that_is_wrong_is_named(monkeypatch, change, message):
    right = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in (right | change).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.init_from_environment()
