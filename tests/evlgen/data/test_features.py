import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from evlgen import miniworld
from evlgen.backbones.vision import FrozenVision, MiniViT, MiniViTConfig
from evlgen.data import features as subject
from evlgen.data import worlds
from evlgen.errors import UserError

CONFIG = MiniViTConfig(stem_width=4, width=8, num_layers=1, num_heads=2, intermediate=16)


def encoder(fingerprint: str = "tiny", seed: int = 0) -> FrozenVision:
    torch.manual_seed(seed)
    return FrozenVision(MiniViT(CONFIG).eval().requires_grad_(False), 8, 65, fingerprint)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path))
    frozen = encoder()
    monkeypatch.setattr(subject, "build_vision", lambda *_: frozen)
    subject._matches.cache_clear()
    return tmp_path


def count_encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    encode = FrozenVision.encode
    monkeypatch.setattr(FrozenVision, "encode", lambda self, x: (calls.append(len(x)), encode(self, x))[1])
    return calls


def test_features_are_those_of_the_encoder():
    path = subject.ensure("coco", 70, "mini-vit")  # more than one batch
    stored = subject.load(path)
    assert stored.shape == (1, 70, 65, 8)
    assert stored.dtype == np.float16
    assert isinstance(stored, np.memmap)
    pool = miniworld.pool("coco")
    for index in (0, 63, 64, 69):
        expected = encoder().encode(pool.image(index)[None])[0]
        np.testing.assert_allclose(stored[0, index], expected, rtol=2e-3, atol=2e-3)


def test_a_cached_file_is_not_made_again(monkeypatch):
    calls = count_encodings(monkeypatch)
    first = subject.ensure("coco", 5, "mini-vit")
    assert subject.ensure("coco", 5, "mini-vit") == first
    assert calls == [5]


def test_everything_that_decides_the_content_is_in_the_name(monkeypatch):
    names = {
        subject.ensure(*key)
        for key in (("coco", 2, "v"), ("web", 2, "v"), ("coco", 3, "v"), ("coco", 2, "w"))
    }
    names.add(subject.ensure("coco", 2, "v", views=2))
    other = encoder("other", seed=1)
    monkeypatch.setattr(subject, "build_vision", lambda *_: other)
    names.add(subject.ensure("coco", 2, "v"))
    monkeypatch.setattr(miniworld, "version", lambda: "another world")
    names.add(subject.ensure("coco", 2, "v"))
    assert len(names) == 7


@pytest.mark.parametrize("damage", ["flip", "truncate", "no checksum", "empty checksum"])
def test_a_damaged_file_is_named_and_made_anew(damage, caplog):
    path = subject.ensure("coco", 3, "mini-vit")
    good = path.read_bytes()
    if damage == "flip":
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "truncate":
        path.write_bytes(good[:-10])
    elif damage == "no checksum":
        subject._sidecar(path).unlink()
    else:
        subject._sidecar(path).write_text("")
    subject._matches.cache_clear()  # as in a new process
    with caplog.at_level(logging.WARNING):
        assert subject.ensure("coco", 3, "mini-vit") == path
    assert str(path) in caplog.text
    assert path.read_bytes() == good
    caplog.clear()
    subject._matches.cache_clear()
    subject.ensure("coco", 3, "mini-vit")
    assert not caplog.text


def test_a_damage_that_changes_size_or_time_is_seen_by_a_running_process(caplog):
    path = subject.ensure("coco", 3, "mini-vit")
    path.write_bytes(path.read_bytes()[:-10])
    subject.ensure("coco", 3, "mini-vit")
    assert str(path) in caplog.text


def test_a_builder_that_dies_leaves_nothing_that_looks_like_a_cache(monkeypatch):
    encode, count = FrozenVision.encode, 0

    def dying(self: FrozenVision, images: np.ndarray) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(FrozenVision, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        subject.ensure("coco", 70, "mini-vit")
    assert not list((subject.cache_folder() / "features").glob("*.npy"))
    assert not list((subject.cache_folder() / "features").glob(".*.tmp"))
    assert len(subject.load(subject.ensure("coco", 70, "mini-vit"))[0]) == 70


def build_and_count(folder: str, queue: object) -> None:
    os.environ["EVLGEN_CACHE"] = folder
    torch.set_num_threads(1)
    frozen = encoder()
    subject.build_vision = lambda *_: frozen  # type: ignore[assignment]
    calls: list[int] = []
    encode = FrozenVision.encode
    FrozenVision.encode = lambda self, x: (calls.append(len(x)), encode(self, x))[1]  # type: ignore[method-assign]
    path = subject.ensure("web", 40, "mini-vit")
    queue.put((sum(calls), path.read_bytes()[:200]))  # type: ignore[attr-defined]


def test_of_processes_that_want_the_same_file_one_makes_it(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.evlgen.data.test_features", "evlgen.data.features"])
    queue = context.Queue()
    processes = [context.Process(target=build_and_count, args=(str(tmp_path), queue)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(count for count, _ in results) == [0, 0, 40]
    assert len({content for _, content in results}) == 1


def test_views_are_crops_and_the_first_is_plain():
    stored = subject.load(subject.ensure("coco", 3, "mini-vit", views=3))
    plain = subject.load(subject.ensure("coco", 3, "mini-vit"))
    assert stored.shape[:2] == (3, 3)
    assert np.array_equal(stored[0], plain[0])
    assert not np.array_equal(stored[0], stored[1])
    assert not np.array_equal(stored[1], stored[2])


def test_crops_are_a_pure_function_of_pool_index_and_view():
    images = subject.images_of(worlds.get("miniworld"), "coco", range(4), 64)
    together = subject.crops(images, "coco", range(4), 1)
    alone = subject.crops(images[2:3], "coco", range(2, 3), 1)
    assert np.array_equal(together[2:3], alone)
    assert together.shape == images.shape
    assert together.dtype == np.uint8
    assert not np.array_equal(together, subject.crops(images, "coco", range(4), 2))
    assert not np.array_equal(together, subject.crops(images, "web", range(4), 1))


def test_crops_keep_half_of_the_image_or_more_and_never_mirror_it():
    """On images whose value is the column (or row), a crop's range tells where it was cut."""
    ramp = np.tile(np.arange(64, dtype=np.uint8)[:, None] * 4, (1, 64))
    down, across = (np.repeat(r[None, :, :, None], 200, 0).repeat(3, 3) for r in (ramp, ramp.T))
    rows = subject.crops(down, "coco", range(200), 1)[..., 0].astype(float)
    columns = subject.crops(across, "coco", range(200), 1)[..., 0].astype(float)
    height = (rows[:, -1, 32] - rows[:, 0, 32]) / 4 + 1
    width = (columns[:, 32, -1] - columns[:, 32, 0]) / 4 + 1
    share = height * width / 64**2
    assert (width > 0).all()
    assert share.min() > 0.42
    assert share.max() <= 1.001
    assert share.std() > 0.08
    ratio = width / height
    assert 0.7 < ratio.min() < 0.85
    assert 1.18 < ratio.max() < 1.43


def test_wrong_names_and_sizes_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        subject.ensure("nowhere", 2, "mini-vit")
    with pytest.raises(UserError, match="at least one"):
        subject.ensure("coco", 0, "mini-vit")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="EVLGEN_CACHE"):
        subject.ensure("coco", 2, "mini-vit")


def test_cache_folder_is_the_projects_own(monkeypatch):
    monkeypatch.delenv("EVLGEN_CACHE")
    assert subject.cache_folder() == Path(__file__).parents[3] / ".cache"
