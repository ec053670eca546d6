"""A run as the command makes it, for all tests of what is done with runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evlgen.runs.folder import OUTCOME

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of EVLGen's run of table 2, two updates long, with a few captions and answers."""
    place = tmp_path_factory.mktemp("made")
    changes = ('evaluation.sets=[["coco", 3], ["vqav2", 3]]', "optim.steps=2", "optim.warmup_steps=1")
    subprocess.run(
        [
            *(sys.executable, str(ROOT / "sweeps" / "run.py"), "table2", "--scale", "smoke", "--seeds", "1"),
            *("--rows", "EVLGen, OPT-2.7B"),
            *(argument for change in changes for argument in ("--set", change)),
        ],
        env={**os.environ, "EVLGEN_RUNS": str(place / "runs"), "EVLGEN_RESULTS": str(place / "results")},
        cwd=place,
        check=True,
        timeout=300,
    )
    (outcome,) = (place / "runs").glob(f"*/{OUTCOME}")
    return outcome.parent


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy under another name, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "copied"))
