"""A user's place: a checkout with a space in its path, the paper's data and weights of the smallest size."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.evlgen import real_sets, real_weights

ROOT = Path(__file__).parents[2]
_MINE = {".git", ".venv", ".cache", ".hypothesis", "runs", "foundation", "build", "dist", "my.toml"}
# What a user sets to try the paper's scale on a machine without a GPU, with little data and small weights.
SETS = [["coco", 4], ["nocaps_in", 2], ["nocaps_near", 2], ["nocaps_out", 1], ["flickr", 2]]
SETS += [["vqav2", 4], ["gqa", 3], ["okvqa", 2]]
SMALL = {
    "updates": 2e-5,  # 150K -> 3, 250K -> 5
    "optim.batch_size": 8,
    "optim.precision": "bf16",
    "evaluation.sets": SETS,
    "evaluation.validation": 4,
    **real_weights.FIT,
}


def settings(**changes: object) -> list[str]:
    """``--set`` flags: those of `SMALL` and others, with dots for double underscores."""
    chosen = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [
        word
        for key, value in chosen.items()
        if value is not None
        for word in ("--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    ]


@dataclass
class Checkout:
    """A checkout, and the variables that its commands see."""

    path: Path
    env: dict[str, str] = field(default_factory=dict)

    def bash(self, line: str, expect: int | set[int] = 0, seconds: float = 480, **env: str) -> str:
        """What a line of shell prints, on stderr as well; it ends with the expected code, or one of them."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.path,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=seconds,
        )
        codes = {expect} if isinstance(expect, int) else expect
        assert done.returncode in codes, f"{line}\nexit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def run(self, *words: str, expect: int = 0, **env: str) -> str:
        """``.venv/bin/python sweeps/run.py`` with these words."""
        return self.bash(shlex.join([".venv/bin/python", "sweeps/run.py", *words]), expect, **env)

    def python(self, *words: str, expect: int = 0, **env: str) -> str:
        """``.venv/bin/python`` with these words."""
        return self.bash(shlex.join([".venv/bin/python", *words]), expect, **env)

    def killed(self, when: Callable[[], object], *words: str, **env: str) -> str:
        """Begin ``sweeps/run.py`` and ``kill -9`` it at a moment; returns what it had said."""
        said = self.path / "killed.log"
        with said.open("wb") as output:
            launcher = subprocess.Popen(
                [".venv/bin/python", "sweeps/run.py", *words],
                cwd=self.path,
                env={**self.env, **env},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + 480
        while not when():
            assert launcher.poll() is None, f"ended before the kill: {said.read_text()}"
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.01)
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        return said.read_text()

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    def complete(self) -> list[Path]:
        """Folders of the complete runs, the latest last."""
        return sorted((p.parent for p in self.runs.glob("*/result.json")), key=lambda p: p.stat().st_mtime)

    def latest_table(self) -> Path:
        """Folder of the table that was written last."""
        tables = self.path.glob("results/*/paper/table.csv")
        return max(tables, key=lambda path: path.stat().st_mtime).parent


def make(folder: Path) -> Checkout:
    """A checkout below a folder, with data and weights beside it."""
    path = folder / "my checkout"
    shutil.copytree(ROOT, path, ignore=_not_committed)
    _set_up(path)
    git = ["git", "-c", "user.name=walker", "-c", "user.email=walker@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "as it is"]):
        subprocess.run([*git, *words], cwd=path, check=True)
    home = folder / "home"
    home.mkdir()
    env = {
        "HOME": str(home),
        "PATH": f"{path / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "OMP_NUM_THREADS": "1",  # tests run side by side
        "PYTHONDONTWRITEBYTECODE": "",
        "EVLGEN_DATA": str(real_sets.write(folder / "data")),
        "EVLGEN_WEIGHTS": str(real_weights.write(folder / "weights")),
    }
    for name in ("SLURM_CONF", "USER", "LOGNAME", "TMPDIR"):
        if name in os.environ:
            env[name] = os.environ[name]
    return Checkout(path, env)


def _set_up(path: Path) -> None:
    """What `make` would set up, out of the packages that the tests run with: nothing is installed there.

    Without pip, so that a `make` that wants to install something fails instead of doing so.
    """
    venv.create(path / ".venv", symlinks=True, with_pip=False)
    (packages,) = (path / ".venv").glob("lib/python*/site-packages")
    (packages / "evlgen.pth").write_text(f"{path}\n{sysconfig.get_path('purelib')}\n")
    files = [(path / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    key = subprocess.run(["cksum"], input=b"".join(files), capture_output=True, check=True).stdout.split()[0]
    for kind in ("base", "dev", "search"):
        (path / f".venv/.installed-{kind}-{key.decode()}").touch()


def _not_committed(folder: str, names: list[str]) -> set[str]:
    own = _MINE if Path(folder) == ROOT else set()
    return {name for name in names if name in own or name == "__pycache__" or name.endswith("_cache")}


@contextlib.contextmanager
def moved(path: Path, to: Path) -> Iterator[None]:
    """Something is elsewhere for a while."""
    path.rename(to)
    try:
        yield
    finally:
        to.rename(path)


def read(path: Path) -> Any:
    return json.loads(path.read_text())
