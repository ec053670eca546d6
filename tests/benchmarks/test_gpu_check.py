"""``make gpu-check`` without a GPU: every part of it, in tiny shapes, by the command that a user types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_page import PARTS, page, table
from evlgen.runtime.paths import ROOT


def checked(out: Path, *words: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what it printed, and what it wrote."""
    command = [sys.executable, "benchmarks/gpu_check.py", "--device", "cpu", "--out", str(out), *words]
    environment = {**os.environ, "EVLGEN_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    written = list(out.glob("*.json"))
    return done.returncode, done.stdout + done.stderr, json.loads(written[0].read_text()) if written else {}


def test_what_fails_or_hangs_does_not_stop_the_others_and_is_done_the_next_time(tmp_path: Path) -> None:
    code, said, record = checked(tmp_path, "--tiny", "--only", "smoke", "generate", "parity", "--limit", "4")
    parts = record["parts"]
    assert code == 1
    assert parts["smoke"]["outcome"] == "out of time"
    assert parts["generate"]["outcome"] == "failed"
    assert parts["generate"]["line"] == "there is no trained run: the part smoke makes it"
    assert parts["parity"]["outcome"] == "passed", said
    assert parts["captioners"]["outcome"] == "not begun"
    assert "Traceback" not in said
    (written,) = tmp_path.glob("*.md")
    assert "| Captions from `from_run` | failed | there is no trained run" in written.read_text()

    code, said, record = checked(tmp_path, "--tiny")
    outcomes = {name: (part["outcome"], part["line"]) for name, part in record["parts"].items()}
    assert code == 0, said + str(outcomes)
    assert "parity: has passed before" in said
    assert list(record["parts"]) == list(PARTS)
    assert {outcome for outcome, _ in outcomes.values()} == {"passed"}
    assert record["machine"]["torch"] == torch.__version__
    assert {row["bits"] for row in record["parts"]["resume"]["rows"]} == {"the same"}
    assert [row["connector"] for row in record["parts"]["parity"]["rows"]][:2] == ["TomeFormer", "Q-Former"]
    text = written.read_text()
    assert text == page(record)
    for title, _ in PARTS.values():
        assert title in text
    assert "| tomeformer, ours | tomeformer, reference |" in text
    assert "needs a GPU" in text  # what a CPU cannot do is said


def test_mistakes_are_a_line(tmp_path: Path) -> None:
    code, said, _ = checked(tmp_path, "--only", "conectors")
    assert code == 2
    assert said.startswith("error: --only conectors: no such part; there are: smoke, ")
    assert said.rstrip().endswith("; did you mean connectors?")


def test_a_table_survives_its_cells() -> None:
    assert table([{"a": "x|y", "b": 1e-5}, {"a": "two\nlines"}]) == [
        "| a | b |",
        "| --- | --- |",
        r"| x\|y | 1e-05 |",
        "| two lines |  |",
    ]
