"""Sweeps through a real SLURM queue, disturbed in every way that a cluster knows."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs.identity import run_id
from experiments.scales import evlgen
from sweeps import states
from sweeps.local import STOP_SIGNALS, Task, execute
from sweeps.slurm import job as slurm_job
from sweeps.slurm import queue, submit
from sweeps.slurm.profile import Profile, make_profile, read_profile
from tests.sweeps import cluster as real
from tests.sweeps.cluster import until

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
SETUP = (f"export PYTHONPATH={HERE} EVLGEN_BEAT_SECONDS=1",)
ONE_EACH = Profile(time="10", setup=SETUP, signal_seconds=20)
TIMES = ("train_seconds", "total_seconds", "resumed_from", "peak_memory_gib")

pytestmark = pytest.mark.xdist_group("slurm")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real.Cluster]:
    yield from real.running(tmp_path_factory)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def runs(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the run store; commands and jobs use it as well."""
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EVLGEN_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str(HERE))
    return tmp_path / "runs"


@pytest.fixture
def a_job_s_process() -> Iterator[None]:
    """This process may be a job's for a while: its variables and what it does at signals are put back."""
    variables = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(variables)


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "sweeps" / "run.py"), *arguments]


def call(*arguments: str, expect: int) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=900)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def put(tasks: list[Task], profile: Profile = ONE_EACH) -> submit.Submission:
    return submit.submit("test-smoke", [tasks], {}, profile, {})


def job_of(key: str) -> str:
    return queue.jobs()[key].id


def queue_is_empty() -> bool:
    return not queue.jobs()


# ------------------------------------------------------------------------------------- without a queue


def test_profile_and_its_mistakes(tmp_path: Path) -> None:
    example = read_profile(str(ROOT / "clusters" / "example.toml"), {"gpus": 2})
    assert example.gpus == 2
    (tmp_path / "minutes.toml").write_text("time = 90")
    assert read_profile(str(tmp_path / "minutes.toml"), {}).minutes == 90
    for text, message in (
        ("speed = 1", "speed: no such key; there are: partition, "),
        ("gpus = 'two'", "gpus is 'two', but must be of the kind of 0"),
        ("nodes = 0", "nodes is 0, but must be 1 or more"),
        ("time = 'soon'", "time 'soon': give D-HH:MM:SS"),
        ("time = 0", "time '0': is no time at all"),
        ("time = '0-00:00:00'", "time '0-00:00:00': is no time at all"),
        ("time = '30:00'", "time '30:00': give D-HH:MM:SS"),
        ("time = '1:00:00:00'", "time '1:00:00:00': give D-HH:MM:SS"),
        ("gpus = ", "--cluster "),
        ("workers = 2\nnodes = 2", "not both"),
        ("gpus = 8\ntasks_per_node = 1", "tasks_per_node is 1, but gpus is 8: a run has one"),
        ("gpus = 2\ntasks_per_node = 4", "leave tasks_per_node out or give gpus 4"),
        ("gpus = 8\nworkers = 2", "6 would have no run; give workers 8 or gpus 2"),
    ):
        path = tmp_path / "cluster.toml"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_profile(str(path), {})


def test_the_example_says_what_the_defaults_are() -> None:
    assert read_profile(str(ROOT / "clusters" / "example.toml"), {}) == Profile()


@pytest.mark.parametrize(
    ("values", "processes", "cores", "decoders", "said"),
    [
        ({}, 1, 1, 0, "each run has 1 process on 1 node"),
        ({"gpus": 8}, 8, 8, 7, "each run has 8 processes on 8 GPUs of 1 node"),
        ({"gpus": 4, "nodes": 2, "cpus": 40}, 4, 40, 16, "each run has 8 processes on 8 GPUs of 2 nodes"),
        ({"gpus": 1}, 1, 8, 7, "each run has 1 process on 1 GPU of 1 node"),
        ({"tasks_per_node": 3}, 3, 1, 0, "each run has 3 processes on 1 node"),
        ({"gpus": 2, "workers": 4}, 1, 4, 0, "4 runs at a time share 2 GPUs of 1 node, each has 1 process"),
        ({"workers": 4, "cpus": 12}, 1, 12, 2, "4 runs at a time share 1 node, each has 1 process"),
    ],
)
def test_every_gpu_has_a_process_and_cores(
    values: dict[str, int], processes: int, cores: int, decoders: int, said: str
) -> None:
    profile = make_profile(values, "test")
    asked = submit._parameters("name", profile, [])
    assert (asked["ntasks_per_node"], asked["cpus_per_task"]) == (processes, cores)
    assert asked.get("gpus_per_node", 0) == values.get("gpus", 0)
    assert profile.decoders == decoders
    assert str(profile) == said


def test_the_dry_run_says_what_a_run_gets(runs: Path) -> None:
    said = call("table2", "--scale", "smoke", "--executor", "slurm", "--gpus", "8", "--dry-run", expect=0)
    assert said.endswith("SLURM: each run has 8 processes on 8 GPUs of 1 node\n")


def test_features_and_scores_are_one_process_on_one_gpu() -> None:
    profile = Profile(gpus=8, nodes=2)
    score = Task("score", "sweeps.conclude:score", ())
    features = Task("features", "sweeps.worker:cache_features", ())
    small = submit._narrowed(profile, [[score], [features]])
    assert (small.nodes, small.processes, small.gpus, small.cores) == (1, 1, 1, 8)
    assert submit._narrowed(profile, [[score], [Task("run", "sweeps.worker:execute_run", ())]]) == profile
    for name in submit._FOR_ONE:
        module, _, function = name.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert submit._narrowed(profile, [[Task("any", name, ())]]) == small
    packed = Profile(gpus=2, workers=4)
    assert submit._narrowed(packed, [[features]]) == packed


def test_runs_side_by_side_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sweeps import local, worker

    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for number in range(3):
        monkeypatch.setattr(local, "_number", number)
        worker._take_gpu()
    monkeypatch.setenv("LOCAL_RANK", "1")  # of several processes of one run
    worker._take_gpu()
    assert taken == [0, 1, 0, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    worker._take_gpu()
    assert len(taken) == 4


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("1:30:00", 90), ("2-12", 3600), ("1-00:00:01", 1441), ("0:00:10", 1)]
)
def test_time_limits(text: str, minutes: int) -> None:
    assert Profile(time=text).minutes == minutes


def test_small_tasks_are_packed_and_unknown_ones_are_not() -> None:
    tasks = [Task(str(i), "x:y", ()) for i in range(12)]
    seconds = {str(i): 60.0 * (i + 1) for i in range(10)}  # 1 to 10 minutes; two are unknown
    chunks = submit.pack(tasks, seconds, dataclasses.replace(ONE_EACH, pack_minutes=15, time="60"))
    assert sorted(task.key for chunk in chunks for task in chunk) == sorted(task.key for task in tasks)
    assert ["10"] in [[t.key for t in chunk] for chunk in chunks]
    spans = [sum(seconds.get(t.key, 0) for t in chunk) / 60 for chunk in chunks]
    assert max(spans) <= 15
    assert len(chunks) == 2 + 5  # 10, 9, 8 + 7, 6 + 5 + 4, 3 + 2 + 1 minutes
    assert [len(array) for array in submit.arrays(chunks, 3)] == [3, 3, 1]


def test_runs_that_are_others_by_now_and_too_many_requeues_are_refused(
    runs: Path, tmp_path: Path, a_job_s_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose id the checkout no longer gives is refused; the others of its job are done."""
    folder = files.prepare(evlgen("smoke"))
    other = folder.with_name(folder.name[:-8] + "0" * 8)
    other.mkdir()
    (other / files.CONFIG).write_bytes((folder / files.CONFIG).read_bytes())
    task = Task("good", "runner_tasks:write", (str(tmp_path / "good"), "done"))
    batch = runs / ".slurm" / "0123abcd.json"
    record = {
        "chunks": [[dataclasses.asdict(Task(other.name, "x:y", ())), dataclasses.asdict(task)]],
        "profile": dataclasses.asdict(Profile(max_requeues=2)),
        "environment": {},
    }
    files.write_json(batch, record)
    with pytest.raises(UserError, match=f"1 of 2 tasks failed: {other.name}"):
        slurm_job.Chunk(str(batch), 0)()
    assert (tmp_path / "good").read_text() == "done"
    error = files.read_json(other / files.ERROR)
    assert error is not None
    assert f"{other.name}: is {folder.name} by now" in error["error"]
    assert error["error"].count("\n") == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(UserError, match="requeued 3 times"):
        slurm_job.Chunk(str(batch), 0)()
    error = files.read_json(other / files.ERROR)
    assert error is not None
    assert "requeued 3 times" in error["error"]


def test_only_restarts_without_progress_are_counted(
    runs: Path, a_job_s_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = files.prepare(evlgen("smoke"))
    path = runs / ".slurm" / "0123abcd.json"
    batch = {
        "sweep": "test",
        "chunks": [[dataclasses.asdict(Task(folder.name, "x:y", ()))]],
        "profile": dataclasses.asdict(Profile(max_requeues=2)),
        "environment": {},
        "submitted": 0.0,
    }
    files.write_json(path, batch)
    monkeypatch.setattr(slurm_job.local, "execute", lambda *_: {folder.name: "done"})

    def start(restarts: int) -> None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        slurm_job.Chunk(str(path), 0)()

    for restarts in range(100):  # a time limit far shorter than the run
        start(restarts)
        (folder / "checkpoint.pt").touch()
        os.utime(folder / "checkpoint.pt", (1000 + restarts, 1000 + restarts))
        assert slurm_job.Chunk(str(path), 0).checkpoint() is not None
    for restarts in (100, 101, 102):  # from now on it gets nowhere
        start(restarts)
    assert slurm_job.Chunk(str(path), 0).checkpoint() is None
    with pytest.raises(UserError, match="requeued 3 times without a new checkpoint, max_requeues is 2"):
        start(103)
    assert queue.batches().keys() == {"0123abcd"}  # what was counted is no batch


# ------------------------------------------------------------------------------------------- the queue


@pytest.mark.slow
def test_sweep_through_the_queue_equals_the_local_one(
    cluster: real.Cluster, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = [
        "table2",
        "--scale",
        "smoke",
        "--set",
        'evaluation.sets=[["nocaps_in", 4]]',
        "--set",
        "optim.steps=6",
    ]
    profile = tmp_path / "cluster.toml"
    profile.write_text('time = "10"\npack_minutes = 60\n')
    output = call(*sweep, "--executor", "slurm", "--cluster", str(profile), expect=3)
    assert "4 jobs queued in 4 arrays" in output  # features, stage 1, the rest, scores
    assert "5 runs: 5 queued" in output.replace("1 running, 4", "5")
    again = call(*sweep, "--executor", "slurm", "--cluster", str(profile), expect=3)
    assert "0 jobs queued" in again
    assert "5 of 5 runs complete" in call("wait", *sweep, expect=0)
    assert "5 done" in call("status", *sweep, expect=0)
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "local"))
    call(*sweep, expect=0)
    ours, theirs = results(runs), results(tmp_path / "local")
    assert len(theirs) == 5
    assert ours == theirs
    for run in theirs:
        for name in ("connector.safetensors", "predictions.json"):
            mine, other = (folder / run / name for folder in (runs, tmp_path / "local"))
            assert mine.exists() == other.exists()
            assert not mine.exists() or mine.read_bytes() == other.read_bytes()
    provenance = files.read_json(runs / run / "provenance.json")
    assert provenance is not None
    assert provenance["slurm_job"] is not None


def results(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in folder.glob("*/result.json"):
        metrics = json.loads(path.read_text())["metrics"]
        found[path.parent.name] = {name: value for name, value in metrics.items() if name not in TIMES}
    return found


@pytest.mark.slow
def test_a_run_that_is_preempted_timed_out_and_loses_its_node_ends_with_the_same_bits(
    cluster: real.Cluster, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = evlgen("smoke")
    optim = dataclasses.replace(config.optim, steps=40, eval_every=40, checkpoint_every=1000)
    evaluation = dataclasses.replace(config.evaluation, sets=())
    config = dataclasses.replace(config, optim=optim, evaluation=evaluation)
    run = run_id(config)
    folder = files.prepare(config)
    # Three restarts are more than one, but only the last comes without a new checkpoint.
    profile = dataclasses.replace(ONE_EACH, max_requeues=1)
    put([Task(run, "runner_tasks:slow_run", (str(folder),))], profile)

    def wait_for(step: int) -> None:
        until(lambda: any(line["step"] >= step for line in course(folder)))

    def lose_node() -> None:
        cluster.kill_node()
        until(lambda: queue.jobs()[run].state != "RUNNING")  # SLURM has noticed
        cluster.start_node()

    def preempt() -> None:
        """A job of higher priority wants the whole node."""
        cluster.slurm("sbatch", "--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 2")

    resumed = [0]
    for step, disturb in (
        (3, preempt),
        (9, lambda: cluster.slurm("scancel", "--signal=USR2", job_of(run))),  # as before the time limit
        (15, lose_node),
    ):
        wait_for(step)
        disturb()
        until(partial(was_resumed, folder, len(resumed)))
        resumed.append(int(log(folder).rsplit("resumed at step ", 1)[1].split()[0]))
    assert 3 <= resumed[1] < resumed[2] <= resumed[3], "no checkpoint at the signal"
    until(queue_is_empty)
    assert states.state(folder, time.time()).name == "trained"

    monkeypatch.setenv("EVLGEN_RUNS", str(runs.parent / "undisturbed"))
    calm = files.prepare(config)
    outcome = execute([Task(run, "sweeps.worker:execute_run", (str(calm), None))], 1, lambda *_: None)
    assert outcome == {run: "done"}
    assert (folder / "connector.safetensors").read_bytes() == (calm / "connector.safetensors").read_bytes()
    assert [one["loss"] for one in course(folder)] == [one["loss"] for one in course(calm)]
    ours, theirs = (files.read_outcome(path) for path in (folder, calm))
    assert ours is not None
    assert theirs is not None
    measured = [
        {name: value for name, value in outcome["metrics"].items() if name not in TIMES}
        for outcome in (ours, theirs)
    ]
    assert measured[0] == measured[1]


def course(folder: Path) -> list[dict[str, float]]:
    """Lines of ``metrics.jsonl``, of which the last may be cut short."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def was_resumed(folder: Path, times: int) -> bool:
    return log(folder).count("resumed at step") >= times


def log(folder: Path) -> str:
    path = folder / "log.txt"
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_a_time_limit_stops_the_work_in_time_and_the_job_comes_back(
    cluster: real.Cluster, runs: Path, tmp_path: Path
) -> None:
    task = Task("work", "runner_tasks:until_stopped", (str(tmp_path),))
    put([task], dataclasses.replace(ONE_EACH, time="1", signal_seconds=20))
    until((tmp_path / "saved").exists)  # the limit has struck
    cluster.slurm("scontrol", "update", f"jobid={job_of('work')}", "timelimit=10")
    until((tmp_path / "finished").exists)
    assert (tmp_path / "saved").exists()
    until(queue_is_empty)


@pytest.mark.slow
def test_cancelled_jobs_save_their_work_and_do_not_come_back(
    cluster: real.Cluster, runs: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("ours", "slurms")]
    for folder in folders:
        folder.mkdir()
        task = Task(folder.name, "runner_tasks:until_stopped", (str(folder),))
        submit.submit(folder.name, [[task]], {}, ONE_EACH, {})
    until(lambda: all((folder / "started").exists() for folder in folders))
    assert queue.cancel("ours") == 1
    cluster.slurm("scancel", job_of("slurms"))
    until(queue_is_empty)
    for folder in folders:
        assert (folder / "saved").exists()
        assert not (folder / "finished").exists()
    assert queue.submitted(queue.batches()) == {"slurms"}  # what was cancelled on purpose is not lost


@pytest.mark.slow
def test_arrays_stay_below_the_clusters_limit_and_phases_wait(
    cluster: real.Cluster, runs: Path, tmp_path: Path
) -> None:
    tasks = [Task(f"task {i}", "runner_tasks:attempts", (str(tmp_path), i)) for i in range(5)]
    last = Task("last", "runner_tasks:attempts", (str(tmp_path), 99), needs=("task 0",))
    seconds = {task.key: 400.0 for task in tasks[:2]}  # two of them share a job
    profile = dataclasses.replace(ONE_EACH, pack_minutes=30, time="60", max_jobs=5)
    done = submit.submit("test-smoke", [tasks, [last], [tasks[0]]], seconds, profile, {})
    assert (done.jobs, done.arrays, done.left) == (5, 3, 1)  # 3 + 1, then the last; MaxArraySize is 3
    assert queue.jobs().keys() == {task.key for task in tasks} | {"last"}
    until(queue_is_empty)
    assert {path.name: path.read_text() for path in tmp_path.glob("task-*")} == {
        f"task-{i}": "x" for i in (0, 1, 2, 3, 4, 99)
    }
    newest = max(tmp_path.glob("task-*"), key=lambda path: path.stat().st_mtime)
    assert newest.name == "task-99"


@pytest.mark.slow
def test_after_the_launcher_was_killed_nothing_is_queued_twice(
    cluster: real.Cluster, runs: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "cluster.toml"
    profile.write_text('pack_minutes = 0.01\ntime = "10"\nsbatch = {hold = true}\n')
    sweep = ["table2", "--scale", "smoke", "--seeds", "2"]
    queued = [*sweep, "--executor", "slurm", "--cluster", str(profile)]
    launcher = subprocess.Popen(command(*queued), stdout=subprocess.DEVNULL)
    until(lambda: len(list((runs / ".slurm").glob("????????.json"))) >= 3)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    before = {key for key in queue.jobs() if not key.startswith("score")}
    assert len(before) > 0
    call(*queued, expect=3)
    names = queue.batches()
    keys = Counter(
        task["key"] for _, batch, index in queue.listed() for task in names[batch]["chunks"][index]
    )
    assert max(keys.values()) == 1
    assert sum(not key.startswith(("score", "features")) for key in keys) == 10
    assert "jobs cancelled" in call("cancel", *sweep[:3], expect=0)  # whatever their seeds
    until(queue_is_empty)
    assert "10 pending" in call("status", *sweep, expect=0)


@pytest.mark.slow
def test_workers_in_the_queue_search_one_study_and_come_back(
    cluster: real.Cluster, runs: Path, tmp_path: Path
) -> None:
    """Two jobs; one is requeued in the middle of a trial, and no trial is lost."""
    profile = tmp_path / "mine.toml"
    profile.write_text(f"time = '10'\nsignal_seconds = 20\nsetup = {json.dumps(list(SETUP))}\n")
    search = [
        *(sys.executable, str(ROOT / "sweeps" / "merge_search.py"), "--scale", "smoke", "--space", "free"),
        *("--trials", "4", "--workers", "2", "--executor", "slurm", "--cluster", str(profile)),
        *("--pruner", "none", "--set", "evaluation.validation=8", "--set", 'data.pools=[["coco", 8]]'),
        *("--set", "optim.steps=300", "--set", "optim.checkpoint_every=10", "--set", "optim.batch_size=4"),
    ]

    def asked(expect: int) -> str:
        done = subprocess.run(search, capture_output=True, text=True, timeout=300)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout

    assert "4 trials to go, 2 workers in the queue" in asked(3)
    assert "trials to go, 2 workers in the queue" in asked(3)
    assert len(queue.jobs()) == 2  # nothing is queued twice
    until(lambda: list(runs.glob("*/checkpoint.pt")), seconds=240)
    victim = next(iter(queue.jobs().values())).id
    subprocess.run(["scontrol", "requeue", victim], check=True)
    until(queue_is_empty, seconds=400)
    assert "4 of 4 trials" in asked(0)
    (found,) = tmp_path.glob("results/merge_search/free-changed-*/smoke/trials.csv")
    table = found.read_text()
    assert table.count("complete") == 4
    assert len(list(runs.glob("*/result.json"))) == len(set(runs.glob("*/config.json")))


@pytest.mark.slow
def test_processes_of_one_run_find_each_other(cluster: real.Cluster, runs: Path, tmp_path: Path) -> None:
    task = Task("ranks", "runner_tasks:add_ranks", (str(tmp_path),))
    put([task], dataclasses.replace(ONE_EACH, tasks_per_node=2))
    until(queue_is_empty)
    said = {path.name: path.read_text() for path in tmp_path.glob("rank-*")}
    assert said == {f"rank-{i}": f"3 of 2, local rank {i}, 0 decoders" for i in range(2)}
    assert os.environ.get("RANK") is None


@pytest.mark.slow
def test_a_run_gets_a_process_for_each_gpu_that_is_asked_for(
    cluster: real.Cluster, runs: Path, tmp_path: Path
) -> None:
    task = Task("ranks", "runner_tasks:add_ranks", (str(tmp_path),))
    put([task], dataclasses.replace(ONE_EACH, gpus=2, cpus=2))
    until(queue_is_empty)
    said = {path.name: path.read_text() for path in tmp_path.glob("rank-*")}
    assert said == {f"rank-{i}": f"3 of 2, local rank {i}, 1 decoders" for i in range(2)}
