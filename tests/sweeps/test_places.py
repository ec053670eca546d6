"""Commands in odd places: narrow terminals, locales without UTF-8, read-only folders, ranks of others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, str(ROOT / "sweeps" / "run.py")]
ONE = ["table1", "--scale", "smoke", "--seeds", "1", "--workers", "1", "--rows", "EVLGen, 104M, 150K"]
ONE += ["--set", "optim.steps=4", "--set", "optim.warmup_steps=1"]


def call(place: Path, words: list[str], **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {
        **os.environ,
        **{f"EVLGEN_{name}": str(place / name.lower()) for name in ("RUNS", "CACHE")},
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, timeout=200)


# ------------------------------------------------------------------------------------------- terminals

LOOKS = (
    *("show table1", "show merge_schedules", "status table1", "table1 --dry-run", "list"),
    *("collapse --dry-run", "show table5 --scale paper", "table1 --scale paper --dry-run"),
)


@pytest.mark.parametrize("look", LOOKS)
def test_no_number_and_no_id_is_cut(tmp_path: Path, look: str) -> None:
    """A stacked table repeats its columns' names, so there may be more numbers than in a wide one."""

    def seen(columns: str) -> Counter[str]:
        text = call(tmp_path, [*RUN, *look.split()], COLUMNS=columns).stdout.decode()
        assert "…" not in text
        return Counter(re.findall(r"[0-9a-f]{12}-[0-9a-f]{8}|\d[\d,.]*", text))

    wide = seen("1000")
    assert wide
    for columns in ("80", "40", "0"):
        assert not wide - seen(columns), columns


@pytest.mark.parametrize("look", ["show table1", "table1 --dry-run", "list", "captions table2"])
def test_whoever_reads_no_further_gets_no_traceback(tmp_path: Path, look: str) -> None:
    done = call(tmp_path, ["bash", "-c", f"{' '.join(map(repr, RUN))} {look} | head -1"])
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1


def test_pictures_are_drawn_whoever_reads_their_names(tmp_path: Path) -> None:
    command = f"{sys.executable} -u -m evlgen draw {tmp_path}/pictures --count 3"
    done = call(tmp_path, ["bash", "-c", f"{command} | true"])
    assert done.stderr == b""
    assert len(list((tmp_path / "pictures").iterdir())) == 3


@pytest.mark.parametrize("command", ["sweeps/run.py list", "-m evlgen draw pictures"])
def test_a_closed_output_is_no_mistake(tmp_path: Path, command: str) -> None:
    command = command.replace("pictures", str(tmp_path / "pictures"))
    done = call(tmp_path, ["bash", "-c", f"{sys.executable} {command} >&-"])
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("seconds", ["abc", "0", "-1", "nan", "inf"])
def test_beats_that_are_none_are_refused(tmp_path: Path, seconds: str) -> None:
    done = call(tmp_path, [*RUN, "status", "table1"], EVLGEN_BEAT_SECONDS=seconds)
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"error: EVLGEN_BEAT_SECONDS is '{seconds}': give seconds")


# --------------------------------------------------------------------------------------------- locales


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    found = [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "POSIX"}]
    found.append({"PYTHONIOENCODING": "ascii"})
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef"):
        made = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US")]
        subprocess.run(made, capture_output=True, check=False)
        if (folder / "en_US").exists():
            found.append({"LOCPATH": str(folder), "LC_ALL": "en_US"})
    return found


def test_commands_work_in_every_locale(tmp_path: Path, locales: list[dict[str, str]]) -> None:
    for locale in locales:
        for look in ("show table1", "table1 --dry-run", "captions table2", "--help"):
            done = call(tmp_path, [*RUN, *look.split()], **locale)
            assert done.returncode == 0, (locale, look, done.stderr.decode(errors="replace"))


def test_files_are_the_same_in_every_locale(tmp_path: Path, locales: list[dict[str, str]]) -> None:
    """A table of a real run, with numbers of the paper, dashes and all."""
    tables = []
    for number, locale in enumerate(({"LC_ALL": "C.UTF-8"}, locales[0], locales[-1])):
        results = tmp_path / str(number)
        done = call(tmp_path, [*RUN, *ONE], **locale, EVLGEN_RESULTS=str(results))
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        tables.append([path.read_bytes() for path in sorted(results.rglob("table.*"))])
    assert len(tables[0]) == 3
    assert tables[0] == tables[1] == tables[2]


# ----------------------------------------------------------------------------------------------- ranks


def test_ranks_of_other_programs_are_not_waited_for(tmp_path: Path) -> None:
    ranks = {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "nowhere",
        "MASTER_PORT": "29533",
    }
    done = call(tmp_path, [*RUN, *ONE], **ranks, EVLGEN_RESULTS=str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr.decode()
    assert b"1 of 1 runs complete" in done.stdout
    assert b"WORLD_SIZE=2 in the environment is not for sweeps: ignored" in done.stderr


# ------------------------------------------------------------------------------------ read-only places


def test_what_may_only_be_read_can_be_looked_at(tmp_path: Path) -> None:
    """A colleague's store, a snapshot, a checkout: every look works, what writes says so in one line."""
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if os.geteuid() != 0 or probe.returncode:
        pytest.skip("needs the right to mount")
    runs, results = tmp_path / "runs", tmp_path / "results"
    assert call(tmp_path, [*RUN, "unpack", "table2"]).returncode == 0
    shutil.copytree(ROOT / "results" / "table2", results / "table2")
    only_read = "; ".join(
        f"mount --bind '{path}' '{path}'; mount -o remount,bind,ro '{path}'" for path in (runs, results, ROOT)
    )
    run = " ".join(f"'{word}'" for word in RUN)
    for command, code in (
        *((f"{run} {look}", 0) for look in ("status table2", "show table2", "captions table2", "status")),
        (f"{run} table2 --dry-run", 0),
        (f"{run} {' '.join(repr(word) for word in ONE)}", 2),
        (f"'{sys.executable}' -m analysis.report", 2),
    ):
        words = ["unshare", "-m", "bash", "-c", f"{only_read}; {command}"]
        done = call(tmp_path, words, EVLGEN_RESULTS=str(results), PYTHONDONTWRITEBYTECODE="1")
        said = done.stderr.decode()
        assert done.returncode == code, (command, done.stdout.decode()[-500:], said)
        assert "Traceback" not in said + done.stdout.decode()
        if code:
            assert "Read-only file system" in said
            assert said.count("\n") == 1
