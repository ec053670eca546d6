"""Scoring: a damaged run is named and does not stop that of others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from evlgen import evaluation
from evlgen.config import RunConfig
from evlgen.metrics import CaptionScorer
from experiments.scales import evlgen
from sweeps import execute, store

OUTCOME = {"train_seconds": 1.0, "val_loss": 2.0}


def trained(config: RunConfig, predictions: str | None) -> Path:
    folder = store.prepare(store.run_id(config), config)
    store.write_json(folder / "outcome.json", OUTCOME)
    if predictions is not None:
        (folder / evaluation.PREDICTIONS).write_text(predictions)
    return folder


@pytest.mark.parametrize("predictions", [None, '{"captions": {"coco": {"0": "a re', '{"captions": {}}', "[]"])
def test_predictions_that_are_damaged_or_gone_are_made_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    predictions: str | None,
) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path))
    talks = evlgen("smoke")
    silent = dataclasses.replace(talks, evaluation=dataclasses.replace(talks.evaluation, sets=()))
    damaged, good = trained(talks, predictions), trained(silent, None)
    with CaptionScorer() as scorer:
        execute.finish({damaged.name: talks, good.name: silent}, scorer)
    assert store.is_complete(good)
    assert not store.is_complete(damaged)
    assert not (damaged / "outcome.json").exists()  # so that the same command evaluates it anew
    assert str(damaged / evaluation.PREDICTIONS) in capsys.readouterr().err
