"""Settings of all tests.

Hypothesis does not time its examples, since machines differ. Tests marked ``slow`` (kills at many moments,
searches and foundation models from end to end, a real SLURM) run in continuous integration, where ``CI`` is
set, and by ``--slow``.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("evlgen", deadline=None)
settings.load_profile("evlgen")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow") or os.environ.get("CI"):
        return
    skip = pytest.mark.skip(reason="slow: runs in CI and with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
