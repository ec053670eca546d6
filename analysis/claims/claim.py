"""What a claim is, and what all claims share: the rows they look at, their metrics, the usual rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.gates import stage1_failure
from analysis.results import Results
from analysis.significance import DECIDING, Finding
from analysis.tables import STATES, count_text

Verdict = Literal[
    "holds", "does not hold", "does not hold here", "undecided", "not testable yet", "not tested"
]
Experiments = Mapping[str, Results]  # by name
Judged = tuple[Verdict, list[str]]  # with the evidence, what decided first

QUALITY = ("vqav2", "gqa", "okvqa", "coco/CIDEr")  # table 1's
ZERO_SHOT = ("nocaps/CIDEr", "flickr/CIDEr")  # table 2's two sets
LITTLE, LITTLE_IN_ONE = 6.3, 14.5  # percent

BLIP2_SINGLE_STAGE, BLIP2_TWO_STAGES = "BLIP-2, single stage", "BLIP-2, two stages"  # connectors, in values
STAGE_2_ONLY = "BLIP-2, stage 2 only, 104M"  # rows of table 1
SHORT, LONG = "EVLGen, 104M, 150K", "EVLGen, 104M, 250K"
LESS_DATA = "EVLGen, 11M, 150K"
REGIME = "tuned"  # the best settings that were found, not the paper's: BERT's weights and low rates


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and what this project found.

    Attributes:
        evidence: sentences with numbers.
        rule: how the verdict follows from them.
        regime: whose settings the runs have.
        runs: ids of the complete runs that were looked at.
    """

    id: str
    claim: str
    verdict: Verdict
    evidence: tuple[str, ...]
    rule: str
    scale: str
    regime: str = REGIME
    runs: tuple[str, ...] = ()


def claim_of(
    number: str, text: str, rule: str, rows: Sequence[tuple[Results, str]], judged: Callable[[], Judged]
) -> Claim:
    """A claim judged by its rows; "not tested" if none of them has a run, and what is missing is named."""
    runs = tuple(dict.fromkeys(run.id for results, label in rows for run in results.complete(label)))
    scale = rows[0][0].scale
    missing = _missing(rows)
    if not runs:
        return Claim(number, text, "not tested", ("No run is complete.", *missing), rule, scale)
    verdict, (first, *others) = judged()
    wanted = max(results.seeds for results, _ in rows)
    few = ""
    if wanted < DECIDING:
        few = f" {count_text(wanted, 'seed')}; {DECIDING} are needed (--seeds {DECIDING})."
    evidence = (f"{first}.{few}", *(f"{line}." for line in others))
    return Claim(number, text, verdict, (*evidence, *missing, *_warnings(rows)), rule, scale, runs=runs)


def _by_experiment(rows: Sequence[tuple[Results, str]]) -> list[tuple[Results, list[str]]]:
    """Experiments among the rows, each once, with the labels of its rows."""
    by_name: dict[str, tuple[Results, list[str]]] = {}
    for results, label in rows:
        by_name.setdefault(results.experiment.name, (results, []))[1].append(label)
    return list(by_name.values())


def _missing(rows: Sequence[tuple[Results, str]]) -> list[str]:
    """A sentence for each experiment in which runs are missing, with the command that makes them."""
    sentences = []
    for results, labels in _by_experiment(rows):
        wanted, there = len(labels) * results.seeds, len(results.complete(*labels))
        if there < wanted:
            sentences.append(
                f"Missing: {wanted - there} of {wanted} runs of {results.experiment.name}; "
                f"`{results.command}` makes them."
            )
    return sentences


def _warnings(rows: Sequence[tuple[Results, str]]) -> list[str]:
    """A sentence for each thing that has changed in the code since the runs were recorded or scored."""
    return [line for results, labels in _by_experiment(rows) for line in results.warnings(labels)]


def conclude(deciding: Sequence[Finding], vetoing: Sequence[Finding]) -> Verdict:
    """The usual rule: "does not hold" if one that decides lies below; "holds" if all lie above, without
    veto."""
    if any(finding.side == "below" for finding in deciding):
        return "does not hold"
    if all(finding.side == "above" for finding in deciding) and all(one.side != "below" for one in vetoing):
        return "holds"
    return "undecided"


def with_stage1(rows: Sequence[tuple[Results, str]], judged: Judged) -> Judged:
    """The verdict, or "not testable yet" if the stage 1 behind one of the rows did not learn.

    What two stages reach, and at what cost, says nothing about BLIP-2 then (`analysis.gates`).
    """
    failures = {label: clause for results, label in rows if (clause := stage1_failure(results, label))}
    if not failures:
        return judged
    if len(failures) == 1:
        (clause,) = failures.values()
        lines = [clause[0].upper() + clause[1:]]
    else:
        lines = [f"{label}: {clause}" for label, clause in failures.items()]
    return "not testable yet", [*lines, *judged[1]]


def all_are(states: Sequence[str], wanted: str) -> bool:
    """Whether runs are all in one state, and there are any."""
    return set(states) == {wanted}


def in_words(states: Sequence[str]) -> str:
    """``used in 4 of 5 runs, not used in 1 of 5 runs``, by the words of the tables."""
    total = f"of {count_text(len(states), 'run')}"
    counts = {name: states.count(name) for name in dict.fromkeys(states)}
    said = [f"{STATES.get(name, 'unknown')} in {count} {total}" for name, count in counts.items()]
    return ", ".join(said) or "unknown, no run is complete"
