"""Verdicts on the paper's claims, by rules that were written before the runs: ``python -m
analysis.claims``.

A function a claim: it takes what the run store has of the experiments that the claim rests on and says
"holds", "does not hold", "undecided" or "not tested", by the rule in its docstring. What it takes to *show*
a difference, and what an *overall* difference is, stands in `analysis.significance`; all that is not shown is
undecided.

When the rules were written, tables 1 and 2 had been published with three seeds; nothing had been seen of
their further seeds and of the other experiments. What was changed later says so in its docstring and in the
claim's own rule. A verdict is about this world at this scale: what of it carries over to the paper's is the
reader's to judge.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from analysis.results import Found, read, scale_flag
from analysis.significance import (
    DECIDING,
    VETOING,
    Answer,
    Question,
    compare,
    differences,
    mean,
    seeds_text,
    settle,
)
from analysis.tables import LEVEL, STATES, number, title
from analysis.time_to_quality import CostRatio, Reached, cost_ratio, time_to_quality
from evlgen.config import RunConfig
from evlgen.errors import UserError, exit_code
from evlgen.runs import identity
from evlgen.runtime import paths
from evlgen.runtime.files import write_atomic
from experiments.base import seeded, shape
from experiments.scales import NAMES, get, has_stages_in_proportion

Verdict = Literal["holds", "does not hold", "undecided", "not tested"]
Store = Mapping[str, Found]
Judged = tuple[Verdict, list[str]]  # with the evidence, what decided first

QUALITY = ("vqav2", "gqa", "okvqa", "coco/CIDEr")  # table 1's
ZERO_SHOT = ("nocaps/CIDEr", "flickr/CIDEr")  # table 2's two sets
FIFTH = 0.30
STEADY = 1.25  # of seconds for the same work, slowest over fastest
AS_FIRST_WRITTEN = (
    "By the rule as it was first written the claim would be undecided: it compared the seconds of an update "
    f"over runs of all lengths, and these differ by more than {100 * (STEADY - 1):.0f}%. That only runs of "
    "one length are compared was added after the first complete budgets had been seen"
)
LITTLE, LITTLE_IN_ONE = 6.3, 14.5  # percent
LITTLE_OF_TWO = 2.7  # of VQAv2 and CIDEr
PURER = 0.05
PAPER_HOURS = (234.0, 80.0)  # of BLIP-2's two stages and of EVLGen's 150K, table 1

BLIP2_SINGLE_STAGE, BLIP2_TWO_STAGES = "BLIP-2, single stage", "BLIP-2, two stages"  # connectors, in values
STAGE_2_ONLY = "BLIP-2, stage 2 only, 104M"  # rows of table 1
SHORT, LONG = "EVLGen, 104M, 150K", "EVLGen, 104M, 250K"
LESS_DATA = "EVLGen, 11M, 150K"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and what this project found.

    Attributes:
        evidence: sentences with numbers.
        rule: how the verdict follows from them.
        runs: ids of the complete runs that were looked at.
    """

    id: str
    claim: str
    verdict: Verdict
    evidence: tuple[str, ...]
    rule: str
    scale: str
    runs: tuple[str, ...] = ()


def _claim(
    number: str, text: str, rule: str, rows: Sequence[tuple[Found, str]], judged: Callable[[], Judged]
) -> Claim:
    """A claim judged by its rows; "not tested" if none of them has a run, and what is missing is named."""
    runs = tuple(dict.fromkeys(run["id"] for of, label in rows for run in of.results[label] if run))
    scale = rows[0][0].scale
    missing = _missing(rows)
    if not runs:
        return Claim(number, text, "not tested", ("No run is complete.", *missing), rule, scale)
    verdict, (first, *others) = judged()
    wanted = max(len(of.results[label]) for of, label in rows)
    few = "" if wanted >= DECIDING else f" {seeds_text(wanted)}; {DECIDING} are needed (--seeds {DECIDING})."
    evidence = (f"{first}.{few}", *(f"{line}." for line in others))
    return Claim(number, text, verdict, (*evidence, *missing), rule, scale, runs)


def _missing(rows: Sequence[tuple[Found, str]]) -> list[str]:
    """A sentence for each experiment in which runs are missing, with the command that makes them."""
    sentences = []
    for of in {id(of): of for of, _ in rows}.values():
        runs = [run for other, label in rows if other is of for run in of.results[label]]
        if None in runs:
            name = of.experiment.name
            sentences.append(
                f"Missing: {runs.count(None)} of {len(runs)} runs of {name}; `{of.command}` makes them."
            )
    return sentences


def conclude(deciding: Sequence[Answer], vetoing: Sequence[Answer]) -> Verdict:
    """The usual rule: "does not hold" if one that decides lies below; "holds" if all lie above, without
    veto."""
    if any(answer.side == "below" for answer in deciding):
        return "does not hold"
    if all(answer.side == "above" for answer in deciding) and all(one.side != "below" for one in vetoing):
        return "holds"
    return "undecided"


# ------------------------------------------------------------------------------------------ C1: time


def c1(found: Store) -> Claim:
    """Single-stage EVLGen reaches BLIP-2's two-stage quality at about 1/5 of the training time.

    What is measured is the time at which EVLGen first reaches BLIP-2's final overall score, over BLIP-2's
    time for both stages. "About 1/5" is taken to be at most 0.30; less is better still. That is half again
    as much as a fifth, since seconds depend on the machine and on what share of a step the connector has;
    and it is less than the 80 / 234 = 0.34 of the paper's own row of 150K updates, which is not level with
    BLIP-2 in CIDEr and OK-VQA, so that it cannot be what the authors mean by a fifth.

    Holds if the ratio is shown to be below 0.30, and no single metric's ratio is shown to be above. Does
    not hold if it is shown to be above. Where EVLGen never reaches the score, its largest budget counts, as
    a bound from below that can only speak against the claim; where its smallest budget already does, that
    one counts, as a bound from above that can only speak for it. Undecided if runs of BLIP-2's two stages
    do not use their images: then there is no quality to reach. Undecided, too, if the seconds were not
    measured evenly: see `uneven`.
    """
    of = found["budgets"]
    (reference,) = of.labels(connector=BLIP2_TWO_STAGES, budget=1.0)

    def judged() -> Judged:
        metrics = of.metrics(QUALITY)
        wanted = {"overall score": metrics, **{title(one): [one] for one in metrics}}
        ratios = {text: speed(of, "EVLGen", of_metrics) for text, of_metrics in wanted.items()}
        known = {text: ratio for text, ratio in ratios.items() if ratio is not None}
        if "overall score" not in known:
            return "undecided", [
                "No seed has all budgets of EVLGen, and BLIP-2's two stages, with all scores"
            ]
        first, *others = known.values()
        deciding, vetoing = is_fast([first], DECIDING), is_fast(others, VETOING)
        verdict = conclude(deciding, vetoing)
        words = {"above": "shown below", "below": "shown above", "open": "not shown on either side of"}
        evidence = [
            f"EVLGen reaches the {text} of BLIP-2's two stages at {_in_costs(ratio)}, corrected p "
            f"{answer.corrected:.2g}, {words[answer.side]} {FIFTH:.2f}"
            for (text, ratio), answer in zip(known.items(), [*deciding, *vetoing], strict=True)
        ]
        evidence += _more_on_speed(of, metrics, reference)
        states = of.states(reference)
        if set(states) != {"conditioned"}:
            evidence.insert(0, f"{reference} does not always use its images: {_in_words(states)}")
            verdict = "undecided"
        disturbed = uneven(of)
        if disturbed:
            return "undecided", [*disturbed, *evidence]
        if uneven(of, lengths_apart=False):
            evidence.append(AS_FIRST_WRITTEN)
        return verdict, evidence

    return _claim(
        "C1",
        "Single-stage EVLGen reaches BLIP-2's two-stage quality at about 1/5 of the training time.",
        f"Holds if the time at which EVLGen first reaches BLIP-2's final overall score is shown to be below "
        f"{FIFTH:.2f} of BLIP-2's (half again as much as a fifth), and in no single metric above; does "
        f"not hold if it is shown to be above. Undecided while equal updates took more than "
        f"{100 * (STEADY - 1):.0f}% longer in some runs than in others of the same length.",
        [(of, reference), *((of, label) for label in of.labels(connector="EVLGen"))],
        judged,
    )


def uneven(of: Found, lengths_apart: bool = True) -> list[str]:
    """A sentence for each kind of training whose updates took more than `STEADY` times as long in its
    slowest run as in its fastest.

    Updates of one kind (stage, connector, language model, batch, length of the run) are the same work; of a
    short run the validations, ten in each, are a larger part. Where their seconds differ by so much, the
    machine was doing other things as well, and a ratio of seconds says nothing.

    The length of the run was added after the first complete `budgets` had been seen, in which runs of 500
    updates took longer for each than shorter and longer ones. It touches no ratio. Where the verdict would be
    another without it (``lengths_apart`` False), the claim says so.

    Finished runs are not repeated by themselves, so the slow ones are named.
    """
    measured: dict[tuple[object, ...], dict[str, tuple[float, set[str]]]] = {}  # kind -> run -> its seconds
    names = {}
    for row in of.experiment.rows:
        for seed, run in enumerate(of.results[row.label]):
            for config, seconds, also in _stages(seeded(row.config, seed), run):
                kind = (*shape(config), config.optim.batch_size, config.optim.steps if lengths_apart else 0)
                parts = (
                    config.connector.kind,
                    f"stage {config.stage}",
                    config.language,
                    f"{config.optim.steps} in all",
                )
                names[kind] = ", ".join(filter(None, parts))
                spent = seconds / config.optim.steps
                _, stale = measured.setdefault(kind, {}).get(identity.run_id(config), (spent, set()))
                measured[kind][identity.run_id(config)] = (spent, stale | also)
    said = []
    for kind, runs in measured.items():
        by_pace = sorted(runs, key=lambda run: runs[run][0])
        fastest, slowest = by_pace[0], by_pace[-1]
        least, most = runs[fastest][0], runs[slowest][0]
        if most > STEADY * least:
            slow = {run: stale for run, (spent, stale) in runs.items() if spent > STEADY * least}
            again = sorted({*slow, *(one for stale in slow.values() for one in stale)})
            said.append(
                f"Seconds cannot be compared: an update of {names[kind]} took {least:.3g} s in run {fastest} "
                f"and {most:.3g} s, {most / least:.2f} times as long, in run {slowest} ({STEADY:g} at most); "
                f"the machine was doing other things. Delete the slow runs ({', '.join(again)}) from "
                f"{paths.runs_folder().name}/ and make them again on a quiet machine with `{of.command}`"
            )
    return said


def _stages(config: RunConfig, run: Mapping[str, Any] | None) -> list[tuple[RunConfig, float, set[str]]]:
    """The trainings behind a result whose seconds are known: configuration, seconds, and the runs whose
    result holds these seconds as well."""
    if run is None:
        return []
    total, own = (number(run["metrics"].get(name)) for name in ("total_seconds", "train_seconds"))
    if config.init_from is None:
        alone = total if own is None else own
        return [] if alone is None else [(config, alone, set())]
    if total is None or own is None:
        return []
    return [(config, own, set()), (config.init_from, total - own, {identity.run_id(config)})]


def speed(of: Found, connector: str, metrics: Sequence[str], cost: str = "seconds") -> CostRatio | None:
    """Cost at which a connector of `budgets` first reaches what BLIP-2's two stages reach, over what these
    cost.

    The score of a run is the mean over ``metrics`` of its share of BLIP-2's mean over seeds; the target is
    BLIP-2's own with the same seed.

    Args:
        cost: ``seconds`` of training, stage 1 included, or ``operations``.

    Returns:
        None where no seed has all budgets, all scores and costs.
    """
    (reference,) = of.labels(connector=BLIP2_TWO_STAGES, budget=1.0)
    labels = [reference, *of.labels(connector=connector)]
    scales = [mean(of.values(reference, metric)) for metric in metrics]
    reached, whole = [], []
    for seed, _ in enumerate(of.results[reference]):
        scores = [[of.values(label, metric)[seed] for metric in metrics] for label in labels]
        costs = [
            of.values(label, "total_seconds")[seed] if cost == "seconds" else of.operations.get(label)
            for label in labels
        ]
        spent = [one for one in costs if one is not None]
        if len(spent) < len(labels) or any(None in row for row in scores) or min(scales) <= 0:
            continue
        target, *curve = (
            mean((one or 0.0) / by for one, by in zip(row, scales, strict=True)) for row in scores
        )
        reached.append(time_to_quality(spent[1:], curve, target))
        whole.append(spent[0])
    return cost_ratio(reached, whole) if reached else None


def mean_speed(of: Found, connector: str, metrics: Sequence[str]) -> Reached | None:
    """As `speed` in seconds, but of the curve of means over seeds, which noise lets cross less early."""
    (reference,) = of.labels(connector=BLIP2_TWO_STAGES, budget=1.0)
    labels = [reference, *of.labels(connector=connector)]
    scales = [mean(of.values(reference, metric)) for metric in metrics]
    costs = [mean(of.values(label, "total_seconds")) for label in labels]
    means = [[mean(of.values(label, metric)) for metric in metrics] for label in labels]
    if min(scales, default=0) <= 0 or not all(
        map(math.isfinite, (*costs, *(one for row in means for one in row)))
    ):
        return None
    target, *curve = (mean(one / by for one, by in zip(row, scales, strict=True)) for row in means)
    reached = time_to_quality(costs[1:], curve, target)
    return Reached(reached.cost / costs[0], reached.bound)


def is_fast(ratios: Sequence[CostRatio], seeds: int) -> list[Answer]:
    """Whether ratios are smaller than "about a fifth": ``above`` is faster, as if it were a score.

    A bound from below cannot show that something is fast, nor one from above that it is slow.
    """
    questions = [Question("", tuple(math.log(FIFTH / one) for one in ratio.ratios)) for ratio in ratios]
    useless = {"above": "at least", "below": "at most", "open": ""}
    return [
        dataclasses.replace(answer, side="open") if useless[answer.side] in ratio.bounds else answer
        for ratio, answer in zip(ratios, settle(questions, seeds), strict=True)
    ]


def _in_costs(ratio: CostRatio, of_what: str = "its training time") -> str:
    """``0.33 [0.28, 0.41] of its training time (by seed 0.28 / 0.41 / ≤ 0.32)``."""
    signs = {"exact": "", "at least": "≥ ", "at most": "≤ "}
    each = " / ".join(
        f"{signs[bound]}{one:.2f}" for one, bound in zip(ratio.ratios, ratio.bounds, strict=True)
    )
    ends = "" if ratio.low is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    sign = "bounds on either side, " if ratio.bound is None else signs[ratio.bound]
    return f"{sign}{ratio.mean:.2f}{ends} of {of_what} (by seed {each})"


def _more_on_speed(of: Found, metrics: Sequence[str], reference: str) -> list[str]:
    """What puts the ratio into its place, and decides nothing."""
    seconds = mean(of.values(reference, "total_seconds"))
    lines = [f"BLIP-2's two stages take {seconds:.1f} s, {seeds_text(len(of.states(reference)))}"]
    lines += _relative_budget(of, reference)
    of_means = mean_speed(of, "EVLGen", metrics)
    if of_means is not None:
        bound = "" if of_means.bound == "exact" else f"{of_means.bound} "
        lines[0] += (
            f"; by the curve of the means over seeds EVLGen is level at {bound}{of_means.cost:.2f} of it"
        )
    counted = speed(of, "EVLGen", metrics, "operations")
    lines.append(
        f"In operations they are not counted: `python sweeps/run.py table5{scale_flag(of.scale)}` counts them"
        if counted is None
        else "With the operations of whole steps for a cost, image encoder and language model among them, "
        f"EVLGen reaches the overall score at {_in_costs(counted, 'those of the two stages')}"
    )
    same = speed(of, BLIP2_SINGLE_STAGE, metrics)
    if same is not None:
        lines.append(
            "To tell what it is worth to leave out stage 1 alone: the Q-Former in a single stage reaches the "
            f"overall score at {_in_costs(same)}"
        )
    for label in of.labels(connector=BLIP2_TWO_STAGES):
        overall, _ = compare(of, label, reference, metrics)
        if label != reference and overall.differences:
            lines.append(f"What the cost of the two stages buys: {settle([overall], DECIDING)[0]}")
    return lines


def _relative_budget(of: Found, reference: str) -> list[str]:
    """What the two stages cost here and in the paper in relation to EVLGen's 150K, and who chose that."""
    (short,) = of.labels(connector="EVLGen", budget=150)
    both, ours = (mean(of.values(label, "total_seconds")) for label in (reference, short))
    ratio, papers = both / ours, PAPER_HOURS[0] / PAPER_HOURS[1]
    if not math.isfinite(ratio):
        return []
    line = (
        f"BLIP-2's two stages cost {ratio:.1f} times EVLGen's 150K here, {papers:.1f} times in the paper "
        f"({PAPER_HOURS[0]:g} and {PAPER_HOURS[1]:g} hours)"
    )
    if not has_stages_in_proportion(of.scale):
        line += "; their budget here is this project's own choice (experiments/CALIBRATION.md)"
        if ratio > papers:
            line += ", relatively dearer than the paper's, and the dearer it is, the sooner the claim holds"
    return [line]


# -------------------------------------------------------------------------------------- C2: collapse


def c2(found: Store) -> Claim:
    """BLIP-2 trained in a single stage collapses; EVLGen in a single stage does not.

    Collapse is what `evlgen.collapse.classify` calls so: the image is worth less than 0.02 nats a token,
    the loss is that without any image, and neither moves any more. A run that was stopped before it used
    its image, or that uses it and scores badly, has not collapsed. The paper speaks of the row, not of some
    of its seeds, so all must agree: were collapse a matter of chance, 5 of 5 would come about once in 32.

    Holds if (a) all seeds of EVLGen in table 1 use their images, (b) all seeds of the Q-Former in a single
    stage have collapsed, (c) its overall score is shown to be lower, and (d) in no setting of `collapse`,
    those with three times the updates among them, all its seeds use their images: what other settings or
    more time mend is no collapse of the method. Does not hold if all seeds of the Q-Former use their
    images, or all of EVLGen have collapsed, or none of the Q-Former has collapsed and something mends it
    (it was slow). Undecided otherwise, such as where seeds disagree. (a) and (b) need 5 seeds, (d) needs 3.
    """
    of, settings = found["table1"], found["collapse"]
    tried = settings.labels(connector=BLIP2_SINGLE_STAGE)

    def judged() -> Judged:
        ours, theirs = of.states(LONG), of.states(STAGE_2_ONLY)
        overall, single = compare(of, STAGE_2_ONLY, LONG, of.metrics(QUALITY))
        deciding = settle([overall], DECIDING)[0]
        outcomes = {label: settings.states(label) for label in tried}
        known = all(len(states) >= VETOING for states in outcomes.values())
        mended = any(len(one) >= VETOING and _all(one, "conditioned") for one in outcomes.values())
        verdict: Verdict = "undecided"
        if min(len(ours), len(theirs)) >= DECIDING:
            was_slow = mended and "collapsed" not in theirs
            if _all(theirs, "conditioned") or _all(ours, "collapsed") or was_slow:
                verdict = "does not hold"
            elif _all(ours, "conditioned") and _all(theirs, "collapsed") and deciding.side == "below":
                verdict = "holds" if known and not mended else "undecided"
        evidence = [
            f"{label}: image {_in_words(states)}, mean loss gap {mean(of.values(label, 'gap')):.3f} nats"
            for label, states in ((STAGE_2_ONLY, theirs), (LONG, ours))
        ]
        evidence += [str(deciding), *map(str, settle(single, VETOING))]
        return verdict, [
            *evidence,
            *(_over_settings(settings, one) for one in (BLIP2_SINGLE_STAGE, "EVLGen")),
        ]

    return _claim(
        "C2",
        "BLIP-2 trained in a single stage collapses; EVLGen in a single stage does not.",
        "Holds if all seeds of EVLGen use their images, all of the single-stage Q-Former have collapsed "
        "(evlgen.collapse.classify) and score lower, and no setting tried, three times the updates "
        "among them, mends it; does not hold if all its seeds use their images, or none has collapsed "
        "and something mends it, or all of EVLGen have collapsed.",
        [(of, STAGE_2_ONLY), (of, LONG), *((settings, row.label) for row in settings.experiment.rows)],
        judged,
    )


def _all(states: Sequence[str], wanted: str) -> bool:
    return set(states) == {wanted}


def _in_words(states: Sequence[str]) -> str:
    """``used in 4 of 5 runs, not used in 1 of 5 runs``, by the words of the tables."""
    total = f"of {len(states)} run{'' if len(states) == 1 else 's'}"
    counts = {name: states.count(name) for name in dict.fromkeys(states)}
    said = [f"{STATES.get(name, 'unknown')} in {count} {total}" for name, count in counts.items()]
    return ", ".join(said) or "unknown, no run is complete"


def _over_settings(of: Found, connector: str) -> str:
    """In which settings of `collapse` a connector uses its images, and what more time does to the
    others."""
    labels = of.labels(connector=connector)
    longer = {
        f"{connector}, {row.values['level']}": row.label
        for row in of.experiment.rows
        if row.label in labels and row.values["factor"] == "budget"
    }
    usual = [label for label in labels if label not in longer.values() and of.states(label)]
    others = [label for label in usual if not _all(of.states(label), "conditioned")]
    if not usual:
        return f"{connector}, other settings: no run is complete"
    lines = [f"{connector}, {len(usual)} settings: in {len(usual) - len(others)} all seeds use their images"]
    for label in others:
        line = f"{label.removeprefix(f'{connector}, ')}: {_in_words(of.states(label))}"
        if label in longer and of.states(longer[label]):
            line += f", with three times the updates {_in_words(of.states(longer[label]))}"
        lines.append(line)
    return "; ".join(lines)


# ------------------------------------------------------------------------------------------ C3: data


def c3(found: Store) -> Claim:
    """With about 1/10 of the data (11M instead of 104M pairs) quality drops only a little.

    What the authors call a little is their own drop at 150K updates: 1.3% of VQAv2 (46.9 to 46.3), 2.6% of
    GQA, 7.3% of OK-VQA and 1.4% of CIDEr (137.0 to 135.1), 3.1% on average. Twice that, 6.3% overall, is
    the margin: a true drop like the paper's lies in the middle between none and too much. For one metric
    alone the margin is twice the paper's largest drop, 14.5%.

    Holds if the 11M row of table 1 is shown to be no more than 6.3% worse overall than the 104M row, and
    nothing is shown to be too much worse: no single metric (14.5%), and not a tenth of *all* pools at equal
    updates in `data_fractions` (which must be there, with 3 seeds). The latter because the 11M pairs leave
    out LAION, the noisiest part: less data and cleaner data are two things, and the claim speaks of the
    amount. Of its two metrics, VQAv2 and CIDEr, twice the paper's mean drop is 2.7%. Does not hold if the 11M
    row is shown to be more than 6.3% worse. No drop, or a rise, is a little drop.

    Before `data_fractions` was run, two things were changed: its margin, which was 6.3%, and the miniature's
    11M pairs, which had been all of the cleaner pools, a quarter of all pairs, and are a tenth now.
    """
    of, fractions = found["table1"], found["data_fractions"]
    (whole,) = fractions.labels(connector="EVLGen", fraction=1.0)
    (tenth,) = fractions.labels(connector="EVLGen", fraction=0.1, equal="steps")

    def judged() -> Judged:
        overall, single = compare(of, LESS_DATA, SHORT, of.metrics(QUALITY), -LITTLE, -LITTLE_IN_ONE)
        amount, _ = compare(fractions, tenth, whole, fractions.metrics(QUALITY), -LITTLE_OF_TWO)
        deciding, vetoing = settle([overall], DECIDING), settle([amount, *single], VETOING)
        verdict = conclude(deciding, vetoing)
        if verdict == "holds" and len(amount.differences) < VETOING:
            verdict = "undecided"
        return verdict, [*map(str, deciding), *map(str, vetoing), *_by_fraction(fractions, whole)]

    return _claim(
        "C3",
        "With about 1/10 of the data (11M instead of 104M pairs) quality drops only a little.",
        f"Holds if 11M pairs are shown to cost no more than {LITTLE:g}% overall (twice the paper's own "
        f"drop), and neither a tenth of all pools is shown to cost more than {LITTLE_OF_TWO:g}% (the same "
        f"of its two metrics) nor one metric to drop by more than {LITTLE_IN_ONE:g}%; does not hold if 11M "
        f"pairs are shown to cost more. Margin of the tenth and number of the miniature's 11M pairs were "
        f"changed before data_fractions was run.",
        [(of, LESS_DATA), (of, SHORT), (fractions, tenth), (fractions, whole)],
        judged,
    )


def _by_fraction(of: Found, whole: str) -> list[str]:
    """Overall differences of all fractions of the data, of EVLGen at equal updates."""
    said = []
    for row in of.experiment.rows:
        if row.label in of.labels(connector="EVLGen", equal="steps") and row.label != whole:
            overall = differences(of, row.label, whole, of.metrics(QUALITY))["overall"]
            if overall:
                said.append(f"{float(row.values['fraction']):g}: {mean(overall):+.1f}%")
    return [f"Overall by the fraction of all pools, at equal updates: {', '.join(said)}"] if said else []


# ------------------------------------------------------------------------------------ C4: more steps


def c4(found: Store) -> Claim:
    """Longer training helps further (150K -> 250K steps).

    Holds if the 250K row of table 1 is shown to be better overall than the 150K row and in no single metric
    worse; does not hold if it is shown to be worse overall. The paper gains 3.7% overall (0.3% in GQA, 9.7%
    in OK-VQA), but the claim names no size, so neither does the rule; a gain too small to be shown is
    undecided.
    """
    of, budgets = found["table1"], found["budgets"]

    def judged() -> Judged:
        overall, single = compare(of, LONG, SHORT, of.metrics(QUALITY))
        deciding, vetoing = settle([overall], DECIDING), settle(single, VETOING)
        evidence = [*map(str, deciding), *map(str, vetoing)]
        (last,) = budgets.labels(connector="EVLGen", budget=250)
        for row in budgets.experiment.rows:
            if row.values["connector"] == "EVLGen" and float(row.values["budget"]) > 250:
                further, _ = compare(budgets, row.label, last, budgets.metrics(QUALITY))
                if further.differences:
                    evidence.append(f"And further: {settle([further], DECIDING)[0]}")
        return conclude(deciding, vetoing), evidence

    return _claim(
        "C4",
        "Longer training helps further (150K to 250K steps).",
        "Holds if 250K steps are shown to be better overall than 150K and in no single metric worse; "
        "does not hold if they are shown to be worse overall.",
        [(of, LONG), (of, SHORT)],
        judged,
    )


# ---------------------------------------------------------------------------------------- C5: purity


def c5(found: Store) -> Claim:
    """Merged tokens are already semantically meaningful before any training.

    Two measures of `evlgen.evaluation.merge_maps`, on the connector as initialised: the share of merged
    tokens that show what most of their group shows (``purity``; background counts, so much is pure by
    chance), and for tokens that show an object the share of the others in their group that show the same
    (``purity_objects``). Each is held against groups of the same sizes drawn at random, and against a grid of
    as many rectangles of neighbouring patches: neighbours tend to show the same thing anyway, so what is no
    better than a grid follows position, not meaning.

    Holds if both measures are shown to be more than 0.05 above random groups and above the grid at all.
    Does not hold if both are shown to be less than 0.05 above random groups, or both below the grid. The
    0.05 since initial weights hardly differ from seed to seed, so that a trifle could be shown: five tokens
    in a hundred are the least that one would see in a picture.
    """
    of = found["table1"]
    measures = {"purity": "of all merged tokens", "purity_objects": "of those that show an object"}
    references = {"untrained_random": ("random groups", PURER), "untrained_grid": ("a grid", 0.0)}

    def judged() -> Judged:
        questions = [
            _purer(of, measure, f"{measure}_{name}", f"{text}, untrained, minus {reference}", against)
            for name, (reference, against) in references.items()
            for measure, text in measures.items()
        ]
        settled = settle(questions, DECIDING)
        sides = [answer.side for answer in settled]
        verdict: Verdict = "undecided"
        if sides == ["above"] * 4:
            verdict = "holds"
        elif ["below"] * 2 in (sides[:2], sides[2:]):
            verdict = "does not hold"
        evidence = [str(answer) for answer in settled]
        for measure, text in measures.items():
            after, before = (mean(of.values(LONG, name)) for name in (measure, f"{measure}_untrained"))
            if math.isfinite(after):
                evidence.append(f"Training takes the purity {text} from {before:.3f} to {after:.3f}")
        return verdict, evidence

    return _claim(
        "C5",
        "Merged tokens are already semantically meaningful before any training.",
        f"Holds if the groups of the untrained connector are shown to be more than {PURER:g} purer than "
        "random groups of their sizes, and purer than a grid, over all tokens and over those of objects; "
        "does not hold if both measures are shown not to reach that.",
        [(of, LONG)],
        judged,
    )


def _purer(of: Found, measure: str, reference: str, text: str, against: float) -> Question:
    """The purity of the untrained connector's groups less that of others, seeds being those of the
    weights."""
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(
            of.values(LONG, f"{measure}_untrained"), of.values(LONG, reference), strict=True
        )
        if ours is not None and theirs is not None
    ]
    means = "{:.3f} against {:.3f}".format(*map(mean, zip(*pairs, strict=True))) if pairs else "not measured"
    found = tuple(ours - theirs for ours, theirs in pairs)
    return Question(f"Purity {text} ({means})", found, against, unit="", digits=3)


# ------------------------------------------------------------------- C6: encoders and LLMs, C7: video


def c6(found: Store) -> Claim:
    """The approach carries over to other image encoders (CLIP ViT-L/14) and LLMs (Vicuna-7B).

    "Carries over" is read as: with the other part, too, EVLGen in its single stage is no more than a little
    worse than BLIP-2 in its two, which cost more. A little is that of `c3`. With the other language model
    that is asked of table 2's sets (NoCaps, Flickr30K), with the other image encoder of table 1's, in
    `encoders`. (The paper has EVLGen above BLIP-2; whether it is so here stands in the evidence.)

    Holds if that is shown for both, no single metric is shown to be too much worse, and all runs of EVLGen
    use their images. Does not hold if EVLGen is shown to be more than a little worse with one of them, or
    all its runs with one of them have collapsed.
    """
    tables, encoders = found["table2"], found["encoders"]
    (encoder, _) = get(encoders.scale).other_vision
    (ours,) = encoders.labels(connector="EVLGen", encoder=encoder)
    (theirs,) = encoders.labels(connector=BLIP2_TWO_STAGES, encoder=encoder)
    pairs = (
        (encoders, ours, theirs, QUALITY),
        (tables, "EVLGen, Vicuna-7B", "BLIP-2, Vicuna-7B", ZERO_SHOT),
    )

    def judged() -> Judged:
        asked = [compare(of, a, b, of.metrics(names), -LITTLE, -LITTLE_IN_ONE) for of, a, b, names in pairs]
        deciding = settle([overall for overall, _ in asked], DECIDING)
        vetoing = settle([question for _, single in asked for question in single], VETOING)
        better = settle([dataclasses.replace(overall, against=0.0) for overall, _ in asked], DECIDING)
        states = [of.states(label) for of, label, _, _ in pairs]
        verdict = conclude(deciding, vetoing)
        if any(len(one) >= DECIDING and _all(one, "collapsed") for one in states):
            verdict = "does not hold"
        elif verdict == "holds" and not all(_all(one, "conditioned") for one in states):
            verdict = "undecided"
        evidence = [
            f"{answer}; {'' if above.side == 'above' else 'not '}shown to be better; image {_in_words(state)}"
            for answer, above, state in zip(deciding, better, states, strict=True)
        ]
        return verdict, [*evidence, *map(str, vetoing)]

    return _claim(
        "C6",
        "The approach carries over to other image encoders (CLIP ViT-L/14) and LLMs (Vicuna-7B).",
        f"Holds if EVLGen is shown to be no more than {LITTLE:g}% worse overall than BLIP-2's two stages "
        f"with the other image encoder and with the other language model, in no metric shown to be more than "
        f"{LITTLE_IN_ONE:g}% worse, and uses its images; does not hold if with one of them it is shown "
        "to be worse than that, or has collapsed.",
        [(of, label) for of, *labels, _ in pairs for label in labels],
        judged,
    )


def c7(found: Store) -> Claim:
    """With the temporal module the image model adapts to video: there is no video here yet."""
    return Claim(
        "C7",
        "With the temporal module the image model adapts to video; it beats models with video pre-training.",
        "not tested",
        ("There is no experiment with video yet.",),
        "None yet: it comes with video.",
        found["table1"].scale,
    )


CLAIMS = (c1, c2, c3, c4, c5, c6, c7)
NEEDED = ("table1", "table2", "budgets", "collapse", "data_fractions", "encoders")


# ---------------------------------------------------------------------------------------- the command


def judge(scale: str, seeds: int | None = None) -> list[Claim]:
    """The verdicts, in order.

    Args:
        seeds: of each row; None takes those of `sweeps/run.py all`.

    Raises:
        UserError: no such scale, or no experiment that a claim rests on has a complete run.
    """
    found = {name: read(name, scale, seeds) for name in NEEDED}
    if not any(run for of in found.values() for runs in of.results.values() for run in runs):
        page = results_file(scale).with_suffix(".md")
        raise UserError(
            f"{paths.runs_folder()}: no complete run that a claim rests on at scale {scale}; make them with "
            f"`python sweeps/run.py all{scale_flag(scale)}`"
            + (f" (verdicts on earlier runs stand in {page})" if page.exists() else "")
        )
    return [claim(found) for claim in CLAIMS]


def results_file(scale: str) -> Path:
    """``claims.json`` in the results for the scale ``mini``, ``claims-SCALE.json`` for any other."""
    name = "claims.json" if scale == "mini" else f"claims-{scale}.json"
    return paths.results_folder() / name


def write(scale: str, seeds: int | None = None) -> Path:
    """Judge all claims, write them to `results_file` and as Markdown beside it, show them; returns the
    path of the former.

    Raises:
        UserError: as `judge`, or a file cannot be written.
    """
    claims = judge(scale, seeds)
    path = results_file(scale)
    entries = [dataclasses.asdict(claim) for claim in claims]
    write_atomic(path, (json.dumps(entries, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(path.with_suffix(".md"), markdown(claims, scale).encode())
    show(claims, scale, path)
    return path


def markdown(claims: Sequence[Claim], scale: str) -> str:
    """A table of the verdicts, and below it the rule and the evidence of each."""
    lines = [f"# Claims of the paper (scale `{scale}`)", "", "| | claim | verdict |", "|---|---|---|"]
    lines += [f"| {one.id} | {one.claim} | **{one.verdict}** |" for one in claims]
    lines += [
        "",
        "The rules were written before the runs, but for three seeds of tables 1 and 2, which had been seen; "
        "what was changed later is named with its claim ([analysis/claims.py](../analysis/claims.py)). "
        "Differences are paired by seed and in percent of the second row's mean, with their 95% "
        'bootstrap intervals over seeds; overall is the mean over the metrics. "Shown" is what lies on '
        f"one side by its interval and by a paired t test, p at most {LEVEL:g} after Holm's correction "
        "over the claim's comparisons that decide, or those that can veto "
        "([analysis/significance.py](../analysis/shown.py)).",
        "",
    ]
    for one in claims:
        lines += [f"## {one.id}: {one.verdict}", "", one.claim, "", f"*Rule.* {one.rule}", ""]
        lines += [f"- {sentence}" for sentence in one.evidence]
        if one.runs:
            many = f"{len(one.runs)} complete run{'' if len(one.runs) == 1 else 's'}"
            lines += ["", f"{many} looked at; their ids are in `{results_file(scale).name}`."]
        lines.append("")
    return "\n".join(lines)


def show(claims: Sequence[Claim], scale: str, path: Path) -> None:
    """Print the verdicts with what decided them."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"holds": "green", "does not hold": "red", "undecided": "yellow", "not tested": "dim"}
    table = Table("", "claim", "verdict", "evidence", title=f"Claims of the paper, {scale}", show_lines=True)
    for one in claims:
        verdict = f"[{colours[one.verdict]}]{one.verdict}[/]"
        table.add_row(one.id, escape(one.claim), verdict, escape(one.evidence[0]))
    console = Console()
    console.print(table)
    console.print(f"rules and all evidence: {path.with_suffix('.md')}", soft_wrap=True)


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, or 2 after a user's mistake."""

    def arguments(
        scale: Annotated[str, tyro.conf.arg(help=", ".join(NAMES))] = "mini", seeds: int | None = None
    ) -> tuple[str, int | None]:
        """Judge the paper's claims by the runs there are.

        Args:
            seeds: of every row; default: those of `sweeps/run.py all`
        """
        return scale, seeds

    scale, seeds = tyro.cli(arguments, args=argv, prog="python -m analysis.claims")

    def act() -> None:
        if seeds is not None and seeds < 1:
            raise UserError(f"--seeds {seeds}: at least 1 is needed")
        write(scale, seeds)

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
