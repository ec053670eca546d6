"""Records from elsewhere: adopted from earlier ids, scored again, of an earlier behaviour."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import lzma
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from analysis.results import collect, read, warnings_of
from evlgen.config import DataConfig, RunConfig, to_json
from evlgen.evaluation.scores import scorers_of
from evlgen.runs import archive, behaviour, identity, results
from evlgen.runs import folder as files
from evlgen.runtime import paths
from evlgen.runtime.files import sha256_of
from evlgen.runtime.sources import shipped_file
from experiments import load
from experiments.base import Experiment, Row, seeded
from experiments.scales import evlgen
from sweeps import conclude, leases, records, run
from sweeps.plan import Sweep, samples
from sweeps.rescore import rescore
from tests.evlgen import real_sets

OLD = "0123456789abcdef"
SOURCES = "422e7dd62dd8563f"  # of the committed records


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("runs", "results", "cache"):
        monkeypatch.setenv(f"EVLGEN_{name.upper()}", str(tmp_path / name))
    return tmp_path


def old_files(config: RunConfig, sources: str = SOURCES, run: str = OLD) -> dict[str, bytes]:
    """A finished run as it was recorded before: an id of 16 digits, no list of files."""
    weights = {
        "vision": sha256_of(shipped_file("mini-vit.safetensors"))[:16],
        "language": sha256_of(shipped_file("mini-opt.safetensors"))[:16],
        "connector": hashlib.sha256(b"connector").hexdigest(),
    }
    return {
        files.CONFIG: files.json_bytes(to_json(config)),
        files.OUTCOME: files.json_bytes({"train_seconds": 1.0, "val_loss": 0.123456789}),
        files.PROVENANCE: files.json_bytes({"code_version": sources, "weights_sha256": weights}),
        files.METRICS: b'{"step": 1, "loss": 2.0}\n',
        files.RESULT: files.json_bytes({"id": run, "metrics": {"val_loss": 0.123456789, "coco/CIDEr": 99.5}}),
    }


def write_old_archive(path: Path, runs: dict[str, dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:xz") as opened:
        for run, found in runs.items():
            for name, content in found.items():
                member = tarfile.TarInfo(f"{run}/{name}")
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))


def test_an_archive_is_adopted_once_and_read_where_it_lies(capsys: pytest.CaptureFixture[str]) -> None:
    config, path = evlgen("smoke"), archive.path_of("table1", "smoke")
    write_old_archive(path, {OLD: old_files(config)})
    done = records.adopt_archive(path)
    assert done.runs == {OLD: identity.run_id(config)}
    record = results.find(config)  # nothing was unpacked
    assert record is not None
    assert not paths.runs_folder().exists()
    assert record.metrics == {"val_loss": 0.123456789, "coco/CIDEr": 99.5}
    assert record.history() == [{"step": 1, "loss": 2.0}]
    assert (record.changed, record.stale_scores, record.source) == ((), (), str(path))
    assert records.adopt_archive(path).runs == {}
    assert records.unpack(path).put == [record.id]
    again = results.find(config)
    assert again is not None
    assert again.folder == identity.run_folder(config)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({files.OUTCOME: b"{}"}, "damaged"),
        ({files.RESULT: files.json_bytes({"id": "f" * 16, "metrics": {}})}, "is of the run ffffffffffffffff"),
        (
            {files.PROVENANCE: files.json_bytes({"code_version": "0" * 16})},
            "made by sources 0000000000000000",
        ),
    ],
)
def test_what_is_not_whole_or_of_other_sources_is_not_adopted(change: dict[str, bytes], reason: str) -> None:
    path = archive.path_of("table1", "smoke")
    write_old_archive(path, {OLD: old_files(evlgen("smoke")) | change})
    before = path.read_bytes()
    done = records.adopt_archive(path)
    assert done.runs == {}
    assert reason in done.refused[OLD]
    assert path.read_bytes() == before


def test_a_store_is_adopted_with_its_weights() -> None:
    config = evlgen("smoke")
    folder = paths.runs_folder() / OLD
    folder.mkdir(parents=True)
    for name, content in old_files(config).items():
        (folder / name).write_bytes(content)
    (folder / files.CONNECTOR).write_bytes(b"connector")
    (folder / files.LOG).write_text("said")
    assert records.adopt_store().runs == {OLD: identity.run_id(config)}
    adopted = identity.run_folder(config)
    assert files.is_complete(adopted)
    assert files.verified(adopted, files.CONNECTOR).read_bytes() == b"connector"
    assert (adopted / files.LOG).read_text() == "said"
    assert records.adopt_store().runs == {}


def old_folder(config: RunConfig) -> Path:
    """A finished run as it lay in the store before, with its weights and its log."""
    folder = paths.runs_folder() / OLD
    folder.mkdir(parents=True)
    for name, content in old_files(config).items():
        (folder / name).write_bytes(content)
    (folder / files.CONNECTOR).write_bytes(b"connector")
    (folder / files.LOG).write_text("said")
    return folder


def in_store() -> list[str]:
    return sorted(os.listdir(paths.runs_folder()))


def test_adopting_survives_a_kill_at_every_moment() -> None:
    """A process dies at its first, second, third, ... change of the store; another then does the rest."""
    config, moment, code = evlgen("smoke"), 0, 1
    new = identity.run_id(config)
    from evlgen.evaluation import scores  # noqa: F401 (not anew in each child)

    while code != 0:
        shutil.rmtree(paths.runs_folder(), ignore_errors=True)
        old_folder(config)
        moment += 1
        child = os.fork()
        if child == 0:
            left = moment

            def die(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal left
                writes = event == "open" and arguments[1] not in ("r", "rb", None)
                if writes or event in ("os.link", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                    left -= 1
                    if left == 0:
                        os._exit(9)

            sys.addaudithook(die)
            records.adopt_store()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        records.adopt_store()
        adopted = identity.run_folder(config)
        assert in_store() == [new], moment
        assert files.is_complete(adopted)
        assert files.verified(adopted, files.CONNECTOR).read_bytes() == b"connector"
        assert files.parse_metrics(files.verified(adopted, files.METRICS).read_text()) == [
            {"step": 1, "loss": 2.0}
        ]
        assert (adopted / files.LOG).read_text() == "said"
    assert moment > 20


def test_what_is_adopted_already_is_cleaned_up_silently(capsys: pytest.CaptureFixture[str]) -> None:
    config = evlgen("smoke")
    old_folder(config)
    assert records.adopt_store().runs == {OLD: identity.run_id(config)}
    assert in_store() == [identity.run_id(config)]  # the old folder is gone
    before = (identity.run_folder(config) / files.RESULT).stat().st_ino
    old_folder(config)
    (paths.runs_folder() / OLD[::-1]).mkdir()
    assert records.adopt_store() == records.Adopted()
    assert in_store() == [identity.run_id(config)]
    assert (identity.run_folder(config) / files.RESULT).stat().st_ino == before
    assert capsys.readouterr() == ("", "")


def test_weights_of_an_old_folder_are_added_to_an_unpacked_record() -> None:
    config, path = evlgen("smoke"), archive.path_of("table1", "smoke")
    write_old_archive(path, {OLD: old_files(config)})
    records.adopt_archive(path)
    records.unpack(path)
    old_folder(config)
    assert records.adopt_store().runs == {OLD: identity.run_id(config)}
    assert in_store() == [identity.run_id(config)]
    assert files.verified(identity.run_folder(config), files.CONNECTOR).read_bytes() == b"connector"


def test_an_old_folder_with_other_results_is_left_alone() -> None:
    config = evlgen("smoke")
    finished(config)
    old = old_folder(config)
    assert "is there with other results" in records.adopt_store().refused[OLD]
    assert (old / files.CONNECTOR).exists()
    assert results.find(config).metrics["val_loss"] == 2.0  # type: ignore[union-attr]


def test_a_run_that_is_being_made_is_not_replaced_one_that_was_begun_is() -> None:
    config = evlgen("smoke")
    old_folder(config)
    folder = files.prepare(config)
    held = leases.claim(folder)
    assert held is not None
    assert "is being made here" in records.adopt_store().refused[OLD]
    held.release("stopped")
    assert records.adopt_store().runs == {OLD: folder.name}
    assert in_store() == [folder.name]
    assert files.is_complete(folder)


def test_all_that_is_adopted_are_the_experiments_with_an_archive(capsys: pytest.CaptureFixture[str]) -> None:
    """`run.py all` leaves learning_rates out."""
    assert not load("learning_rates").in_all
    path = archive.path_of("learning_rates", "smoke")
    write_old_archive(path, {OLD: old_files(evlgen("smoke"))})
    assert run.main(["adopt", "all", "--scale", "smoke"]) == 0
    assert "learning_rates/smoke/runs.tar.xz: 1 runs have new ids" in capsys.readouterr().out
    assert list(archive.contents(path)) == [identity.run_id(evlgen("smoke"))]


def finished(config: RunConfig, caption: str = "a red ball") -> Path:
    """A complete run that says the same of every image but the first of each set."""
    folder = files.prepare(config)
    sets = {name: {str(i): "a blue star" for i in range(size)} for name, size in config.evaluation.sets}
    questions = ("vqav2", "gqa", "okvqa")
    predictions = {
        "captions": {name: texts | {"0": caption} for name, texts in sets.items() if name not in questions},
        "answers": {name: texts for name, texts in sets.items() if name in questions},
    }
    (folder / files.PREDICTIONS).write_text(json.dumps(predictions))
    (folder / files.METRICS).write_text('{"step": 1, "loss": 2.0}\n')
    files.write_json(folder / files.PROVENANCE, {"seed": 0})
    files.write_outcome(folder, {"train_seconds": 1.0, "val_loss": 2.0})
    files.write_result(
        folder,
        {"train_seconds": 1.0, "total_seconds": 3.0, "val_loss": 2.0, "coco/CIDEr": -1.0},
        scorers_of(config),
    )
    return folder


def test_kept_predictions_are_scored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where a scorer has changed; what training measured stays; old scores are called old."""
    config = evlgen("smoke")
    folder = finished(config)
    assert rescore({folder.name: config}).current == [folder.name]
    monkeypatch.setitem(behaviour.SCORERS, "captions", 2)
    stale = results.find(config)
    assert stale is not None
    assert stale.stale_scores == ("captions 1, now 2",)
    assert rescore({folder.name: config}).again == [folder.name]
    record = results.find(config)
    assert record is not None
    assert record.stale_scores == ()
    assert record.scorers["captions"] == 2
    assert record.metrics["coco/CIDEr"] > 0
    assert (record.metrics["val_loss"], record.metrics["total_seconds"]) == (2.0, 3.0)


def test_damaged_predictions_are_not_scored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = evlgen("smoke")
    folder = finished(config)
    (folder / files.PREDICTIONS).write_text('{"captions": {}, "answers": {}}')
    monkeypatch.setitem(behaviour.SCORERS, "captions", 2)
    assert rescore({folder.name: config}).unscored == [folder.name]
    assert "its scores stay as they are" in capsys.readouterr().err
    assert files.is_complete(folder)


def test_scores_by_models_that_are_not_here_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a run that was scored where they are; all other scores are made again."""
    monkeypatch.setenv("EVLGEN_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("EVLGEN_WEIGHTS", raising=False)
    real_sets.own_folder(tmp_path / "data/mine", 24)
    base = evlgen("smoke")
    config = dataclasses.replace(
        base,
        data=DataConfig(world="folder", pools=(("mine", 20),)),
        evaluation=dataclasses.replace(base.evaluation, sets=(("captions", 2),)),
    )
    folder = finished(config)
    placed = {"captions/SPICE": 20.0, "captions/CLIPScore": 70.0, "captions/RefCLIPScore": 75.0}
    metrics = {"train_seconds": 1.0, "total_seconds": 3.0, "captions/CIDEr": -1.0, **placed}
    numbers = {"captions": 1, "distinct": 1, "spice": 1, "clip_score": 1}
    files.write_result(folder, metrics, numbers)
    assert rescore({folder.name: config}).current == [folder.name]
    assert rescore({folder.name: config}, everything=True).again == [folder.name]
    result = files.read_result(folder)
    assert result is not None
    assert result["scorers"] == numbers
    assert {name: result["metrics"][name] for name in placed} == placed
    assert result["metrics"]["captions/CIDEr"] >= 0


@pytest.mark.parametrize("kind", ["captions", "answers"])
@pytest.mark.parametrize("what", ["one is missing", "a set is missing", "one too many", "no text"])
def test_predictions_that_are_not_whole_are_not_scored(
    kind: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A score of what is left would look like one of the whole."""
    config = evlgen("smoke")
    folder = finished(config)
    predictions = json.loads((folder / files.PREDICTIONS).read_text())
    name = next(iter(predictions[kind]))
    texts = predictions[kind][name]
    whole = len(texts)
    if what == "a set is missing":
        del predictions[kind][name]
    elif what == "one too many":
        texts[str(whole)] = "a dog"
    elif what == "no text":
        texts["1"] = None
    else:
        del texts["1"]
    (folder / files.PREDICTIONS).write_text(json.dumps(predictions))
    files.write_outcome(folder, {"train_seconds": 1.0, "val_loss": 2.0})
    assert rescore({folder.name: config}, everything=True).unscored == [folder.name]
    there = {"a set is missing": 0, "one too many": whole}.get(what, whole - 1)
    said = capsys.readouterr().err
    assert f"predictions.json: not whole ({name}: {there} of {whole} predictions): its scores stay" in said


def test_records_of_an_earlier_behaviour_are_given_with_what_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = evlgen("smoke")
    before = finished(config)
    monkeypatch.setitem(behaviour.COMPONENTS, "merging", 2)
    identity.forget_fingerprints()
    record = results.find(config)
    assert record is not None
    assert (record.folder, record.changed) == (before, ("merging 1, now 2",))
    assert not files.is_complete(identity.run_folder(config))  # a sweep makes the run again
    now = finished(config)
    record = results.find(config)
    assert record is not None
    assert (record.folder, record.changed) == (now, ())
    monkeypatch.undo()
    identity.forget_fingerprints()


def test_records_with_other_weights_are_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = evlgen("smoke")
    folder = finished(config)
    versions = files.read_json(folder / files.IDENTITY)
    assert versions is not None
    versions["weights"]["language"] = "0" * 16
    other = folder.with_name(identity.id_of(config, versions))
    folder.rename(other)
    files.write_json(other / files.IDENTITY, versions)
    assert results.find(config) is None


def test_weights_that_are_not_here_are_said_not_to_be_compared(place: Path) -> None:
    config = dataclasses.replace(evlgen("smoke"), language=str(place / "opt-2.7b"))
    versions = identity.identify(config).versions
    versions["weights"]["language"] = "0" * 16  # as where it was made
    folder = paths.runs_folder() / identity.id_of(config, versions)
    folder.mkdir(parents=True)
    files.write_json(folder / files.CONFIG, to_json(config))
    files.write_json(folder / files.IDENTITY, versions)
    files.write_outcome(folder, {"val_loss": 2.0})
    files.write_result(folder, {"val_loss": 2.0}, {"captions": 1})
    rows = (Row("with it", config), Row("without", evlgen("smoke")))
    finished(evlgen("smoke"))
    found = collect(Experiment("some", "Some", rows, ("val_loss",), 1), "smoke", 1)
    assert found.values("with it", "val_loss") == [2.0]
    assert [found.mark(row.label) for row in rows] == ["§", ""]
    assert found.warnings() == [
        f"§ Not compared: weights of {config.language} are not on this machine: with it."
    ]
    assert warnings_of(found.complete(), marks=False) == [found.warnings()[0][2:]]


def test_damaged_runs_are_neither_packed_nor_unpacked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = finished(evlgen("smoke")), finished(evlgen("smoke", pairs="11M"))
    (bad / files.METRICS).write_text("half a his")
    path = place / "x.tar.xz"
    assert archive.pack(path, [good.name, bad.name], []) == [good.name]
    assert f"{bad.name}/metrics.jsonl: damaged" in capsys.readouterr().err
    content = {run: dict(found) for run, found in archive.contents(path).items()}
    content[good.name][files.METRICS] = b""
    archive.write(path, content)
    assert records.unpack(path).put == []
    assert f"{good.name}/metrics.jsonl: damaged" in capsys.readouterr().err


def test_a_record_renamed_to_another_run_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = finished(evlgen("smoke"))
    other = identity.run_id(evlgen("smoke", pairs="11M"))
    path = place / "x.tar.xz"
    archive.pack(path, [one.name], [])
    archive.write(path, {other: archive.contents(path)[one.name]})
    assert records.unpack(path).put == []
    assert "its configuration and versions are those of" in capsys.readouterr().err


def test_a_member_of_gigabytes_is_refused_before_it_is_read(place: Path) -> None:
    """A file of 0.6 MiB whose one member unpacks to 4 GiB."""
    path = place / "x.tar.xz"
    header = tarfile.TarInfo("0123456789ab-01234567/metrics.jsonl")
    header.size = 2**32
    with lzma.open(path, "wb", preset=0) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):
            file.write(bytes(2**20))
    with pytest.raises(Exception, match="more than a record of a run can have"):
        archive.contents(path)


def test_scoring_again_is_a_command_that_writes_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    (row,) = load("table2", "smoke", rows="EVLGen, OPT").rows
    folder = finished(row.config)
    command = ["rescore", "table2", "--scale", "smoke"]
    table = tmp_path / "results" / "table2" / "smoke" / "table.csv"
    assert run.main(command) == 0
    assert "table2: 0 runs scored again, 1 have today's scores; table in " in capsys.readouterr().out
    before = table.read_text()
    table.write_text("of before an interrupted command")
    assert run.main(command) == 0
    assert table.read_text() == before
    capsys.readouterr()
    monkeypatch.setitem(behaviour.SCORERS, "captions", 2)
    assert run.main(command) == 0
    said = capsys.readouterr().out
    assert "table2: 1 runs scored again, 0 have today's scores; table in " in said
    assert table.read_text() != before
    assert run.main([*command, "--everything"]) == 0
    assert "table2: 1 runs scored again" in capsys.readouterr().out
    monkeypatch.setitem(behaviour.SCORERS, "captions", 3)
    (folder / files.PREDICTIONS).write_text("[]")
    assert run.main(command) == 1
    assert "of 1 the predictions are gone or damaged" in capsys.readouterr().out


def test_all_seeds_of_a_table_are_scored_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table has five seeds after `all`, the experiment alone asks for three."""
    experiment = load("table1", "mini")
    assert experiment.seeds == 3
    for row in experiment.rows:
        for seed in range(5):
            finished(seeded(row.config, seed))
    monkeypatch.setitem(behaviour.SCORERS, "captions", 2)
    assert "rescore table1` makes this anew" in "".join(read("table1", "mini", 5).warnings())
    assert run.main(["rescore", "table1"]) == 0
    assert f"table1: {5 * len(experiment.rows)} runs scored again, 0 have" in capsys.readouterr().out
    assert read("table1", "mini", 5).warnings() == []
    table = (paths.results_folder() / "table1" / "mini" / "table.csv").read_text()
    assert {line["n_seeds"] for line in csv.DictReader(table.splitlines()) if line["mean"]} == {"5"}


def test_packed_runs_are_to_be_unpacked_before_they_are_scored_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (row,) = load("table2", "smoke", rows="EVLGen, OPT").rows
    folder = finished(row.config)
    archive.pack(archive.path_of("table2", "smoke"), [folder.name], [])
    shutil.rmtree(folder)
    assert run.main(["rescore", "table2", "--scale", "smoke"]) == 0
    said = capsys.readouterr().out
    assert "table2: 0 runs scored again, 0 have today's scores; 1 packed, `unpack table2` puts them" in said
    assert "table in" not in said


@pytest.mark.parametrize("damaged", [True, False])
def test_without_a_whole_outcome_scores_and_files_stay(
    damaged: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = evlgen("smoke")
    folder = finished(config)
    monkeypatch.setitem(behaviour.SCORERS, "captions", 2)
    if damaged:
        (folder / files.OUTCOME).write_text("{")
    else:
        (folder / files.OUTCOME).unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert rescore({folder.name: config}).unscored == [folder.name]
    said = capsys.readouterr().err
    assert said.startswith(f"{folder / files.OUTCOME}: ")
    assert said.endswith(": its scores stay as they are\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_adopting_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    config = evlgen("smoke")
    folder = paths.runs_folder() / OLD
    folder.mkdir(parents=True)
    for name, content in old_files(config).items():
        (folder / name).write_bytes(content)
    assert run.main(["adopt", "all", "--scale", "smoke"]) == 0
    assert f"{paths.runs_folder()}: 1 runs have new ids, 0 were left out" in capsys.readouterr().out
    assert files.is_complete(identity.run_folder(config))
    assert run.main(["adopt", "table1", "--scale", "smoke"]) == 2  # no archive there
    assert "no such file" in capsys.readouterr().err


def test_a_table_keeps_its_seeds_when_a_component_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seeds are there after `all`; all are shown until the rows of the component are made again."""
    experiment = load("table1", "mini")
    configs = [seeded(row.config, seed) for row in experiment.rows for seed in range(5)]
    for config in configs:
        finished(config)
    monkeypatch.setitem(behaviour.COMPONENTS, "merging", behaviour.COMPONENTS["merging"] + 1)
    identity.forget_fingerprints()
    sweep = Sweep(experiment, "mini", experiment.seeds)
    assert conclude.table_seeds(sweep) == 5
    for config in configs:
        if config.seed < 3 and not files.is_complete(identity.run_folder(config)):
            finished(config)
    assert conclude.table_seeds(sweep) == 3  # the others would put two behaviours into one mean
    monkeypatch.undo()
    identity.forget_fingerprints()


def test_unpacked_records_tell_what_runs_cost(capsys: pytest.CaptureFixture[str]) -> None:
    row = load("table2", "smoke", rows="EVLGen, OPT").rows[0]
    folder = finished(row.config)
    files.write_result(folder, {"train_seconds": 41.0, "samples": samples(row.config), "coco/CIDEr": 1.0}, {})
    assert run.main(["pack", "table2", "--scale", "smoke"]) == 0
    shutil.rmtree(folder)
    assert run.main(["unpack", "table2", "--scale", "smoke"]) == 0
    capsys.readouterr()
    assert run.main(["table2", "--scale", "smoke", "--rows", "EVLGen, OPT", "--dry-run"]) == 0
    assert "41" in capsys.readouterr().out
