from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sweeps import cluster as real
from tests.walk import checkout


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> checkout.Checkout:
    """One for all tests, which walk on from each other's places."""
    return checkout.make(tmp_path_factory.mktemp("walk"))


@pytest.fixture(scope="session")
def queue(tmp_path_factory: pytest.TempPathFactory, place: checkout.Checkout) -> Iterator[checkout.Checkout]:
    """The same checkout on a login node: commands find a real SLURM."""
    for cluster in real.running(tmp_path_factory):
        there = checkout.Checkout(place.path, {**place.env, "SLURM_CONF": str(cluster.folder / "slurm.conf")})
        yield there
