"""What a worker process does: cache features, or execute one run from its folder."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evlgen.config import from_json
from sweeps import store
from sweeps.provenance import peak_memory_mib, provenance

Tell = Callable[[Any], None]


def cache_features(tell: Tell, pool: str, size: int, vision: str, views: int) -> None:
    """Make sure that the features of a pool's first images are in the cache."""
    from evlgen.cpu import prepare_worker
    from evlgen.data import features

    prepare_worker()
    features.ensure(pool, size, vision, views)


def execute_run(tell: Tell, folder_name: str, init_folder: str | None) -> None:
    """Train and evaluate the run in the folder, and write its ``outcome.json``; it logs to ``log.txt``."""
    from evlgen import diagnostics, evaluation, training
    from evlgen.cpu import prepare_worker
    from evlgen.data.pairs import load_training_data

    prepare_worker()

    folder = Path(folder_name)
    stored = store.read_json(folder / "config.json")
    assert stored is not None
    config = from_json(stored)
    while (claim := store.claim(folder)) is None:
        time.sleep(0.5)  # another launcher is at this run: wait for what it makes of it
    with (
        (folder / "log.txt").open("a", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        handler = logging.StreamHandler(log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.INFO)
        started = time.time()
        try:
            if store.read_if_whole(folder / "outcome.json") is None:
                first = None if init_folder is None else Path(init_folder)
                summary = training.train(config, folder, load_training_data(config), tell, first)
                if config.stage == "caption" and config.evaluation.sets:
                    evaluation.evaluate(config, folder, tell)
                peak = peak_memory_mib()
                measured = {
                    "state": diagnostics.classify(training.read_metrics(folder)),
                    "peak_memory_gib": peak / 1024,
                }
                store.write_json(
                    folder / "provenance.json",
                    provenance()
                    | {
                        "seed": config.seed,
                        "started": started,
                        "wall_seconds": time.time() - started,
                        "peak_memory_mib": peak,
                    },
                )
                store.write_json(folder / "outcome.json", {**summary, **measured})
        except Exception:
            traceback.print_exc()
            raise
        finally:
            logging.getLogger().removeHandler(handler)
            claim.release()
