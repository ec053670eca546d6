"""Folders of one's own images, with captions in each of the forms that people have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evlgen.config import DataConfig
from evlgen.data import worlds
from evlgen.data.readers import folder
from evlgen.errors import UserError
from evlgen.runtime import own_images, sources
from tests.evlgen import own_forms
from tests.evlgen import real_sets as true_files

FORMS = list(own_forms.FORMS.values())
SIZE = own_forms.SIZE


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EVLGEN_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_images_with_their_captions(root, form):
    form(root / "mine")
    world = worlds.of(DataConfig(world="folder", pools=(("mine", 6),)))
    pools = ("mine", "mine/val", "mine/test")
    assert world.missing(pools) == []
    assert [world.count(pool) for pool in pools] == [6, 2, 2]
    seen = set()
    for pool in pools:
        for index, file in enumerate(folder.read(pool).files):
            number = int(Path(file).stem)
            seen.add(number)
            assert world.references(pool, index) == [true_files.caption(number)]
            assert world.image(pool, index).shape == (32, 40, 3)
    assert seen == set(range(SIZE))
    before = sources.fingerprint_of_data("folder", ["mine"])
    assert before["mine"] != sources.MISSING
    image = next((root / "mine").rglob("3.png"))
    image.write_bytes(image.read_bytes() + b"more")
    assert sources.fingerprint_of_data("folder", ["mine"]) != before


@pytest.mark.parametrize("form", FORMS)
def test_another_caption_gives_another_id(root, form):
    form(root / "mine")
    before = sources.fingerprint_of_data("folder", ["mine"])
    for path in own_images.caption_files(root / "mine"):
        content = path.read_bytes()
        path.write_bytes(
            content.replace(b"grass", b"green").replace(
                "grass".encode("utf-16-le"), "green".encode("utf-16-le")
            )
        )
    assert sources.fingerprint_of_data("folder", ["mine"]) != before


def test_splits_are_told_by_columns_names_of_files_and_folders(root):
    own_forms.images(root / "a")
    rows = [f"{n}.png,A ball,{('train', 'val', 'test', '')[n % 4]}" for n in range(SIZE)]
    true_files.save(root / "a/captions.csv", "\n".join(["file,caption,split", *rows]).encode())
    for number, split in enumerate(("train", "val", "test")):
        true_files.save(root / f"b/{split}/{number}.png", true_files.jpeg(number, "PNG"))
        true_files.save(root / f"b/{split}/{number}.txt", b"A ball")
        true_files.save(root / f"c/{number}.png", true_files.jpeg(number, "PNG"))
        content = {
            "images": [{"id": 1, "file_name": f"{number}.png"}],
            "annotations": [{"image_id": 1, "caption": "A ball"}],
        }
        true_files.dump(root / f"c/captions_{split}2024.json", content)
    counts = {name: [len(folder.read(f"{name}{part}")) for part in ("", "/val", "/test")] for name in "abc"}
    assert counts == {"a": [5, 3, 2], "b": [1, 1, 1], "c": [1, 1, 1]}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("captions.jsonl", '{"file": "0.png", "caption": 5}', "line 1: 'caption' must be text, not 5"),
        ("captions.jsonl", '{"file": "0.png", "captions": []}', "line 1: 'captions' must be a list"),
        ("captions.jsonl", '{"file": "0.png", "caption": "..."}', "line 1: the caption '...' has no words"),
        ("captions.jsonl", '{"file": "../0.png", "caption": "a"}', "line 1: '../0.png' leads out of"),
        ("captions.jsonl", '{"file": "/etc/passwd", "caption": "a"}', "line 1: '/etc/passwd' leads out of"),
        ("captions.jsonl", '["0.png", "a"]', "line 1: must be an object"),
        ("captions.jsonl", "", "no image with a caption in it"),
        (
            "captions.csv",
            "0.png,a ball\n",
            "its first line must name the columns: none of 0.png, a ball is file",
        ),
        ("captions.csv", "file,caption\n0.png,a, b\n", "line 2: has 3 cells where the header has 2"),
        ("captions.csv", 'file,caption\n0.png,"a\n', "line 2: no row of a table"),
        ("captions.csv", "file,caption\n0.png,\n", "line 2: 'caption' is empty"),
        ("captions.csv", "file,caption\n", "no image with a caption in it"),
        ("0.txt", " \n", "empty; write the caption of 0.png into it"),
        (
            "a.json",
            '{"images": [{"id": 1, "file_name": "0.png"}], '
            '"annotations": [{"image_id": "1", "caption": "a"}]}',
            "annotation 0: no image has the id '1'",
        ),
        (
            "a.json",
            '{"images": [{"id": 1, "file_name": "0.png"}, {"id": 1, "file_name": "1.png"}], '
            '"annotations": []}',
            "entries 0 and 1 have the same id",
        ),
        ("a.json", '{"images": [{"id": 1}], "annotations": []}', "entry 0 has no 'file_name'"),
        ("a.json", '{"images": [, "annotations": []}', "damaged: not JSON"),
    ],
)
def test_a_mistake_is_named_with_file_and_place(root, file, content, message):
    own_forms.images(root / "mine", 3)
    true_files.save(root / "mine" / file, content.encode())
    (line,) = folder.missing(["mine"])
    assert str(root / "mine" / file) in line
    assert message in line


def test_an_image_that_is_not_there_is_told_before_the_run(root):
    own_forms.as_lines(root / "mine")
    (root / "mine/3.png").unlink()
    pools = ["mine", "mine/val", "mine/test"]
    (line,) = folder.missing(pools)
    assert line.startswith(f"{root / 'mine/3.png'}: missing; of the ")


def test_a_folder_without_captions_says_what_it_may_have(root):
    own_forms.images(root / "mine", 3)
    with pytest.raises(
        UserError, match=r"no captions there; it needs captions\.jsonl, captions\.csv, a JSON of"
    ):
        folder.read("mine")


def test_one_image_in_two_splits_is_refused(root):
    own_forms.images(root / "mine", 3)
    said = [{"file": "0.png", "caption": "a", "split": split} for split in ("train", "test")]
    true_files.lines(root / "mine/captions.jsonl", said)
    with pytest.raises(UserError, match=r"line 2: 0\.png is in the split 'test', in another line in 'train'"):
        folder.read("mine")


@pytest.mark.parametrize("name", ["", ".", "..", "/etc", "../other", "a/b", "mine/train"])
def test_what_is_no_name_of_a_folder_is_refused_and_never_searched(root, name):
    own_forms.as_texts(root / "mine")
    (line,) = folder.missing([name])
    assert line.startswith(f"data.pools: {name!r} is not the name of a folder in EVLGEN_DATA; ")
    if name.partition("/")[0] in ("", ".", ".."):
        assert set(sources.fingerprint_of_data("folder", [name]).values()) == {sources.MISSING}


def test_a_folder_that_is_mistyped_is_suggested(root):
    own_forms.as_texts(root / "mine")
    assert folder.missing(["mien"]) == [
        f"{root / 'mien'}: missing; docs/DATA.md says what is in it; did you mean mine?"
    ]


def test_links_that_lead_round_end(root):
    own_forms.as_texts(root / "mine")
    (root / "mine/round").symlink_to("..")
    assert folder.missing(["mine"]) == []
    (root / "ccs-14m").symlink_to("mine")
    world = worlds.get("capfilt")
    assert world.missing(["ccs-14m"]) == []
    assert world.count("ccs-14m") == SIZE


def test_questions_may_be_a_table(root):
    own_forms.as_csv(root / "mine")
    rows = [f"{n}.png,What is it?,ball" for n in range(4)]
    true_files.save(root / "mine/questions.csv", "\n".join(["file,question,answer", *rows]).encode())
    world = worlds.of(DataConfig(world="folder", pools=(("mine", 6),)))
    assert world.missing(["mine/questions"]) == []
    assert world.is_there("mine/questions")
    assert world.count("mine/questions") == 4
    assert world.question("questions", 1).answers == ("ball",) * 10


def test_linked_folders_are_not_walked(root: Path) -> None:
    own_forms.as_texts(root / "mine")
    (root / "mine/deep/loop").symlink_to("..")
    (root / "mine/again").symlink_to("deep")
    assert len(own_images.captions(root / "mine").lines) == SIZE
    (root / "elsewhere").mkdir()
    (root / "mine/elsewhere").symlink_to(root / "elsewhere")
    with pytest.raises(UserError, match=r"mine/elsewhere: a link leads out of .*mine; put the folder itself"):
        own_images.captions(root / "mine")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "file,caption,caption\n0.png,a cat,a dog\n", "two columns called 'caption'"),
        ("captions.jsonl", '{"file": "0.png", "caption": "a", "captions": ["b"]}', "has both 'caption' and"),
    ],
)
def test_no_caption_is_passed_over(root: Path, name: str, content: str, message: str) -> None:
    true_files.save(root / "mine" / name, content.encode())
    with pytest.raises(UserError, match=message):
        own_images.captions(root / "mine")


def test_images_and_texts_without_each_other_are_counted(root: Path) -> None:
    own_forms.as_texts(root / "mine")
    true_files.save(root / "mine/alone.png", true_files.jpeg(1, "PNG"))
    true_files.save(root / "mine/deep/photo.heic", b"of a phone")
    true_files.save(root / "mine/deep/photo.txt", b"a cat")
    Path(os.fsdecode(os.fsencode(root / "mine") + b"/\xff.txt")).write_text("a name that is no UTF-8")
    (root / "mine/list.json").mkdir()
    os.mkfifo(root / "mine/pipe.json")
    found = own_images.captions(root / "mine")
    assert len(found.lines) == SIZE
    assert "\n".join(found.left_out.lines()).encode()
    assert found.left_out.counts == {
        "images without a .txt beside them": 1,
        "texts without an image beside them": 2,
    }
