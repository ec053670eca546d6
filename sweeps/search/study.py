"""One study of a search, and the worker that executes its trials: see `sweeps/merge_search.py`.

Optuna's storage says what was tried, the run store what came of it. Workers agree through both: one at a time
takes its `turn` to be given a trial, and each holds a sign that it lives, a claim like those on runs. A trial
whose worker holds its sign no more is closed and given out again; its run goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from evlgen.config import RunConfig, TomeFormerConfig
from evlgen.cost import connector_macs
from evlgen.errors import UserError
from evlgen.evaluation.caption_scores import CaptionScorer
from evlgen.merging import merge_schedule, token_counts
from evlgen.runs import folder as files
from evlgen.runs.identity import run_folder, run_id
from evlgen.runtime import paths
from sweeps import leases
from sweeps.conclude import score_trained
from sweeps.search.secrets import PASSWORD, hidden
from sweeps.search.spaces import Target
from sweeps.search.targets import image_tokens
from sweeps.worker import execute_run

STARTUP = 8  # trials drawn at random, before the sampler learns from those that ended
PEERS = 3  # trials that must have got as far before one is pruned
ATTEMPTS = 4  # workers that may die of one trial, one after the other and without getting any farther

# A worker's message: kind, name of a trial, detail. Kinds: "progress" (where a run is), "done" (a line on how
# a trial ended).
Tell = Callable[[tuple[str, str, Any]], None]


@dataclass(frozen=True)
class Rules:
    """How a study searches.

    Attributes:
        objectives: what is minimised: ``val_loss``, and perhaps ``macs``.
        pruner: ``median``, ``hyperband`` or ``none``.
        seed: of the suggestions.
    """

    objectives: tuple[str, ...]
    pruner: str
    seed: int


# ---------------------------------------------------------------------------------------------- study


def open_storage(place: str) -> BaseStorage:
    """Optuna's storage at a database's URL, or in a journal file (safe on NFS).

    Raises:
        UserError: it cannot be opened.
    """
    try:
        if "://" in place:
            url = make_url(place)
            if os.environ.get(PASSWORD) and url.host and url.password is None:
                url = url.set(password=os.environ[PASSWORD])
            waits = {"connect_args": {"timeout": 60}} if place.startswith("sqlite") else None
            return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=waits)
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        repair_journal(Path(place))
        return JournalStorage(JournalFileBackend(place))
    except Exception as error:  # of sqlalchemy, of a database's driver, of the operating system, of json
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--storage {without_password(place)}: cannot be opened ({hidden(first)})") from None


def without_password(place: str) -> str:
    """A storage as it may be printed: a database's password is replaced by stars."""
    if "://" not in place:
        return place
    try:
        return make_url(place).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):  # no URL that sqlalchemy could open either
        return place.partition("://")[0] + "://..."


def repair_journal(path: Path) -> None:
    """Cut off a last line that a full disk or a crash left half written: nothing could be added after it."""
    if not path.exists():
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def open_study(name: str, target: Target, rules: Rules, storage: BaseStorage) -> Study:
    """The study of a target; the default parameters are its first trial. Call it in your `turn`."""
    is_new = name not in optuna.get_all_study_names(storage)
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=["minimize"] * len(rules.objectives),
        sampler=ResumableTPE(rules.seed),
        pruner=_pruner(rules, target.base),
        load_if_exists=True,
    )
    if is_new:
        study.set_metric_names(list(rules.objectives))
        if target.default is not None:
            study.enqueue_trial(target.default, user_attrs={"attempt": 1, "in_force": True})
    return study


def _pruner(rules: Rules, base: RunConfig) -> BasePruner:
    """Optuna's, for one objective; `outclassed` decides where there are two."""
    optim = base.optim
    if len(rules.objectives) > 1 or rules.pruner == "none":
        return NopPruner()
    if rules.pruner == "hyperband":
        return HyperbandPruner(min_resource=optim.eval_every, max_resource=optim.steps)
    return MedianPruner(n_startup_trials=PEERS, n_warmup_steps=first_prunable(base), n_min_trials=PEERS)


def first_prunable(base: RunConfig) -> int:
    """The update from which runs may be pruned: half of all, past the plateau before the image is used."""
    return base.optim.steps // 2


class ResumableTPE(BaseSampler):
    """Optuna's TPE whose random numbers follow from the seed and the trial's place, not from its past.

    A search that was stopped and goes on is so given the same trials as one that was not. Trials that were
    lost with their worker have no place: they leave no trace in the suggestions.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tpe = TPESampler(seed=seed, n_startup_trials=STARTUP)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Begin the trial's own random numbers."""
        earlier = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number and not is_lost(t)]
        digest = hashlib.sha256(f"{self.seed} {len(earlier)}".encode()).digest()
        self.tpe = TPESampler(seed=int.from_bytes(digest[:4], "little"), n_startup_trials=STARTUP)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See `BaseSampler`."""
        return self.tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `BaseSampler`."""
        return self.tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See `BaseSampler`."""
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial's worker died (or was stopped) and the trial was given out again under a new number."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get("attempt", 1) < ATTEMPTS


def quiet() -> None:
    """Leave reports to the launcher: Optuna prints each trial on its own otherwise."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "PedAnova", UserWarning)  # low values are what is wanted


def to_go(trials: int, found: list[Study | None]) -> int:
    """How many trials have not ended yet, of all studies.

    Args:
        trials: that were asked for, of each.
    """
    counts = [0 if study is None else len(ended(study)) for study in found]
    return sum(max(0, trials - count) for count in counts)


def ended(study: Study) -> list[FrozenTrial]:
    """Trials that count: complete, pruned, or given up after `ATTEMPTS` workers."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and not is_lost(t)]


def importances(study: Study, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """PED-ANOVA's importance of each parameter for each objective; empty where too little is known."""
    found: dict[str, dict[str, float]] = {}
    complete_trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for index, name in enumerate(names):
        if len({t.values[index] for t in complete_trials}) < 2:
            continue

        def value(trial: FrozenTrial, index: int = index) -> float:
            return float(trial.values[index])

        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found[name] = optuna.importance.get_param_importances(study, evaluator=evaluator, target=value)
    return found


# --------------------------------------------------------------------------------------------- worker


def next_trial(study: Study, target: Target, trials: int, folder: Path, me: str) -> Trial | None:
    """The next trial for worker ``me``; None if enough have ended or are being worked on."""
    with leases.turn(folder / "turn"):
        bury_lost_trials(study, folder)
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if len(ended(study)) + len(running) >= trials:
            return None
        trial = study.ask(target.space)
        trial.set_user_attr("worker", me)
        config = target.config(trial.params)
        for key, value in described(target, config).items():
            trial.set_user_attr(key, value)
    return trial


def bury_lost_trials(study: Study, folder: Path) -> None:
    """Close the trials whose workers are no more, put their parameters up again. Call it in your `turn`."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")  # none if it died between asking and saying so
        if worker is None or not is_held(folder / worker):
            give_back(study, trial)


def give_back(study: Study, trial: FrozenTrial) -> None:
    """Close a trial without a result; its parameters are tried next, as often as `ATTEMPTS` allows."""
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    facts = trial.user_attrs
    if is_lost(study.get_trials(deepcopy=False)[trial.number]) and trial.params:
        reached = updates_done(facts)
        stuck = reached <= facts.get("reached", 0)  # a worker that was only stopped is not the trial's fault
        again = {"attempt": facts.get("attempt", 1) + 1 if stuck else 1, "reached": reached}
        kept = {"in_force": True} if facts.get("in_force") else {}
        study.enqueue_trial(dict(trial.params), user_attrs=again | kept)


def updates_done(facts: Mapping[str, Any]) -> int:
    """How far the runs of a trial have got, in updates."""
    logs = [files.read_metrics(paths.runs_folder() / facts[key]) for key in ("run", "stage1") if key in facts]
    return sum(int(lines[-1]["step"]) for lines in logs if lines)


def described(target: Target, config: RunConfig) -> dict[str, Any]:
    """What a trial is, beyond its parameters."""
    facts: dict[str, Any] = {"run": run_id(config)}
    if config.init_from is not None:
        facts["stage1"] = run_id(config.init_from)
    connector = config.connector
    if isinstance(connector, TomeFormerConfig):
        tokens = image_tokens(config)
        schedule = merge_schedule(connector.num_layers, connector.r)
        facts |= {
            "schedule": schedule,
            "tokens_out": token_counts(tokens, schedule, connector.class_token)[-1],
            "macs": connector_macs(connector, tokens),
        }
    return facts


def run_trial(
    study: Study, trial: Trial, target: Target, rules: Rules, scorer: CaptionScorer, tell: Tell
) -> None:
    """Execute a trial's run, report its validation losses on the way, and tell the study how it ended.

    What the run store has is not computed again; its validation losses are looked at in the same order, so
    that the verdict is the same as if it had been.
    """
    key = f"{target.part}, trial {trial.number}"
    config = target.config(trial.params)
    pruning = PruningCallback(study, trial, config, rules.pruner != "none")

    def progress(detail: Any) -> None:
        tell(("progress", key, detail))
        pruning.check()

    try:
        if config.init_from is not None:
            complete(config.init_from, scorer, lambda detail: tell(("progress", key, detail)))
        pruning.check()
        metrics = complete(config, scorer, progress)
        pruning.check()
        loss = metrics["val_loss"]
        if not math.isfinite(loss):
            raise FloatingPointError(f"the validation loss is {loss}")
        trial.set_user_attr("gap", metrics["gap"])
        trial.set_user_attr("seconds", metrics["total_seconds"])
        values = {"val_loss": loss, "macs": trial.user_attrs.get("macs")}
        study.tell(trial, [values[name] for name in rules.objectives])
        line = f"validation loss {loss:.4f}"
    except optuna.TrialPruned as reason:
        trial.set_user_attr("reason", str(reason))
        study.tell(trial, state=TrialState.PRUNED)
        line = f"pruned: {reason}"
    except FloatingPointError as reason:  # a training that diverges is a result, and no good one
        trial.set_user_attr("reason", f"diverged: {reason}")
        study.tell(trial, state=TrialState.PRUNED)
        line = f"diverged: {reason}"
    tell(("done", key, f"{described_in_words(trial.params, trial.user_attrs)}: {line}"))


def complete(config: RunConfig, scorer: CaptionScorer, tell: Callable[[Any], None]) -> dict[str, Any]:
    """The metrics of a run, which is executed if the store does not have it complete."""
    folder = files.prepare(config)
    if not files.is_complete(folder) or files.lacks_weights(folder, config):
        first = None if config.init_from is None else str(run_folder(config.init_from))
        execute_run(tell, str(folder), first)
        score_trained({folder.name: config}, scorer)
    result = files.read_result(folder)
    assert result is not None
    metrics: dict[str, Any] = result["metrics"]
    return metrics


class PruningCallback:
    """Reports a run's validation losses to its trial, and ends the run if it is to be pruned."""

    def __init__(self, study: Study, trial: Trial, config: RunConfig, prunes: bool) -> None:
        self.study, self.trial, self.config, self.prunes = study, trial, config, prunes
        self.path = run_folder(config) / files.METRICS
        self.seen: dict[str, float] = {}
        self.size = -1

    def check(self) -> None:
        """Report what is new in ``metrics.jsonl``.

        Raises:
            optuna.TrialPruned: the run is not worth going on with.
        """
        size = self.path.stat().st_size if self.path.exists() else -1
        if size == self.size:
            return
        self.size = size
        try:
            for line in files.read_metrics(self.path.parent):
                step = int(line["step"])
                if "val_loss" in line and str(step) not in self.seen:
                    self.seen[str(step)] = line["val_loss"]
                    self._judge(step)
        finally:
            self.trial.set_user_attr("validation", self.seen)

    def _judge(self, step: int) -> None:
        """Raise `optuna.TrialPruned` if the trial is to end at this step."""
        loss, is_last = self.seen[str(step)], step >= self.config.optim.steps
        if len(self.study.directions) == 1:
            self.trial.report(loss, step)
            if not is_last and self.trial.should_prune():
                raise optuna.TrialPruned(f"by Optuna at update {step}, loss {loss:.4f}")
        elif self.prunes and not is_last and step >= first_prunable(self.config):
            others = [(t.user_attrs["macs"], t.user_attrs.get("validation", {})) for t in ended(self.study)]
            median = outclassed(loss, self.trial.user_attrs["macs"], step, others)
            if median is not None:
                raise optuna.TrialPruned(
                    f"at update {step}, loss {loss:.4f} against {median:.4f}, the median of trials that cost "
                    "no more"
                )


def outclassed(
    loss: float, macs: float, step: int, others: Sequence[tuple[float, dict[str, float]]]
) -> float | None:
    """The rule of pruning for two objectives: is a run worse than the median of those that cost no more?

    Optuna's pruners look at one objective, and would leave none of the cheap runs. A run that is pruned here
    was dominated, at that update, by half of the trials that cost no more (there must be `PEERS` of them);
    those that were pruned themselves count. The cheapest is never pruned.

    Args:
        loss, macs: of the run in question; the loss is that of validation after update ``step``.
        others: MACs and validation losses, by update, of the trials that have ended.

    Returns:
        That median if the loss is above it, else None.
    """
    peers = sorted(losses[str(step)] for cost, losses in others if cost <= macs and str(step) in losses)
    if len(peers) < PEERS:
        return None
    middle = (peers[(len(peers) - 1) // 2] + peers[len(peers) // 2]) / 2
    return middle if loss > middle else None


def described_in_words(params: dict[str, Any], facts: dict[str, Any]) -> str:
    """A trial in a few words."""
    text = ", ".join(f"{k} {v:.3g}" for k, v in params.items() if not k.startswith("merge_"))
    if "schedule" in facts:
        text += (", " if text else "") + "schedule " + " ".join(map(str, facts["schedule"]))
        text += f", {facts['macs'] / 1e6:.2f} M MACs"
    return text


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """A sign that this worker lives, for as long as it does."""
    claim = leases.claim(folder)
    assert claim is not None  # the name has a random part
    try:
        yield
    finally:
        claim.release()
        shutil.rmtree(folder, ignore_errors=True)


def is_held(folder: Path) -> bool:
    """Whether the worker with this sign lives, as the run store judges the owners of runs."""
    if not folder.exists():
        return False
    claim = leases.claim(folder)
    if claim is None:
        return True
    claim.release()
    shutil.rmtree(folder, ignore_errors=True)
    return False
