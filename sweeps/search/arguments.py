"""The command line of ``sweeps/merge_search.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evlgen.errors import UserError, nearest
from evlgen.runtime import paths
from experiments import EXPERIMENTS
from experiments.overrides import name_of
from experiments.scales import NAMES as SCALES
from sweeps.arguments import EXECUTORS, Parser, one_of, refuse_twice, set_flag, some_text, whole_number
from sweeps.plan import folder_of

SEARCHES = {
    "merge": "a TomeFormer's merge schedule",
    "learning-rate": "the peak rates of all parts of an experiment",
}
MERGE_SPACES = {
    "constant": "r, the same in every layer",
    "inflection": "(r, inflection): linear in depth, r on average",
    "free": "one entry a layer, each a share of the most that the layer can merge",
    "position": "r in `span` layers from layer `first` on, zeros elsewhere",
    "layers": "number of layers and a constant r",
    "joint": "number of layers, first, span, r and inflection together",
}
OBJECTIVES = ("val_loss", "macs")
PRUNERS = ("median", "hyperband", "none")


@dataclass(frozen=True)
class Arguments:
    """What was typed.

    Attributes:
        trials: how many there shall be in all, of each part; pruned ones count, lost ones do not.
        storage: a journal file or a database's URL; empty: a journal in the run store.
        worker: be one worker, in this process.
    """

    search: str = "merge"
    space: str = "constant"
    experiment: str = "table1"
    scale: str = "mini"
    trials: int = 20
    seed: int = 0
    objectives: str = ""
    pruner: str = "median"
    warmup: bool = False
    storage: str = ""
    workers: int = 0
    worker: bool = False
    executor: str = "local"
    cluster: str = ""
    dry_run: bool = False
    set: tuple[str, ...] = ()

    @property
    def minimised(self) -> tuple[str, ...]:
        """The objectives; the validation loss is always the first.

        Raises:
            UserError: an unknown one, or one that cannot decide this search.
        """
        default = "val_loss,macs" if self.search == "merge" else "val_loss"
        given = tuple((self.objectives or default).replace("+", ",").split(","))
        for name in given:
            if name not in OBJECTIVES:
                known = ", ".join(OBJECTIVES)
                raise UserError(
                    f"--objectives {name}: no such objective; there are: {known}{nearest(name, OBJECTIVES)}"
                )
        if "val_loss" not in given:
            raise UserError("--objectives: val_loss must be among them; merging everything would win")
        if self.search == "learning-rate" and len(given) > 1:
            raise UserError("--objectives macs: no learning rate changes it; leave it out")
        return tuple(name for name in OBJECTIVES if name in given)

    @property
    def name(self) -> str:
        """Name of the search in file and folder names."""
        if self.search == "learning-rate":
            return f"learning-rate-{self.experiment}"
        return self.space + ("" if len(self.minimised) > 1 else "-val_loss")

    @property
    def title(self) -> str:
        """Heading of the tables."""
        what = (
            f"merge schedules, {self.space}: {MERGE_SPACES[self.space]}"
            if self.search == "merge"
            else f"peak learning rates of {self.experiment}"
        )
        changes = f", with {', '.join(self.set)}" if self.set else ""
        return f"Search of {what}{changes} (scale {self.scale}, seed {self.seed}, pruner {self.pruner})"

    @property
    def folder(self) -> Path:
        """Where the workers of a search agree on who does what, and its journal is."""
        return paths.runs_folder() / "studies" / f"{self.name}-{self.scale}"

    @property
    def place(self) -> str:
        """A database's URL or the path of a journal."""
        return self.storage or str(self.folder / "journal.log")

    @property
    def results(self) -> Path:
        """Where the tables go; a search with ``--set`` must not take the place of the one without."""
        name = folder_of(self.name, bool(self.set), name_of(self.set, ""))
        return paths.results_folder() / "merge_search" / name / self.scale


def parse(words: Sequence[str]) -> Arguments:
    """What was typed after ``merge_search.py``. Prints help and exits where it is asked for.

    Raises:
        UserError: something that is typed is unknown, or would be ignored.
    """
    found: dict[str, Any] = _parser().parse(words)
    for word in found.pop("words", []):
        raise UserError(f"{word}: a search takes flags only; --experiment {word}?")
    found["set"] = tuple(found.get("set", ()))
    refuse_twice(found["set"])
    arguments = Arguments(**found)
    if arguments.pruner == "hyperband" and len(arguments.minimised) > 1:
        raise UserError("--pruner hyperband: prunes for one objective only; add --objectives val_loss")
    if arguments.search == "merge" and arguments.warmup:
        raise UserError("--warmup: is for --search learning-rate")
    if arguments.search == "learning-rate" and "space" in found:
        raise UserError("--space: is for --search merge")
    if arguments.cluster and arguments.executor != "slurm":
        raise UserError("--cluster: add --executor slurm, or leave it out")
    return arguments


def _parser() -> Parser:
    description = (
        "Search merge schedules, or learning rates, with Optuna. Every trial is an ordinary run of the run\n"
        "store; the same command goes on to the asked number of trials.\n\nspaces of merge schedules:\n"
    )
    description += "\n".join(f"  {name:12}{text}" for name, text in MERGE_SPACES.items())
    parser = Parser("sweeps/merge_search.py", description, "sweeps/merge_search.py [FLAGS]")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)

    def word(flag: str, kind: str, known: Sequence[str], text: str) -> None:
        parser.add_argument(flag, type=one_of(flag, kind, known), metavar="NAME", help=text)

    def number(flag: str, least: int, text: str) -> None:
        parser.add_argument(flag, type=whole_number(flag, least), metavar="N", help=text)

    searches = "; ".join(f"{name}: {text}" for name, text in SEARCHES.items())
    word("--search", "search", tuple(SEARCHES), f"{searches}; default: merge")
    word("--space", "space", tuple(MERGE_SPACES), "of a merge search, see above; default: constant")
    word(
        "--experiment",
        "experiment",
        EXPERIMENTS,
        "whose parts are searched; a merge search varies its TomeFormer; default: table1",
    )
    word("--scale", "scale", SCALES, f"{', '.join(SCALES)}; default: mini")
    number("--trials", 1, "trials in all, of each part; pruned ones count, lost ones do not; default: 20")
    number("--seed", 0, "of the suggestions; that of the runs is changed by --set seed=1; default: 0")
    parser.add_argument(
        "--objectives", metavar="NAMES", help="val_loss,macs (default of a merge search) or val_loss alone"
    )
    word("--pruner", "pruner", PRUNERS, "median (default), none, or for one objective hyperband")
    parser.add_argument(
        "--warmup", action="store_true", help="also search the warm-up's share of the updates (learning-rate)"
    )
    parser.add_argument(
        "--storage",
        type=some_text("--storage"),
        metavar="PLACE",
        help="journal file, or a database's URL (sqlite:///study.db); default: a journal in the run store",
    )
    number("--workers", 0, "processes side by side, in SLURM jobs; default: one for each core, 4 jobs")
    parser.add_argument(
        "--worker",
        action="store_true",
        help="be one worker, in this process; start as many as you like, anywhere",
    )
    word(
        "--executor",
        "executor",
        EXECUTORS,
        "local (default), or slurm: put workers into the queue; the same command shows how far they are",
    )
    parser.add_argument(
        "--cluster", metavar="FILE", help="TOML profile of a SLURM cluster, see clusters/example.toml"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be searched and what it would cost, and stop"
    )
    set_flag(parser)
    return parser
