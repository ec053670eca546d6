"""Kept predictions scored again, without a model: ``run.py rescore``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.evaluation.caption_scores import CaptionScorer
from evlgen.evaluation.placed_scores import PLACED
from evlgen.evaluation.scores import score_runs, scorers_of, scorers_used
from evlgen.runs import folder as files
from evlgen.runtime import paths
from sweeps.conclude import read_predictions


@dataclass
class Rescored:
    """What became of complete runs: ids of those scored again, of those whose scores are of today's scorers
    already, and of those whose predictions or measurements are gone or damaged."""

    again: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)


def rescore(runs: Mapping[str, RunConfig], everything: bool = False) -> Rescored:
    """Score the predictions of complete runs again where a scorer has changed since; nothing is trained.

    What training has measured stays as it is. Where a file is damaged or gone, so do the scores.

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
        if result["scorers"] == result["scorers"] | scorers_of(config) and not everything:
            done.current.append(run)
            continue
        try:
            outcome = files.read_outcome(folder)
            if outcome is None:
                raise UserError(f"{folder / files.OUTCOME}: is gone")
            predictions = read_predictions(folder, config)
        except (UserError, ValueError) as error:
            what = error if isinstance(error, UserError) else f"{folder / files.PREDICTIONS}: {error}"
            print(f"{what}: its scores stay as they are", file=sys.stderr)
            done.unscored.append(run)
            continue
        wanted[run] = (config, outcome["metrics"], result, predictions)
    with CaptionScorer() as scorer:
        scores = score_runs([predictions for *_, predictions in wanted.values()], scorer)
    for (run, (config, outcome, result, _)), scored in zip(wanted.items(), scores, strict=True):
        before, numbers = result["metrics"], result["scorers"]
        kept, scorers = _of_absent_models(config, before, scored, numbers)
        metrics = {**outcome, **kept, **scored, "total_seconds": before["total_seconds"]}
        files.write_result(paths.runs_folder() / run, metrics, scorers | scorers_used(config, metrics))
        done.again.append(run)
    return done


def _of_absent_models(
    config: RunConfig, before: Mapping[str, Any], scored: Mapping[str, float], numbers: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Scores by models that are not on this machine stay, with the numbers of their scorers."""
    there = scorers_of(config)
    absent = [name for name in PLACED if name in numbers and name not in there]
    ends = {metric for name in absent for metric in PLACED[name]}
    kept = {
        name: value
        for name, value in before.items()
        if name.rpartition("/")[2] in ends and name not in scored
    }
    return kept, {name: numbers[name] for name in absent}
