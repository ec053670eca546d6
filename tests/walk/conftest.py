from __future__ import annotations

import pytest

from tests.walk import checkout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> checkout.Checkout:
    """One for all tests of a module, which walk on from each other's places."""
    return checkout.make(tmp_path_factory.mktemp("walk"))
