"""The size of cached features is stated before they are written, and refused where the disk is too small."""

from __future__ import annotations

import pytest

from evlgen.data import features
from evlgen.errors import UserError
from sweeps import run
from tests.evlgen import real_sets


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("RUNS", "RESULTS", "CACHE", "DATA"):
        monkeypatch.setenv(f"EVLGEN_{name}", str(tmp_path / name.lower()))
    real_sets.own_folder(tmp_path / "data/mine", 24)
    real_sets.clip(tmp_path / "clip")
    return tmp_path


def plan(place, views: int) -> int:
    changes = [
        "data.world=folder",
        'data.pools=[["mine", 20]]',
        f"data.views={views}",
        f"vision={place / 'clip'}",
    ]
    changes += ["connector.input_width=24", "connector.r=2"]
    words = [word for change in changes for word in ("--set", change)]
    return run.main(["table1", "--rows", "EVLGen, 104M, 150K", "--dry-run", *words])


def test_a_plan_states_what_will_be_written(place, capsys):
    assert plan(place, 2) == 0
    assert "features:" not in capsys.readouterr().out  # some hundred KiB
    assert plan(place, 100_000) == 0
    said = capsys.readouterr().out
    assert f"features: 1.5 GiB will be written to {place / 'cache/features'}" in said.replace("\n", "")


def test_features_that_the_disk_has_no_room_for_are_refused(place, capsys):
    assert plan(place, 10**9) == 2
    said = capsys.readouterr().out
    assert "missing: " in said
    assert "the features of this sweep's images take 15,1" in said
    assert "make room, set EVLGEN_CACHE to a larger disk" in said
    with pytest.raises(
        UserError, match=r"the features of 20 images of mine in 1000000000 views take .* GiB, and"
    ):
        features.ensure("mine", 20, str(place / "clip"), 10**9, "folder")
    assert not list((place / "cache/features").glob("*.npy"))
