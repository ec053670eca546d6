"""Execute: the runs of a sweep that are not finished, on this machine."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from analysis.terminal import console
from evlgen.config import RunConfig
from evlgen.evaluation.caption_scores import CaptionScorer
from evlgen.runs import folder as files
from evlgen.runtime import paths
from sweeps import local, requirements, room
from sweeps.conclude import score_trained
from sweeps.display import Display
from sweeps.plan import Sweep, feature_tasks, first_stages, run_task, unfinished, works


def run_here(sweep: Sweep, workers: int, failed_only: bool = False) -> dict[str, str] | None:
    """Train, evaluate and score what is missing; returns what went wrong, by run; None: none has failed.

    Args:
        failed_only: only the runs that have failed, and what they need or have blocked.
    """
    missing = unfinished(sweep.runs)
    announce(sweep, len(missing))
    if failed_only:
        missing = _failed(missing)
        if not missing:
            return None
    configs = list(missing.values())
    said, no_room = room.features(configs)
    more = [*requirements.of_this_machine(configs), *([no_room] if no_room else [])]
    requirements.check(configs, sweep.scale, more)
    if said:
        console.print(said, soft_wrap=True)
    return _execute(missing, sweep.labels, workers) if missing else {}


def announce(sweep: Sweep, missing: int) -> None:
    """A line on what is about to be done."""
    total = len(sweep.runs)
    console.print(
        f"[bold]{escape(sweep.experiment.title)}[/] at scale {sweep.scale}: {total} runs, "
        f"{total - missing} complete",
        soft_wrap=True,
    )


def _failed(missing: Mapping[str, RunConfig]) -> dict[str, RunConfig]:
    root = paths.runs_folder()
    failed = {run for run in missing if (root / run / files.ERROR).exists()}
    first_of = first_stages(missing)
    failed |= {run for run, first in first_of.items() if first in failed}  # they were blocked by it
    failed |= {first_of[run] for run in failed & first_of.keys()}
    return {run: config for run, config in missing.items() if run in failed}


def _execute(runs: Mapping[str, RunConfig], labels: Mapping[str, str], workers: int) -> dict[str, str]:
    tasks = feature_tasks(runs.values())
    here = {task.key for task in tasks} | runs.keys()
    for run, config in runs.items():
        files.prepare(config)
        task = run_task(run, config)
        tasks.append(dataclasses.replace(task, needs=tuple(need for need in task.needs if need in here)))
    random.Random(os.getpid()).shuffle(tasks)  # launchers side by side should not all want the same run next

    problems: dict[str, str] = {}
    with Display(works(tasks, runs, labels), workers) as display, CaptionScorer() as scorer:
        if any(config.evaluation.sets for config in runs.values()):
            scorer.start()  # METEOR takes its time to start: meanwhile the runs train

        def event(kind: str, key: str, detail: Any) -> None:
            display.event(kind, key, detail)
            if kind == "blocked":
                problems[key] = "blocked: what it needs has failed"
            elif kind == "stopped":
                problems[key] = "stopped: the same command resumes it"
            elif kind == "failed":
                problems[key] = f"failed: {str(detail).strip().splitlines()[-1]}"
                if key in runs:
                    files.write_json(paths.runs_folder() / key / files.ERROR, {"error": str(detail)})

        local.execute(tasks, workers, event)
        score_trained({run: config for run, config in runs.items() if run not in problems}, scorer)
    return problems
