"""``run.py check-data`` and ``describe-data``, as a user calls them, on tiny sets in their true formats."""

from __future__ import annotations

import re
import shutil

import pytest

from sweeps import run
from tests.evlgen import real_sets

SETS = 'evaluation.sets=[["coco",4],["nocaps_in",2],["nocaps_near",3],["nocaps_out",1],["flickr",3],'
SETS += '["vqav2",24],["gqa",3],["okvqa",24]]'
SMALL = ["--set", SETS, "--set", "evaluation.validation=6", "--set", "stage1.evaluation.validation=6"]
OWN = ["--set", "data.world=folder", "--set", 'data.pools=[["mine", 20]]']


@pytest.fixture
def data(tmp_path, monkeypatch):
    for name in ("RUNS", "RESULTS", "CACHE", "DATA"):
        monkeypatch.setenv(f"EVLGEN_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("EVLGEN_DECODERS", "4")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def called(capsys, *words: str) -> tuple[int, str]:
    code = run.main(list(words))
    return code, capsys.readouterr().out


def test_whole_data_are_counted_timed_and_shown(data, capsys):
    real_sets.write(data)
    code, said = called(capsys, "check-data", "table1", *SMALL)
    assert (code, "problems: 0" in said) == (0, True)
    assert "coco, evaluation: 4 images, 4 asked for, 5,000 published (incomplete?)" in said
    assert f"  {data / 'coco/dataset_coco.json'}\n  {data / 'coco/train2014'}\n" in said
    assert re.search(r"laion-115m, training: 9 images, .*; one process reads [\d,]+ images a second", said)
    assert "At the paper's pace a GPU wants 105 images a second." in said
    page = (data.parent / "cache/data/table1.html").read_text()
    assert "Nothing is missing." in page
    assert page.count("data:image/jpeg;base64,") == 9 + 5 + 8 + 6 + 4 + 2 + 3 + 1 + 3 + 12 + 3 + 12
    assert "A red ball, on the grass (no. 200)." in page
    assert "a red ball, on the grass no 200" in page  # as it is trained on
    assert "http" not in page.replace("http://www.w3.org", "")


def test_what_is_missing_is_named_with_where_to_get_it(data, capsys):
    real_sets.write(data)
    shutil.rmtree(data / "nocaps")
    (data / "gqa/images/n1.jpg").unlink()
    code, said = called(capsys, "check-data", "table1", *SMALL)
    assert code == 2
    assert (
        f"{data / 'nocaps/images'}: missing; get it from the validation images of nocaps.org/download" in said
    )
    assert f"problem: {data / 'gqa/images/n1.jpg'}: missing; of the 3 images of gqa 1 is not there" in said
    assert "problems: 3\n" in said
    assert "3 problems" in (data.parent / "cache/data/table1.html").read_text()


def test_too_few_examples_are_a_problem(data, capsys):
    real_sets.write(data)
    code, said = called(capsys, "check-data", "table2")
    assert code == 2
    assert "5000 are asked for, 'coco_test' has 4" in said
    assert "vqa" not in said  # table 2 has no questions


def test_images_are_decoded_where_that_is_asked_for(data, capsys):
    real_sets.write(data)
    for number in range(20):  # more than are shown
        real_sets.save(data / f"flickr30k/images/more{number}.jpg", real_sets.jpeg(number))
    listed = real_sets.json.loads((data / "flickr30k/dataset_flickr30k.json").read_bytes())
    listed["images"] += [
        {"filename": f"more{n}.jpg", "split": "test", "sentences": [{"raw": "a ball"}]} for n in range(20)
    ]
    real_sets.dump(data / "flickr30k/dataset_flickr30k.json", listed)
    path = data / "flickr30k/images/more3.jpg"
    path.write_bytes(path.read_bytes()[:300])
    words = ["table2", "--set", 'evaluation.sets=[["flickr", 23]]', *SMALL[2:]]
    code, said = called(capsys, "check-data", *words, "--thorough")
    assert (code, f"problem: {path}: " in said) == (2, True)


def test_own_images_are_looked_at_at_any_scale(data, capsys):
    real_sets.own_folder(data / "mine", 30)
    code, said = called(capsys, "check-data", "table1", *OWN)
    assert code == 0
    assert "mine, training: 24 images, up to 20 used; one process reads" in said
    assert "questions, evaluation: 30 questions, up to 400 used" in said
    code, said = called(capsys, "check-data", "table1", *OWN[:3], 'data.pools=[["mine", 25]]')
    assert code == 2
    assert "data.pools: 25 images of 'mine' are asked for, it has 24 to train with; ask for 24" in said


def test_without_a_data_folder_all_that_is_needed_is_listed(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("EVLGEN_DATA", raising=False)
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path))
    code, said = called(capsys, "check-data")
    assert code == 2
    assert "problem: EVLGEN_DATA is not set: set it to the folder of the data sets (docs/DATA.md)" in said
    assert "problem: coco/val2014: is not in EVLGEN_DATA; get it from val2014.zip of cocodataset.org" in said


def test_a_set_is_described_by_lengths_sizes_and_words(data, capsys):
    real_sets.own_folder(data / "mine", 30)
    code, said = called(capsys, "describe-data", "table1", *OWN)
    assert code == 0
    assert "mine, training: 24 images" in said
    assert "  words of captions: 8 to 8, median 8, mean 8.0, 95% up to 8\n" in said
    assert "  width of images: 40 to 40, median 40, mean 40.0, 95% up to 40 pixels\n" in said
    assert "  most frequent in captions: a (24), ball (24), on (24), the (24), grass (24), no (24), " in said
    assert "  words of questions: 4 to 4" in said
    assert "  most frequent in answers: red (8), blue (8), " in said
    code, said = called(capsys, "describe-data", "table1", *OWN[:3], 'data.pools=[["yours", 20]]')
    assert (code, f"{data / 'yours'}: missing" in said) == (2, True)


def test_who_looks_for_runs_without_their_data_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("EVLGEN_DATA", raising=False)
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path))
    assert run.main(["status", "table1", *OWN]) == 0
    assert "note: EVLGEN_DATA is not set" in capsys.readouterr().err
    assert run.main(["status", "table1"]) == 0
    assert "EVLGEN_DATA" not in capsys.readouterr().err
