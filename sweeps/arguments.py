"""The command line of ``sweeps/run.py``: its commands, what each of them takes, and what is refused.

Each command has a parser of its own: its help shows what it takes, and nothing that is typed is ignored.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from evlgen.errors import UserError, nearest
from experiments import EXPERIMENTS
from experiments.scales import NAMES as SCALES

ALL = "all"  # every experiment of the paper, and the claims that they decide
RUN = "run"  # the command that has no name: an experiment is typed in its place
EXECUTORS = ("local", "slurm")
DEVICES = ("auto", "cpu", "cuda", "mps")
PROFILE = ("cluster", "partition", "account", "qos", "constraint", "time", "memory_gb", "gpus", "nodes")

_Flags = Callable[[argparse.ArgumentParser], None]


@dataclass(frozen=True)
class Arguments:
    """What was typed.

    Attributes:
        command: one of `COMMANDS`, or `RUN`.
        targets: experiments, `ALL`, or the beginnings of runs' ids; none: everything (of ``status``).
        second: what follows it: another run (of ``diff``), or an evaluation set (of ``submit``).
        typed: names of the flags that were given; the others have their defaults.
    """

    command: str
    targets: tuple[str, ...] = ()
    second: str = ""
    out: str = ""
    scale: str = ""
    seeds: int | None = None
    rows: str = ""
    set: tuple[str, ...] = ()
    executor: str = "local"
    workers: int = 0
    device: str = ""
    dry_run: bool = False
    everything: bool = False
    thorough: bool = False
    cluster: str = ""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    memory_gb: float | None = None
    gpus: int | None = None
    nodes: int | None = None
    typed: frozenset[str] = frozenset()

    @property
    def target(self) -> str:
        """The one experiment or run, or the first of several; empty: none was given."""
        return self.targets[0] if self.targets else ""

    @property
    def asks_a_cluster(self) -> bool:
        """Whether a flag says what to ask SLURM for."""
        return bool(self.typed & set(PROFILE))

    @property
    def profile_changes(self) -> dict[str, Any]:
        """What the flags change in the profile of a cluster."""
        changes = {name: getattr(self, name) for name in PROFILE[1:] if name in self.typed}
        if self.workers:
            changes["workers"] = self.workers
        return changes


@dataclass(frozen=True)
class Command:
    """A command of ``run.py``.

    Attributes:
        takes: what may follow it: ``experiments`` (one or all), ``run`` (its id) or both.
        optional: whether it may be left out.
        second: what must follow it.
        help: one line.
        details: further lines of its own help.
        flags: each adds flags to its parser.
    """

    takes: tuple[str, ...]
    help: str
    flags: tuple[_Flags, ...] = ()
    details: str = ""
    optional: bool = False
    second: str = ""


class Parser(argparse.ArgumentParser):
    """An `argparse` parser that raises a `UserError` and suggests the nearest flag."""

    def __init__(self, prog: str, description: str, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24),
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`."""
        raise UserError(re.sub(r"^argument (\S+): ", r"\1: ", message))

    def parse(self, words: Sequence[str], elsewhere: Collection[str] = ()) -> dict[str, Any]:
        """Values of the flags that were given, and of the positional ``words``, where there are any.

        Args:
            elsewhere: flags of other commands.

        Raises:
            UserError: an unknown flag, or a value that cannot be one.
        """
        self._refuse_twice(words)
        found, unknown = self.parse_known_intermixed_args(list(words))
        for word in unknown:
            flag = word.partition("=")[0]
            if flag in elsewhere:
                raise UserError(f"{flag}: not a flag of this command; {self.prog} --help lists them")
            if flag.startswith("-"):
                near = nearest(flag.replace("_", "-"), self._option_string_actions)
                raise UserError(f"{flag}: no such flag{near or f'; {self.prog} --help lists them'}")
        return vars(found)

    def _refuse_twice(self, words: Sequence[str]) -> None:
        """Refuse a flag that is typed twice, of which only the last would count."""
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        for flag in flags:
            action = self._option_string_actions.get(flag)
            takes_one = action is not None and not isinstance(action, argparse._AppendAction)
            if takes_one and flags.count(flag) > 1:
                raise UserError(f"{flag}: given {flags.count(flag)} times; give it once")


def refuse_twice(changes: Sequence[str]) -> None:
    """Refuse a key that ``--set`` was given twice: only the last would count.

    Raises:
        UserError: the first such key.
    """
    keys = [change.partition("=")[0] for change in changes]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"--set {key}: given {keys.count(key)} times; give it once")


def one_of(flag: str, kind: str, known: Collection[str]) -> Callable[[str], str]:
    """Type of a flag's value: a word among those that are known."""

    def checked(word: str) -> str:
        if word not in known:
            raise UserError(
                f"{flag} {word}: no such {kind}; there are: {', '.join(known)}{nearest(word, known)}"
            )
        return word

    return checked


def whole_number(flag: str, least: int, most: int = 1_000_000) -> Callable[[str], int]:
    """Type of a flag's value: a whole number, not below the least, nor above the most."""

    def checked(word: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", word):
            raise UserError(f"{flag} {word}: must be a whole number")
        number = int(word)
        if number < least:
            raise UserError(f"{flag} {word}: at least {least} is needed")
        if number > most:
            raise UserError(f"{flag} {word}: at most {most:,} can be asked for")
        return number

    return checked


# ---------------------------------------------------------------------------------------------- flags


def some_text(flag: str) -> Callable[[str], str]:
    """Type of a flag's value: not empty, which would be the same as leaving the flag out."""

    def checked(word: str) -> str:
        if not word.strip():
            raise UserError(f"{flag}: is empty; give something, or leave it out")
        return word

    return checked


def scale_flag(
    parser: argparse.ArgumentParser, default: str = "mini, for the experiment bridge: bridge"
) -> None:
    """``--scale``."""
    parser.add_argument(
        "--scale",
        type=one_of("--scale", "scale", SCALES),
        metavar="SCALE",
        help=f"{', '.join(SCALES)}; default: {default}",
    )


def _scale_of_data(parser: argparse.ArgumentParser) -> None:
    scale_flag(parser, "paper, with --set data.world=... mini")


def set_flag(parser: argparse.ArgumentParser) -> None:
    """``--set``."""
    parser.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="change a field of every run (optim.lr=1e-3); may be repeated; data, vision, batch size, "
        "precision, accumulate and gradient_checkpointing also change in the stage 1 that a run starts from",
    )


def _rows_and_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows", type=some_text("--rows"), metavar="TEXT", help="only the rows whose label contains this"
    )
    set_flag(parser)


def _seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds",
        type=whole_number("--seeds", 1, 10_000),
        metavar="N",
        help="seeds of every row; default: those of the scale (all: more for the rows that claims rest on)",
    )


def _workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=whole_number("--workers", 1),
        metavar="N",
        help="processes side by side; default: one for each core; in SLURM: runs side by side in a job",
    )


def _executor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--executor",
        type=one_of("--executor", "executor", EXECUTORS),
        metavar="WHERE",
        help="where runs are executed: local (default) or slurm",
    )


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=one_of("--device", "device", DEVICES),
        metavar="NAME",
        help="what computes: auto (default; a GPU where there is one), cpu, cuda, or mps",
    )


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would run and what it would cost, and stop"
    )


def _everything(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--everything", action="store_true", help="also the runs whose scores are those of today's scorers"
    )


def _thorough(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="also decode every image of the evaluation sets, and count pools of millions of pairs",
    )


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", help="where to write it; the default is said at the end")


def _cluster(title: str) -> _Flags:
    """Flags for a cluster's profile, under a title."""

    def add(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group(title)
        group.add_argument(
            "--cluster",
            type=some_text("--cluster"),
            metavar="FILE",
            help="TOML profile, see clusters/example.toml; flags override it",
        )
        for name in ("partition", "account", "qos", "constraint"):
            group.add_argument(f"--{name}", metavar="NAME", help="as for sbatch")
        group.add_argument("--time", metavar="LIMIT", help="of a job: D-HH:MM:SS, HH:MM:SS or minutes")
        group.add_argument("--memory-gb", type=float, metavar="GB", help="of a node")
        group.add_argument("--gpus", type=whole_number("--gpus", 0), metavar="N", help="on each node")
        group.add_argument("--nodes", type=whole_number("--nodes", 1), metavar="N", help="of one run")

    return add


# ------------------------------------------------------------------------------------------- commands

_ASK = "what to ask SLURM for (with --executor slurm)"
_EXPERIMENTS, _EITHER, _ONE_RUN = ("experiments",), ("experiments", "run"), ("run",)
COMMANDS: dict[str, Command] = {
    "list": Command((), "the experiments and the scales"),
    "status": Command(
        _EXPERIMENTS,
        "which runs are complete, running, queued, failed or pending",
        (scale_flag, _seeds, _rows_and_set),
        "With each run's row, seed and id, where they are few. Without an experiment: a line for each.",
        optional=True,
    ),
    "show": Command(
        _EITHER,
        "the table of an experiment, or a run's configuration, scores, provenance and log",
        (scale_flag, _rows_and_set),
        "With --rows and --set the table that they gave.",
    ),
    "captions": Command(
        _EITHER,
        "captions and answers for the first images, beside the references",
        (scale_flag, _rows_and_set),
    ),
    "logs": Command(_ONE_RUN, "the whole log of a run, and why it failed"),
    "retry": Command(
        _EXPERIMENTS,
        "execute again the runs that have failed, and no others",
        (scale_flag, _seeds, _rows_and_set, _executor, _workers, _device, _cluster(_ASK)),
        "In SLURM also those that were lost; the profile is that of the jobs before, changed by the flags.",
    ),
    "wait": Command(
        _EXPERIMENTS,
        "follow a sweep in the SLURM queue to its end, then write its table",
        (scale_flag, _seeds, _rows_and_set, _cluster("what to ask SLURM for, for tasks still to be queued")),
        "Tasks that were left for want of room are queued on the way.",
    ),
    "cancel": Command(
        _EXPERIMENTS,
        "take the jobs of a sweep out of the SLURM queue",
        (scale_flag, _seeds, _rows_and_set),
        "Running ones write a checkpoint first. With --seeds: only the jobs that have runs of these seeds.",
    ),
    "pack": Command(
        _EXPERIMENTS,
        "keep the records of finished runs in an archive beside their table",
        (scale_flag, _seeds, _rows_and_set),
    ),
    "unpack": Command(
        _EXPERIMENTS,
        "put the runs of the archive beside a table into the run store",
        (scale_flag, _rows_and_set),
    ),
    "rescore": Command(
        _EXPERIMENTS,
        "score kept predictions again where a scorer has changed, without a model",
        (scale_flag, _seeds, _rows_and_set, _everything),
        "Of the complete runs in the run store; their table is written anew.",
    ),
    "check-data": Command(
        _EXPERIMENTS,
        "what data is there, what is missing and where to get it, with a page of samples",
        (_scale_of_data, _rows_and_set, _thorough),
        "Exit code 2 if something is missing.",
        optional=True,
    ),
    "describe-data": Command(
        _EXPERIMENTS,
        "lengths of captions, questions and answers, sizes of images, most frequent words",
        (_scale_of_data, _rows_and_set),
        "Of each set that the experiments read.",
        optional=True,
    ),
    "diff": Command(
        _ONE_RUN,
        "where the captions and answers of two runs differ, as a page with images",
        (_out,),
        "From the predictions that are kept in the run store or in the archives beside the tables.",
        second="RUN_B",
    ),
    "submit": Command(
        _ONE_RUN,
        "write a run's predictions as the makers of a data set want them",
        (_out, _device),
        "Sets: nocaps, nocaps_test, vqav2_testdev, vqav2_test, or any that runs are evaluated on. What was "
        "not kept is decoded first, with the run's weights.",
        second="SET",
    ),
    "adopt": Command(
        _EXPERIMENTS,
        "give records with ids of an earlier form those of today",
        (scale_flag,),
        "In the archive beside the table, and in the run store. Scores and measurements stay as they are.",
    ),
    "foundation": Command(
        (),
        "pre-train the miniature's image encoders and language models from nothing",
        (scale_flag, _workers),
    ),
}
_SWEEP: tuple[_Flags, ...] = (
    *(scale_flag, _seeds, _rows_and_set, _executor, _workers, _device, _dry_run, _cluster(_ASK)),
)


def parse(words: Sequence[str]) -> Arguments:
    """What was typed after ``run.py``. Prints help and exits where it is asked for.

    Raises:
        UserError: something that is typed is unknown, missing, too much, or would be ignored.
    """
    if not words:
        raise UserError("give an experiment or a command; sweeps/run.py --help lists them")
    if words[0] in COMMANDS:
        name = words[0]
        command = COMMANDS[name]
        elsewhere = [*_sweep_parser()._option_string_actions, "--everything", "--thorough"]
        found = _parser(name, command).parse(words[1:], elsewhere)
        typed_words: list[str] = found.pop("words", [])
        if command.second:
            if len(typed_words) > 2:
                raise UserError(f"{name} {' '.join(typed_words)}: takes one run and one {command.second}")
            found["second"] = typed_words[1] if len(typed_words) == 2 else ""
            typed_words = typed_words[:1]
        targets = _targets(name, command.takes, typed_words)
        if not targets and command.takes and not command.optional:
            what = "a run's id" if command.takes == _ONE_RUN else f"one of {', '.join((*EXPERIMENTS, ALL))}"
            raise UserError(f"{name}: of what? Give {what}")
        if command.second and not found["second"]:
            raise UserError(f"{name} {targets[0]}: needs a {command.second} behind the run")
    else:
        name = RUN
        found = _sweep_parser().parse(words)
        targets = _targets("", _EXPERIMENTS, found.pop("words", []))
        if not targets:
            raise UserError("give an experiment or a command; sweeps/run.py --help lists them")
    found["set"] = tuple(found.get("set", ()))
    refuse_twice(found["set"])
    for change in found["set"]:
        if change.partition("=")[0].rpartition(".")[2] == "seed":
            raise UserError(f"--set {change}: changes nothing: seeds are 0, 1, ..., as many as --seeds says")
    typed = frozenset(name for name, value in found.items() if value != () and name != "second")
    arguments = Arguments(command=name, targets=targets, typed=typed, **found)
    _refuse_ignored(arguments)
    return arguments


def _parser(name: str, command: Command) -> Parser:
    kinds = {"experiments": f"EXPERIMENT|{ALL}", "run": "RUN"}
    target = "|".join(kinds[kind] for kind in command.takes)
    target = f"[{target}]" if command.optional else target
    if command.second:
        target = f"{'RUN_A' if command.second == 'RUN_B' else target} {command.second}"
    usage = " ".join(filter(None, ("sweeps/run.py", name, target, "[FLAGS]" if command.flags else "")))
    details = [_wrapped(f"{command.help[0].upper()}{command.help[1:]}.", ""), _wrapped(command.details, "")]
    if "run" in command.takes:
        details.append("RUN: a run's id or the beginning of one; status lists them.")
    if "experiments" in command.takes:
        details.append(_wrapped(f"EXPERIMENT: {', '.join(EXPERIMENTS)}."))
    parser = Parser(f"sweeps/run.py {name}", "\n".join(filter(None, details)), usage)
    return _filled(parser, command.flags)


def _sweep_parser() -> Parser:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(
        _wrapped(f"  {name:{width}}{command.help}", " " * (width + 2)) for name, command in COMMANDS.items()
    )
    usage = f"sweeps/run.py EXPERIMENT|{ALL} [FLAGS]\n       sweeps/run.py COMMAND ... [FLAGS]"
    experiments = _wrapped(f"experiments: {', '.join(EXPERIMENTS)}")
    what = "Run an experiment, score its runs and write its table. Finished runs are never repeated."
    description = (
        f"{_wrapped(what, '')}\n\n"
        f"{experiments}\n"
        f"  {ALL}: those of the paper, one after the other, and then its claims\n\n"
        f"commands (sweeps/run.py COMMAND --help says more):\n{commands}"
    )
    parser = _filled(Parser("sweeps/run.py", description, usage), _SWEEP)
    parser.epilog = _wrapped(
        "exit code: 0 all runs complete, 1 some failed, 2 a mistake, 3 queued, 130 interrupted"
    )
    return parser


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, 78, subsequent_indent=indent, break_on_hyphens=False)


def _filled(parser: Parser, flags: Sequence[_Flags]) -> Parser:
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    for add in flags:
        add(parser)
    return parser


def _targets(command: str, takes: tuple[str, ...], words: list[str]) -> tuple[str, ...]:
    """The experiments or runs that were given, in order."""
    if not takes and words:
        raise UserError(f"{command} {words[0]}: {command} takes no argument")
    known = (*EXPERIMENTS, ALL)
    if "run" not in takes:
        for word in words:
            if word not in known:
                others = known if command else (*known, *COMMANDS)
                hint = "" if command else "; list and --help say more"
                raise UserError(
                    f"experiment {word!r}: no such experiment; there are: {', '.join(known)}"
                    f"{nearest(word, others) or hint}"
                )
    for word in words:
        if words.count(word) > 1:
            raise UserError(f"{' '.join(words)}: {word} is given {words.count(word)} times; give it once")
        if word == ALL and len(words) > 1:
            raise UserError(f"{' '.join(words)}: {ALL} takes every experiment; give it alone")
    return tuple(words)


def _refuse_ignored(arguments: Arguments) -> None:
    """Refuse flags that would change nothing.

    Raises:
        UserError: the first of them.
    """
    if arguments.command in (RUN, "retry") and arguments.executor != "slurm":
        for name in PROFILE:
            if name in arguments.typed:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{flag}: asks a cluster for something; add --executor slurm, or leave it out"
                )
    of_runs = [word for word in arguments.targets if word not in (*EXPERIMENTS, ALL)]
    is_refused = arguments.typed - ({"scale"} if of_runs and "-changed" in of_runs[0] else set())
    if of_runs and is_refused and not COMMANDS[arguments.command].second:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(arguments.typed))
        raise UserError(f"{arguments.command} {of_runs[0]}: {flags}: is for experiments, not for one run")
