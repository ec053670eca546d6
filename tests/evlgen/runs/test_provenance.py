"""What a result's origin is told by."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from evlgen.runs import checkout as checkout_of_code
from evlgen.runs import folder as files
from evlgen.runs import provenance
from evlgen.runs.folder import CONNECTOR
from evlgen.runs.identity import identify
from evlgen.runtime.sources import fingerprint_of_weights
from experiments.scales import blip2_stage1, evlgen


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one commit, in the place of the project's."""
    monkeypatch.setattr(checkout_of_code, "ROOT", tmp_path)
    (tmp_path / "model.py").write_text("one\n")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for cached in (provenance.provenance, checkout_of_code.code_state):
        cached.cache_clear()
    yield tmp_path
    for cached in (provenance.provenance, checkout_of_code.code_state):
        cached.cache_clear()


def test_a_clean_checkout_has_no_difference(checkout: Path) -> None:
    told = provenance.provenance()
    assert len(told["git_commit"]) == 40
    assert (told["git_dirty"], told["git_diff_sha256"]) == (False, None)
    assert {"torch", "numpy", "pytest"} <= told["packages"].keys()
    assert all(isinstance(version, str) for version in told["packages"].values())
    assert told["cores"] >= 1


def test_the_difference_from_the_commit_is_kept_and_hashed(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "model.py").write_bytes(b"two \xff\n")  # no valid text
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / CONNECTOR).write_bytes(b"weights")
    config = evlgen("smoke")
    provenance.write_provenance(folder, config, identify(config), "data", {"wall_seconds": 1.0})
    told = files.read_json(folder / "provenance.json")
    assert told is not None
    diff = (folder / provenance.DIFF).read_bytes()
    assert b"-one\n" in diff
    assert b"+two" in diff
    assert told["git_diff_sha256"] == hashlib.sha256(diff).hexdigest()
    assert told["weights_sha256"] == {
        "vision": fingerprint_of_weights("mini-vit"),
        "language": fingerprint_of_weights("mini-opt"),
        "connector": hashlib.sha256(b"weights").hexdigest(),
    }
    assert (told["seed"], told["data_sha256"], told["wall_seconds"]) == (0, "data", 1.0)
    monkeypatch.setattr(provenance, "_DIFF_BYTES", 10)
    stage1 = blip2_stage1("smoke")
    provenance.write_provenance(folder, stage1, identify(stage1), "data", {})
    assert not (folder / provenance.DIFF).exists()  # a file's difference is kept whole or not at all
    told = files.read_json(folder / "provenance.json")
    assert told is not None
    assert told["git_diff_sha256"] == hashlib.sha256(diff).hexdigest()
    assert told["git_diff_left_out"] == ["diff --git a/model.py b/model.py"]
    assert "language" not in told["weights_sha256"]


def test_energy_is_read_where_the_kernel_counts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_POWERCAP", tmp_path)
    assert provenance.Meter().read()["energy_joules"] is None
    for zone, energy in (("intel-rapl:0", "9000000"), ("intel-rapl:1", "5000000"), ("intel-rapl:0:0", "7")):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(energy + "\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("10000000\n")
    meter = provenance.Meter()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2000000\n")  # it has passed its limit
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("5500000\n")
    measured = meter.read()
    assert measured["energy_joules"] == pytest.approx({"cpu0": 3.0, "cpu1": 0.5})
    assert measured["peak_memory_mib"] > 10
    assert 0 <= measured["wall_seconds"] < 60


def test_what_stopped_attempts_have_cost_counts() -> None:
    """Times and energies add up, of memory the most counts."""
    first = provenance.Meter().read() | {"wall_seconds": 2.0, "peak_memory_mib": 30.0, "started": 5.0}
    second = first | {"wall_seconds": 3.0, "peak_memory_mib": 20.0, "started": 9.0}
    second |= {"peak_gpu_memory_mib": 7.0, "energy_joules": {"gpu0": 4.0}}
    total = provenance.over_attempts(None, first)
    assert (total["attempts"], total["wall_seconds"]) == (1, 2.0)
    for _ in range(2):
        total = provenance.over_attempts(total, second)
    assert (total["attempts"], total["wall_seconds"], total["started"]) == (3, 8.0, 5.0)
    assert (total["peak_memory_mib"], total["peak_gpu_memory_mib"]) == (30.0, 7.0)
    assert total["energy_joules"] == {"gpu0": 8.0}
