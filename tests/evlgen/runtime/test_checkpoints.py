"""Checkpoints after kills and full disks, one after the other."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from evlgen.errors import UserError
from evlgen.runtime import checkpoints
from evlgen.runtime.paths import ROOT

# Goes on from the newest checkpoint and writes one after the other until it is killed.
WRITER = """
import sys, torch
from pathlib import Path
from evlgen.runtime.checkpoints import load_checkpoint, save_checkpoint
folder = Path(sys.argv[1])
saved = load_checkpoint(folder)
step = 0 if saved is None else saved["step"]
print("goes on from", step, flush=True)
while True:
    step += 1
    save_checkpoint(folder, {"step": step, "weights": torch.full((250_000,), float(step))})
"""


def whole(saved: dict[str, object] | None) -> int:
    """Step of a checkpoint whose weights are those of this step."""
    assert saved is not None
    weights, step = saved["weights"], saved["step"]
    assert isinstance(weights, torch.Tensor)
    assert isinstance(step, int)
    assert torch.equal(weights, torch.full((250_000,), float(step)))
    return step


def test_kills_in_a_row_never_cost_the_last_good_checkpoint(tmp_path: Path) -> None:
    """SIGKILL at random moments of the writing, five times, each after a start that reads what is there."""
    moments, reached = random.Random(0), 0
    checkpoints.save_checkpoint(tmp_path, {"step": 1, "weights": torch.full((250_000,), 1.0)})
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        begun = int(writer.stdout.readline().split()[-1])
        assert begun >= max(reached, 1)
        time.sleep(moments.uniform(0.0, 0.15))
        writer.kill()
        writer.wait(30)
        step = whole(checkpoints.load_checkpoint(tmp_path))
        assert step >= begun
        reached = step


def test_interrupted_writes_in_a_row_leave_the_checkpoint_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full while the large file is written, again and again."""
    weights = torch.full((250_000,), 100.0)
    checkpoints.save_checkpoint(tmp_path, {"step": 100, "weights": weights})
    real = checkpoints.write_atomic

    def full(path: Path, data: bytes) -> str:
        if path.name == checkpoints.NEW:
            raise UserError(f"{path}: cannot be written (No space left on device)")
        return real(path, data)

    for attempt in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "write_atomic", full)
            with pytest.raises(UserError, match="No space left"):
                checkpoints.save_checkpoint(tmp_path, {"step": 200, "seconds": float(attempt)})
        assert whole(checkpoints.load_checkpoint(tmp_path)) == 100
    checkpoints.save_checkpoint(tmp_path, {"step": 200, "weights": torch.full((250_000,), 200.0)})
    assert whole(checkpoints.load_checkpoint(tmp_path)) == 200
    (tmp_path / checkpoints.CURRENT).write_bytes(b"damaged")
    assert whole(checkpoints.load_checkpoint(tmp_path)) == 100
