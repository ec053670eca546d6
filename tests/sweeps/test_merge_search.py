"""Searches with real trainings of a few steps, in this process where nothing has to be killed."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from analysis.search import Outcome, write_search
from evlgen.config import RunConfig, TomeFormerConfig, from_json, to_json
from evlgen.merging import merge_schedule, token_counts
from experiments import table1, table2
from paper_figures import merge_search as figures
from sweeps import merge_search
from sweeps.search.arguments import MERGE_SPACES
from sweeps.search.spaces import (
    as_schedule,
    largest_r,
    merge_entries,
    merge_target,
    parts,
    rate_targets,
)
from sweeps.search.study import (
    ATTEMPTS,
    ResumableTPE,
    ended,
    is_lost,
    open_storage,
    outclassed,
    without_password,
)

ROOT = Path(__file__).parents[2]
TOKENS = 65
TINY = [
    *("--scale", "smoke", "--set", "optim.steps=4", "--set", "optim.eval_every=1", "--set"),
    *("optim.batch_size=4", "--set", "evaluation.validation=8", "--set", 'data.pools=[["coco", 8]]'),
]
pytestmark = pytest.mark.xdist_group("sweeps")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def _process_as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.use_deterministic_algorithms(False)


class Box:
    """Folders of its own for runs and results."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.environment = {
            "EVLGEN_RUNS": str(folder / "runs"),
            "EVLGEN_RESULTS": str(folder / "results"),
            "EVLGEN_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *arguments: str) -> int:
        """A worker in this process; the launcher's pool would cost the time to import torch."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return merge_search.main([*TINY, "--worker", *arguments])

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "sweeps" / "merge_search.py"), *TINY, *arguments],
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def results(self, name: str) -> Path:
        (found,) = (self.folder / "results" / "merge_search").glob(f"{name}*/smoke")
        return found

    def table(self, name: str, file: str = "trials.csv") -> list[dict[str, str]]:
        return list(csv.DictReader((self.results(name) / file).read_text().splitlines()))

    def study(self, name: str) -> optuna.Study | None:
        journal = self.folder / "runs" / "studies" / f"{name}-smoke" / "journal.log"
        if not journal.exists():
            return None
        storage = JournalStorage(JournalFileBackend(str(journal)))
        names = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=names[0], storage=storage) if names else None


@pytest.fixture
def box(tmp_path: Path, cache: Path) -> Box:
    return Box(tmp_path, cache)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Box:
    """A search of seven trials, without a break."""
    box = Box(tmp_path_factory.mktemp("searched"), cache)
    assert box.run("--space", "free", "--trials", "7") == 0
    return box


def _lasting(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# ------------------------------------------------------------------------------------------ whole searches


def test_trials_are_runs_of_the_store(searched: Box) -> None:
    rows = searched.table("free-changed")
    assert [row["trial"] for row in rows] == list("0123456")
    assert rows[0]["schedule"] == "12 12 12 12"  # the default comes first
    assert rows[0]["in_force"] == "yes"
    assert {row["state"] for row in rows} == {"complete", "pruned"}  # both happen with this seed
    for row in rows:
        folder = searched.folder / "runs" / row["run"]
        config = from_json(
            {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "sha256"}
        )
        assert isinstance(config.connector, TomeFormerConfig)
        assert " ".join(map(str, merge_schedule(4, config.connector.r))) == row["schedule"]
        losses = {line["step"]: line["val_loss"] for line in _lines(folder / "metrics.jsonl")}
        assert float(row["last_loss"]) == losses[int(row["last_update"])]
        if row["state"] == "complete":
            result = json.loads((folder / "result.json").read_text())["metrics"]
            assert float(row["val_loss"]) == result["val_loss"]
            assert row["last_update"] == "4"
        else:
            assert 2 <= int(row["last_update"]) < 4
            assert row["val_loss"] == ""
            assert "the median of trials that cost no more" in row["reason"]
            assert not (folder / "result.json").exists()
    page = (searched.results("free-changed") / "trials.md").read_text()
    assert f"{sum(row['state'] == 'pruned' for row in rows)} pruned" in page


@pytest.mark.slow
def test_search_goes_on_and_a_seed_gives_the_same_trials(searched: Box, box: Box) -> None:
    assert box.run("--space", "free", "--trials", "3") == 0
    first = box.table("free-changed")
    assert len(first) == 3
    assert box.run("--space", "free", "--trials", "7") == 0
    whole = _lasting(box.table("free-changed"))
    assert whole[:3] == _lasting(first)
    assert whole == _lasting(searched.table("free-changed"))


def test_known_runs_cost_nothing(searched: Box) -> None:
    """A study that is begun anew finds its runs in the store, and comes to the same verdicts."""
    before = _lasting(searched.table("free-changed"))
    logs = {path: path.stat().st_size for path in (searched.folder / "runs").glob("*/log.txt")}
    storage = f"sqlite:///{searched.folder}/study.db"
    assert searched.run("--space", "free", "--trials", "7", "--storage", storage) == 0
    assert _lasting(searched.table("free-changed")) == before
    assert {path: path.stat().st_size for path in (searched.folder / "runs").glob("*/log.txt")} == logs


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
@pytest.mark.slow
def test_one_objective_is_left_to_optuna(box: Box, pruner: str) -> None:
    assert box.run("--objectives", "val_loss", "--pruner", pruner, "--trials", "5", "--space", "joint") == 0
    rows = box.table("joint-val_loss-changed")
    best = box.table("joint-val_loss-changed", "pareto.csv")
    losses = [float(row["val_loss"]) for row in rows if row["state"] == "complete"]
    assert len(rows) == 5
    assert [float(row["val_loss"]) for row in best] == [min(losses)]


@pytest.mark.slow
def test_learning_rates_of_all_parts(box: Box) -> None:
    small = ("--search", "learning-rate", "--trials", "2", "--experiment", "learning_rates", "--warmup")
    assert box.run(*small) == 0
    rows = box.table("learning-rate-learning_rates-changed")
    found = {
        part: [row for row in rows if row["part"] == part] for part in dict.fromkeys(r["part"] for r in rows)
    }
    assert {part: len(own) for part, own in found.items()} == dict.fromkeys(
        [
            "TomeFormer, single stage",
            "Q-Former, single stage",
            "Q-Former, stage 2 of two",
            "Q-Former, stage 1 of two",
            "linear, single stage",
            "MLP, single stage",
            "average pooling, single stage",
            "perceiver, single stage",
        ],
        2,
    )
    assert len({own[1]["lr"] for own in found.values()}) == 1  # the same rates for every part
    best = box.table("learning-rate-learning_rates-changed", "pareto.csv")
    for part, own in found.items():
        assert [float(b["val_loss"]) for b in best if b["part"] == part] == [
            min(float(row["val_loss"]) for row in own if row["val_loss"])
        ]
    assert figures.main(["--scale", "smoke", "--results", str(box.folder / "results")]) == 0
    _check_figures(box.results("learning-rate-learning_rates-changed"), ("learning_rates", "history"))


@pytest.mark.slow
def test_two_workers_on_one_journal_and_one_is_killed(box: Box) -> None:
    victim, other = (box.start("--worker", "--space", "free", "--trials", "500") for _ in range(2))

    def trials(process: subprocess.Popen[str], *states: TrialState) -> list[optuna.trial.FrozenTrial]:
        study = box.study("free")
        found = study.get_trials(states=states) if study else []
        return [
            t
            for t in found
            if f"-{process.pid}-" in t.user_attrs.get("worker", "") and "macs" in t.user_attrs
        ]

    done = (TrialState.COMPLETE, TrialState.PRUNED)
    _wait(lambda: bool(trials(victim, *done) and trials(other, *done)), victim)
    lost: list[optuna.trial.FrozenTrial] = []
    while not lost:
        _wait(lambda: bool(trials(victim, TrialState.RUNNING)), victim)
        victim.send_signal(signal.SIGSTOP)  # it may have ended the trial meanwhile: look again
        lost = trials(victim, TrialState.RUNNING)
        victim.send_signal(signal.SIGKILL if lost else signal.SIGCONT)
    victim.communicate(timeout=30)
    _wait(lambda: any("reached" in t.user_attrs for t in trials(other, *done)), other)
    other.terminate()
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 143, output

    study = box.study("free")
    assert study is not None
    asked = len(ended(study)) + 2
    assert box.run("--space", "free", "--trials", str(asked)) == 0
    everything = study.get_trials()
    assert len(ended(study)) == len(box.table("free-changed")) == asked
    assert not [t for t in everything if not t.state.is_finished()]
    assert is_lost(everything[lost[0].number])
    again = next(t for t in everything[lost[0].number :] if "reached" in t.user_attrs)
    assert again.params == lost[0].params
    assert again.state in done
    assert [t.number for t in everything] == list(range(len(everything)))
    signs = [path.name for path in (box.folder / "runs" / "studies").glob("*/*") if path.is_dir()]
    assert set(signs) == {"turn"}  # no worker's sign is left


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(box: Box) -> None:
    launcher = box.start("--workers", "1", "--trials", "500", "--space", "free")
    _wait(lambda: (study := box.study("free")) is not None and len(ended(study)) > 1, launcher)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert "finished trials are kept" in output
    assert "Traceback" not in output
    assert "free, trial 0" in output


def test_figures_are_drawn_from_the_tables_alone(searched: Box, tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / "merge_search" / name / "smoke"
        folder.mkdir(parents=True)
        for file in searched.results("free-changed").glob("*.csv"):
            (folder / file.name).write_bytes(file.read_bytes())
    assert figures.main(["--scale", "smoke", "--results", str(tmp_path)]) == 0
    _check_figures(tmp_path / "merge_search" / "one" / "smoke", ("pareto", "history", "importance"))
    _check_figures(tmp_path / "merge_search", ("pareto-smoke",))
    assert figures.main(["--scale", "mini", "--results", str(tmp_path)]) == 2


def _check_figures(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        image = matplotlib.image.imread(folder / f"{name}.png")
        assert image.shape[1] == 990  # a column of 3.3 inches
        assert image[..., :3].std() > 0.02
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [line for text in path.read_text().splitlines() if "val_loss" in (line := json.loads(text))]


def _wait(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


# --------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "positon"], "free, position, layers, joint; did you mean position?"),
        (["--storage", " "], "--storage: is empty"),
        (["--trails", "3"], "--trails: no such flag; did you mean --trials?"),
        (["table1"], "table1: a search takes flags only; --experiment table1?"),
        (["--cluster", "mine.toml"], "--cluster: add --executor slurm"),
        (["--warmup"], "--warmup: is for --search learning-rate"),
        (["--search", "learning-rate", "--space", "free"], "--space: is for --search merge"),
        (["--space", "round"], "--space round: no such space; there are: constant, inflection, free"),
        (["--search", "luck"], "--search luck: no such search; there are: merge, learning-rate"),
        (["--scale", "big"], "--scale big: no such scale; there are: smoke, mini, bridge, paper"),
        (["--experiment", "table9"], "--experiment table9: no such experiment"),
        (["--trials", "0"], "--trials 0: at least 1 is needed"),
        (["--workers", "-1"], "--workers -1: at least 0"),
        (["--objectives", "speed"], "--objectives speed: no such objective; there are: val_loss, macs"),
        (["--objectives", "macs"], "--objectives: val_loss must be among them"),
        (["--pruner", "axe"], "--pruner axe: no such pruner; there are: median, hyperband, none"),
        (["--pruner", "hyperband"], "--pruner hyperband: prunes for one objective only"),
        (["--set", "optim.speed=1"], "--set optim.speed: no such key"),
        (["--storage", "oracle9://x", "--scale", "smoke"], "--storage oracle9://x: cannot be opened"),
        (["--storage", "/proc/x/y", "--worker"], "--storage /proc/x/y: cannot be opened"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    box: Box,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    for name, value in box.environment.items():
        monkeypatch.setenv(name, value)
    assert merge_search.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_dry_run_writes_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in box.environment.items():
        monkeypatch.setenv(name, value)
    assert merge_search.main(["--scale", "paper", "--space", "position", "--dry-run"]) == 2  # no weights
    assert "r: 0 to 128" in capsys.readouterr().out  # of 257 tokens, half of those behind the class token
    assert not list(box.folder.iterdir())


# ---------------------------------------------------------------------------------------------- spaces


@pytest.mark.parametrize("scale", ["mini", "paper"])
@pytest.mark.parametrize("space", MERGE_SPACES)
def test_every_point_of_a_space_is_a_run(space: str, scale: str) -> None:
    base, tokens = _tomeformer(scale), 257 if scale == "paper" else TOKENS
    target = merge_target(space, base, tokens)
    assert target.default is not None
    assert target.config(target.default) == base
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(25):
        config = target.config(study.ask(target.space).params)
        assert from_json(to_json(config)) == config
        connector = config.connector
        assert isinstance(connector, TomeFormerConfig)
        token_counts(tokens, merge_schedule(connector.num_layers, connector.r))  # raises if it does not fit


def test_merging_in_some_layers_is_a_list_with_zeros() -> None:
    assert merge_entries({"r": 5, "first": 1, "span": 2}, 4, TOKENS) == [0, 5, 5, 0]
    assert merge_entries({"r": 5, "first": 3, "span": 2}, 4, TOKENS) == [0, 0, 0, 5]
    assert merge_entries({"r": 30, "first": 0, "span": 4}, 4, TOKENS) == [30, 17, 8, 4]  # cut to the limit
    assert merge_entries({"r": 4, "inflection": -1.0}, 4, TOKENS) == merge_schedule(4, (4, -1))
    assert merge_entries({"merge_0": 0.5, "merge_1": 0.0, "merge_2": 1.0}, 3, TOKENS) == [16, 0, 24]
    assert as_schedule([12, 12, 12, 12]) == 12
    assert as_schedule([12, 12, 12, 0]) == (12, 12, 12, 0)
    assert (largest_r(4, 65), largest_r(12, 257)) == (12, 19)


def test_parts_of_the_tables() -> None:
    found = parts(table1.build("mini"))
    assert list(found) == [
        "Q-Former, stage 2 of two",
        "Q-Former, stage 1 of two",
        "Q-Former, single stage",
        "TomeFormer, single stage",
    ]
    assert found["TomeFormer, single stage"].optim.steps == 500  # the longest of the three rows
    assert all(config.evaluation.sets == () for config in found.values())
    assert len(parts(table2.build("mini"))) == 3
    targets = {target.part: target for target in rate_targets(table1.build("mini"), warmup=True)}
    assert len({repr(target.space) for target in targets.values()}) == 1
    first, second = targets["Q-Former, stage 1 of two"], targets["Q-Former, stage 2 of two"]
    one, two = (target.config({"lr": 2.34567e-3, "warmup": 0.1}) for target in (first, second))
    assert one.init_from is not None
    assert two.init_from == first.base.init_from
    assert one.optim == first.base.optim
    for config, steps in ((one.init_from, 30), (two, 50)):
        optim = config.optim
        assert (optim.lr, optim.warmup_steps) == (2.35e-3, steps)
        assert optim.min_lr == pytest.approx(2.35e-4)


def _tomeformer(scale: str) -> RunConfig:
    return parts(table1.build(scale))["TomeFormer, single stage"]


# ----------------------------------------------------------------------------------------------- study


def test_pruning_compares_with_what_costs_no_more() -> None:
    others = [(1.0, {"2": 3.0, "3": 2.0}), (2.0, {"2": 4.0, "3": 2.5}), (3.0, {"2": 5.0}), (9.0, {"2": 0.1})]
    assert outclassed(4.1, 5.0, 2, others) == 4.0  # the median of 3, 4 and 5; the one at 9 costs more
    assert outclassed(4.0, 5.0, 2, others) is None
    assert outclassed(99.0, 2.5, 2, others) is None  # two peers are too few
    assert outclassed(99.0, 5.0, 3, others) is None
    assert outclassed(3.6, 9.0, 2, others) == 3.5  # of four: the mean of the two in the middle


def _suggestions(trials: int, dies_in: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Parameters of the trials that ended, of a search whose worker dies in some trials and is replaced."""
    storage = optuna.storages.InMemoryStorage()
    space = {
        "x": optuna.distributions.FloatDistribution(-1, 1),
        "n": optuna.distributions.IntDistribution(0, 9),
    }

    def study() -> optuna.Study:
        return optuna.create_study(
            study_name="s",
            storage=storage,
            sampler=ResumableTPE(3),
            directions=["minimize"] * 2,
            load_if_exists=True,
        )

    current = study()
    while len(ended(current)) < trials:
        trial = current.ask(space)
        if trial.number in dies_in:
            current.tell(trial, state=TrialState.FAIL)
            current.enqueue_trial(trial.params)
            current = study()
        elif trial.params["n"] == 5:
            current.tell(trial, state=TrialState.PRUNED)
        else:
            current.tell(trial, [(trial.params["x"] - 0.3) ** 2 + trial.params["n"], trial.params["x"]])
    return [trial.params for trial in ended(current)]


def test_suggestions_do_not_depend_on_deaths() -> None:
    undisturbed = _suggestions(16)
    assert _suggestions(16, dies_in=(2, 5, 6, 12)) == undisturbed
    assert len({params["x"] for params in undisturbed}) == 16


def test_a_trial_that_kills_its_workers_is_given_up() -> None:
    study = optuna.create_study()
    for attempt in range(1, ATTEMPTS + 1):
        study.enqueue_trial({}, user_attrs={"attempt": attempt})
        study.tell(study.ask(), state=TrialState.FAIL)
    assert [is_lost(trial) for trial in study.trials] == [True] * (ATTEMPTS - 1) + [False]


def test_half_a_line_in_the_journal_is_cut_off(tmp_path: Path) -> None:
    place = tmp_path / "journal.log"
    optuna.create_study(study_name="first", storage=open_storage(str(place)))
    whole = place.read_bytes()
    place.write_bytes(whole + b'{"op_code": 4, "wor')
    storage = open_storage(str(place))
    assert place.read_bytes() == whole
    optuna.create_study(study_name="second", storage=storage)
    assert optuna.get_all_study_names(open_storage(str(place))) == ["first", "second"]


def test_pareto_front_is_that_of_brute_force(tmp_path: Path) -> None:
    draw = random.Random(0)
    study = optuna.create_study(directions=["minimize", "minimize"])
    points = [(draw.randrange(12), draw.randrange(12)) for _ in range(40)]  # with ties and repetitions
    for index, (loss, macs) in enumerate(points):
        facts = {"run": f"{loss}-{macs}", "macs": macs}
        state = TrialState.PRUNED if index % 9 == 8 else TrialState.COMPLETE
        values = [loss, macs] if state == TrialState.COMPLETE else None
        study.add_trial(optuna.trial.create_trial(state=state, values=values, user_attrs=facts))
    front = [trial.number for trial in study.best_trials]
    outcome = Outcome("part", [], study.trials, front, {}, lost=0)
    write_search("title", {}, ("val_loss", "macs"), [outcome], tmp_path)
    complete = {point for index, point in enumerate(points) if index % 9 != 8}
    best = {
        (loss, macs)
        for loss, macs in complete
        if not any(a <= loss and b <= macs and (a, b) != (loss, macs) for a, b in complete)
    }
    rows = list(csv.DictReader((tmp_path / "pareto.csv").read_text().splitlines()))
    found = [(int(float(row["val_loss"])), int(row["macs"])) for row in rows]
    assert found == sorted(best, key=lambda point: point[1])  # cheapest first, none twice


@pytest.mark.parametrize(
    ("place", "printed"),
    [
        ("runs/studies/a/journal.log", "runs/studies/a/journal.log"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("postgresql://me:secret@host:5432/studies", "postgresql://me:***@host:5432/studies"),
        ("postgresql://me:secret@host:port/studies", "postgresql://..."),
    ],
)
def test_a_password_is_not_printed(place: str, printed: str) -> None:
    assert without_password(place) == printed
