"""The records of runs that are kept beside a table, and what becomes of them elsewhere."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from evlgen.config import to_json
from evlgen.errors import UserError
from evlgen.runs import archive, identity
from evlgen.runs import folder as files
from evlgen.runtime import paths
from experiments import load
from experiments.base import Experiment, Row
from experiments.scales import blip2
from sweeps import leases, records, run
from sweeps.conclude import conclude
from sweeps.execute import run_here
from sweeps.plan import Sweep, unfinished, unique_runs
from sweeps.show import show_plan


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    return tmp_path


def finish(identity: str) -> Path:
    """A run as it is when finished, with its weights and what a figure is drawn from."""
    config = unique_runs(load("table1", "smoke"), 1)[identity]
    folder = files.prepare(config)
    for name in ("metrics.jsonl", "predictions.json", files.CONNECTOR, "checkpoint.pt", "log.txt"):
        (folder / name).write_text(f"{identity} {name}")
    files.write_json(folder / files.PROVENANCE, {"seed": 0})
    files.write_outcome(folder, {"train_seconds": 1.0})
    files.write_result(folder, {"val_loss": 2.0}, {})
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_packed_is_there_after_unpacking(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All runs but one that is not finished; records alone, to the byte."""
    identities = list(unique_runs(load("table1", "smoke"), 1))
    folders = [finish(one) for one in identities[:-1]]
    command = ["table1", "--scale", "smoke"]
    assert run.main(["pack", *command]) == 0
    assert f"{len(folders)} of {len(identities)} runs in" in capsys.readouterr().out
    path = place / "results/table1/smoke/runs.tar.xz"
    first = path.read_bytes()
    assert run.main(["pack", *command]) == 0
    assert path.read_bytes() == first
    before = [content_of(folder) for folder in folders]
    shutil.rmtree(place / "runs")
    finish(identities[0]).joinpath("metrics.jsonl").write_text("its own")
    assert run.main(["unpack", *command]) == 0
    assert f"{len(folders) - 1} runs put into runs/" in capsys.readouterr().out
    assert (paths.runs_folder() / identities[0] / "metrics.jsonl").read_text() == "its own"
    for folder, content in list(zip(folders, before, strict=True))[1:]:
        kept = {*archive.RECORDS, files.PREDICTIONS}
        assert {name: text for name, text in content_of(folder).items() if name in content} == {
            name: content[name] for name in kept
        }
    assert run.main(["unpack", *command]) == 0
    assert "0 runs put into" in capsys.readouterr().out


def test_pictures_are_kept_of_the_first_seed_alone(place: Path) -> None:
    first, second = list(unique_runs(load("table1", "smoke"), 1))[:2]
    finish(first)
    finish(second)
    archive.pack(place / "x.tar.xz", [first, second], [second])
    shutil.rmtree(place / "runs")
    assert records.unpack(place / "x.tar.xz") == sorted([first, second])
    assert not (paths.runs_folder() / first / "predictions.json").exists()
    assert (paths.runs_folder() / second / "predictions.json").exists()
    archive.pack(place / "y.tar.xz", [first, second], [])
    shutil.rmtree(place / "runs")
    records.unpack(place / "y.tar.xz")
    assert records.unpack(place / "x.tar.xz") == []  # another table had them, but not the pictures
    assert (paths.runs_folder() / second / "predictions.json").exists()


def test_an_archive_never_loses_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkout whose store has fewer, or none at all, must not write over what was kept."""
    first, second = list(unique_runs(load("table1", "smoke"), 1))[:2]
    finish(first)
    finish(second)
    command = ["pack", "table1", "--scale", "smoke"]
    assert run.main(command) == 0
    before = archive.path_of("table1", "smoke").read_bytes()
    shutil.rmtree(place / "runs" / first)
    assert run.main(command) == 2
    assert "has 1 runs that are not complete" in capsys.readouterr().err
    shutil.rmtree(place / "runs")
    assert run.main(command) == 0
    assert "0 of" in capsys.readouterr().out
    assert archive.path_of("table1", "smoke").read_bytes() == before


def test_a_run_that_is_being_made_is_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = next(iter(unique_runs(load("table1", "smoke"), 1)))
    archive.pack(place / "x.tar.xz", [finish(identity).name], [])
    shutil.rmtree(place / "runs")
    held = leases.claim(paths.runs_folder() / identity)
    assert held is not None
    assert records.unpack(place / "x.tar.xz") == []
    assert f"{identity}: is being made here" in capsys.readouterr().out
    held.release("stopped")
    assert records.unpack(place / "x.tar.xz") == [identity]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../escaped/result.json", "which is no record of a run"),
        ("0123456789ab-01234567/checkpoint.pt", "which is no record of a run"),
        ("0123456789ab-01234567/log.json", "which is no record of a run"),
        ("", "damaged"),
        (None, "no such file"),
    ],
)
def test_archives_that_are_none(
    place: Path, name: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive.path_of("table1", "smoke")
    path.parent.mkdir(parents=True)
    if name is not None:
        with tarfile.open(path, "w:xz") as opened:
            opened.addfile(tarfile.TarInfo(name or "0123456789ab-01234567/result.json"), io.BytesIO())
    if name == "":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run.main(["unpack", "table1", "--scale", "smoke"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*runs\.tar\.xz: .*{message}.*\n", error)
    assert not (place / "runs").exists()
    assert not (place.parent / "escaped").exists()


def test_a_link_is_no_record(place: Path) -> None:
    with tarfile.open(place / "x.tar.xz", "w:xz") as opened:
        link = tarfile.TarInfo("0123456789ab-01234567/result.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    with pytest.raises(UserError, match="no record of a run"):
        records.unpack(place / "x.tar.xz")


def test_a_stage_1_without_weights_is_made_again_for_those_that_need_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Really trained: two steps a stage. The run that is there needs no stage 1, a further one does."""
    two = blip2("smoke")
    assert two.init_from is not None

    def short(config, **changes):  # type: ignore[no-untyped-def]
        optim = dataclasses.replace(config.optim, steps=2, warmup_steps=1, checkpoint_every=1)
        evaluation = dataclasses.replace(config.evaluation, sets=())
        return dataclasses.replace(config, optim=optim, evaluation=evaluation, **changes)

    first = short(two.init_from)
    one = short(two, init_from=first)
    other = dataclasses.replace(one, optim=dataclasses.replace(one.optim, lr=1e-4))

    def sweep(*configs):  # type: ignore[no-untyped-def]
        rows = tuple(Row(str(number), config) for number, config in enumerate(configs))
        return Sweep(Experiment("some", "Some", rows, ("val_loss",), 1), "smoke", 1)

    assert conclude(sweep(one), run_here(sweep(one), 1)) == 0
    stage1 = identity.run_folder(first)
    weights, course = (stage1 / files.CONNECTOR).read_bytes(), (stage1 / "metrics.jsonl").read_text()
    path = place / "x.tar.xz"
    archive.pack(path, list(sweep(one).runs), [])
    shutil.rmtree(place / "runs")
    records.unpack(path)
    assert unfinished(sweep(one).runs) == {}
    assert files.read_json(stage1 / "config.json") == to_json(first)
    both = sweep(one, other)
    assert list(unfinished(both.runs)) == [identity.run_id(first), identity.run_id(other)]
    assert show_plan(both) == list(unfinished(both.runs))
    assert "no weights" in capsys.readouterr().out
    assert (
        conclude(both, run_here(both, 1, failed_only=True)) == 1
    )  # nothing has failed: nothing is made, nothing is lost
    assert files.is_complete(stage1)
    files.write_json(files.prepare(other) / "error.json", {"error": "of some kind"})
    assert conclude(both, run_here(both, 1, failed_only=True)) == 0  # with the stage 1 that it needs
    assert (stage1 / files.CONNECTOR).read_bytes() == weights
    assert len((stage1 / "metrics.jsonl").read_text().splitlines()) == len(course.splitlines())
    assert unfinished(both.runs) == {}
