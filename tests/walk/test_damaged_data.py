"""Data with damage, as a user has it: a run goes on without it, and says how much of it there was."""

from __future__ import annotations

import json
import tarfile

import pytest

from tests.evlgen import real_sets
from tests.walk.checkout import Checkout, read, settings

pytestmark = pytest.mark.xdist_group("walk")


def test_what_was_damaged_is_in_log_result_and_notes(place: Checkout) -> None:
    data = real_sets.write(place.path.parent / "damaged")
    with tarfile.open(data / "laion-115m/00002.tar", "w") as shard:
        for number in range(5):
            real_sets.add(shard, f"{number}.jpg", b"no image" if number % 2 else real_sets.jpeg(number))
            real_sets.add(shard, f"{number}.txt", b"..." if number == 2 else b"A red ball.")
        real_sets.add(shard, "5.jpg", real_sets.jpeg(5))
    coco = read(data / "coco/dataset_coco.json")
    coco["images"][0]["sentences"][0]["raw"] = " . "
    (data / "coco/dataset_coco.json").write_text(json.dumps(coco))

    words = ("table1", "--scale", "paper", "--rows", "EVLGen, 104M, 250K", *settings(optim__batch_size=32))
    runs, results = place.path / "damaged runs", place.path / "damaged results"
    env = {"EVLGEN_DATA": str(data), "EVLGEN_RUNS": str(runs), "EVLGEN_RESULTS": str(results)}
    env["EVLGEN_CACHE"] = str(place.path / "damaged cache")
    assert "1 of 1 runs complete" in place.run(*words, **env)
    (result,) = runs.glob("*/result.json")
    metrics = read(result)["metrics"]
    assert metrics["left_out"] == 2
    assert metrics["damaged_pairs"] > 0
    reasons = {"laion-115m": {"images without a caption": 1}, "coco": {"captions without words": 1}}
    assert read(result.parent / "provenance.json")["left_out"] == reasons
    said = (result.parent / "log.txt").read_text()
    assert "laion-115m: left out: images without a caption: 1 (the first: " in said
    assert "00002.tar, image at byte " in said
    assert f"({metrics['damaged_pairs']} since the start)" in said
    (table,) = results.glob("*/paper/table.md")
    note = f"{metrics['damaged_pairs']} of {metrics['samples']} training pairs were damaged and replaced"
    assert note in table.read_text()
    assert "2 things in the data's files are in no pair" in table.read_text()
