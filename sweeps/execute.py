"""Runs executed on this machine, and the scoring of what they say."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from evlgen.config import RunConfig, from_json
from evlgen.errors import UserError
from evlgen.evaluation.caption_scores import CaptionScorer
from evlgen.evaluation.scores import RunPredictions, score_runs, scorers_of
from evlgen.runs import folder as files
from evlgen.runs.identity import run_folder
from evlgen.runtime import paths
from sweeps import local
from sweeps.display import Display
from sweeps.plan import feature_tasks, run_task


def execute(runs: dict[str, RunConfig], workers: int) -> dict[str, str]:
    """Train, evaluate and score runs; returns what went wrong, by run."""
    tasks = feature_tasks(runs.values())
    here = {task.key for task in tasks} | runs.keys()
    for run, config in runs.items():
        files.prepare(config)
        task = run_task(run, config)
        tasks.append(dataclasses.replace(task, needs=tuple(need for need in task.needs if need in here)))
    random.Random(os.getpid()).shuffle(tasks)  # launchers side by side should not all want the same run next
    return _run_tasks(tasks, runs, workers)


def _run_tasks(tasks: list[local.Task], runs: dict[str, RunConfig], workers: int) -> dict[str, str]:
    """Execute tasks under a progress display, then score; returns what went wrong, by run."""
    problems: dict[str, str] = {}
    with Display(len(tasks)) as display, CaptionScorer() as scorer:
        if any(config.evaluation.sets for config in runs.values()):
            scorer.start()  # METEOR takes its time to start: meanwhile the runs train

        def event(kind: str, key: str, detail: Any) -> None:
            display.event(kind, key, detail)
            if kind == "blocked":
                problems[key] = "blocked: what it needs has failed"
            elif kind == "stopped":
                problems[key] = "was told to stop: the same command goes on"
            elif kind == "failed":
                problems[key] = f"failed: {str(detail).strip().splitlines()[-1]}"
                if key in runs:
                    files.write_json(paths.runs_folder() / key / files.ERROR, {"error": str(detail)})

        local.execute(tasks, workers, event)
        finish({run: config for run, config in runs.items() if run not in problems}, scorer)
    return problems


def score(tell: Any, *runs: str) -> None:
    """Task: score those of the runs that are trained and have no result yet."""
    configs = {}
    for run in runs:
        folder = paths.runs_folder() / run
        stored = files.read_if_whole(folder / files.CONFIG)
        if stored is not None and not files.is_complete(folder):
            configs[run] = from_json(stored)
    with CaptionScorer() as scorer:
        finish(configs, scorer)


def finish(runs: dict[str, RunConfig], scorer: CaptionScorer) -> None:
    """Score all runs that are trained in one batch and write their ``result.json``."""
    trained = {}
    for run, config in runs.items():
        folder = paths.runs_folder() / run
        outcome = files.outcome_if_whole(folder)
        if outcome is None:
            continue
        try:
            trained[run] = (config, outcome["metrics"], read_predictions(folder, config))
        except ValueError as error:
            print(f"{folder / files.PREDICTIONS}: {error}: the same command makes it again", file=sys.stderr)
            (folder / files.OUTCOME).unlink()
    scores = score_runs([predictions for _, _, predictions in trained.values()], scorer)
    for (run, (config, outcome, _)), scored in zip(trained.items(), scores, strict=True):
        metrics = {**outcome, **scored}
        metrics["total_seconds"] = metrics["train_seconds"]
        if config.init_from is not None:  # the cost of stage 1 counts
            first = run_folder(config.init_from)
            earlier = files.outcome_if_whole(first)
            if earlier is None:  # removed since; without it the cost is unknown
                print(
                    f"{run}: not scored: {first / files.OUTCOME} is gone; the same command makes it again",
                    file=sys.stderr,
                )
                continue
            metrics["total_seconds"] += earlier["metrics"]["train_seconds"]
        files.write_result(paths.runs_folder() / run, metrics, scorers_of(config))


def read_predictions(folder: Path, config: RunConfig) -> RunPredictions:
    """What a run said; empty for one that says nothing (stage 1, or no evaluation sets).

    Raises:
        ValueError: the file is damaged, or not there though it should be.
    """
    if config.stage != "caption" or not config.evaluation.sets:
        return RunPredictions()
    try:
        value = json.loads(files.verified(folder, files.PREDICTIONS).read_text())
        return RunPredictions(value["captions"], value["answers"], config.data)
    except FileNotFoundError:
        raise ValueError("is gone") from None
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise ValueError(f"damaged ({error})") from error
