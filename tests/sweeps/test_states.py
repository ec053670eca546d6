"""States of runs, from their files and the queue alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from evlgen.runs import identity
from experiments import EXPERIMENTS, load
from sweeps import leases, states
from sweeps.plan import unique_runs


def test_tables_share_runs_and_stage_one() -> None:
    first, second = unique_runs(load("table1", "mini"), 3), unique_runs(load("table2", "mini"), 3)
    # five rows and a stage 1; four rows, of which two and the stage 1 are the other table's
    assert (len(first), len(second)) == (18, 15)
    assert len(first.keys() & second.keys()) == 9
    for runs in (first, second):
        for place, config in enumerate(runs.values()):
            if config.init_from is not None:
                assert identity.run_id(config.init_from) in list(runs)[:place]
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


def test_state_comes_from_files_and_the_queue_alone(tmp_path: Path) -> None:
    def state(queued: str | None = None, was_submitted: bool = False) -> str:
        return states.state(tmp_path, time.time(), queued, was_submitted).name

    assert (state(), state("PENDING"), state(None, True)) == ("pending", "queued", "lost")
    (tmp_path / "checkpoint.pt").touch()
    assert (state(), state("PENDING"), state(None, True)) == ("stopped", "queued", "lost")
    held = leases.claim(tmp_path, devices=4)
    assert held is not None
    held.note |= {"step": 3, "steps": 12, "rate": 50.0}
    held._started -= 10
    held._beat()
    running = states.state(tmp_path, time.time(), "RUNNING")
    assert running == states.State("running", pytest.approx(40, abs=4), 50.0, 0.25)
    held.release("stopped")
    assert (state(), state("PENDING")) == ("stopped", "queued")
    (tmp_path / "outcome.json").touch()
    assert (state(), state("PENDING")) == ("trained", "trained")
    (tmp_path / "error.json").touch()
    assert state("PENDING") == "failed"
    (tmp_path / "result.json").touch()
    assert states.state(tmp_path, time.time()) == states.State("done", pytest.approx(40, abs=4))


def test_a_dead_owner_makes_a_run_lost(tmp_path: Path) -> None:
    assert leases.claim(tmp_path) is not None
    claim = json.loads((tmp_path / "claim-1.json").read_text())
    (tmp_path / "claim-1.json").write_text(json.dumps({**claim, "started": claim["started"] - 99}))
    assert states.state(tmp_path, time.time()).name == "lost"
    # of a process on another node only the beat can be seen, by the file server's clock
    (tmp_path / "claim-1.json").write_text(json.dumps({**claim, "place": "another node"}))
    now = states.server_time(tmp_path)
    assert states.state(tmp_path, now).name == "running"
    assert states.state(tmp_path, now + leases.PERIOD * (leases.MISSED + 1)).name == "lost"
