"""C2: BLIP-2 trained in a single stage collapses; EVLGen in a single stage does not."""

from __future__ import annotations

from analysis.claims.claim import (
    BLIP2_SINGLE_STAGE,
    LONG,
    QUALITY,
    STAGE_2_ONLY,
    Claim,
    Experiments,
    Judged,
    Verdict,
    all_are,
    claim_of,
    in_words,
)
from analysis.results import Results
from analysis.significance import DECIDING, VETOING, compare, settle
from analysis.statistics import mean_of

PAPER_LAYERS, PAPER_RATE = 12, 1e-4  # BLIP-2's Q-Former, and its peak learning rate


def c2(found: Experiments) -> Claim:
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

    The paper trains 12 layers from BERT's weights at low rates. Where the runs have another regime, "does not
    hold" becomes "does not hold here" and says so (`regime_of`): such runs refute nothing.
    """
    results, settings = found["table1"], found["collapse"]
    tried = settings.labels(connector=BLIP2_SINGLE_STAGE)

    def judged() -> Judged:
        ours, theirs = results.states(LONG), results.states(STAGE_2_ONLY)
        regime = regime_of(results, STAGE_2_ONLY, "collapsed" in (*ours, *theirs))
        overall, single = compare(results, STAGE_2_ONLY, LONG, results.metrics(QUALITY))
        deciding = settle([overall], DECIDING)[0]
        outcomes = {label: settings.states(label) for label in tried}
        known = all(len(states) >= VETOING for states in outcomes.values())
        mended = any(len(one) >= VETOING and all_are(one, "conditioned") for one in outcomes.values())
        verdict: Verdict = "undecided"
        if min(len(ours), len(theirs)) >= DECIDING:
            was_slow = mended and "collapsed" not in theirs
            if all_are(theirs, "conditioned") or all_are(ours, "collapsed") or was_slow:
                verdict = "does not hold here" if regime else "does not hold"
            elif all_are(ours, "conditioned") and all_are(theirs, "collapsed") and deciding.side == "below":
                verdict = "holds" if known and not mended else "undecided"
        evidence = [
            f"{label}: image {in_words(states)}, mean loss gap {gap:.3f} nats"
            for label, states in ((STAGE_2_ONLY, theirs), (LONG, ours))
            for gap in [mean_of(results.values(label, "gap"))]
        ]
        if verdict == "does not hold here" and regime is not None:
            evidence.insert(0, regime)
        evidence += [str(deciding), *map(str, settle(single, VETOING))]
        return verdict, [
            *evidence,
            *(_over_settings(settings, one) for one in (BLIP2_SINGLE_STAGE, "EVLGen")),
        ]

    return claim_of(
        "C2",
        "BLIP-2 trained in a single stage collapses; EVLGen in a single stage does not.",
        "Holds if all seeds of EVLGen use their images, all of the single-stage Q-Former have collapsed "
        "(evlgen.collapse.classify) and score lower, and no setting tried, three times the updates "
        "among them, mends it; does not hold if all its seeds use their images, or none has collapsed "
        "and something mends it, or all of EVLGen have collapsed: here, where the runs do not have the "
        "paper's regime.",
        [
            (results, STAGE_2_ONLY),
            (results, LONG),
            *((settings, row.label) for row in settings.experiment.rows),
        ],
        judged,
    )


def _over_settings(results: Results, connector: str) -> str:
    """In which settings of `collapse` a connector uses its images, and what more time does to the
    others."""
    labels = results.labels(connector=connector)
    longer = {
        f"{connector}, {row.values['level']}": row.label
        for row in results.experiment.rows
        if row.label in labels and row.values["factor"] == "budget"
    }
    usual = [label for label in labels if label not in longer.values() and results.states(label)]
    others = [label for label in usual if not all_are(results.states(label), "conditioned")]
    if not usual:
        return f"{connector}, other settings: no run is complete"
    lines = [f"{connector}, {len(usual)} settings: in {len(usual) - len(others)} all seeds use their images"]
    for label in others:
        line = f"{label.removeprefix(f'{connector}, ')}: {in_words(results.states(label))}"
        if label in longer and results.states(longer[label]):
            line += f", with three times the updates {in_words(results.states(longer[label]))}"
        lines.append(line)
    return "; ".join(lines)


def regime_of(results: Results, label: str, has_collapsed: bool) -> str | None:
    """A sentence on the regime of a row, if it is not the paper's: BERT's weights, low rates, 12 layers.

    Args:
        has_collapsed: whether a run with it has.
    """
    (config,) = (row.config for row in results.experiment.rows if row.label == label)
    connector = config.connector
    layers, init = getattr(connector, "num_layers", 0), connector.init
    if init != "random" and layers >= PAPER_LAYERS and config.optim.lr <= PAPER_RATE:
        return None
    weights = "random weights" if init == "random" else f"the weights of {init}"
    seen = "Seen" if has_collapsed else "No collapse seen"
    return (
        f"{seen} at {layers} layers from {weights}; the paper's regime (BERT's weights, low rates, "
        f"{PAPER_LAYERS} layers) is not tested"
    )
