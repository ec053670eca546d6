"""SIGTERM and SIGHUP to a launcher: one line, no traceback, and nothing of it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SMALL = ("--scale", "smoke", "--set", "evaluation.sets=[]", "--set", "optim.steps=4000")
SWEEP = ("sweeps/run.py", "table2", "--rows", "EVLGen", "--seeds", "2", "--workers", "2", *SMALL)
SEARCH = ("sweeps/merge_search.py", "--trials", "8", "--workers", "2", *SMALL)


@pytest.mark.parametrize(
    ("words", "number"), [(SWEEP, signal.SIGTERM), (SWEEP, signal.SIGHUP), (SEARCH, signal.SIGTERM)]
)
def test_a_launcher_that_is_terminated_says_so_in_one_line(
    tmp_path: Path, words: tuple[str, ...], number: signal.Signals
) -> None:
    environment = {
        **os.environ,
        "EVLGEN_RUNS": str(tmp_path / "runs"),
        "EVLGEN_RESULTS": str(tmp_path / "results"),
        "EVLGEN_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    launcher = subprocess.Popen(
        [sys.executable, str(ROOT / words[0]), *words[1:]],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("*/metrics.jsonl")):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)
    children = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(number)
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + number, output + errors
    assert errors.startswith("terminated; finished ")
    assert errors.count("\n") == 1, errors
    assert "Traceback" not in output
    assert not psutil.wait_procs(children, timeout=20)[1]
