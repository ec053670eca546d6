"""``make gpu-check`` without a GPU: every part of it, in tiny shapes, by the command that a user types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_page import PARTS, page, table
from evlgen.runtime.paths import ROOT


def checked(out: Path, *words: str, device: str = "cpu") -> tuple[int, str, dict[str, Any]]:
    """Exit code, what it printed, and what it wrote."""
    command = [sys.executable, "benchmarks/gpu_check.py", "--device", device, "--out", str(out), *words]
    environment = {**os.environ, "EVLGEN_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    written = list(out.glob("*.json"))
    return done.returncode, done.stdout + done.stderr, json.loads(written[0].read_text()) if written else {}


def test_every_part_passes(tmp_path: Path) -> None:
    code, said, record = checked(tmp_path, "--tiny")
    outcomes = {name: (part["outcome"], part["line"]) for name, part in record["parts"].items()}
    assert code == 0, said + str(outcomes)
    assert list(record["parts"]) == list(PARTS)
    assert {outcome for outcome, _ in outcomes.values()} == {"passed"}
    assert record["machine"]["torch"] == torch.__version__
    assert {row["bits"] for row in record["parts"]["resume"]["rows"]} == {"the same"}
    assert [row["connector"] for row in record["parts"]["parity"]["rows"]][:2] == ["TomeFormer", "Q-Former"]
    (written,) = tmp_path.glob("*.md")
    text = written.read_text()
    assert text == page(record)
    for title, _ in PARTS.values():
        assert title in text
    assert "| tomeformer, ours | tomeformer, reference |" in text
    assert "needs a GPU" in text  # what a CPU cannot do is said

    code, said, again = checked(tmp_path, "--tiny", "--only", "parity", "generate")
    assert (code, again) == (0, record), said  # what has passed is not done again
    assert "parity: has passed before" in said


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(tmp_path: Path) -> None:
    code, said, record = checked(tmp_path, "--tiny", "--only", "captioners", "generate", "--limit", "0.01")
    assert code == 1
    assert record["parts"]["captioners"]["outcome"] == "out of time"
    assert record["parts"]["smoke"]["outcome"] == "not begun"
    code, said, record = checked(tmp_path, "--tiny", "--only", "generate", "parity")
    assert code == 1
    parts = record["parts"]
    assert parts["generate"]["outcome"] == "failed"
    assert parts["generate"]["line"] == "there is no trained run: the part smoke makes it"
    assert parts["parity"]["outcome"] == "passed"
    assert parts["captioners"]["outcome"] == "out of time"  # as it was left
    assert "Traceback" not in said
    (written,) = tmp_path.glob("*.md")
    assert "| Captions from `from_run` | failed | there is no trained run" in written.read_text()


def test_mistakes_are_a_line(tmp_path: Path) -> None:
    code, said, _ = checked(tmp_path, "--only", "conectors")
    assert code == 2
    assert said.startswith("error: --only conectors: no such part; there are: smoke, ")
    assert said.rstrip().endswith("; did you mean connectors?")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_a_line(tmp_path: Path) -> None:
    code, said, _ = checked(tmp_path, "--tiny", device="cuda")
    assert code == 2
    assert said.startswith("error: --device cuda: ")
    assert not list(tmp_path.glob("*.json"))


def test_a_table_survives_its_cells() -> None:
    assert table([{"a": "x|y", "b": 1e-5}, {"a": "two\nlines"}]) == [
        "| a | b |",
        "| --- | --- |",
        r"| x\|y | 1e-05 |",
        "| two lines |  |",
    ]
