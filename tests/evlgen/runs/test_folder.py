"""The files of a run: every one is verified where it is read."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs import identity
from evlgen.runtime import sources
from evlgen.runtime.paths import SHIPPED_WEIGHTS
from experiments.scales import blip2_stage1, evlgen


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def finished(config: RunConfig) -> Path:
    """The folder of a run that is complete."""
    folder = files.prepare(config)
    for name in files.MADE:
        (folder / name).write_text(json.dumps({"step": 1, "of": name}) + "\n")
    files.write_outcome(folder, {"train_seconds": 1.0})
    files.write_result(folder, {"gap": 1.0}, {})
    return folder


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damage_is_named_and_put_aside(capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(evlgen("smoke"))
    path = folder / files.RESULT
    assert files.read_result(folder) == {"id": folder.name, "metrics": {"gap": 1.0}, "scorers": {}}
    text = path.read_text()
    path.write_text(text.replace("1.0", "2.0"))
    with pytest.raises(files.Damaged, match=r"result\.json: damaged"):
        files.read_result(folder)
    assert not files.is_complete(folder)
    assert "result.json: damaged" in capsys.readouterr().err
    assert (folder / "result.json.damaged").exists()
    path.write_text(text[: len(text) // 2])
    assert not files.is_complete(folder)


@pytest.mark.parametrize("name", [files.RESULT, files.OUTCOME])
def test_a_file_of_another_run_is_refused(name: str) -> None:
    """Copied from run to run it is whole, and still not this run's."""
    one, other = finished(evlgen("smoke")), finished(evlgen("smoke", pairs="11M"))
    (other / name).write_bytes((one / name).read_bytes())
    reader = files.read_result if name == files.RESULT else files.read_outcome
    with pytest.raises(files.Damaged, match=f"is of the run {one.name}"):
        reader(other)


@pytest.mark.parametrize("name", files.MADE)
def test_every_file_that_a_run_makes_is_verified(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(evlgen("smoke"))
    assert files.verified(folder, name) == folder / name
    flip_a_bit(folder / name)
    with pytest.raises(files.Damaged, match="damaged"):
        files.verified(folder, name)
    assert files.verified_if_there(folder, name) is None
    assert "skipped" in capsys.readouterr().err


def test_half_a_history_is_not_taken_for_the_whole() -> None:
    folder = finished(evlgen("smoke"))
    (folder / files.METRICS).write_text("")
    with pytest.raises(files.Damaged):
        files.verified(folder, files.METRICS)


def test_weights_of_stage_1_with_a_flipped_bit_are_lacking(capsys: pytest.CaptureFixture[str]) -> None:
    config = blip2_stage1("smoke")
    folder = finished(config)
    assert not files.lacks_weights(folder, config)
    flip_a_bit(folder / files.CONNECTOR)
    assert files.lacks_weights(folder, config)
    assert "put aside" in capsys.readouterr().err
    assert not (folder / files.CONNECTOR).exists()


def test_shipped_weights_with_a_flipped_bit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in SHIPPED_WEIGHTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    flip_a_bit(tmp_path / "mini-opt.safetensors")
    monkeypatch.setattr(sources, "SHIPPED_WEIGHTS", tmp_path)
    assert sources.shipped_file("mini-vit.safetensors") == tmp_path / "mini-vit.safetensors"
    with pytest.raises(UserError, match=r"mini-opt\.safetensors: damaged or changed"):
        sources.shipped_file("mini-opt.safetensors")


def test_what_cannot_be_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file server that hiccups must not cost a finished run."""
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})

    def stale(self: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", stale)
        with pytest.raises(UserError, match="cannot be read"):
            files.read_if_whole(path)
    assert files.read_if_whole(path) == {"a": 1}
    path.write_text("cut")

    def gone(source: Path, target: Path) -> None:  # another launcher was faster
        source.unlink()
        raise FileNotFoundError(source)

    monkeypatch.setattr(os, "replace", gone)
    assert files.read_if_whole(path) is None
    assert "put aside" in capsys.readouterr().err


def test_a_run_whose_behaviour_has_changed_is_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = evlgen("smoke")
    folder = files.prepare(config)
    files.check_id(folder, config)
    monkeypatch.setitem(identity.components_of.__globals__["COMPONENTS"], "merging", 2)
    identity.forget_fingerprints()
    with pytest.raises(UserError, match="have changed since"):
        files.check_id(folder, config)
    monkeypatch.undo()
    identity.forget_fingerprints()


@pytest.mark.parametrize("name", [files.METRICS, files.PROVENANCE, files.OUTCOME])
@pytest.mark.parametrize("how", ["flipped", "deleted"])
def test_a_run_without_its_records_is_made_again(
    name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = evlgen("smoke")
    folder = finished(config)
    (folder / files.CHECKPOINT).touch()
    assert files.is_complete_and_whole(folder, config)
    if how == "flipped":
        flip_a_bit(folder / name)
    else:
        (folder / name).unlink()
    assert not files.is_complete_and_whole(folder, config)
    assert name in capsys.readouterr().err
    assert not files.is_complete(folder)
    assert (folder / files.CHECKPOINT).exists() == (name != files.METRICS)


@pytest.mark.parametrize("name", [files.PREDICTIONS, files.SOFT_PROMPTS, files.MERGE_MAPS])
def test_a_damaged_picture_costs_nothing_else(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = evlgen("smoke")
    folder = finished(config)
    flip_a_bit(folder / name)
    assert files.is_complete_and_whole(folder, config)
    assert f"{name}: damaged" in capsys.readouterr().err
    assert not (folder / name).exists()
    assert files.is_complete_and_whole(folder, config)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", [files.CONFIG, files.IDENTITY])
def test_what_describes_another_run_is_written_anew(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, other = evlgen("smoke"), blip2_stage1("smoke")
    folder = finished(config)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes((finished(other) / name).read_bytes())
    assert files.is_complete_and_whole(folder, config)
    assert f"{name}: is another run's" in capsys.readouterr().err
    assert (folder / name).read_bytes() == content


def test_a_damaged_outcome_does_not_cost_the_weights_of_stage_1() -> None:
    config = blip2_stage1("smoke")
    folder = finished(config)
    flip_a_bit(folder / files.OUTCOME)
    assert files.lacks_weights(folder, config)
    assert (folder / files.CONNECTOR).exists()


def test_a_look_changes_nothing() -> None:
    config = blip2_stage1("smoke")
    folder = finished(config)
    flip_a_bit(folder / files.CONNECTOR)
    before = sorted(path.name for path in folder.iterdir())
    assert files.lacks_weights(folder, config, put_aside_damage=False)
    assert sorted(path.name for path in folder.iterdir()) == before
