"""On a store of made-up runs in the true file formats."""

import json

import numpy as np
import pytest

from analysis.results import read
from evlgen.errors import UserError
from evlgen.evaluation import merge_maps
from evlgen.runs import folder as files
from evlgen.runtime.arrays import write_arrays
from experiments import load
from experiments.base import seeded
from paper_figures import merge_maps as subject
from paper_figures import style

METRICS = {
    f"{measure}{suffix}": value
    for measure in subject.MEASURES
    for suffix, value in zip(subject.KINDS, (0.1, 0.25, 0.5, 0.75), strict=True)
}


def row():
    return next(row for row in load("table1", "smoke").rows if row.label == subject.ROW)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))


def write(seed: int, **metrics: float):
    """A complete run whose maps are the grid's."""
    folder = files.prepare(seeded(row().config, seed))
    given = METRICS | {"merge_ari": 0.1, "val_loss": 1.0} | metrics
    source = np.zeros((8, 17, 65), np.uint8)
    source[:, 0, 0] = 1
    source[:, 1 + merge_maps.grid_groups(8, 16), range(1, 65)] = 1
    labels = merge_maps.pool_labels("coco_val", 8, 8).astype(np.int8)
    arrays = {"pool": np.array("coco_val"), "indices": np.arange(8), "labels": labels}
    write_arrays(folder / files.MERGE_MAPS, arrays | {"trained": source, "untrained": source})
    files.write_outcome(folder, {})
    files.write_result(folder, given, {})
    return folder


def test_patches_of_a_group_have_one_tint_and_lone_ones_none():
    groups = np.arange(64).reshape(8, 8)
    groups[0, :3] = groups[7, 7] = 99
    groups[4, 4:6] = 100
    found = subject.tinted(np.full((64, 64, 3), 100, np.uint8), groups)
    assert found.shape == (64, 64, 3)
    assert (found[:8, :24] == found[0, 0]).all()
    assert (found[56:, 56:] == found[0, 0]).all()
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 3
    alone = found[8:16]
    assert (alone == alone[..., :1]).all()
    assert (found[0, 0] != found[32, 32]).any()
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_boundaries_stand_where_groups_change():
    style.apply()
    axis = subject.plt.figure().subplots()
    subject.boundaries(axis, np.array([[0, 0, 1], [0, 2, 1]]))
    drawn = {tuple(map(tuple, line.tolist())) for line in axis.collections[0].get_segments()}
    assert drawn == {((2, 0), (2, 1)), ((1, 1), (1, 2)), ((2, 1), (2, 2)), ((1, 1), (2, 1))}


def test_bars_are_means_over_seeds():
    write(0)
    write(1, purity=0.85)
    found = read("table1", "smoke", 2).complete()
    style.apply()
    axes = subject.figure_of(None, found).axes
    assert [axis.get_xlabel() for axis in axes] == list(subject.MEASURES.values())
    assert [bar.get_width() for bar in axes[0].patches] == pytest.approx([0.1, 0.25, 0.5, 0.8])
    assert [bar.get_width() for bar in axes[1].patches] == pytest.approx([0.1, 0.25, 0.5, 0.75])


def test_a_damaged_map_is_named_and_the_next_run_shown(capsys):
    (write(0) / "merge_maps.npz").write_bytes(b"PK")
    write(1)
    found = read("table1", "smoke", 2).complete()
    maps = subject.first_maps(found)
    assert maps is not None
    assert maps["trained"].shape == (8, 17, 65)
    assert "merge_maps.npz: damaged" in capsys.readouterr().err


def test_the_figure_and_its_runs_are_written():
    folder = write(0)
    pdf, png = subject.draw("smoke")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert png.stat().st_size > 50_000
    told = json.loads(pdf.with_suffix(".json").read_text())
    assert [run["id"] for run in told["runs"]] == [folder.name]
    assert told["missing"] == []


def test_other_worlds_have_no_such_figure():
    with pytest.raises(UserError, match="only of the miniworld") as caught:
        subject.draw("paper")
    assert "run.py" not in str(caught.value)


def test_without_runs_the_command_is_named():
    with pytest.raises(UserError, match=r"run\.py table1 --scale smoke"):
        subject.draw("smoke")
