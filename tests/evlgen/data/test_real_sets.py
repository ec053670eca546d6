"""The readers of the real sets, on tiny files in their true formats."""

import errno
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from evlgen.backbones.language import word_tokenizer
from evlgen.config import DataConfig, EvalConfig, RunConfig
from evlgen.data import images, worlds
from evlgen.data.images import UnreadableImage, augmented, decode, resized
from evlgen.data.pairs import Texts
from evlgen.data.readers import capfilt, folder, json_lists, real
from evlgen.data.stream import Stream
from evlgen.errors import UserError
from evlgen.evaluation.scores import RunPredictions, score_runs
from evlgen.runtime.datasets import ORIGINS
from tests.evlgen import real_sets as true_files

CAPFILT = DataConfig(world="capfilt", pools=(("laion-115m", 15), ("ccs-14m", 4), ("coco", 1)))


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EVLGEN_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def world(root):
    true_files.write(root)
    return worlds.of(CAPFILT)


def texts() -> Texts:
    tokenizer = word_tokenizer(["a red ball \n"])
    return Texts(tokenizer, tokenizer.convert_tokens_to_ids("\n"), 8)


def test_pools_have_the_images_of_their_splits_and_no_others(world):
    sizes = {"coco": 8, "coco_val": 6, "coco_test": 4, "nocaps_in": 2, "nocaps_near": 3, "nocaps_out": 1}
    sizes |= {"flickr": 3, "vqav2": 24, "okvqa": 24, "gqa": 3, "laion-115m": 9, "ccs-14m": 5}
    assert {pool: world.count(pool) for pool in sizes} == sizes


@pytest.mark.parametrize(
    ("pool", "index", "number", "image"),
    [
        ("coco", 7, 7, 7),  # restval
        ("coco_val", 1, 9, 9),
        ("coco_test", 3, 17, 17),
        ("nocaps_near", 2, 4, 84),
        ("flickr", 1, 3, 103),
        ("laion-115m", 4, 204, 204),
        ("laion-115m", 7, 207, 207),  # of the second shard
        ("ccs-14m", 3, 303, 303),
    ],
)
def test_image_and_caption_belong_together(world, pool, index, number, image):
    assert np.array_equal(world.image(pool, index), decode(true_files.jpeg(image), ""))
    assert world.references(pool, index)[0].startswith(true_files.caption(number))
    assert world.captions(pool, index)[0].startswith(
        f"a {true_files.colour_of(number)} ball, on the grass no {number}"
    )


def test_captions_are_told_as_the_paper_trains_on_them():
    assert json_lists.clean_caption('A "Dog"  (brown): runs; *fast*~ #1!\n') == "a dog brown runs fast 1"
    assert json_lists.clean_caption("don't-stop, he said") == "don't-stop, he said"  # BLIP keeps these
    assert len(json_lists.clean_caption("word " * 60).split()) == 50


def test_questions_go_with_their_images_and_answers(world):
    for index in (0, 1, 23):
        number = 6 + index // 2
        for name, verb in (("vqav2", "is"), ("okvqa", "was")):
            asked = world.question(name, index)
            assert asked.text == f"what colour {verb} ball {index % 2}?"  # as BLIP asks
            assert asked.answers == (true_files.colour_of(number),) * 10
            assert np.array_equal(world.image(name, index), decode(true_files.jpeg(number), ""))
    assert world.question("gqa", 2).answers == ("ball",)
    assert np.array_equal(world.image("gqa", 2), decode(true_files.jpeg(52), ""))


def test_right_captions_and_answers_score_best(world):
    def said(right: bool) -> RunPredictions:
        def caption(pool: str, i: int) -> str:
            return world.references(pool, i)[0] if right else "Two boats"

        captions = {
            name: {str(i): caption(pool, i) for i in range(world.count(pool))}
            for name in world.caption_sets
            if world.eval_set(name).scorers
            for pool in (world.pool_of(name),)
        }
        answers = {
            name: {
                str(i): world.question(name, i).answers[0] if right else "no"
                for i in range(world.count(name))
            }
            for name in world.question_sets
            if world.eval_set(name).scorers
        }
        return RunPredictions(captions, answers, CAPFILT)

    best, worst = score_runs([said(True), said(False)], meteor=False)
    for name in ("vqav2", "gqa", "okvqa"):
        assert (best[name], worst[name]) == (100, 0)
    for name in ("coco", "nocaps_near", "nocaps", "flickr"):
        assert best[f"{name}/CIDEr"] > 100 > worst[f"{name}/CIDEr"]
    assert best["nocaps/images"] == 6
    assert "coco/objects_right" not in best  # nobody knows what is on a photograph


# -------------------------------------------------------------------------------------- missing files


def test_each_missing_file_is_named_once_with_where_to_get_it(root):
    sets = tuple((name, 1) for name in worlds.of(CAPFILT).sets)
    config = RunConfig(data=CAPFILT, evaluation=EvalConfig(sets=sets, validation=6))
    lines = worlds.problems(config)
    assert len(lines) == len(set(lines)) == len(ORIGINS)
    assert any(f"{root / 'coco/dataset_coco.json'}: missing; get it from Karpathy" in line for line in lines)
    true_files.write(root)
    assert worlds.problems(config) == []
    (root / "vqav2/v2_mscoco_val2014_annotations.json").unlink()
    (line,) = worlds.problems(config)
    assert "v2_mscoco_val2014_annotations.json: missing; get it from visualqa.org" in line
    real._pool.cache_clear()
    with pytest.raises(UserError, match=r"annotations\.json: missing"):
        worlds.of(CAPFILT).count("vqav2")


def test_a_folder_that_is_not_told_and_names_that_are_not_there(monkeypatch):
    monkeypatch.delenv("EVLGEN_DATA", raising=False)
    config = RunConfig(
        data=DataConfig(world="capfilt", pools=(("laion", 5),)), evaluation=EvalConfig(sets=(("vqa", 5),))
    )
    text = "\n".join(worlds.problems(config))
    assert "evaluation.sets: no set 'vqa' in the world 'capfilt'; there are: coco, nocaps_in" in text
    assert "data.pools: no pool 'laion' among the real sets; there are: coco, " in text
    assert "EVLGEN_DATA is not set" in text
    with pytest.raises(
        UserError, match=r"data.world 'atlantis': no such world; there are: miniworld, easy-vqa, capfilt"
    ):
        worlds.get("atlantis")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', "damaged"),
        (b"[]", "unexpected format: it has no 'images'"),
        (b'{"images": {}}', "unexpected format: no list of objects"),
        (b'{"images": [{"filename": "a.jpg"}]}', "unexpected format: entry 0 has no 'split'"),
    ],
)
def test_a_damaged_list_is_named(root, content, message):
    true_files.coco(root / "coco")
    (root / "coco/dataset_coco.json").write_bytes(content)
    real._pool.cache_clear()
    with pytest.raises(UserError, match=r"dataset_coco\.json") as caught:
        worlds.of(CAPFILT).count("coco")
    assert message in str(caught.value)


# ------------------------------------------------------------------------------------- pairs by index


def test_an_index_is_made_once_and_anew_for_other_shards(root):
    pairs, cache = root / "laion-115m", root / "index"
    true_files.shards(pairs, (3, 2))
    first = capfilt.read(pairs, cache)
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    again = capfilt.read(pairs, cache)
    assert (len(again), again.version) == (5, first.version)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == made
    with tarfile.open(pairs / "00002.tar", "w") as tar:
        true_files.add(tar, "k.jpg", true_files.jpeg(1))
        true_files.add(tar, "k.txt", b"A new one.")
        true_files.add(tar, "alone.jpg", true_files.jpeg(2))
    more = capfilt.read(pairs, cache)
    assert len(more) == 6
    assert more.captions(5) == ["A new one."]
    assert more.version != first.version
    assert made.items() <= {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}.items()
    assert more.left_out.counts == {"images without a caption": 1}


def test_an_index_is_joined_part_by_part(tmp_path):
    parts = [tmp_path / f"part{n:02d}.npy" for n in range(100)]
    sizes = [8000, 0, *[4000] * 98]  # so large that what other threads hold meanwhile is little beside them
    rows = [np.random.default_rng(n).integers(0, 2**60, (size, 5)) for n, size in enumerate(sizes)]
    for part, some in zip(parts, rows, strict=True):
        np.save(part, some)
    tracemalloc.start()
    capfilt._join(tmp_path / "index.npy", parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * parts[0].stat().st_size  # of 100 parts
    found = np.load(tmp_path / "index.npy", allow_pickle=False)
    assert found.dtype == np.int64
    assert np.array_equal(found[:, 1:], np.concatenate(rows))
    assert np.array_equal(found[:, 0], np.repeat(range(100), sizes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.npy", *(part.name for part in parts)]


def test_a_shard_that_ends_too_early_gives_what_it_has(root, caplog):
    true_files.shards(root / "pairs", (4,))
    shard = root / "pairs/00000.tar"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[: size // 2])
    found = capfilt.read(root / "pairs", root / "index")
    assert 1 <= len(found) <= 3
    assert "left out: " in caplog.text
    assert f"(the first: {shard}" in caplog.text


def test_lists_of_any_length_are_gone_through_piece_by_piece(root):
    """Of more than 16 MiB, which are read at a time; offsets are in bytes, not characters."""
    path = root / "ccs/ccs_synthetic_filtered_large.json"
    captions = [f'An "entry" {{n}} with ü, 漢 and {{number}}{"!" * 1000}' for number in range(20_000)]
    true_files.save(
        path,
        json.dumps(
            [{"image": "a.jpg", "caption": c} for c in captions], indent=1, ensure_ascii=False
        ).encode(),
    )
    assert path.stat().st_size > 2**24
    found = capfilt.read(root / "ccs", root / "index")
    assert len(found) == len(captions)
    assert all(found.captions(i) == [captions[i]] for i in (0, 1, *range(15_000, 17_500), 19_999))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged from byte"):
        capfilt.read(root / "ccs", root / "index")


def test_a_list_of_addresses_says_before_the_run_what_to_do(root):
    true_files.dump(root / "ccs-14m/a.json", [{"url": "http://example.org/a.jpg", "caption": "a"}])
    (line,) = worlds.of(CAPFILT).missing(["ccs-14m"])
    assert line.startswith(
        f"{root / 'ccs-14m/a.json'}: lists URLs instead of images; fetch them with img2dat"
    )
    true_files.shards(root / "ccs-14m/shards", (2,))
    assert worlds.of(CAPFILT).missing(["ccs-14m"]) == []
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="neither shards"):
        capfilt.read(root / "empty", root / "index")


def test_a_pair_of_a_shard_without_a_caption_is_damaged(root):
    (root / "pairs").mkdir()
    with tarfile.open(root / "pairs/0.tar", "w") as tar:
        for number, said in enumerate((b'{"caption": null}', b'{"caption": " "}', b'{"url": ""}', b"[]")):
            true_files.add(tar, f"{number}.jpg", true_files.jpeg(number))
            true_files.add(tar, f"{number}.json", said)
        true_files.add(tar, "4.jpg", true_files.jpeg(4))
        true_files.add(tar, "4.txt", b" \n")
    found = capfilt.read(root / "pairs", root / "index")
    assert len(found) == 5
    for index in range(5):
        with pytest.raises(json_lists.UnreadableCaption, match=r"0\.tar.*at byte"):
            found.captions(index)


def test_a_pair_of_a_list_without_caption_or_image_is_replaced_by_the_next(root):
    image = {"image": "images/300.jpg"}
    true_files.lists(root / "ccs-14m", 1)
    pairs = [{**image, "caption": said} for said in (None, "", [], ["", " ."])]
    pairs += [image, {"image": None, "caption": "no image"}, {**image, "caption": ["", "A red ball"]}]
    true_files.dump(root / "ccs-14m/ccs_synthetic_filtered_large.json", pairs)
    world = worlds.of(CAPFILT)
    read = Stream(world, (("ccs-14m", 7),), 16, "tiny", texts()).read(0, 0, 7)
    assert len({*read.damaged}) == 6
    assert sum("no caption" in line for line in {*read.damaged}) == 5
    assert all("large.json, entry at byte" in line for line in read.damaged)
    assert (read.text_ids == texts().encode(["a red ball"])[0]).all()


# --------------------------------------------------------------------------------------------- images


def test_damaged_and_missing_images_are_named(root):
    whole = true_files.jpeg(0)
    for content in (whole[: len(whole) // 2], b"", b"no image"):
        with pytest.raises(UnreadableImage, match=r"a\.jpg: "):
            decode(content, "a.jpg")
    with pytest.raises(UnreadableImage, match=r"nowhere\.jpg: No such file"):
        json_lists.read_image(root / "nowhere.jpg")


@pytest.mark.parametrize("pool", ["laion-115m", "ccs-14m", "coco"])
def test_a_failing_file_system_is_tried_again_and_never_looks_like_a_damaged_image(world, pool, monkeypatch):
    whole = world.image(pool, 1)
    monkeypatch.setattr(json_lists, "_PAUSES", (0.0, 0.0))
    opened = Path.open
    failures: list[int] = []

    def failing(path, *args, **kwargs):
        if failures:
            raise OSError(failures.pop(), "out of order")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing)
    failures += [errno.EIO, errno.ESTALE]
    assert np.array_equal(world.image(pool, 1), whole)
    assert not failures
    failures += [errno.EMFILE] * 3
    with pytest.raises(UserError, match=r"cannot be read \(out of order\), 3 times in a row"):
        world.image(pool, 1)
    failures += [errno.EIO] * 3
    stream = Stream(world, ((pool, 4),), 16, "tiny", texts())
    with pytest.raises(UserError, match="3 times in a row"):
        stream.read(0, 0, 4)


def test_a_crop_is_of_the_papers_size_and_place_and_depends_on_the_key_alone():
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(np.arange(96), np.arange(64), indexing="xy"), -1)  # (64, 96, 2)
    image = np.concatenate([place, rng.integers(0, 256, (64, 96, 1))], -1).astype(np.uint8)
    assert np.array_equal(augmented(image, 32, True, 1, 2, 3), augmented(image, 32, True, 1, 2, 3))
    shares, flips = [], []
    for key in range(300):
        crop = augmented(image, 32, True, 0, key).astype(float)
        across, down = crop[16, :, 0], crop[:, 16, 1]
        width, height = abs(across[-2] - across[1]) * 32 / 29, abs(down[-2] - down[1]) * 32 / 29
        shares.append(width * height / (64 * 96))
        flips.append(across[0] > across[-1])
    assert min(shares) > 0.46
    assert max(shares) < 1.02
    area = rng.uniform(0.5, 1, 10_000) * 64 * 96
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 10_000))
    fits = (np.sqrt(area * ratio) <= 96) & (np.sqrt(area / ratio) <= 64)
    assert abs(np.mean(shares) - np.mean(area[fits]) / (64 * 96)) < 0.03
    assert 0.4 < np.mean(flips) < 0.6
    assert not any(augmented(image, 32, False, 0, k)[16, 0, 0] > 60 for k in range(50))


def test_very_long_images_are_cropped_in_the_middle():
    image = np.zeros((10, 200, 3), np.uint8)
    image[:, 93:107] = 200
    crop = augmented(image, 16, False, 5)
    assert crop.shape == (16, 16, 3)
    assert crop.mean() > 190
    assert resized(image, 16).shape == (16, 16, 3)
    assert images.resized(crop, 16) is crop


@pytest.mark.parametrize("pool", ["coco_val", "vqav2", "mine"])
def test_a_version_changes_with_an_image_and_not_else(root, pool):
    true_files.write(root)
    true_files.own_folder(root / "mine", 30)

    def version() -> str:
        real._pool.cache_clear()
        folder._read.cache_clear()
        return (folder.read if pool == "mine" else real.pool)(pool).version

    files = (folder.read(pool) if pool == "mine" else real.pool(pool)).files
    image, before = root / files[-1], version()
    assert version() == before
    content, status = image.read_bytes(), image.stat()
    image.write_bytes(content + b"more")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert version() != before
    image.write_bytes(content)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert version() == before
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert version() != before
    image.unlink()
    assert version() != before


# ------------------------------------------------------------------------------------- one's own folder


def test_an_own_folder_is_divided_once_and_for_all(root):
    true_files.own_folder(root / "mine", 30)
    world = worlds.of(DataConfig(world="folder", pools=(("mine", 20),)))
    pools = ("mine", "mine/val", "mine/test")
    assert [world.count(pool) for pool in pools] == [24, 3, 3]
    files = [file for pool in pools for file in folder.read(pool).files]
    assert sorted(files) == sorted(f"mine/{n}.png" for n in range(30))
    assert world.pool_of("captions") == "mine/test"
    assert world.count(world.pool_of("questions")) == 30
    assert world.question("questions", 3).answers == ("pink",) * 10
    assert np.array_equal(world.image("mine/questions", 3), decode(true_files.jpeg(3, "PNG"), ""))


def test_lines_end_where_json_lines_do(root):
    said = json.dumps({"file": "a.png", "caption": "One\u2028über two", "split": "train"}, ensure_ascii=False)
    true_files.save(root / "mine/captions.jsonl", f"{said}\r\n{said}\n".encode())
    assert folder.read("mine").image_captions == (("One\u2028über two",) * 2,)


def test_an_own_folder_says_what_its_images_are_for(root):
    lines = [{"file": f"{n}.png", "captions": ["One.", "Two"], "split": "val"} for n in range(2)]
    true_files.lines(root / "mine/captions.jsonl", [*lines, {"file": "2.png", "caption": "Three"}])
    assert folder.read("mine/val").files == ("mine/0.png", "mine/1.png")
    assert folder.read("mine").image_captions == (("Three",),)
    with pytest.raises(UserError, match="no image in the split 'test'"):
        folder.read("mine/test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: damaged: not JSON"),
        ('{"caption": "a"}', "line 2: needs a 'file'"),
        ('{"file": "a.png"}', "line 2: needs a 'caption'"),
        (
            '{"file": "a.png", "caption": "a", "split": "dev"}',
            "line 2: split 'dev' is none of train, val, test",
        ),
    ],
)
def test_a_wrong_line_is_named(root, line, message):
    true_files.save(root / "mine/captions.jsonl", f'{{"file": "b.png", "caption": "b"}}\n{line}\n'.encode())
    with pytest.raises(UserError, match=r"captions\.jsonl") as caught:
        folder.read("mine")
    assert message in str(caught.value)


def test_a_missing_own_folder_is_named(root):
    config = RunConfig(
        data=DataConfig(world="folder", pools=(("mine", 5),)), evaluation=EvalConfig(sets=(("questions", 3),))
    )
    assert worlds.problems(config) == [
        f"{root / 'mine'}: missing; docs/DATA.md says what is in it",
    ]
