"""Kept predictions scored again, without a model: ``run.py rescore``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from evlgen.config import RunConfig
from evlgen.evaluation.caption_scores import CaptionScorer
from evlgen.evaluation.scores import score_runs, scorers_of
from evlgen.runs import behaviour
from evlgen.runs import folder as files
from evlgen.runtime import paths
from sweeps.conclude import read_predictions


@dataclass
class Rescored:
    """What became of complete runs: ids of those scored again, of those whose scores are of today's scorers
    already, and of those whose predictions were not kept or are damaged."""

    again: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)


def rescore(runs: Mapping[str, RunConfig], everything: bool = False) -> Rescored:
    """Score the predictions of complete runs again where a scorer has changed since; nothing is trained.

    What training has measured stays as it is.

    Args:
        everything: also those whose scorers have not changed.
    """
    done = Rescored()
    wanted = {}
    for run, config in runs.items():
        folder = paths.runs_folder() / run
        result = files.read_result(folder) if files.is_complete(folder) else None
        if result is None or config.stage != "caption" or not config.evaluation.sets:
            continue
        now = {name: behaviour.SCORERS.get(name, 1) for name in result["scorers"]}
        if result["scorers"] == now and not everything:
            done.current.append(run)
            continue
        outcome = files.outcome_if_whole(folder)
        try:
            predictions = read_predictions(folder, config)
        except ValueError as error:
            print(f"{folder / files.PREDICTIONS}: {error}: its scores stay as they are", file=sys.stderr)
            done.unscored.append(run)
            continue
        if outcome is not None:
            wanted[run] = (config, outcome["metrics"], result["metrics"], predictions)
    with CaptionScorer() as scorer:
        scores = score_runs([predictions for *_, predictions in wanted.values()], scorer)
    for (run, (config, outcome, before, _)), scored in zip(wanted.items(), scores, strict=True):
        metrics = {**outcome, **scored, "total_seconds": before["total_seconds"]}
        files.write_result(paths.runs_folder() / run, metrics, scorers_of(config))
        done.again.append(run)
    return done
