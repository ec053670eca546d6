"""Values of other types than a list must have, anywhere in the real sets' files: one line that names the
file, when it is read, and never a traceback, least of all after the training.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from evlgen.backbones.language import load_tokenizer
from evlgen.config import DataConfig
from evlgen.data import worlds
from evlgen.data.images import UnreadableImage
from evlgen.data.readers import folder, real
from evlgen.errors import UserError
from evlgen.evaluation.scores import RunPredictions, score_runs
from evlgen.runtime.text import decode_text, parse_json, read_json
from sweeps import run
from tests.evlgen import real_sets

COCO, NOCAPS = "coco/dataset_coco.json", "nocaps/nocaps_val_4500_captions.json"
FLICKR, GQA = "flickr30k/dataset_flickr30k.json", "gqa/testdev_balanced_questions.json"
QUESTIONS = "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
ANSWERS = "vqav2/v2_mscoco_val2014_annotations.json"
OWN, ASKED = "mine/captions.jsonl", "mine/questions.jsonl"
FILES = {
    COCO: ("coco", "coco_val", "coco_test"),
    NOCAPS: ("nocaps_in", "nocaps_near", "nocaps_out"),
    FLICKR: ("flickr",),
    GQA: ("gqa",),
    QUESTIONS: ("vqav2",),
    ANSWERS: ("vqav2",),
    OWN: ("mine", "mine/val", "mine/test"),
    ASKED: ("mine/questions",),
}
ODD: list[Any] = [None, float("nan"), float("inf"), 5, -1, 2.5, 1e30, 10**25, True, "", " ", "...", "a\0b"]
ODD += ["\ud800", "../../etc/passwd", "/etc/passwd", "x" * 5000, [], ["x"], [["x"]], {}, {"raw": {}}, [None]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = real_sets.write(tmp_path_factory.mktemp("data"))
    real_sets.own_folder(root / "mine", 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVLGEN_DATA", str(root))
        patch.setenv("EVLGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield root


def content_of(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(path.read_text())


@contextlib.contextmanager
def holding(path: Path, content: Any) -> Iterator[None]:
    """A file with other content for a while."""
    before = path.read_bytes()
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in content) if lines else json.dumps(content))
    real._pool.cache_clear()
    folder._read.cache_clear()
    try:
        yield
    finally:
        path.write_bytes(before)


def use(name: str) -> None:
    """All that a run does with the pools of a file, but for training."""
    own = name.startswith("mine")
    world = worlds.get("folder", "mine") if own else worlds.get("capfilt")
    for pool in FILES[name]:
        assert world.count(pool) > 0
        assert world.version(pool)
        for index in range(world.count(pool)):
            with contextlib.suppress(UnreadableImage):
                assert world.image(pool, index).shape[-1] == 3
            if pool in ("gqa", "vqav2", "mine/questions"):
                asked = world.question("questions" if own else pool, index)
                assert asked.text.strip()
                assert any(answer.strip() for answer in asked.answers)
            else:
                assert all(any(map(str.isalnum, said)) for said in world.captions(pool, index))
                assert all(said.encode() for said in world.references(pool, index))
    data = DataConfig(world="folder", pools=(("mine", 1),)) if own else DataConfig(world="capfilt")
    answered = {"gqa": "gqa", "vqav2": "vqav2", "mine/questions": "questions"}.get(FILES[name][0])
    if answered:
        score_runs([RunPredictions(answers={answered: {"0": "yes"}}, data=data)])


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a JSON value."""
    if path:
        yield path
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*path, key))


def changed(content: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    content = copy.deepcopy(content)
    owner = content
    for key in path[:-1]:
        owner = owner[key]
    change(owner, path[-1])
    return content


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_may_be_anything(whole: Path, name: str, data: st.DataObject) -> None:
    content = content_of(whole / name)
    path = data.draw(st.sampled_from(list(places(content))))
    value = data.draw(st.sampled_from([*ODD, "left out", "twice"]))

    def change(owner: Any, key: Any) -> None:
        if value == "left out":
            del owner[key]
        elif value == "twice" and isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        else:
            owner[key] = value

    with holding(whole / name, changed(content, path, change)):
        try:
            use(name)
        except UserError as error:
            message = str(error)
            assert any(file.rpartition("/")[2] in message for file in FILES), message
            assert "\n" not in message


def every(part: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    def edit(content: Any) -> None:
        for entry in content.values() if part == "" else content[part] if part != "lines" else content:
            change(entry)

    return edit


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            ANSWERS,
            every("annotations", lambda a: [one.update(answer=2) for one in a["answers"]]),
            "annotation 23: 'answer' must be text, not 2",
        ),
        (
            ANSWERS,
            every("annotations", lambda a: [one.update(answer=None) for one in a["answers"]]),
            "'answer' must be text, not null",
        ),
        (
            ANSWERS,
            every("annotations", lambda a: [one.update(answer="") for one in a["answers"]]),
            "annotation 23: all of its answers are empty",
        ),
        (
            ANSWERS,
            every("annotations", lambda a: a.update(answers=["x"] * 10)),
            "an answer: must be an object, not 'x'",
        ),
        (
            ANSWERS,
            every("annotations", lambda a: a.update(answer_type=None)),
            "'answer_type' is None, none of yes/no, number, other",
        ),
        (
            QUESTIONS,
            every("questions", lambda q: q.update(image_id=str(q["image_id"]))),
            "question 0: 'image_id' must be a whole number, not '6'",
        ),
        (
            QUESTIONS,
            every("questions", lambda q: q.update(question=None)),
            "question 0: 'question' must be text, not null",
        ),
        (
            NOCAPS,
            every("annotations", lambda a: a.update(caption=None)),
            "annotation 0: 'caption' must be text, not null",
        ),
        (
            NOCAPS,
            every("images", lambda i: i.update(domain=None)),
            "image 0: 'domain' must be text, not null",
        ),
        (COCO, every("images", lambda i: i.update(sentences=[{"tokens": ["a"]}])), "image 0: needs a 'raw'"),
        (
            COCO,
            every("images", lambda i: i.update(sentences=[{"raw": None}])),
            "image 0: 'raw' must be text, not null",
        ),
        (COCO, every("images", lambda i: i.update(filename=7)), "image 0: 'filename' must be text, not 7"),
        (
            COCO,
            every("images", lambda i: i.update(filename="a\0b")),
            "has characters that are no text: 'a\\x00b'",
        ),
        (COCO, every("images", lambda i: i.update(filename="../a.jpg")), "'../a.jpg' leads out of "),
        (GQA, every("", lambda q: q.update(answer=None)), "question 200: 'answer' must be text, not null"),
        (GQA, every("", lambda q: q.update(imageId="../x")), "'../x.jpg' leads out of "),
        (OWN, every("lines", lambda e: e.update(caption=["a"])), "line 1: 'caption' must be text, not ['a']"),
        (OWN, every("lines", lambda e: e.update(caption="...")), "line 1: the caption '...' has no words"),
        (OWN, every("lines", lambda e: e.update(file="../a.png")), "line 1: '../a.png' leads out of "),
        (ASKED, every("lines", lambda e: e.update(answer=2)), "line 1: 'answer' must be text, not 2"),
    ],
)
def test_file_and_entry_are_named(whole: Path, name: str, edit: Callable[[Any], Any], message: str) -> None:
    content = content_of(whole / name)
    edit(content)
    with holding(whole / name, content), pytest.raises(UserError) as caught:
        use(name)
    assert name.rpartition("/")[2] in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_sweep_refuses_odd_values_before_anything_is_done(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
) -> None:
    for name in ("RUNS", "RESULTS"):
        monkeypatch.setenv(f"EVLGEN_{name}", str(tmp_path / name))
    questions, answers, nocaps = (content_of(whole / name) for name in (QUESTIONS, ANSWERS, NOCAPS))
    questions["questions"][3]["question"] = None
    answers["annotations"][5]["answers"][2]["answer"] = 2
    nocaps["annotations"][1]["caption"] = ["a cat"]
    sets = 'evaluation.sets=[["nocaps_in", 2], ["vqav2", 4]]'
    with holding(whole / QUESTIONS, questions), holding(whole / NOCAPS, nocaps):
        assert run.main(["table1", "--scale", "paper", "--set", sets, *flags]) == 2
    said = "".join(capsys.readouterr())
    assert "questions.json, question 3: 'question' must be text, not null" in said
    assert "captions.json, annotation 1: 'caption' must be text, not ['a cat']" in said
    with holding(whole / ANSWERS, answers):
        assert run.main(["table1", "--scale", "paper", "--set", sets, *flags]) == 2
    said += "".join(capsys.readouterr())
    assert "annotations.json, annotation 5: 'answer' must be text, not 2" in said
    assert "Traceback" not in said
    assert not (tmp_path / "RUNS").exists()


def test_captions_without_words_are_counted_and_never_trained_on(
    whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = content_of(whole / COCO)
    trained = [image for image in content["images"] if image["split"] in ("train", "restval")]
    trained[0]["sentences"][0]["raw"] = " . "
    trained[3]["sentences"] = [{"raw": ""}, {"raw": "#"}]
    trained[5]["sentences"] = []
    with holding(whole / COCO, content):
        use(COCO)
        found = real.pool("coco")
        assert len(found) == 6
        assert found.left_out.counts == {"captions without words": 3, "images without a caption": 2}
    assert "dataset_coco.json: left out: captions without words: 3 (the first: " in caplog.text
    assert "dataset_coco.json, image 0)" in caplog.text
    for image in content["images"]:
        image["sentences"] = [{"raw": "..."}]
    with (
        holding(whole / COCO, content),
        pytest.raises(UserError, match="no image with captions in the split"),
    ):
        use(COCO)


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_list_may_be_in_any_encoding_of_unicode(whole: Path, name: str, encoding: str) -> None:
    path = whole / name
    before = path.read_bytes()
    if encoding in ("utf-16-le", "utf-32") and path.suffix == ".jsonl":
        return  # without a mark only JSON's own rules tell
    path.write_bytes(before.decode().replace("\n", "\r\n").encode(encoding))
    real._pool.cache_clear()
    folder._read.cache_clear()
    try:
        use(name)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "has the key 'c' twice"),
        (b"[" * 10**5 + b"]" * 10**5, "too deep"),
        (b"", "not JSON"),
        (b'{"a": "b', "not JSON"),
        (b'"\xe4"', "is not UTF-8 at byte 1; save it as UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"\x1f\x8b\x08\x00gzip", ""),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.json").write_bytes(content)
    with pytest.raises(UserError, match=r"list\.json: ") as caught:
        read_json(tmp_path / "list.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pipes_devices_and_folders_are_no_lists(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="is no ordinary file"):
            read_json(path)
    with pytest.raises(UserError, match=r"nowhere\.json: cannot be read \(No such file"):
        read_json(tmp_path / "nowhere.json")


@given(st.text(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_text_of_any_encoding_with_a_mark_is_read(text: str, encoding: str) -> None:
    if "\0" in text or text.startswith("\ufeff"):
        return
    assert decode_text(text.encode(encoding), "a") == text
    assert parse_json(json.dumps(text, ensure_ascii=False).encode(encoding), "a") == text


# ------------------------------------------------------------------------------------------------- links


def test_links_lead_nowhere_else_but_a_link_to_the_data_itself_works() -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        outside, real_root, root = Path(place, "outside"), Path(place, "disk"), Path(place, "data")
        real_sets.write(real_root)
        real_sets.own_folder(real_root / "mine", 12)
        root.symlink_to(real_root)
        outside.mkdir()
        for name in ("coco/val2014", "mine"):  # on another disk, say
            os.rename(real_root / name, outside / Path(name).name)
            (real_root / name).symlink_to(outside / Path(name).name)
        patch.setenv("EVLGEN_DATA", str(root))
        for name in FILES:
            use(name)
        world = worlds.get("capfilt")
        for folder_of, pool in (
            ("coco/val2014", "coco_test"),
            ("gqa/images", "gqa"),
            ("nocaps/images", "nocaps_in"),
        ):
            real._pool.cache_clear()
            path = root / folder_of / Path(real.pool(pool).files[0]).name
            os.rename(path, outside / f"secret-{pool}.jpg")
            path.symlink_to(outside / f"secret-{pool}.jpg")
            if folder_of != "coco/val2014":
                with pytest.raises(UnreadableImage, match="a link leads out of"):
                    world.image(pool, 0)


# -------------------------------------------------------------------------------------------- vocabularies


def test_a_vocabulary_with_a_mark_is_refused(tmp_path: Path) -> None:
    real_sets.bert(tmp_path / "bert")
    config = BertConfig.from_pretrained(tmp_path / "bert")
    (tmp_path / "bert/tokenizer.json").unlink(missing_ok=True)
    assert load_tokenizer(tmp_path / "bert", config)[0].pad_token_id == 0
    path = tmp_path / "bert/vocab.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(UserError, match=r"vocab\.txt: begins with a byte order mark"):
        load_tokenizer(tmp_path / "bert", config)
