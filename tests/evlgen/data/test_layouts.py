"""Data sets as people have them: published archives, LAVIS's and Karpathy's files, img2dataset, data.toml."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from evlgen.config import DataConfig
from evlgen.data import worlds
from evlgen.data.images import decode
from evlgen.data.readers import capfilt
from evlgen.errors import UserError
from evlgen.runtime import datasets, paths, sources
from tests.evlgen import layouts
from tests.evlgen import real_sets as true_files

POOLS = ("coco", "coco_val", "coco_test", "nocaps_in", "nocaps_near", "nocaps_out", "flickr")
POOLS += ("vqav2", "okvqa", "gqa", "laion-115m", "ccs-14m")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EVLGEN_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def contents(pools=POOLS):
    """What a training and an evaluation see of some pools."""
    world = worlds.get("capfilt")
    assert world.missing(pools) == []
    found = {}
    for pool in pools:
        rows = []
        for index in range(world.count(pool)):
            said = (
                world.question(pool, index) if pool in world.question_sets else world.references(pool, index)
            )
            rows.append((said, world.image(pool, index).tobytes()))
        found[pool] = sorted(rows, key=repr)
    return found


@pytest.mark.parametrize("layout", [layouts.lavis, layouts.unpacked, layouts.elsewhere])
def test_every_layout_gives_the_same_pairs_and_questions(root, layout):
    true_files.write(root)
    before = contents()
    layout(root)
    assert contents() == before
    prints = sources.fingerprint_of_data("capfilt", POOLS)
    assert sources.MISSING not in prints.values()


def test_ids_do_not_ask_where_files_lie(root):
    true_files.write(root)
    before = sources.fingerprint_of_data("capfilt", POOLS)
    layouts.elsewhere(root)
    after = sources.fingerprint_of_data("capfilt", POOLS)
    assert {k: v for k, v in after.items() if k != "ccs-14m"} == {
        k: v for k, v in before.items() if k != "ccs-14m"
    }


# --------------------------------------------------------------------------------------------- the docs

DOCS = (paths.ROOT / "docs/DATA.md").read_text()


def plant(tree: str, root: Path) -> None:
    """Make the files and folders of a tree, whose indents are of two spaces."""
    above: list[str] = []
    for line in tree.splitlines():
        name = line.strip()
        above = [*above[: (len(line) - len(line.lstrip())) // 2], name]
        path = root.joinpath(*above)
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            true_files.save(path, b"")


@pytest.mark.parametrize("number", range(3))
def test_the_trees_of_the_docs_have_all_that_is_needed_and_nothing_else(root, number):
    tree = re.findall(r"```text\n(.*?)```", DOCS, re.DOTALL)[number]
    plant(tree, root)
    used = set()
    for pool in POOLS:
        for need in (*datasets.lists_of(pool), *datasets.images_of(pool)):
            found = datasets.find(need)
            assert found is not None, (pool, need[0].name)
            used.add(found.path)
    files = {path for path in root.rglob("*") if path.is_file()}
    leaves = {path for path in root.rglob("*") if path.is_dir() and not any(path.iterdir())}
    assert used == files | leaves


def test_the_data_toml_of_the_docs_has_every_key(root):
    content = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)[0]
    true_files.save(root / "data.toml", content.encode())
    given = datasets.settings()
    known = {part.key for part in datasets._parts() if not part.key.startswith("pools.")}
    alternatives = {"coco.train", "coco.val", "coco.test", "flickr30k.test"}
    assert known - {*given.parts} == alternatives
    assert given.pools["cc3m"] == Path.home() / "cc3m"


# ------------------------------------------------------------------------------------------ data.toml


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[cocoa]\nimages = 'a'", "cocoa: no such table; there are: [pools], [folders], [coco], "),
        ("[cocoa]\nimages = 'a'", "; did you mean coco?"),
        (
            "[coco]\nimage = 'a'",
            "coco.image: no such key; there are: annotations, train, val, test, images, test_images; did",
        ),
        ("[coco]\nimages = 3", "coco.images is 3: must be a path, in quotation marks"),
        ("[coco]\nimages = ' '", "coco.images is ' ': must be a path"),
        ("coco = 'a'", "coco: must be a table, [coco], with a path under each key"),
        ("[coco", "not TOML"),
        ("[pools]\ncoco_val = 'a'", "pools.coco_val: is the name of a published set; choose another"),
        ("[folders]\n'a/b' = 'a'", "folders.a/b: a name must not be empty, begin with a dot or have a slash"),
        ("[gqa]\nimages = '~nobody-is-called-so/gqa'", "nobody of that name has a home folder here"),
    ],
)
def test_a_mistake_in_data_toml_is_named(root, content, message):
    true_files.save(root / "data.toml", content.encode())
    with pytest.raises(UserError) as caught:
        datasets.settings()
    assert str(caught.value).startswith(f"{root / 'data.toml'}: ")
    assert message in str(caught.value)


def test_data_toml_may_be_named_itself_and_begins_in_its_own_folder(root, tmp_path, monkeypatch):
    true_files.own_folder(tmp_path / "pictures", 30)
    true_files.save(tmp_path / "settings/my.toml", b"[folders]\nmine = '../pictures'\nhome = '~/x'\n")
    monkeypatch.setenv("EVLGEN_DATA", str(tmp_path / "settings/my.toml"))
    world = worlds.of(DataConfig(world="folder", pools=(("mine", 5),)))
    assert world.missing(["mine", "mine/test"]) == []
    assert world.image("mine", 0).shape == (32, 40, 3)
    assert datasets.settings().folders["home"] == Path.home() / "x"
    monkeypatch.setenv("EVLGEN_DATA", str(tmp_path / "settings/none.toml"))
    with pytest.raises(UserError, match=r"none\.toml': no such file"):
        datasets.data_folder()


@pytest.mark.parametrize("what", ["a file", "nothing"])
@pytest.mark.parametrize(("world", "pool"), [("capfilt", "gqa"), ("folder", "mine")])
def test_a_data_folder_that_is_none_is_said_first(root, what, world, pool):
    if what == "a file":
        true_files.save(root, b"")
    told = "a file; give a folder, or a data.toml" if what == "a file" else "no such folder"
    lines = worlds.get(world, pool).missing([pool])
    assert lines[0] == f"EVLGEN_DATA is '{root}': {told}"
    if world == "capfilt":
        assert lines[1].startswith(
            "gqa/testdev_balanced_questions.json: is not in EVLGEN_DATA; get it from questions1.2"
        )


def test_what_data_toml_names_and_is_not_there_is_named_with_its_key(root):
    true_files.save(root / "data.toml", b"[gqa]\nimages = 'nowhere'\n")
    true_files.gqa(root / "gqa")
    (line,) = worlds.get("capfilt").missing(["gqa"])
    assert line.startswith(
        f"{root / 'nowhere'}: missing (gqa.images in {root / 'data.toml'} names it); get it"
    )


def test_pools_of_one_s_own_are_read_as_web_pools(root):
    true_files.shards(root / "cc3m", (3, 2))
    true_files.save(root / "data.toml", b"[pools]\ncc3m = 'cc3m'\n")
    world = worlds.get("capfilt")
    assert world.missing(["cc3m"]) == []
    assert world.count("cc3m") == 5
    assert sources.fingerprint_of_data("capfilt", ["cc3m"])["cc3m"] != sources.MISSING
    (line,) = world.missing(["cc3"])
    assert line.endswith("; did you mean cc3m?")


# ------------------------------------------------------------------------------------- pools of pairs


@pytest.mark.parametrize("ends", [(".txt",), (".json",), (".txt", ".json")])
def test_img2dataset_s_files_are_read(root, ends):
    layouts.files(root / "ccs-14m", ends)
    world = worlds.get("capfilt")
    assert world.missing(["ccs-14m"]) == []
    assert world.count("ccs-14m") == 5
    for index in range(5):
        assert world.references("ccs-14m", index) == [true_files.caption(400 + index)]
        assert np.array_equal(world.image("ccs-14m", index), decode(true_files.jpeg(400 + index), ""))


def test_files_that_come_are_found_and_change_the_id(root):
    pool = root / "ccs-14m"
    layouts.files(pool)
    first = capfilt.read(pool, root / "index")
    before = sources.fingerprint_of_data("capfilt", ["ccs-14m"])
    assert sources.fingerprint_of_data("capfilt", ["ccs-14m"]) == before
    true_files.save(pool / "00001/000010002.jpg", true_files.jpeg(9))
    true_files.save(pool / "00001/000010002.txt", b"A new one")
    again = capfilt.read(pool, root / "index")
    assert (len(first), len(again)) == (5, 6)
    assert again.version != first.version
    assert again.captions(5) == ["A new one"]
    assert sources.fingerprint_of_data("capfilt", ["ccs-14m"]) != before


def test_the_list_of_addresses_beside_fetched_files_does_not_matter(root):
    layouts.files(root / "ccs-14m")
    true_files.dump(root / "ccs-14m/ccs_synthetic_filtered_large.json", [{"url": "http://a", "caption": "a"}])
    world = worlds.get("capfilt")
    assert (world.missing(["ccs-14m"]), world.count("ccs-14m")) == ([], 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"id": "1", "image": "1.jpg", "conversations": [{"from": "gpt", "value": "a cat"}]}],
            "has conversations (LLaVA's form)",
        ),
        (
            {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []},
            "has COCO's annotations, not a list",
        ),
        ({"a": 1}, 'an object, where a list [{"image": ..., "caption": ...}] is needed'),
        ([], "its first entry has no 'image' and no 'caption'"),
        ([{"image": "1.jpg", "text": "a"}], "its first entry has no 'caption'; it has image, text"),
        ([{"url": "http://example.org", "caption": "a"}], "lists URLs instead of images"),
        ("a cat", 'no list [{"image": ..., "caption": ...}]'),
    ],
)
def test_a_list_of_another_form_is_told_before_the_run(root, content, message):
    true_files.dump(root / "ccs-14m/list.json", content)
    (line,) = worlds.get("capfilt").missing(["ccs-14m"])
    assert line.startswith(f"{root / 'ccs-14m/list.json'}: {message}")


def test_a_pool_without_a_pair_is_told(root):
    true_files.save(root / "ccs-14m/readme.md", b"nothing yet")
    (line,) = worlds.get("capfilt").missing(["ccs-14m"])
    assert line.startswith(f"{root / 'ccs-14m'}: neither shards (*.tar) nor lists of pairs")


# -------------------------------------------------------------------------------- images that are missing


def test_each_image_of_an_evaluation_set_is_looked_for(root):
    """A folder that is not empty used to pass, and the missing image to stop the run after its training."""
    true_files.write(root)
    (root / "gqa/images/n2.jpg").unlink()
    (root / "nocaps/images/0001.jpg").unlink()
    (root / "nocaps/images/0001.jpg").symlink_to("nowhere.jpg")
    world = worlds.get("capfilt")
    (line,) = world.missing(["gqa"])
    assert line == (
        f"{root / 'gqa/images/n2.jpg'}: missing; of the 3 images of gqa 1 is not there; get them from "
        "images.zip of cs.stanford.edu/people/dorarad/gqa/download.html"
    )
    (line,) = world.missing(["nocaps_in", "nocaps_near"])
    assert line.startswith(
        f"{root / 'nocaps/images/0001.jpg'}: missing; of the 2 images of nocaps_in 1 is not"
    )
    (root / "coco/train2014/COCO_train2014_000000000000.jpg").unlink()
    assert world.missing(["coco"]) == []  # to train with: it is replaced by another
