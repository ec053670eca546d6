import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evlgen import training
from evlgen.backbones.language import word_tokenizer
from evlgen.backbones.vision import FrozenVision, MiniViT, MiniViTConfig
from evlgen.data import worlds
from evlgen.data.base import World
from evlgen.data.batches import DecodedImages, StreamedBatches, TrainingData
from evlgen.data.features import ensure, load
from evlgen.data.images import UnreadableImage
from evlgen.data.pairs import Texts
from evlgen.data.sampling import shuffled
from evlgen.data.stream import DecodedRows, Stream, decoded_steps, decoders
from evlgen.errors import UserError
from evlgen.runs.folder import CONNECTOR, METRICS
from tests.evlgen import tiny
from tests.evlgen.runtime.test_distributed import together

POOLS = (("web", 20), ("coco", 8))
TOMEFORMER = dataclasses.replace(tiny.TOMEFORMER, max_positions=65, r=20)


def texts() -> Texts:
    tokenizer = word_tokenizer([tiny.WORDS])
    return Texts(tokenizer, tokenizer.convert_tokens_to_ids("\n"), 12)


def stream(world: World | None = None) -> Stream:
    return Stream(world or worlds.get("miniworld"), POOLS, 64, "tiny", texts())


def encoder() -> FrozenVision:
    torch.manual_seed(0)
    shape = MiniViTConfig(stem_width=4, width=tiny.WIDTH, num_layers=1, num_heads=2, intermediate=16)
    return FrozenVision(MiniViT(shape).eval().requires_grad_(False), tiny.WIDTH, 65, "tiny")


def same(a: DecodedRows, b: DecodedRows) -> bool:
    return torch.equal(a.images, b.images) and np.array_equal(a.text_ids, b.text_ids)


@pytest.mark.parametrize("total", [1, 2, 5, 64, 1000])
def test_a_shuffle_is_a_permutation_that_needs_not_be_made_as_a_whole(total):
    whole = shuffled(3, 0, np.arange(total), total)
    assert sorted(whole) == list(range(total))
    assert shuffled(3, 0, np.array([total - 1]), total)[0] == whole[-1]
    if total == 1000:
        for other in (shuffled(4, 0, np.arange(total), total), shuffled(3, 1, np.arange(total), total)):
            assert (other == whole).mean() < 0.02
        assert abs(np.corrcoef(whole, np.arange(total))[0, 1]) < 0.1


def test_a_shuffle_of_all_pairs_of_the_paper_is_quick():
    found = shuffled(0, 1, np.arange(10**8, 10**8 + 1600), 104_000_000)
    assert len(set(found)) == 1600
    assert found.max() < 104_000_000


def test_an_epoch_sees_every_pair_once_and_rows_are_parts_of_the_whole():
    pairs = stream()
    epochs, indices = zip(*(pairs._drawn(5, step, 8) for step in range(7)), strict=True)
    assert sorted(np.concatenate(indices)[:28]) == list(range(28))
    assert sorted(np.concatenate(indices)[28:]) == list(range(28))
    assert sorted(np.concatenate(epochs)) == [0] * 28 + [1] * 28
    whole = pairs.read(5, 3, 8)
    halves = [pairs.read(5, 3, 8, rows) for rows in (slice(0, 4), slice(4, 8))]
    assert torch.equal(torch.cat([half.images for half in halves]), whole.images)
    assert np.array_equal(np.concatenate([half.text_ids for half in halves]), whole.text_ids)


def test_an_image_is_cropped_anew_in_each_epoch_and_never_mirrored_in_the_miniworld():
    pairs = stream()
    seen: dict[int, list[torch.Tensor]] = {}
    for step in range(7):
        _, indices = pairs._drawn(5, step, 8)
        for index, image in zip(indices.tolist(), pairs.read(5, step, 8).images, strict=True):
            seen.setdefault(index, []).append(image)
    assert all(len(images) == 2 and not torch.equal(*images) for images in seen.values())


def test_only_the_first_pairs_of_a_pool_are_read_and_a_small_one_is_gone_through_more_often():
    """20 of 3 images: some seven times each in an epoch; 8 of 12: the same eight in every epoch."""
    seen: list[tuple[str, int]] = []
    real = worlds.get("miniworld")
    counts = {"web": 3, "coco": 12}

    def captions(pool: str, index: int) -> list[str]:
        seen.append((pool, index))
        return real.captions(pool, index)

    world = dataclasses.replace(real, count=counts.__getitem__, captions=captions)
    for step in range(2):
        stream(world).read(0, step, 28)
    assert sorted({i for pool, i in seen if pool == "web"}) == [0, 1, 2]
    for epoch in (seen[:28], seen[28:]):
        assert sorted(i for pool, i in epoch if pool == "coco") == list(range(8))


def test_a_replacement_is_one_of_the_first_pairs_too():
    real = worlds.get("miniworld")
    seen: set[int] = set()

    def image(pool: str, index: int) -> np.ndarray:
        seen.add(index)
        if index == 3:
            raise UnreadableImage("3.jpg: truncated")
        return real.image(pool, index)

    world = dataclasses.replace(real, image=image, count=lambda pool: 100)
    read = dataclasses.replace(stream(world), pools=(("web", 4),)).read(0, 0, 4)
    assert read.damaged == ("3.jpg: truncated",)
    assert seen == {0, 1, 2, 3}


def test_a_damaged_image_is_named_and_replaced_by_its_neighbour(caplog):
    real = worlds.get("miniworld")
    broken = {("web", 3), ("web", 4), ("coco", 7)}

    def image(pool: str, index: int) -> np.ndarray:
        if (pool, index) in broken:
            raise UnreadableImage(f"{pool}/{index}.jpg: truncated")
        return real.image(pool, index)

    world = dataclasses.replace(real, image=image, count=dict(POOLS).__getitem__)
    (read,) = decoded_steps(stream(world), 5, range(1), 28, [slice(None)])
    whole = stream().read(5, 0, 28)
    assert sorted(read[0].damaged) == sorted(
        f"{name}: truncated" for name in ("web/3.jpg", "web/4.jpg", "web/4.jpg", "coco/7.jpg")
    )
    different = [i for i in range(28) if not torch.equal(read[0].images[i], whole.images[i])]
    _, indices = stream()._drawn(5, 0, 28)
    assert sorted(indices[different]) == [3, 4, 27]
    assert caplog.text.count("replaced by the next pair") == 4

    broken |= {(pool, index) for pool, size in POOLS for index in range(size)}
    with pytest.raises(UserError, match=r"web|coco") as caught:
        next(decoded_steps(stream(world), 5, range(1), 28, [slice(None)]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decoding", ["0", "2"])
def test_other_processes_read_the_same(decoding, monkeypatch):
    monkeypatch.setenv("EVLGEN_DECODERS", decoding)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = list(decoded_steps(stream(), 5, range(2, 6), 8, [slice(0, 2), slice(4, 6)]))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == 4
    for step, parts in zip(range(2, 6), found, strict=True):
        for rows, part in zip((slice(0, 2), slice(4, 6)), parts, strict=True):
            assert same(part, stream().read(5, step, 8, rows))


def test_a_wrong_number_of_decoders_is_named(monkeypatch):
    monkeypatch.setenv("EVLGEN_DECODERS", "many")
    with pytest.raises(UserError, match="EVLGEN_DECODERS is 'many'"):
        decoders()


# ------------------------------------------------------------------------------------------ training


@pytest.fixture
def vision(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EVLGEN_DECODERS", "0")
    frozen = encoder()
    monkeypatch.setattr("evlgen.data.features.build_vision", lambda *_: frozen)
    monkeypatch.setattr("evlgen.backbones.vision.build_vision", lambda *_: frozen)


def data() -> TrainingData:
    held_out = load(ensure("coco_val", 8, "tiny"))
    says = [worlds.get("miniworld").captions("coco_val", i)[0] for i in range(8)]
    validation = tiny.pool_of("coco_val", held_out, says)
    return TrainingData(StreamedBatches(stream()), validation, "tiny")


def train(folder, progress: Callable[[training.Progress], None] = lambda _: None, **changes: object):
    config = tiny.run_config(
        connector=TOMEFORMER, steps=6, checkpoint_every=2, eval_every=3, batch_size=4, **changes
    )
    folder.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    return training.train(config, folder, data(), progress, model=tiny.caption_model(TOMEFORMER))


def lines(folder) -> list[dict[str, float]]:
    read = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "samples_per_second"} for line in read]


@pytest.mark.usefixtures("vision")
def test_a_killed_and_resumed_training_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole)

    def stop(progress: training.Progress) -> None:
        if progress.step == 3:
            raise training.Stop

    class Killed(Exception):
        pass

    def kill(progress: training.Progress) -> None:
        if progress.step == 5:
            raise Killed

    with pytest.raises(training.Stop):
        train(parts, stop)
    with pytest.raises(Killed):
        train(parts, kill)
    monkeypatch.setenv("EVLGEN_DECODERS", "2")
    assert train(parts)["resumed_from"] == 4
    assert (parts / CONNECTOR).read_bytes() == (whole / CONNECTOR).read_bytes()
    assert lines(parts) == lines(whole)


@pytest.mark.usefixtures("vision")
def test_parts_of_a_batch_give_the_loss_of_the_whole(tmp_path):
    losses = []
    for accumulate in (1, 2):
        folder = tmp_path / str(accumulate)
        train(folder, accumulate=accumulate)
        losses.append([line["loss"] for line in lines(folder)])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def train_rank(rank: int, folder: Path) -> None:
    read: list[int] = []
    whole = Stream.read

    def counted(self: Stream, seed: int, step: int, size: int, rows: slice) -> DecodedRows:
        found = whole(self, seed, step, size, rows)
        read.append(len(found.images))
        return found

    Stream.read = counted  # type: ignore[method-assign]
    train(folder, clip_norm=0.0)
    assert read == [2] * 6  # of 4: a rank decodes its own rows only


@pytest.mark.usefixtures("vision")
def test_two_ranks_train_as_one_process_does(tmp_path):
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    train(alone, clip_norm=0.0)
    assert together(train_rank, ranks) == [0, 0]
    ours, theirs = (load_file(folder / CONNECTOR) for folder in (ranks, alone))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)
    losses = [[line["loss"] for line in lines(folder)] for folder in (ranks, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.usefixtures("vision")
def test_features_encoded_when_asked_for_are_those_of_the_cache():
    cached = load(ensure("flickr", 6, "tiny"))[0]
    order = np.array([4, 1, 5])
    pixels = DecodedImages(worlds.get("miniworld"), "flickr", 64)[order]
    found = tiny.caption_model(TOMEFORMER).encode(pixels)
    assert found.half().float().equal(found)  # rounded as the cache is
    np.testing.assert_allclose(found.numpy(), cached[order].astype(float), atol=2e-3)
