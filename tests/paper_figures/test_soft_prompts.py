"""On a store of made-up runs in the true file formats."""

import json

import numpy as np
import pytest
import torch

from evlgen.connectors import look_of
from evlgen.errors import UserError
from evlgen.evaluation.soft_prompts import geometry
from evlgen.runs import folder as files
from evlgen.runtime.arrays import write_arrays
from experiments import load
from experiments.base import seeded
from paper_figures import soft_prompts as subject


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))


def write(connector: str):
    """A complete run of a connector."""
    label = subject.ROWS[connector]
    row = next(row for row in load("table1", "smoke").rows if row.label == label)
    folder = files.prepare(seeded(row.config, 0))
    generator = torch.Generator().manual_seed(len(connector))
    prompts = torch.randn(24, 5, 6, generator=generator)
    names = {"colour": np.array(["red", "blue"] * 12), "shape": np.array(["ball", "key", "star"] * 8)}
    complete(folder, geometry(prompts, torch.randn(50, 6)) | names)
    return folder


def complete(folder, arrays):
    """Write the arrays of a run and its result."""
    write_arrays(folder / files.SOFT_PROMPTS, arrays)
    files.write_outcome(folder, {})
    files.write_result(folder, {"val_loss": 1.0}, {})


def test_components_by_hand():
    mean = np.array([[0, 0, 0], [3, 0, 4], [-6, 0, -8.0]]) + 7
    places, shares = subject.components(mean)
    # on one line: distances from the mean (-1, 0, -4/3) along (0.6, 0, 0.8); the farthest is positive
    np.testing.assert_allclose(places[:, 0], [-5 / 3, -5 - 5 / 3, 10 - 5 / 3])
    np.testing.assert_allclose(shares, [1, 0], atol=1e-12)


def test_components_keep_the_distances_of_a_plane():
    plane = np.random.default_rng(0).normal(size=(20, 2))
    mean = plane @ np.linalg.qr(np.random.default_rng(1).normal(size=(8, 2)))[0].T
    places, shares = subject.components(mean)
    apart = [np.linalg.norm(points[:, None] - points[None], axis=2) for points in (plane, places)]
    np.testing.assert_allclose(*apart, atol=1e-9)
    assert shares.sum() == pytest.approx(1)


def test_explained_share_by_hand():
    mean = np.array([[0.0], [2], [4], [6]])
    # total 20, within 2 + 2: 1 - (4 / 2) / (20 / 3)
    assert subject.explained_share(mean, ["a", "a", "b", "b"]) == pytest.approx(1 - 2 / (20 / 3))
    assert subject.explained_share(mean // 4, ["a", "a", "b", "b"]) == 1
    assert subject.explained_share(np.ones((4, 2)), ["a", "a", "b", "b"]) == 0


def test_labels_by_chance_explain_nothing():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(128, 6))
    drawn = [subject.explained_share(mean, rng.integers(0, 8, 128)) for _ in range(200)]
    assert abs(np.mean(drawn)) < 0.005


def test_what_is_there_is_drawn_and_the_rest_said(capsys):
    folder = write("EVLGen")
    damaged = write("BLIP-2, two stages")
    (damaged / "soft_prompts.npz").write_bytes(b"PK")
    pdf, png = subject.draw("smoke")
    assert png.stat().st_size > 50_000
    told = json.loads(pdf.with_suffix(".json").read_text())
    assert folder.name in [run["id"] for run in told["runs"]]
    assert damaged.name not in [run["id"] for run in told["runs"]]
    assert told["missing"] == [
        "BLIP-2, stage 2 only, 104M",
        "BLIP-2, two stages, 104M, 250K + 80K: no soft prompts (seed 0)",
    ]
    assert "soft_prompts.npz: damaged" in capsys.readouterr().err


def test_a_file_without_what_is_drawn_is_named(capsys):
    folder = write("EVLGen")
    complete(folder, {"mean": np.zeros((2, 3))})
    with pytest.raises(UserError, match=r"run\.py table1 --scale smoke"):
        subject.draw("smoke")
    assert "lacks colour, shape" in capsys.readouterr().err


def test_other_worlds_have_no_such_figure():
    with pytest.raises(UserError, match="only of the miniworld") as caught:
        subject.draw("paper")
    assert "run.py" not in str(caught.value)


def test_without_runs_the_command_is_named():
    with pytest.raises(UserError, match=r"run\.py table1 --scale smoke"):
        subject.draw("smoke")


def test_the_rows_are_there_at_every_scale():
    for scale in ("smoke", "mini", "paper"):
        named = {row.label: look_of(row.config).name for row in load("table1", scale).rows}
        assert {connector: named[label] for connector, label in subject.ROWS.items()} == {
            connector: connector for connector in subject.ROWS
        }
