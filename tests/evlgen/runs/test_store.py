"""The run store: identities, claims, checksums, states."""

from __future__ import annotations

import dataclasses
import errno
import json
import time
from pathlib import Path

import pytest

from evlgen.runtime import paths
from evlgen import training
from evlgen.config import to_json
from evlgen.data import features
from evlgen.errors import UserError
from experiments import EXPERIMENTS, load
from experiments.base import seeded
from experiments.scales import blip2, evlgen
from sweeps import leases
from evlgen.runs import store
from sweeps.plan import unique_runs


def test_code_fingerprint_sees_what_decides() -> None:
    source = 'def f(x):\n    """Doc."""\n    return x + 1  # why\n'
    same = 'def f(x):\n    """Another text."""\n\n    return (x + 1)\n'
    assert store.code_fingerprint(source) == store.code_fingerprint(same)
    assert store.code_fingerprint(source) != store.code_fingerprint(source.replace("1", "2"))


def test_run_id_depends_on_every_field() -> None:
    base = evlgen("mini")
    assert store.run_id(base) == store.run_id(evlgen("mini"))
    others = [
        seeded(base, 1),
        dataclasses.replace(base, optim=dataclasses.replace(base.optim, lr=1.01e-3)),
        dataclasses.replace(base, language="mini-llama"),
    ]
    assert len({store.run_id(config) for config in [base, *others]}) == 4


def test_tables_share_runs_and_stage_one() -> None:
    first, second = unique_runs(load("table1", "mini"), 3), unique_runs(load("table2", "mini"), 3)
    # five rows and a stage 1; four rows, of which two and the stage 1 are the other table's
    assert (len(first), len(second)) == (18, 15)
    assert len(first.keys() & second.keys()) == 9
    for runs in (first, second):
        for place, config in enumerate(runs.values()):
            if config.init_from is not None:
                assert store.run_id(config.init_from) in list(runs)[:place]
                assert config.init_from.seed == config.seed


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_every_experiment_exists_at_every_scale(name: str, scale: str) -> None:
    experiment = load(name, scale)
    assert experiment.name == name
    assert len({row.label for row in experiment.rows}) == len(experiment.rows)


def test_rows_of_a_table_see_the_same_data() -> None:
    configs = {row.label: row.config for row in load("table1", "mini").rows}
    full = [c for label, c in configs.items() if "104M" in label]
    assert len({(c.data, c.optim.batch_size, c.evaluation, c.vision, c.seed) for c in full}) == 1
    reduced = dict(configs["EVLGen, 11M, 150K"].data.pools)
    assert "web" not in reduced
    assert dict(full[0].data.pools)["web"] == 15 * dict(full[0].data.pools)["coco"]
    assert reduced["ccs"] == 4 * reduced["coco"]
    assert sum(reduced.values()) / sum(dict(full[0].data.pools).values()) == pytest.approx(11 / 104, rel=0.01)


def test_damage_is_named_and_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.write_json(tmp_path / "result.json", {"metrics": {"gap": 1.0}})
    assert store.read_json(tmp_path / "result.json") == {"metrics": {"gap": 1.0}}
    assert store.status(tmp_path) == "complete"
    text = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(text.replace("1.0", "2.0"))
    with pytest.raises(UserError, match=r"result\.json: damaged"):
        store.read_json(tmp_path / "result.json")
    assert store.status(tmp_path) == "damaged"
    assert not store.is_complete(tmp_path)
    assert "result.json: damaged" in capsys.readouterr().err
    assert (tmp_path / "result.json.damaged").exists()
    (tmp_path / "result.json").write_text(text[: len(text) // 2])
    assert not store.is_complete(tmp_path)


def test_what_cannot_be_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file server that hiccups must not cost a finished run."""
    path = tmp_path / "result.json"
    store.write_json(path, {"a": 1})

    def stale(self: Path) -> str:
        raise OSError(errno.ESTALE, "Stale file handle", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", stale)
        with pytest.raises(UserError, match="cannot be read"):
            store.read_if_whole(path)
    assert store.read_if_whole(path) == {"a": 1}
    path.write_text("cut")

    def gone(source: Path, target: Path) -> None:  # another launcher was faster
        source.unlink()
        raise FileNotFoundError(source)

    monkeypatch.setattr(store.os, "replace", gone)
    assert store.read_if_whole(path) is None
    assert "put aside" in capsys.readouterr().err


def test_state_comes_from_files_and_the_queue_alone(tmp_path: Path) -> None:
    def state(queued: str | None = None, was_submitted: bool = False) -> str:
        return store.state(tmp_path, time.time(), queued, was_submitted).name

    assert (state(), state("PENDING"), state(None, True)) == ("pending", "queued", "lost")
    (tmp_path / "checkpoint.pt").touch()
    assert (state(), state("PENDING"), state(None, True)) == ("stopped", "queued", "lost")
    held = leases.claim(tmp_path, devices=4)
    assert held is not None
    held.note |= {"step": 3, "steps": 12, "rate": 50.0}
    held._started -= 10
    held._beat()
    running = store.state(tmp_path, time.time(), "RUNNING")
    assert running == store.State("running", pytest.approx(40, abs=4), 50.0, 0.25)
    held.release("stopped")
    assert (state(), state("PENDING")) == ("stopped", "queued")
    (tmp_path / "outcome.json").touch()
    assert (state(), state("PENDING")) == ("trained", "trained")
    (tmp_path / "error.json").touch()
    assert state("PENDING") == "failed"
    (tmp_path / "result.json").touch()
    assert store.state(tmp_path, time.time()) == store.State("done", pytest.approx(40, abs=4))


def test_a_dead_owner_makes_a_run_lost(tmp_path: Path) -> None:
    assert leases.claim(tmp_path) is not None
    claim = json.loads((tmp_path / "claim-1.json").read_text())
    (tmp_path / "claim-1.json").write_text(json.dumps({**claim, "started": claim["started"] - 99}))
    assert store.state(tmp_path, time.time()).name == "lost"
    # of a process on another node only the beat can be seen, by the file server's clock
    (tmp_path / "claim-1.json").write_text(json.dumps({**claim, "place": "another node"}))
    now = store.server_time(tmp_path)
    assert store.state(tmp_path, now).name == "running"
    assert store.state(tmp_path, now + leases.PERIOD * (leases.MISSED + 1)).name == "lost"


def test_identities_are_those_of_the_plain_json() -> None:
    for config in (blip2("mini"), seeded(blip2("smoke"), 3), evlgen("paper")):
        text = json.dumps(to_json(config), sort_keys=True, separators=(",", ":"))
        assert store._text(config) == text


def test_weights_are_called_as_in_the_library() -> None:
    assert store.WEIGHTS == training.CONNECTOR


def test_cache_folder_is_the_librarys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EVLGEN_CACHE", raising=False)
    assert paths.cache_folder() == features.cache_folder()
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path))
    assert paths.cache_folder() == features.cache_folder() == tmp_path
