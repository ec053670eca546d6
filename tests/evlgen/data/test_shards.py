"""Every pair of a shard is read, or what is not read is counted and said."""

import contextlib
import json
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evlgen.data.images import UnreadableImage, decode
from evlgen.data.readers import capfilt
from evlgen.data.readers.json_lists import UnreadableCaption
from evlgen.data.readers.tar_members import pairs_of_shard
from evlgen.errors import UserError
from tests.evlgen import real_sets
from tests.evlgen.real_sets import add, jpeg

ABOUT = json.dumps({"caption": "a cat", "url": "http://example.org"}).encode()


@pytest.fixture
def pool(tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


def shard(path: Path, keys, text: bytes = b"a cat", about: bytes = b"", image: str = "jpg") -> Path:
    with tarfile.open(path, "w") as tar:
        for number, key in enumerate(keys):
            add(tar, f"{key}.{image}", jpeg(number))
            add(tar, f"{key}.txt", text)
            if about:
                add(tar, f"{key}.json", about)
    return path


def read(folder: Path) -> capfilt.Shards | capfilt.Lists:
    return capfilt.read(folder, folder.parent / "index")


def all_of(found: capfilt.Shards | capfilt.Lists) -> list[list[str]]:
    return [found.captions(i) for i in range(len(found)) if found.image(i).shape[-1] == 3]


@pytest.mark.parametrize(
    "keys",
    [
        ["k0", "k1", "photo.2024.1", "photo.2024.2", "v1.0"],
        ["a/k", "b/k", "./c/k", "b.c/k"],
        ["k", "k", "k"],  # tar -A
    ],
)
def test_pairs_under_any_key_are_read(pool, keys, caplog):
    shard(pool / "0.tar", keys)
    assert all_of(read(pool)) == [["a cat"]] * len(keys)
    assert not read(pool).left_out.counts
    assert "left out" not in caplog.text


@pytest.mark.parametrize("order", [("jpg", "txt"), ("txt", "jpg")])
def test_members_of_a_pair_need_not_be_neighbours(pool, order):
    with tarfile.open(pool / "0.tar", "w") as tar:
        for kind in order:
            for number in range(4):
                add(tar, f"{number}.{kind}", jpeg(number) if kind == "jpg" else f"cat {number}".encode())
    found = read(pool)
    assert [found.captions(i) for i in range(4)] == [[f"cat {i}"] for i in range(4)]
    assert all(np.array_equal(found.image(i), decode(jpeg(i), "")) for i in range(4))


@pytest.mark.parametrize("times", [2, 3])
def test_archives_joined_with_cat_are_read_whole(pool, times, caplog):
    whole = shard(pool / "part", ["k0", "k1"]).read_bytes()
    (pool / "0.tar").write_bytes(whole * times)
    assert len(all_of(read(pool))) == 2 * times
    assert "left out" not in caplog.text


def test_a_caption_comes_from_the_json_where_the_txt_has_none(pool):
    for number, text in enumerate((b"", b" \n", b"...", b"\xff\xfe\xfa", b"\0\0")):
        shard(pool / f"{number}.tar", ["k"], text, ABOUT)
    shard(pool / "9.tar", ["k"], b"a dog", ABOUT)
    found = read(pool)
    assert [found.captions(i) for i in range(6)] == [["a cat"]] * 5 + [["a dog"]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a cät".encode("utf-8-sig"), "a cät"),
        ("a cät".encode("utf-16"), "a cät"),
        ("a cät\r\n".encode(), "a cät\r\n"),
        ("a cät".encode("latin-1"), None),
        (b"a\0cat", None),
        (b"...", None),
        ("\N{CAT FACE}".encode(), None),
    ],
)
def test_captions_in_any_encoding_are_read_or_damaged(pool, text, said):
    shard(pool / "0.tar", ["k"], text)
    found = read(pool)
    if said is None:
        with pytest.raises(UnreadableCaption, match=r"0\.tar, text at byte"):
            found.captions(0)
    else:
        assert found.captions(0) == [said]


@pytest.mark.parametrize(
    "about",
    [
        b'{"caption": "a", "caption": "b"}',
        b'{"caption": NaN}',
        b'{"caption": 5}',
        b"[" * 10**5,
        b"null",
        b'{"caption": "\\ud800"}',
    ],
)
def test_odd_json_is_a_damaged_caption(pool, about):
    with tarfile.open(pool / "0.tar", "w") as tar:
        add(tar, "k.jpg", jpeg(0))
        add(tar, "k.json", about)
    with pytest.raises(UnreadableCaption, match=r"0\.tar, text at byte"):
        read(pool).captions(0)


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


def odd_shard(path: Path) -> Path:
    """A shard with one good pair, and one of each thing that is in no pair."""
    with tarfile.open(path, "w") as tar:
        add(tar, "good.JPG", jpeg(0))
        add(tar, "good.TXT", b"a cat")
        add(tar, "good.cls", b"5")
        add(tar, "._good.jpg", b"what macOS leaves")
        tar.addfile(member("folder.jpg", tarfile.DIRTYPE))
        add(tar, "alone.jpg", jpeg(1))
        add(tar, "text.txt", b"a dog")
        add(tar, "two.jpg", jpeg(1))
        add(tar, "two.png", jpeg(2, "PNG"))
        add(tar, "two.txt", b"a dog")
        tar.addfile(member("link.jpg", tarfile.SYMTYPE, "/etc/passwd"))
        tar.addfile(member("hard.jpg", tarfile.LNKTYPE, "good.JPG"))
        tar.addfile(member("device.jpg", tarfile.CHRTYPE))
        tar.addfile(member("pipe.txt", tarfile.FIFOTYPE))
        add(tar, "empty.jpg", b"")
        add(tar, "empty.txt", b"a dog")
        add(tar, "other.heic", b"an image")
        add(tar, "other.caption", b"a dog")
    return path


def test_what_is_in_no_pair_is_counted_named_and_said_again_by_every_run(pool, caplog):
    odd_shard(pool / "0.tar")
    for _ in range(2):  # from the kept index the second time
        caplog.clear()
        found = read(pool)
        assert all_of(found) == [["a cat"], ["a dog"]]
        assert found.left_out.counts == {
            "members of shards that are no ordinary files (links, devices, sparse files)": 4,
            "members of shards that are empty": 1,
            "images without a caption": 1,
            "captions without an image": 2,
            "images beside another one under the same key": 1,
            "members of shards of other kinds": 1,
        }
        assert (
            f"{pool}: left out: images without a caption: 1 (the first: {pool}/0.tar, alone.jpg)"
            in caplog.text
        )


def test_what_is_beside_the_shards_is_counted(pool, caplog):
    whole = shard(pool / "part", ["k"]).read_bytes()
    import gzip

    (pool / "0.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(UserError, match="packed with gzip, which must be unpacked"):
        read(pool)
    (pool / "0.tar").unlink()
    (pool / "0.tar.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(UserError, match=r"0\.tar\.gz: is packed; unpack it"):
        read(pool)
    shard(pool / "1.tar", ["k"])
    (pool / "linked").symlink_to(pool.parent)
    real_sets.dump(pool / "list.json", [{"image": "a.jpg", "caption": "a cat"}])
    real_sets.dump(pool / "addresses.json", [{"url": "http://example.org/a.jpg", "caption": "a cat"}])
    found = read(pool)
    assert len(found) == 1
    assert found.left_out.counts == {
        "packed shards, which must be unpacked to .tar": 1,
        "links to folders, in which no pairs are looked for": 1,
        "lists of pairs, in the place of which shards or single files are read": 1,
    }
    assert "left out: packed shards, which must be unpacked to .tar: 1 (the first: " in caplog.text


def test_shards_that_cannot_be_read_are_counted(pool):
    shard(pool / "0.tar", ["k"])
    (pool / "1.tar").write_bytes(bytes(10240))  # a whole archive, to tar
    (pool / "2.tar").symlink_to(pool / "gone/2.tar")
    os.mkfifo(pool / "3.tar")
    shard(pool / "4.TAR", ["k"])
    (pool / "5.tar.part").write_bytes(b"")
    found = read(pool)
    assert len(found) == 1
    assert found.left_out.counts == {
        "shards without a pair": 1,
        "shards that are no ordinary files, or not ready (*.tar is read)": 4,
    }


def test_what_is_no_archive_costs_no_other_shard(pool):
    shard(pool / "0.tar", ["k"])
    (pool / "1.tar").write_bytes(b"")
    (pool / "2.tar").write_bytes(b"no archive at all " * 400)
    (pool / "3.tar").mkdir()
    os.mkfifo(pool / "4.tar")
    found = read(pool)
    assert len(found) == 1
    assert sum(found.left_out.counts.values()) >= 2


PAIRS = 6


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_of_a_damaged_shard_every_pair_is_read_or_something_is_said(data):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pool"
        folder.mkdir()
        form = data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
        long = "x" * 120 if data.draw(st.booleans()) else "x"
        with tarfile.open(folder / "0.tar", "w", format=form) as tar:
            for number in range(PAIRS):
                add(tar, f"{long}/{number}.png", jpeg(number, "PNG", (4, 4)))
                add(tar, f"{long}/{number}.txt", f"cat {number}".encode())
        content = bytearray((folder / "0.tar").read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(content) - 1))
            end = min(len(content), start + data.draw(st.integers(1, 4000)))
            damage = data.draw(st.sampled_from(["zeros", "ones", "cut out", "cut off", "doubled"]))
            if damage == "cut off":
                del content[start:]
            elif damage == "cut out":
                del content[start:end]
            elif damage == "doubled":
                content[start:start] = content[start:end]
            else:
                content[start:end] = bytes([0 if damage == "zeros" else 255]) * (end - start)
            if not content:
                break
        (folder / "0.tar").write_bytes(content)
        rows, left_out = pairs_of_shard(folder / "0.tar")
        whole, broken = set(), 0
        with contextlib.suppress(UserError):
            found = read(folder)
            assert len(found) == len(rows)
            for index in range(len(found)):
                try:
                    caption, image = found.captions(index)[0], found.image(index)
                except (UnreadableCaption, UnreadableImage):
                    broken += 1
                    continue
                numbers = [n for n in range(PAIRS) if caption == f"cat {n}"]
                if numbers and np.array_equal(image, decode(jpeg(numbers[0], "PNG", (4, 4)), "")):
                    whole.add(numbers[0])
                else:
                    broken += 1  # its bytes are other ones, which a tar cannot tell
        assert len(whole) == PAIRS or broken or left_out.counts


# ------------------------------------------------------------------------------------------------ lists


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lists_may_begin_with_a_mark_and_have_ends_of_lines_of_any_kind(pool, mark):
    entry = {"image": "images/a.jpg", "caption": "a {cät}"}
    text = json.dumps([entry, entry], indent=1, ensure_ascii=False).replace("\n", "\r\n")
    (pool / "list.json").write_bytes(mark + text.encode())
    real_sets.save(pool / "images/a.jpg", jpeg(0))
    assert all_of(read(pool)) == [["a {cät}"]] * 2


def test_lists_in_other_encodings_or_cut_off_are_refused(pool):
    text = json.dumps([{"image": "a.jpg", "caption": "a cat"}] * 2)
    for content in (text.encode("utf-16"), text.encode("utf-32-le"), text[:-1].encode(), text[:-9].encode()):
        (pool / "list.json").write_bytes(content)
        with pytest.raises(UserError, match=r"list\.json: "):
            read(pool)


def test_entries_that_are_no_objects_and_captions_without_words_are_counted(pool):
    entry = {"image": "a.jpg", "caption": ["a cat", "...", None]}
    (pool / "list.json").write_text(json.dumps([entry, "text", None, [1, 2], entry]))
    found = read(pool)
    assert found.captions(1) == ["a cat"]
    assert found.left_out.counts == {"captions without words": 4, "entries of lists that are no objects": 4}


def test_no_entry_leads_out_of_the_folder(pool, tmp_path):
    real_sets.save(tmp_path / "secret.jpg", jpeg(0))
    real_sets.save(pool / "images/a.jpg", jpeg(0))
    (pool / "images/link.jpg").symlink_to(tmp_path / "secret.jpg")
    (pool / "images/inside.jpg").symlink_to("a.jpg")
    (pool / "out").symlink_to(tmp_path)
    (pool / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(pool / "pipe.jpg")
    bad = ["../secret.jpg", str(tmp_path / "secret.jpg"), "images/../../secret.jpg", "images/link.jpg"]
    bad += [
        "out/secret.jpg",
        "pipe.jpg",
        "images",
        ".",
        "",
        "a\0b",
        "loop.jpg",
        "x" * 300,
        7,
        None,
        ["a.jpg"],
    ]
    good = [
        "images/a.jpg",
        "./images//a.jpg",
        "images/inside.jpg",
        str(pool / "images/a.jpg"),
        "images/../images/a.jpg",
    ]
    (pool / "list.json").write_text(json.dumps([{"image": name, "caption": "a cat"} for name in bad + good]))
    found = read(pool)
    for index in range(len(bad)):
        with pytest.raises(UnreadableImage):
            found.image(index)
    for index in range(len(bad), len(bad + good)):
        assert found.image(index).shape == (32, 40, 3)
    linked = tmp_path / "linked"
    linked.symlink_to(pool)
    assert capfilt.read(linked, tmp_path / "index").image(len(bad)).shape == (32, 40, 3)


def test_a_key_that_is_there_twice_is_a_damaged_pair(pool):
    (pool / "list.json").write_text('[{"image": "a.jpg", "caption": "a cat", "caption": "a dog"}]')
    with pytest.raises(UnreadableCaption, match=r"list\.json, entry at byte 1: .*'caption' twice"):
        read(pool).captions(0)
