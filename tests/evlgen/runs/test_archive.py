"""The records of runs that are kept beside a table, and what becomes of them elsewhere."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from evlgen.config import to_json
from evlgen.errors import UserError
from evlgen.runs import archive, identity, results
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
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))
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
    assert records.unpack(place / "x.tar.xz").put == sorted([first, second])
    assert not (paths.runs_folder() / first / "predictions.json").exists()
    assert (paths.runs_folder() / second / "predictions.json").exists()
    archive.pack(place / "y.tar.xz", [first, second], [])
    shutil.rmtree(place / "runs")
    records.unpack(place / "y.tar.xz")
    assert records.unpack(place / "x.tar.xz").put == []  # another table had them, but not the pictures
    assert (paths.runs_folder() / second / "predictions.json").exists()


def test_pictures_that_one_table_s_archive_lacks_come_from_another_s(place: Path) -> None:
    """Also where the record of an earlier form lists only the files that were kept of it."""
    config = unique_runs(load("table1", "smoke"), 1)
    (one, *_) = config
    folder = finish(one)
    (folder / files.PREDICTIONS).write_text('{"captions": {}}')
    files.write_outcome(folder, {"train_seconds": 1.0})
    whole = place / "results/table1/smoke/runs.tar.xz"
    archive.pack(whole, [one], [one])
    for name in (files.PREDICTIONS, files.CONNECTOR):
        (folder / name).unlink()
    files.write_outcome(folder, {"train_seconds": 1.0})
    archive.pack(place / "results/table2/smoke/runs.tar.xz", [one], [])
    shutil.rmtree(place / "runs")
    records.unpack(place / "results/table2/smoke/runs.tar.xz")
    record = results.find(config[one])
    assert record is not None
    assert record.folder == paths.runs_folder() / one
    assert record.predictions() == {"captions": {}}
    assert not (record.folder / files.PREDICTIONS).exists()
    records.unpack(whole)
    whole.unlink()
    assert files.verified(record.folder, files.PREDICTIONS).read_text() == '{"captions": {}}'


def test_pictures_of_another_training_are_not_mixed_in(place: Path) -> None:
    (one, *_) = unique_runs(load("table1", "smoke"), 1)
    folder = finish(one)
    archive.pack(place / "x.tar.xz", [one], [one])
    (folder / files.PREDICTIONS).unlink()
    files.write_outcome(folder, {"train_seconds": 2.0})
    records.unpack(place / "x.tar.xz")
    assert not (folder / files.PREDICTIONS).exists()


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
    assert records.unpack(place / "x.tar.xz").put == []
    assert f"{identity}: is being made here" in capsys.readouterr().out
    held.release("stopped")
    assert records.unpack(place / "x.tar.xz").put == [identity]


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


def packed(name: str = "table1", damage: bool = False) -> Path:
    """The archive of a table of two runs, the second of which may be damaged in it."""
    path, ids = archive.path_of(name, "smoke"), list(unique_runs(load("table1", "smoke"), 1))[:2]
    content = {one: content_of(finish(one)) for one in ids}
    if damage:
        content[ids[1]]["metrics.jsonl"] = b"half a his"
    archive.write(path, content)
    shutil.rmtree(paths.runs_folder())
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("harm", ["no run", "no file", "half a file", "no manifest"])
def test_an_extracted_archive_that_is_not_whole_is_extracted_again(place: Path, harm: str) -> None:
    path = packed()
    folder = archive.extracted(path)
    before = everything(folder)
    one = next(entry for entry in sorted(folder.iterdir()) if entry.is_dir())
    if harm == "no run":
        shutil.rmtree(one)
    elif harm == "no file":
        (one / "metrics.jsonl").unlink()
    elif harm == "half a file":
        (one / files.PROVENANCE).write_bytes((one / files.PROVENANCE).read_bytes()[:10])
    else:
        (folder / "manifest.json").unlink()
        shutil.rmtree(one)
    assert everything(folder) != before
    assert archive.extracted(path) == folder
    assert everything(folder) == before
    assert list(folder.parent.iterdir()) == [folder]  # nothing is left beside it


def read_elsewhere(path: Path, lines: str = "") -> subprocess.CompletedProcess[str]:
    """Another process that extracts an archive twice and prints the folder and its runs."""
    script = (
        "import sys; from pathlib import Path; from evlgen.runs import archive\n"
        f"{lines}\n"
        "folder = archive.extracted(Path(sys.argv[1]))\n"
        "assert archive.extracted(Path(sys.argv[1])) == folder\n"
        "print(folder, len([one for one in folder.iterdir() if one.is_dir()]))"
    )
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=paths.ROOT)


def test_every_process_says_once_which_runs_of_an_archive_are_damaged(place: Path) -> None:
    path = packed(damage=True)
    for _ in range(2):
        done = read_elsewhere(path)
        assert done.stdout.endswith(" 1\n")
        assert re.fullmatch(rf"{path}: .*/metrics\.jsonl: damaged .*: skipped\n", done.stderr)


FULL = """
import errno
write = Path.write_bytes
def full(self, data):
    in_cache = str(self).startswith(sys.argv[1].rpartition("/results/")[0] + "/cache/")
    if in_cache and self.name == "result.json":
        raise OSError(errno.ENOSPC, "No space left on device", str(self))
    return write(self, data)
Path.write_bytes = full
"""


@pytest.mark.parametrize("full", [True, False])
def test_without_room_in_the_cache_a_temporary_folder_serves(
    place: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full after some files, or a cache folder that cannot be made."""
    path = packed()
    if not full:
        (place / "file").write_text("")
        monkeypatch.setenv("EVLGEN_CACHE", str(place / "file/cache"))
    done = read_elsewhere(path, FULL if full else "")
    assert (done.returncode, done.stderr) == (0, "")
    folder, number = done.stdout.split()
    assert number == "2"
    assert not Path(folder).is_relative_to(place / "cache")
    assert not Path(folder).exists()  # it went with the process
    assert not full or list((place / "cache/records").iterdir()) == []


def test_without_room_anywhere_the_cache_is_named(place: Path) -> None:
    """No file may grow beyond 100 bytes."""
    path = packed()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    limit += "from evlgen.errors import exit_code\n"
    limit += "sys.exit(exit_code(lambda: print(archive.extracted(Path(sys.argv[1])))))"
    done = read_elsewhere(path, limit)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {place / 'cache'}: cannot be written, nor can a temporary folder")
    assert done.stderr.count("\n") == 1
    assert list((place / "cache/records").iterdir()) == []


def test_damaged_runs_and_archives_give_exit_code_1(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole runs are put there all the same; a single archive that cannot be read stays a mistake."""
    path = packed(damage=True)
    assert run.main(["unpack", "table1", "--scale", "smoke"]) == 1
    said = capsys.readouterr()
    assert "table1: 1 runs put into runs/" in said.out
    assert "metrics.jsonl: damaged" in said.err
    shutil.rmtree(place / "runs")
    shutil.copytree(path.parent, place / "results/budgets/smoke")
    whole = packed()
    budgets = archive.path_of("budgets", "smoke")
    budgets.write_bytes(whole.read_bytes())
    whole.write_bytes(whole.read_bytes()[:200])
    assert run.main(["unpack", "table1", "--scale", "smoke"]) == 2
    assert not (place / "runs").exists()
    capsys.readouterr()
    assert run.main(["unpack", "all", "--scale", "smoke"]) == 1
    said = capsys.readouterr()
    assert re.fullmatch(rf"error: {whole}: damaged .*\n", said.err)
    assert "budgets: 2 runs put into runs/" in said.out


def test_packing_without_a_damaged_run_gives_exit_code_1(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = list(unique_runs(load("table1", "smoke"), 1))[:2]
    finish(first)
    folder = finish(second)
    (folder / "metrics.jsonl").write_text("half a his")
    assert run.main(["pack", "table1", "--scale", "smoke"]) == 1
    said = capsys.readouterr()
    assert "table1: 1 of" in said.out
    assert f"{second}/metrics.jsonl: damaged" in said.err
