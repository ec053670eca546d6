"""The paper's scale through a real SLURM, as README and docs/CLUSTER.md say it."""

from __future__ import annotations

import pytest

from evlgen.runtime.files import sha256_of
from tests.walk.checkout import Checkout, settings

pytestmark = pytest.mark.xdist_group("walk")
WORDS = ("table1", "--scale", "paper", "--rows", "EVLGen, 104M, 250K")


def test_a_row_through_the_queue_has_the_bits_of_one_made_here(queue: Checkout, place: Checkout) -> None:
    """Indexers and decoders are processes of a worker of a job."""
    queue.bash(
        "cp clusters/example.toml my.toml && sed -i 's/^cpus = 0/cpus = 2/; s/^time = .*/time = 20/' my.toml"
    )
    words, small = (
        (*WORDS, *settings()),
        {"EVLGEN_RUNS": "runs of the queue", "EVLGEN_CACHE": "cache of the queue"},
    )
    asked = ("--executor", "slurm", "--cluster", "my.toml")
    said = queue.run(*words, *asked, "--dry-run", **small)
    assert "SLURM: each run has 1 process on 1 node" in said
    queue.run(*words, *asked, expect=3, **small)
    said = queue.run("wait", *words, **small)
    assert "1 of 1 runs complete" in said
    place.run(*words)
    (there,) = (place.path / "runs of the queue").glob("*/result.json")
    here = place.runs / there.parent.name
    for name in ("connector.safetensors", "predictions.json"):
        assert sha256_of(there.parent / name) == sha256_of(here / name), name
    log = (there.parent / "log.txt").read_text()
    assert "indexing 2 files" in log
