"""Progress on a terminal of the usual 80 columns."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from evlgen.runtime.progress import Progress
from sweeps import display
from sweeps.forecast import Work


def test_bars_name_rows_and_seeds_and_what_is_left_and_no_number_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=screen, force_terminal=True, width=80, height=40))
    works = {
        "0123456789ab-01234567": Work("EVLGen, Vicuna-7B, seed 2", 16_000.0, 60.0),
        "ba9876543210-76543210": Work("BLIP-2, two stages, 104M, 250K + 80K, seed 2", 16_000.0, 60.0),
    }
    with display.Display(works, 1) as shown:
        for key in works:
            shown.event("start", key, None)
            shown.event("progress", key, Progress("train", 120_000, 250_000, 2.3456, 12_345.6))
        shown._progress.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "EVLGen, Vicuna" in text
    assert "120000/250000" in text
    assert "training, loss 2.346, 12346 samples/s" in text
    assert re.search(r"sweep +\S+ +0/2 +about (\d+ s|\d+ min) left", text)
    assert "…" not in text
    assert not any(key in text for key in works)
