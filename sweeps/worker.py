"""What a worker process does: cache features, or execute one run from its folder.

Importing this imports torch: launchers name its functions and leave the import to their workers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from evlgen import training
from evlgen.collapse import classify
from evlgen.config import Conventions, RunConfig
from evlgen.data import features, worlds
from evlgen.data.batches import load_training_data
from evlgen.errors import UserError
from evlgen.evaluation import decoding, inspection
from evlgen.runs import folder as files
from evlgen.runs.checkout import code_state
from evlgen.runs.identity import identify
from evlgen.runs.provenance import Meter, over_attempts, write_provenance
from evlgen.runtime.cpu import prepare_worker
from evlgen.runtime.device import chosen
from evlgen.runtime.distributed import init_from_environment
from evlgen.runtime.progress import Stop
from sweeps import leases, local

Tell = Callable[[Any], None]
_MEASURED = "measured.json"  # of the attempts that were stopped


def cache_features(
    tell: Tell, pool: str, size: int, vision: str, views: int, world: str, conventions: Conventions
) -> None:
    """Make sure that the features of a pool's first images are in the cache."""
    prepare_worker()
    _take_gpu()
    features.ensure(pool, size, vision, views, world, conventions)


def execute_run(tell: Tell, folder_name: str, init_folder: str | None) -> None:
    """Train and evaluate the run in the folder, and write its ``outcome.json``; it logs to ``log.txt``.

    Raises:
        Stopped: this worker was asked to stop; the training has left a checkpoint.
        UserError: the run that this one starts from has not been trained.
    """
    prepare_worker()
    disable_progress_bar()  # its lock would be called leaked at the end of a process that others wait for
    folder = Path(folder_name)
    config = files.read_config(folder)
    assert config is not None
    files.check_id(folder, config)
    if os.environ.get("RANK", "0") != "0":  # rank 0 has the claim, the log and the last word
        if not _is_trained(folder, config):
            try:
                _train(config, folder, tell, init_folder)
            except Stop:
                raise local.Stopped from None
        return
    pause = 0.05  # Another launcher may be at this run: then wait for what it makes of it.
    while (claim := leases.claim(folder, devices=int(os.environ.get("WORLD_SIZE", "1")))) is None:
        if local.stopping():
            raise local.Stopped
        time.sleep(pause := min(1.3 * pause, 5.0))

    def report(progress: Any) -> None:
        claim.note |= {
            "phase": progress.phase,
            "step": progress.step,
            "steps": progress.steps,
            "rate": progress.rate,
        }
        if claim.lost:
            logging.getLogger(__name__).error("another process has this run now, since this one seemed dead")
            raise local.Stopped  # not a failure of the run, which goes on there
        if local.stopping():
            raise Stop
        tell(progress)

    outcome = "failed"
    try:
        with _logged(folder / "log.txt"):
            if not _is_trained(folder, config):
                _execute(config, folder, report, init_folder)
        outcome = "done"
    except Stop:
        outcome = "stopped"
        raise local.Stopped from None
    finally:
        claim.release(outcome)


def _is_trained(folder: Path, config: RunConfig) -> bool:
    return files.outcome_if_whole(folder) is not None and not files.lacks_weights(folder, config)


def _execute(config: RunConfig, folder: Path, report: Tell, init_folder: str | None) -> None:
    code_state()  # remembered: the checkout may be another when the training is over
    meter, earlier = Meter(), files.read_if_whole(folder / _MEASURED)
    try:
        summary, data = _train(config, folder, report, init_folder)
        if config.stage == "caption" and config.evaluation.sets:
            decoding.evaluate(config, folder, report)
        inspected = inspection.inspect(config, folder) if config.stage == "caption" else {}
    except Stop:
        files.write_json(folder / _MEASURED, over_attempts(earlier, meter.read()))
        raise
    measured = over_attempts(earlier, meter.read())
    if left_out := worlds.left_out(config):
        measured["left_out"] = left_out
        summary["left_out"] = sum(number for counts in left_out.values() for number in counts.values())
    write_provenance(folder, config, identify(config), data, measured)
    state = classify(files.read_metrics(folder))
    peak = {"peak_memory_gib": measured["peak_memory_mib"] / 1024}
    files.write_outcome(folder, {**summary, **inspected, "state": state, **peak})


def _train(
    config: RunConfig, folder: Path, report: Tell, init_folder: str | None
) -> tuple[dict[str, float], str]:
    """Summary of the training, and fingerprint of its data."""
    first = None if init_folder is None else Path(init_folder)
    if first is not None:
        if files.outcome_if_whole(first) is None:
            raise UserError(f"{first.name}: has not been trained, and {folder.name} starts from it")
        _check_weights(first)
    _take_gpu()
    data = load_training_data(config)
    if os.environ.get("RANK", "0") == "0":
        for pool in worlds.pools_of(config):  # a damaged file shall not show after days of training
            worlds.of(config.data).count(pool)
        if config.stage == "caption" and not (folder / files.METRICS).exists():
            worlds.check_images(config)
            decoding.check_questions(config, data.validation.features.shape[-2])
    if os.environ.get("WORLD_SIZE", "1") != "1" and not torch.distributed.is_initialized():
        init_from_environment()
    return training.train(config, folder, data, report, first), data.fingerprint


def _check_weights(first: Path) -> None:
    """The weights of the stage 1 in a folder are those that its training wrote.

    Raises:
        UserError: they are missing or damaged; the next sweep trains it again.
    """
    stage1 = files.read_config(first)
    if stage1 is None or files.lacks_weights(first, stage1):
        raise UserError(f"{first}: has no whole weights to start from; the same command trains it again")


def _take_gpu() -> None:
    """Of the machine's GPUs this process's own, or one that several share; before anything is put on a GPU.

    The processes of one run are as many as the GPUs, or `evlgen.runtime.distributed.init_from_environment`
    refuses. Runs side by side may be more.
    """
    if chosen().type == "cuda":
        count = torch.cuda.device_count()
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", local.number())) % count)


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What is printed and logged goes to a file, a failure's traceback as well."""
    with (
        path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        handler = logging.StreamHandler(log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.INFO)
        try:
            yield
        except Stop:
            logging.getLogger(__name__).info("asked to stop: the checkpoint resumes it")
            raise
        except UserError as error:
            logging.getLogger(__name__).error("%s", error)
            raise
        except Exception:
            traceback.print_exc()
            raise
        finally:
            logging.getLogger().removeHandler(handler)
