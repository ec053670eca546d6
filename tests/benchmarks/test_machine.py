"""A process's peak memory is its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import torch
from benchmarks.machine import peak_memory_mib
print(peak_memory_mib(torch.device("cpu")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_the_peak_of_a_child_is_not_that_of_its_parent() -> None:
    ballast = b"x" * (1 << 30)
    output = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(ballast) / 2**20 > float(output.stdout) > 50
