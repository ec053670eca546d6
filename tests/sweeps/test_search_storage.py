"""A search's storage: a password in its URL is written nowhere, and a search that fails empties no table."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from evlgen.errors import UserError
from sweeps.search import secrets
from tests.sweeps.fake_slurm import FakeSlurm

ROOT = Path(__file__).parents[2]
SEARCH = [sys.executable, str(ROOT / "sweeps" / "merge_search.py"), "--scale", "smoke", "--trials", "2"]


@pytest.mark.parametrize(
    ("place", "without", "password"),
    [
        ("mysql://u:secret@h:1/x", "mysql://u@h:1/x", "secret"),
        ("mysql+pymysql://u:s%40cr%2Ft@h/x", "mysql+pymysql://u@h/x", "s@cr/t"),
        ("mysql://u:p@ss:w/d@h:1/x", "mysql://u@h:1/x", "p@ss:w/d"),
        ("mysql://u:p?d@h/x", "mysql://u@h/x", "p?d"),
        ("postgresql://:secret@h/x?sslmode=require", "postgresql://@h/x?sslmode=require", "secret"),
        ("postgresql://h/x?user=u&password=secret", "postgresql://h/x?user=u", "secret"),
        ("sqlite:///folder/study.db", "sqlite:///folder/study.db", None),
        ("postgresql://u@h/x", "postgresql://u@h/x", None),
        ("/runs/a:b@c/journal.log", "/runs/a:b@c/journal.log", None),
    ],
)
def test_a_password_is_split_off(place: str, without: str, password: str | None) -> None:
    assert secrets.split(place) == (without, password)


def test_other_secrets_are_refused_unseen() -> None:
    with pytest.raises(UserError) as error:
        secrets.split("postgresql://u@h/x?sslpassword=hush")
    assert "hush" not in str(error.value)


def test_messages_show_stars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(secrets.PASSWORD, "s@cr/t")
    assert secrets.hidden("u:s@cr/t@h u:s%40cr%2Ft@h u:s%40cr/t@h") == "u:***@h u:***@h u:***@h"
    monkeypatch.setenv(secrets.PASSWORD, "a")
    assert secrets.hidden("a bad u:a@h") == "*** bad u:***@h"


@pytest.mark.parametrize("joined", [True, False])
def test_nobody_sees_the_password_of_a_search(tmp_path: Path, joined: bool) -> None:
    """Neither in the list of processes nor in a message or a file."""
    place = "mysql://me:hush-hush@127.0.0.1:1/x"
    storage = [f"--storage={place}"] if joined else ["--storage", place]
    environment = {**os.environ, "EVLGEN_RUNS": str(tmp_path / "runs"), "EVLGEN_RESULTS": str(tmp_path / "r")}
    started = subprocess.Popen(
        [*SEARCH, *storage], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    process, titles = psutil.Process(started.pid), []
    with contextlib.suppress(psutil.Error):
        while started.poll() is None:
            titles.append(" ".join(process.cmdline()))
    output, _ = started.communicate(timeout=60)
    assert started.returncode == 2, output
    assert "--storage mysql://me@127.0.0.1:1/x: cannot be opened" in output
    assert "hush-hush" not in output
    assert "hush-hush" not in [title for title in titles if title][-1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hush" in path.read_bytes()]


def test_jobs_get_the_password_from_their_environment_and_no_file_has_it(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path)
    storage = f"sqlite:///{tmp_path}/study.db?password=hush-hush"
    words = [*SEARCH, "--storage", storage, "--executor", "slurm", "--workers", "1"]
    done = subprocess.run(
        words, env=slurm.environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert slurm.submitted == 1
    assert f"{secrets.PASSWORD}=hush-hush" in slurm.text("env.101")
    for name in ("env.101", "env.squeue"):
        (tmp_path / name).unlink(missing_ok=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hush" in path.read_bytes()]
    assert "hush" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "flags",
    [
        *(["--storage", "/proc/nowhere.log"], ["--storage", "sqlite:////proc/nowhere.db"]),
        *(["--storage", "nosuch://h/x"], ["--storage", "/dev/null/journal.log"], ["--set", "optim.lr=-1"]),
    ],
)
def test_a_search_that_fails_leaves_the_tables(tmp_path: Path, flags: list[str]) -> None:
    there = ROOT / "results" / "merge_search" / "free" / "mini"
    results = tmp_path / "results" / "merge_search"
    for scale in ("smoke", "mini"):
        shutil.copytree(there, results / "free" / scale)
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    environment = {
        **os.environ,
        "EVLGEN_RUNS": str(tmp_path / "runs"),
        "EVLGEN_RESULTS": str(tmp_path / "results"),
    }
    done = subprocess.run(
        [*SEARCH, "--space", "free", *flags], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before
