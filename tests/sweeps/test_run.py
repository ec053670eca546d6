"""The command, as a user types it, with real trainings of a few steps."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from evlgen.config import to_json
from evlgen.runs import folder as files
from evlgen.runs import identity
from experiments.scales import evlgen
from sweeps.run import answered

ROOT = Path(__file__).parents[2]
# Stage 1, stage 2, both LLMs and EVLGen, for a few updates and without captions.
SMALL = [
    *("table2", "--scale", "smoke", "--set", "evaluation.sets=[]", "--set", "optim.steps=12"),
    *("--set", "optim.checkpoint_every=3"),
]
IGNORED = ("train_seconds", "total_seconds", "resumed_from", "peak_memory_gib")


class Sandbox:
    """Folders of its own for runs and results; the feature cache is shared by all tests of this file."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "EVLGEN_RUNS": str(folder / "runs"),
            "EVLGEN_RESULTS": str(folder / "results"),
            "EVLGEN_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "PYTHONFAULTHANDLER": "1",  # a launcher that is ended by a signal shows where it was
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / "sweeps" / "run.py"), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def metrics(self) -> dict[str, dict[str, Any]]:
        found = {}
        for path in sorted((self.folder / "runs").glob("*/result.json")):
            metrics = json.loads(path.read_text())["metrics"]
            found[path.parent.name] = {k: v for k, v in metrics.items() if k not in IGNORED}
        return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def sandbox(tmp_path: Path, cache: Path) -> Sandbox:
    return Sandbox(tmp_path, cache)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Sandbox:
    finished = Sandbox(tmp_path_factory.mktemp("undisturbed"), cache)
    outcome = finished.run(*SMALL)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    progress = [line for line in outcome.stdout.splitlines() if line.startswith("[0")]
    for label in ("EVLGen, OPT-2.7B", "EVLGen, Vicuna-7B", "BLIP-2, Vicuna-7B", "stage 1 of BLIP-2"):
        done = [line for line in progress if f"] {label}" in line and "seed 0: done (sweep: " in line]
        assert len(done) == 1, progress
        assert " left)" in done[0] or "time left unknown)" in done[0]
    assert "about 0 s left" in progress[-1]
    assert not any(run in line for line in progress for run in finished.metrics())
    return finished


pytestmark = pytest.mark.xdist_group("sweeps")


def test_sweep_is_complete_and_not_repeated(undisturbed: Sandbox) -> None:
    assert len(undisturbed.metrics()) == 5  # two of EVLGen, two stages 2, one stage 1 for both
    (folder,) = (undisturbed.folder / "results").glob("table2-changed-*/smoke")
    table = (folder / "table.csv").read_text()
    assert table.startswith("row,metric,mean,ci_low,ci_high,n_seeds,paper\n")
    assert '"EVLGen, OPT-2.7B (evaluation.sets=[], optim.steps=12' in table
    assert "--set 'optim.steps=12'" in (folder / "table.md").read_text()
    again = undisturbed.run(*SMALL)
    assert again.returncode == 0
    assert "5 runs, 5 complete" in again.stdout
    status = undisturbed.run("status", *SMALL)
    assert status.stdout.count("complete") == 5
    assert all(name in status.stdout for name in undisturbed.metrics())
    name = next(iter(undisturbed.metrics()))
    shown = undisturbed.run("show", name[:8])
    assert shown.returncode == 0
    assert '"git_commit"' in shown.stdout
    assert "parameters" in shown.stdout
    plan = undisturbed.run(*SMALL, "--dry-run", "--seeds", "2")
    assert "5 of 10 runs to execute" in plan.stdout
    undisturbed.environment["COLUMNS"] = "80"  # the usual terminal: no id and no number is cut
    narrow = undisturbed.run("status", *SMALL).stdout
    assert max(map(len, narrow.splitlines()[:-1])) <= 80
    assert all(name in narrow for name in undisturbed.metrics())
    assert "stage 1 of BLIP-2" in narrow
    assert "…" not in narrow + undisturbed.run(*SMALL, "--dry-run", "--seeds", "2").stdout


def test_killed_sweep_goes_on_to_the_same_bits(undisturbed: Sandbox, sandbox: Sandbox) -> None:
    for wanted in (1, 3):  # checkpoints seen before the kill
        launcher = sandbox.start(*SMALL)
        _wait(lambda n=wanted: len(list((sandbox.folder / "runs").glob("*/checkpoint.pt"))) >= n, launcher)
        children = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        launcher.communicate(timeout=30)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "workers outlive their launcher"
    outcome = sandbox.run(*SMALL)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert sandbox.metrics() == undisturbed.metrics()
    for run in sandbox.metrics():
        ours, theirs = (box.folder / "runs" / run / "connector.safetensors" for box in (sandbox, undisturbed))
        assert ours.read_bytes() == theirs.read_bytes()
    assert not list((sandbox.folder / "runs").rglob("*.tmp"))
    for run in sandbox.metrics():  # every claim is given back, whoever held it
        beats = sorted((sandbox.folder / "runs" / run).glob("beat-*.json"))
        assert json.loads(beats[-1].read_text())["ended"] == "done"


@pytest.mark.slow
def test_two_launchers_share_the_work(undisturbed: Sandbox, sandbox: Sandbox) -> None:
    launchers = [sandbox.start(*SMALL), sandbox.start(*SMALL)]
    for launcher in launchers:
        output, _ = launcher.communicate(timeout=300)
        assert launcher.returncode == 0, output
    assert sandbox.metrics() == undisturbed.metrics()
    for run in sandbox.metrics():
        log = (sandbox.folder / "runs" / run / "log.txt").read_text()
        assert log.count("parameters:") == 1, "trained twice"


@pytest.mark.slow
def test_two_launchers_race_on_fifty_runs(sandbox: Sandbox) -> None:
    many = ["table2", "--scale", "smoke", "--rows", "EVLGen", "--seeds", "25", "--workers", "1"]
    many += ["--set", "evaluation.sets=[]", "--set", "optim.steps=2", "--set", "evaluation.validation=4"]
    launchers = [sandbox.start(*many), sandbox.start(*many)]
    for launcher in launchers:
        output, _ = launcher.communicate(timeout=300)
        assert launcher.returncode == 0, output
    assert len(sandbox.metrics()) == 50
    for run in sandbox.metrics():
        assert (sandbox.folder / "runs" / run / "log.txt").read_text().count("parameters:") == 1
        files.read_json(sandbox.folder / "runs" / run / "provenance.json")  # whole
    assert not list((sandbox.folder / "runs").rglob("*.tmp"))


def test_ctrl_c_keeps_what_is_done(sandbox: Sandbox) -> None:
    launcher = sandbox.start(*SMALL)
    _wait(lambda: list((sandbox.folder / "runs").glob("*/checkpoint.pt")), launcher)
    process = psutil.Process(launcher.pid)
    children = process.children(recursive=True)
    # Ctrl-C in the middle of an import of torch may abort the launcher (SIGABRT), or be swallowed by it.
    assert not any("libtorch" in mapped.path for mapped in process.memory_maps())
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 130, output
    assert "finished runs are kept" in output
    assert "Traceback" not in output
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_failed_run_is_reported_and_others_finish(sandbox: Sandbox) -> None:
    # a learning rate that ends in no number: every run fails, each with its own reason
    outcome = sandbox.run(
        *SMALL, "--set", "optim.lr=1e30", "--set", "optim.clip_norm=0.0", "--rows", "EVLGen"
    )
    assert outcome.returncode == 1
    assert outcome.stdout.count("failed: FloatingPointError") == 2
    for path in (sandbox.folder / "runs").glob("*/error.json"):  # row, seed and id, and where to read more
        assert f"seed 0 ({path.parent.name}) failed: " in outcome.stdout
        assert f": see {path.with_name('log.txt')}" in outcome.stdout
    assert "EVLGen, Vicuna-7B (" in outcome.stdout
    assert "lower optim.lr" in outcome.stdout
    assert "0 of 2 runs complete" in outcome.stdout
    errors = list((sandbox.folder / "runs").glob("*/error.json"))
    assert len(errors) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9"], "experiment 'table9': no such experiment; there are: table1, table2"),
        (["table2", "--scale", "big"], "--scale big: no such scale; there are: smoke, mini, bridge, paper"),
        (["table2", "--set", "optim.speed=1"], "--set optim.speed: no such key; there are: "),
        (["table2", "--set", "optim.lr=fast"], "--set optim.lr: 'fast' is not a number"),
        (["table2", "--set", "optim.lr"], "--set optim.lr: give key=value"),
        (["table2", "--set", "connector.r=4"], "--set connector.r: no such key"),
        (["table2", "--seeds", "0"], "--seeds 0: at least 1"),
        (["table2", "--executor", "cloud"], "--executor cloud: no such executor; there are: local, slurm"),
        (["table2", "--rows", "GPT"], "--rows GPT: no row's label contains this"),
        (["show", "zzz"], "show zzz: no run in "),
        (["show", "table1"], "make it with `python sweeps/run.py table1"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(sandbox: Sandbox, arguments: list[str], message: str) -> None:
    outcome = sandbox.run(*arguments)
    assert outcome.returncode == 2
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not (sandbox.folder / "runs").exists()


def test_full_disk_is_one_line(sandbox: Sandbox, cache: Path) -> None:
    disk = sandbox.folder / "runs"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "none", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        outcome = sandbox.run(*SMALL)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert outcome.returncode == 2
    assert "No space left on device" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert "Traceback" not in outcome.stdout


LOOKS = [
    *(["list"], ["status"], ["status", "table1"], ["--help"], ["status", "--help"], ["table2", "--dry-run"]),
    *(["status", "table1", "--scale", "paper"], ["show", "zzz"], ["table2", "--scale", "big"]),
]


@pytest.mark.parametrize("arguments", LOOKS, ids=" ".join)
def test_who_only_looks_does_not_wait_for_torch(sandbox: Sandbox, arguments: list[str]) -> None:
    """Half a second, most of it Python's own; what takes longer to import than all else is not imported."""
    script = str(ROOT / "sweeps" / "run.py")
    code = (
        f"import runpy, sys; sys.argv = {[script, *arguments]!r}\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'transformers', 'pandas', 'scipy', 'optuna', 'tyro'}\n"
        "print('imported', *slow & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=sandbox.environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1].strip() == "imported", done.stdout + done.stderr


def test_a_plan_of_ten_thousand_runs_takes_seconds_of_processor_time(sandbox: Sandbox) -> None:
    """2 s where nothing else runs; the limit here is for a busy machine."""
    before = os.times()
    plan = sandbox.run("learning_rates", "--seeds", "130", "--dry-run")
    spent = sum(after - b for after, b in zip(os.times()[2:4], before[2:4], strict=True))
    assert plan.returncode == 0, plan.stderr
    found = re.search(r"(\d+) of \1 runs to execute", plan.stdout)
    assert found is not None
    assert int(found.group(1)) > 7000
    assert spent < 6.0


@pytest.mark.parametrize("lines", [1, 100_000])
def test_who_reads_no_further_gets_no_traceback(sandbox: Sandbox, lines: int) -> None:
    """As `| head` does: with output that fits into the buffer, and with more."""
    config = evlgen("smoke")
    folder = sandbox.folder / "runs" / identity.run_id(config)
    folder.mkdir(parents=True)
    files.write_json(folder / files.CONFIG, to_json(config))
    (folder / files.LOG).write_text("step 1: loss 2.0\n" * lines)
    for command in (["logs", folder.name], ["list"]):
        reader, writer = os.pipe()
        os.close(reader)
        outcome = subprocess.run(
            sandbox.command(*command), env=sandbox.environment, stdout=writer, stderr=subprocess.PIPE
        )
        os.close(writer)
        assert (outcome.returncode, outcome.stderr) == (1, b"")


def test_a_broken_pipe_other_than_the_output_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()

    def action() -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with os.fdopen(reader), os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(BrokenPipeError):
            answered(action, "runs")


def test_list_names_what_there_is(sandbox: Sandbox) -> None:
    outcome = sandbox.run("list")
    assert outcome.returncode == 0
    for word in ("table1", "table2", "learning_rates", "smoke", "mini", "paper"):
        assert word in outcome.stdout


def test_an_experiment_that_trains_nothing(sandbox: Sandbox) -> None:
    for arguments in (["table5", "--scale", "paper", "--dry-run"], ["status", "table5", "--scale", "paper"]):
        outcome = sandbox.run(*arguments)
        assert outcome.returncode == 0, outcome.stderr
        assert "table5, paper: counted, nothing to train; its table is not made yet" in outcome.stdout
    assert not (sandbox.folder / "runs").exists()
    assert not (sandbox.folder / "results").exists()


def _wait(condition: Any, launcher: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
