"""Today's values of all golden cases are those in golden.json, or a number was raised."""

from __future__ import annotations

import pytest
import torch

from evlgen.runs.behaviour import COMPONENTS
from tests.golden import book, measure

pytestmark = pytest.mark.xdist_group("golden")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in measure.write_files(root).items():
            patch.setenv(name, value)
        patch.setattr(torch.cuda, "is_available", lambda: False)  # a GPU draws other random numbers
        torch.set_num_threads(1)
        yield book.measured(root)
        torch.set_num_threads(threads)


def test_values_and_numbers_agree(measured):
    assert book.BOOK.problems(book.BOOK.read(), measured, COMPONENTS) == []
