"""C5: merged tokens are already semantically meaningful before any training."""

from __future__ import annotations

import math

from analysis.claims.claim import LONG, Claim, Experiments, Judged, Verdict, claim_of
from analysis.results import Results
from analysis.significance import DECIDING, Comparison, settle
from analysis.statistics import mean_of

PURER = 0.05


def c5(found: Experiments) -> Claim:
    """Merged tokens are already semantically meaningful before any training.

    Two measures of `evlgen.evaluation.merge_maps`, on the connector as initialised: the share of merged
    tokens that
    show what most of their group shows (``purity``; background counts, so much is pure by chance), and for
    tokens that show an object the share of the others in their group that show the same
    (``purity_objects``). Each is compared with groups of the same sizes drawn at random, and against a grid
    of as many rectangles of neighbouring patches: neighbours tend to show the same thing anyway, so what is
    no better than a grid follows position, not meaning.

    Holds if both measures are shown to be more than 0.05 above random groups and above the grid at all.
    Does not hold if both are shown to be less than 0.05 above random groups, or both below the grid. The
    0.05 since initial weights hardly differ from seed to seed, so that a trifle could be shown: five tokens
    in a hundred are the least that one would see in a picture.
    """
    results = found["table1"]
    measures = {"purity": "of all merged tokens", "purity_objects": "of those that show an object"}
    references = {"untrained_random": ("random groups", PURER), "untrained_grid": ("a grid", 0.0)}

    def judged() -> Judged:
        comparisons = [
            _purer(results, measure, f"{measure}_{name}", f"{text}, untrained, minus {reference}", against)
            for name, (reference, against) in references.items()
            for measure, text in measures.items()
        ]
        settled = settle(comparisons, DECIDING)
        sides = [finding.side for finding in settled]
        verdict: Verdict = "undecided"
        if sides == ["above"] * 4:
            verdict = "holds"
        elif ["below"] * 2 in (sides[:2], sides[2:]):
            verdict = "does not hold"
        evidence = [str(finding) for finding in settled]
        for measure, text in measures.items():
            after, before = (
                mean_of(results.values(LONG, name)) for name in (measure, f"{measure}_untrained")
            )
            if math.isfinite(after):
                evidence.append(f"Training takes the purity {text} from {before:.3f} to {after:.3f}")
        return verdict, evidence

    return claim_of(
        "C5",
        "Merged tokens are already semantically meaningful before any training.",
        f"Holds if the groups of the untrained connector are shown to be more than {PURER:g} purer than "
        "random groups of their sizes, and purer than a grid, over all tokens and over those of objects; "
        "does not hold if both measures are shown not to reach that.",
        [(results, LONG)],
        judged,
    )


def _purer(results: Results, measure: str, reference: str, text: str, against: float) -> Comparison:
    """The purity of the untrained connector's groups less that of others, seeds being those of the
    weights."""
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(
            results.values(LONG, f"{measure}_untrained"), results.values(LONG, reference), strict=True
        )
        if ours is not None and theirs is not None
    ]
    means = (
        "{:.3f} against {:.3f}".format(*map(mean_of, zip(*pairs, strict=True))) if pairs else "not measured"
    )
    found = tuple(ours - theirs for ours, theirs in pairs)
    return Comparison(f"Purity {text} ({means})", found, against, unit="", digits=3)
