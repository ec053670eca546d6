"""Gates: has a part learned what it is for, and does a metric follow what it is meant to measure?

What rests on a part that has not learned is not judged, whatever its scores; what rests on a metric that
follows nothing says so. The thresholds:

- **Stage 1** of BLIP-2 trains matching and retrieval. It has learned if it finds at least half of the
  held-out pairs among all of them (retrieval@1; BLIP-2 itself finds four in five among 5,000), and if the
  loss of its matching is at most half of what it is without looking. One pair in three matches, so that is
  the entropy of 1/3, 0.6365 nats; at half of it, half of what there is to know is known.
- **A question set** follows if its accuracy correlates by at least 0.3 with CIDEr over runs that are trained
  long enough to use their images.

These were added after the runs had been seen, and they can only take a verdict back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.results import Results, Run, number
from analysis.statistics import correlation
from evlgen.evaluation.metrics import metric

RETRIEVAL = 50.0  # percent
ITM_PRIOR = math.log(3) - 2 / 3 * math.log(2)  # nats: two of three pairs do not match
ITM = ITM_PRIOR / 2
FOLLOWS = 0.3
_AT_PRIOR = 0.95  # of the prior: as if nothing had been learned


def stage1_failure(results: Results, label: str) -> str | None:
    """Why what rests on the stage 1 of a row cannot be judged, as a clause; None if it has learned with all
    seeds, or if the row starts from none.

    Of the tests those count whose loss was trained.
    """
    runs = [run for run in results.complete(label) if run.config.init_from is not None]
    if not runs:
        return None
    if unknown := [str(run.seed) for run in runs if run.first is None]:
        return f"the records of its stage 1 are missing (seed {', '.join(unknown)})"
    if all(map(_has_learned, runs)):
        return None
    said = []
    if any(found := [_of_stage1(run, "retrieval@1") for run in runs]):
        pairs = runs[0].config.evaluation.validation
        said.append(f"retrieval@1 of {_by_seed(found, 1)}% of {pairs} (by seed)")
    if any(found := [_of_stage1(run, "val_itm") for run in runs]):
        known = [one for one in found if one is not None]
        at = "at its prior of" if min(known) >= _AT_PRIOR * ITM_PRIOR else "where its prior is"
        said.append(f"ITM loss {_by_seed(found, 3)} {at} {ITM_PRIOR:.4f}")
    return f"its stage 1 did not learn: {', '.join(said)}"


def _has_learned(run: Run) -> bool:
    """Whether the stage 1 behind a run passes all tests whose loss it was trained with."""
    assert run.config.init_from is not None
    objectives = run.config.init_from.objectives
    retrieval, itm = _of_stage1(run, "retrieval@1"), _of_stage1(run, "val_itm")
    passes_retrieval = "itc" not in objectives or (retrieval is not None and retrieval >= RETRIEVAL)
    passes_itm = "itm" not in objectives or (itm is not None and itm <= ITM)
    return passes_retrieval and passes_itm


def _of_stage1(run: Run, name: str) -> float | None:
    return None if run.first is None else number(run.first.metrics.get(name))


def _by_seed(values: Sequence[float | None], decimals: int) -> str:
    """``3.3 / 2.0 / 1.2``, or one number where all are alike."""
    texts = ["–" if value is None else f"{value:.{decimals}f}" for value in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def stage1_notes(results: Results) -> list[str]:
    """A sentence on the rows whose stage 1 did not learn: they show nothing about two stages."""
    failed = [row.label for row in results.experiment.rows if stage1_failure(results, row.label)]
    if not failed:
        return []
    runs = results.complete(*failed)
    pairs = runs[0].config.evaluation.validation
    said = []
    for name, decimals, text in (
        ("retrieval@1", 1, f"retrieval@1 of {{}}% of {pairs}"),
        ("val_itm", 3, f"ITM loss of {{}} where its prior is {ITM_PRIOR:.4f}"),
    ):
        if values := [value for run in runs if (value := _of_stage1(run, name)) is not None]:
            ends = dict.fromkeys(f"{value:.{decimals}f}" for value in (min(values), max(values)))
            said.append(text.format(" to ".join(ends)))
    return [
        "What stage 1 or its losses are worth is not testable yet: stage 1 did not learn "
        f"({', '.join(said) or 'its records are missing'}), so these rows do not stand for BLIP-2 in two "
        "stages as "
        f"it is meant to be: {'; '.join(failed)}."
    ]


def follows_nothing(
    found: Sequence[Results], name: str = "okvqa", reference: str = "coco/CIDEr"
) -> str | None:
    """A sentence if a metric does not follow ``reference`` over the runs that are trained long enough; None
    if it does, or if there are too few runs to tell.

    Args:
        found: experiments whose rows have both metrics. Long enough is as many updates as the shortest row of
            the first of them has.
    """
    runs = {run.id: run for results in found for run in results.complete()}
    both = [run for run in runs.values() if None not in (run.metric(name), run.metric(reference))]
    if not both:
        return None
    shortest = min(row.config.optim.steps for row in found[0].experiment.rows)
    trained = [run for run in both if run.config.optim.steps >= shortest]
    value = _correlation(trained, name, reference)
    if math.isnan(value) or value >= FOLLOWS:
        return None
    others = ", ".join(
        f"{metric(other).title} {_correlation(trained, other, reference):.2f}"
        for other in ("vqav2", "gqa")
        if not math.isnan(_correlation(trained, other, reference))
    )
    languages = ", ".join(sorted({run.config.language for run in trained}))
    beside = f" ({others})" if others else ""
    return (
        f"{metric(name).title} with {languages} follows nothing: over the {len(trained)} runs of "
        f"{' and '.join(results.experiment.name for results in found)} with at least {shortest} updates it "
        f"correlates {value:.2f} with {metric(reference).title}{beside}; over all {len(both)}, shorter ones "
        f"among them, {_correlation(both, name, reference):.2f}. What it adds to or takes from an overall "
        "score means nothing"
    )


def _correlation(runs: Sequence[Run], first: str, second: str) -> float:
    pairs = [
        (one, other)
        for run in runs
        if (one := run.metric(first)) is not None and (other := run.metric(second)) is not None
    ]
    return correlation([one for one, _ in pairs], [other for _, other in pairs])
