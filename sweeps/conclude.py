"""Conclude: score the runs that are trained, write the tables of those that are complete, judge claims."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from analysis.terminal import console
from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.evaluation.caption_scores import CaptionScorer
from evlgen.evaluation.scores import RunPredictions, lacking, score_runs, scorers_used
from evlgen.runs import folder as files
from evlgen.runs.identity import run_folder
from evlgen.runtime import paths
from experiments.scales import get
from sweeps.plan import Sweep, is_complete
from sweeps.show import show_examples, show_table


def conclude(sweep: Sweep, problems: Mapping[str, str] | None = None) -> int:
    """Write and show the table of what is complete; 0 if every run is.

    Where no run is, there is nothing to write, and a table that came with the checkout stays.
    """
    complete = sum(files.is_complete(paths.runs_folder() / run) for run in sweep.runs)
    where = "no table written"
    if complete:
        folder = write_table(sweep)
        show_table(sweep.table, sweep.scale)
        if sweep.experiment.examples:
            show_examples(sweep.experiment, sweep.experiment.examples)
        where = f"table in {os.path.relpath(folder)}/"
    for key, problem in (problems or {}).items():
        _show_problem(sweep, key, problem)
    console.print(f"{complete} of {len(sweep.runs)} runs complete; {where}", soft_wrap=True)
    return 0 if complete == len(sweep.runs) else 1


def nothing_failed(sweep: Sweep) -> int:
    """Say that there is nothing to try again; 0 if every run is complete."""
    complete = sum(files.is_complete(paths.runs_folder() / run) for run in sweep.runs)
    console.print(
        f"{complete} of {len(sweep.runs)} runs complete; none has failed, nothing to try again, "
        "no table written",
        soft_wrap=True,
    )
    return 0 if complete == len(sweep.runs) else 1


def _show_problem(sweep: Sweep, key: str, problem: str) -> None:
    """Row and seed, id, what went wrong, and where to read more; whole, however narrow the terminal."""
    name, more = key, ""
    if key in sweep.runs:
        name, more = f"{sweep.labels[key]} ({key})", f": see {paths.runs_folder() / key / files.LOG}"
    console.print(f"[red]{escape(f'{name} {problem}')}[/]{escape(more)}", soft_wrap=True, highlight=False)


# ---------------------------------------------------------------------------------------------- scores


def score(tell: Any, *runs: str) -> None:
    """Task: score those of the runs that are trained and have no result yet."""
    configs = {}
    for run in runs:
        folder = paths.runs_folder() / run
        config = files.read_config(folder)
        if config is not None and not files.is_complete(folder):
            configs[run] = config
    with CaptionScorer() as scorer:
        score_trained(configs, scorer)


def score_trained(runs: Mapping[str, RunConfig], scorer: CaptionScorer) -> None:
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
        files.write_result(paths.runs_folder() / run, metrics, scorers_used(config, metrics))


_KINDS = ("captions", "answers")  # of predictions


def read_predictions(folder: Path, config: RunConfig) -> RunPredictions:
    """Predictions of a run; empty for one that makes none (stage 1, or no evaluation sets).

    Raises:
        ValueError: the file is damaged, not whole, or not there though it should be.
        UserError: the data that the run was evaluated on are not there.
    """
    if config.stage != "caption" or not config.evaluation.sets:
        return RunPredictions()
    try:
        value = json.loads(files.verified(folder, files.PREDICTIONS).read_text("utf-8"))
        captions, answers = ({name: dict(texts) for name, texts in value[kind].items()} for kind in _KINDS)
    except FileNotFoundError:
        raise ValueError("is gone") from None
    except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise ValueError(f"damaged ({error})") from error
    found = RunPredictions(captions, answers, config.data)
    if lines := lacking(found, config):
        raise ValueError(f"not whole ({'; '.join(lines)})")
    return found


# ---------------------------------------------------------------------------------------------- tables


def write_table(sweep: Sweep) -> Path:
    """Write the tables of a sweep; returns their folder."""
    from analysis.results import collect  # these import scipy, which a look at the state does not need
    from analysis.tables import write_tables

    folder = paths.results_folder() / sweep.table / sweep.scale
    write_tables(collect(sweep.experiment, sweep.scale, table_seeds(sweep)), folder)
    return folder


def table_seeds(sweep: Sweep) -> int:
    """Seeds of a sweep's table: those asked for, and as many more as all rows have, up to those of claims.

    Where everything was run before, fewer would part the table from the claims and figures that rest on it.
    Records of an earlier behaviour count as long as those of the seeds asked for are shown, too.
    """
    seeds = sweep.seeds
    if sweep.changed:
        return seeds
    or_earlier = not all(is_complete(sweep.experiment, seed) for seed in range(seeds))
    while seeds < get(sweep.scale).claim_seeds and all(
        is_complete(sweep.experiment, seed, or_earlier) for seed in range(seeds + 1)
    ):
        seeds += 1
    return seeds


# ---------------------------------------------------------------------------------------------- claims


def judge(scale: str, seeds: int | None, changed: bool) -> None:
    """Judge the paper's claims.

    Args:
        seeds: of each row; None: those of the scale.
        changed: the runs are not those that claims are about (``--set``, ``--rows``): then none is judged.
    """
    if changed:
        console.print("claims not judged: they are about all rows as they stand, without --set and --rows")
        return
    from analysis.claims import files as claims_files  # these import scipy, as above
    from analysis.claims.judging import judge as judge_all

    claims = judge_all(scale, seeds)
    claims_files.show(claims, scale, claims_files.write(claims, scale))
