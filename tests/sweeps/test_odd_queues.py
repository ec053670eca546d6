"""Queues that are not as in the manual, users without a name, and what a shell within a job passes on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from evlgen.errors import UserError
from sweeps.slurm import queue
from sweeps.slurm.profile import make_profile
from tests.sweeps.fake_slurm import FakeSlurm


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


@pytest.mark.parametrize("how", ["profile", "SLURM_CLUSTERS", "SBATCH_CLUSTERS"])
def test_jobs_of_another_cluster_are_found_and_cancelled_there(slurm: FakeSlurm, how: str) -> None:
    profile = slurm.folder / "c.toml"
    profile.write_text('[sbatch]\nclusters = "gpu"\n' if how == "profile" else "")
    variables = {} if how == "profile" else {how: "gpu"}
    for _ in range(2):
        done = slurm.queue("--cluster", str(profile), **variables)
        assert done.returncode == 3, done.stdout + done.stderr
        assert slurm.submitted == 4  # features, stage 1, stage 2 with EVLGen, scores
    assert all("#SBATCH --clusters=gpu\n" in script for script in slurm.scripts)
    assert "5 queued" in slurm.status().stdout
    done = slurm.run("cancel", *slurm.sweep)
    assert "4 jobs cancelled" in done.stdout
    assert slurm.text("cancelled").startswith("scancel -M gpu 101")


@pytest.mark.parametrize(
    "line",
    [
        *("CLUSTER: gpu", "NOTE: maintenance on Monday", "", "JOBID|STATE|REASON|NAME", "|||", "a|b|c|d|e"),
        *("77_[2-5%3]|PENDING|None|evlgen-x-00000000", "77_x|PENDING|None|evlgen-x-00000000"),
        *("77_[1,3,...]|PENDING|None|evlgen-x-00000000", "12+0|RUNNING|None|evlgen-y-12345678"),
        *("99|CANCELLED by 1000|None|evlgen-x-00000000", "5|RUNNING|a|b|c|other", "\x1b[31mwarning\x1b[0m"),
    ],
)
def test_lines_that_are_no_jobs_of_ours_are_passed_over(slurm: FakeSlurm, line: str) -> None:
    slurm.queue()
    (slurm.folder / "head").write_text(line + "\n")
    done = slurm.status()
    assert done.returncode == 0, done.stderr
    assert "5 queued" in done.stdout


def read(line: str) -> list[tuple[str, str, int]]:
    return [(job.id, batch, index) for job, batch, index in queue._read(line, "")]


def test_ranges_of_arrays_and_odd_states() -> None:
    end = "|PENDING|Resources|evlgen-table1-smoke-0123abcd"
    assert [i for _, _, i in read(f"12_[3-7%2]{end}")] == [3, 4, 5, 6, 7]
    assert [i for _, _, i in read(f"12_[0,4-8:2,11]{end}")] == [0, 4, 6, 8, 11]
    assert read(f"12_4{end}") == [("12_4", "0123abcd", 4)]
    assert read(f"12{end}") == read(f" 12+0{end}  ") == [("12", "0123abcd", 0)]
    for state in (
        "REQUEUED",
        "SPECIAL_EXIT",
        "SUSPENDED",
        "STOPPED",
        "COMPLETING",
        "REQUEUE_FED",
        "RESIZING",
    ):
        assert len(read(f"12|{state}|None|evlgen-a-0123abcd")) == 1  # it will go on, or is not over yet
    for state in ("PREEMPTED", "REVOKED", "TIMEOUT", "NODE_FAIL", "CANCELLED by 5"):
        assert read(f"12|{state}|None|evlgen-a-0123abcd") == []
    assert len(read("12|PENDING|a | in the reason|evlgen-a-0123abcd")) == 1


INHERITED = {
    "SLURM_JOB_ID": "5",
    "SLURM_CPU_BIND": "mask_cpu:0x1",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_NTASKS": "4",
    "SLURM_CPUS_PER_TASK": "16",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_GRES": "gpu:8",
    "SRUN_DEBUG": "3",
    "SALLOC_ACCOUNT": "x",
    "SQUEUE_STATES": "RUNNING",
    "SQUEUE_FORMAT": "%i",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "nowhere",
    "MASTER_PORT": "1",
    "LOCAL_RANK": "1",
    "PMI_RANK": "0",
    "TORCHELASTIC_RUN_ID": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}


def test_nothing_of_the_job_around_goes_to_jobs(slurm: FakeSlurm) -> None:
    done = slurm.queue(**INHERITED, SLURM_CONF="/etc/slurm.conf", MINE="kept")
    assert done.returncode == 3, done.stdout + done.stderr
    for name in ("env.101", "env.squeue"):
        seen = dict(line.partition("=")[::2] for line in slurm.text(name).splitlines())
        assert not INHERITED.keys() & seen.keys()
        assert (seen["SLURM_CONF"], seen["MINE"]) == ("/etc/slurm.conf", "kept")


def test_defaults_of_the_users_shell_stand_in_the_script(slurm: FakeSlurm) -> None:
    slurm.queue("--partition", "typed", SBATCH_PARTITION="default", SBATCH_ACCOUNT="mine", SBATCH_QOS="long")
    script = slurm.scripts[0]
    for line in ("partition=typed", "account=mine", "qos=long"):
        assert f"#SBATCH --{line}\n" in script
    assert "SBATCH_" not in slurm.text("env.101")


def test_a_user_without_a_name_can_queue_and_look(slurm: FakeSlurm) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-U", "true"], check=False).returncode:
        pytest.skip("needs unshare")
    slurm.folder.chmod(0o777)
    names = ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME")
    nobody = ("unshare", "-U", "--map-user=54321", "--map-group=54321", "env")
    nobody += tuple(word for name in names for word in ("-u", name))
    done = slurm.run(*slurm.sweep, "--executor", "slurm", prefix=nobody)
    assert done.returncode == 3, done.stderr
    done = slurm.run("status", *slurm.sweep, prefix=nobody)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 queued" in done.stdout


def test_cancel_takes_the_jobs_of_some_seeds(slurm: FakeSlurm) -> None:
    slurm.run("table2", "--scale", "smoke", "--seeds", "1", "--executor", "slurm")
    before = slurm.submitted
    slurm.run("table2", "--scale", "smoke", "--seeds", "2", "--executor", "slurm")
    assert slurm.submitted > before
    done = slurm.run("cancel", "table2", "--scale", "smoke", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert "scancel" in slurm.text("cancelled")
    assert "0 jobs" not in done.stdout


@pytest.mark.parametrize(
    "values",
    [
        *({name: "a\nrm -rf /"} for name in ("partition", "account", "qos", "constraint", "time")),
        {"setup": ["module load cuda\nrm -rf /"]},
        {"partition": "a\rb"},
        {"partition": "a\u2028b"},
        {"sbatch": {"comment": "a\n#SBATCH --wrap=x"}},
        {"sbatch": {"comment\nrm": "a"}},
        {"sbatch": {"mail-user": ["a", "b"]}},
        *({"sbatch": {name: "x"}} for name in ("job-name", "job_name", "array", "wrap", "output", "J")),
        {"sbatch": {"gres": "gpu:4"}},
        {"sbatch": {"clusters": "gpu -x"}},
        {"memory_gb": float("nan")},
    ],
)
def test_what_would_change_the_script_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"my\.toml") as error:
        make_profile(values, "my.toml")
    assert "\n" not in str(error.value)


def test_line_breaks_in_flags_are_refused_before_anything_is_queued(slurm: FakeSlurm) -> None:
    done = slurm.queue("--partition", "gpu\ntouch /tmp/x")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert slurm.submitted == 0


@pytest.mark.parametrize("words", [("table2",), ("table2", "--dry-run"), ("all", "--dry-run")])
def test_a_cluster_file_that_is_not_there_is_noticed_first(slurm: FakeSlurm, words: tuple[str, ...]) -> None:
    done = slurm.run(*words, "--scale", "smoke", "--executor", "slurm", "--cluster", "no.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --cluster no.toml: ")
