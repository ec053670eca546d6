"""Scoring: a damaged run is named and does not stop that of others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from evlgen.config import RunConfig
from evlgen.evaluation.caption_scores import CaptionScorer
from evlgen.runs import folder as files
from experiments.scales import blip2, evlgen
from sweeps import conclude

OUTCOME = {"train_seconds": 1.0, "val_loss": 2.0}


def trained(config: RunConfig, predictions: str | None) -> Path:
    folder = files.prepare(config)
    if predictions is not None:
        (folder / files.PREDICTIONS).write_text(predictions)
    files.write_outcome(folder, OUTCOME)
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
        conclude.score_trained({damaged.name: talks, good.name: silent}, scorer)
    assert files.is_complete(good)
    assert not files.is_complete(damaged)
    assert not (damaged / "outcome.json").exists()  # so that the same command evaluates it anew
    assert str(damaged / files.PREDICTIONS) in capsys.readouterr().err


def test_a_run_whose_stage_1_is_gone_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path))
    config = blip2("smoke")
    assert config.init_from is not None
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, sets=()))
    second, other = trained(config, None), trained(dataclasses.replace(config, init_from=None), None)
    with CaptionScorer() as scorer:
        conclude.score_trained({second.name: config}, scorer)
        assert not files.is_complete(second)
        assert "not scored" in capsys.readouterr().err
        trained(config.init_from, None)
        conclude.score_trained(
            {second.name: config, other.name: dataclasses.replace(config, init_from=None)}, scorer
        )
    totals = [files.read_json(folder / "result.json") for folder in (second, other)]
    assert [total["metrics"]["total_seconds"] for total in totals if total] == [2.0, 1.0]
