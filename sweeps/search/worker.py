"""A worker of a search: trial after trial of its studies, until the asked number has ended."""

from __future__ import annotations

import os
import socket
import time
import uuid
from typing import Any

from evlgen.evaluation.caption_scores import CaptionScorer
from sweeps import leases
from sweeps.plan import feature_needs
from sweeps.search.arguments import Arguments
from sweeps.search.study import (
    Rules,
    Tell,
    held,
    next_trial,
    open_storage,
    open_study,
    quiet,
    run_trial,
    to_go,
)
from sweeps.search.targets import study_name, targets
from sweeps.worker import cache_features

_WAIT_SECONDS = 1.0  # between two looks at what other workers have


def work(tell: Tell, settings: dict[str, Any]) -> None:
    """Task: be a worker.

    A worker of a launcher waits for the trials that others have, and takes over those of one that dies; a
    worker of its own (``--worker``) gives its place in the queue back instead.

    Args:
        settings: `Arguments` as a dict.
    """
    arguments = Arguments(**settings)
    quiet()
    folder = arguments.folder
    rules = Rules(arguments.minimised, arguments.pruner, arguments.seed)
    me = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with held(folder / me), CaptionScorer() as scorer:
        with leases.turn(folder / "turn"):
            storage = open_storage(arguments.place)
        goals, found = targets(arguments), []
        for target in goals:
            with leases.turn(folder / "turn"):
                found.append(open_study(study_name(arguments, target), target, rules, storage))
        while True:
            for target, study in zip(goals, found, strict=True):
                for need in feature_needs(target.base):
                    cache_features(tell, *need)
                while (trial := next_trial(study, target, arguments.trials, folder, me)) is not None:
                    run_trial(study, trial, target, rules, scorer, tell)
            if arguments.worker or to_go(arguments.trials, list(found)) == 0:
                return
            time.sleep(_WAIT_SECONDS)


def print_ended(message: tuple[str, str, Any]) -> None:
    """For a worker that has no launcher: print how its trials ended."""
    kind, key, detail = message
    if kind == "done":
        print(f"{key}, {detail}", flush=True)
