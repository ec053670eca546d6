"""C4: longer training helps further (150K to 250K steps)."""

from __future__ import annotations

from analysis.claims.claim import LONG, QUALITY, SHORT, Claim, Experiments, Judged, claim_of, conclude
from analysis.gates import follows_nothing
from analysis.significance import DECIDING, VETOING, compare, settle


def c4(found: Experiments) -> Claim:
    """Longer training helps further (150K -> 250K steps).

    Holds if the 250K row of table 1 is shown to be better overall than the 150K row and in no single metric
    worse; does not hold if it is shown to be worse overall. The paper gains 3.7% overall (0.3% in GQA, 9.7%
    in OK-VQA), but the claim names no size, so neither does the rule; a gain too small to be shown is
    undecided.
    """
    results, budgets = found["table1"], found["budgets"]

    def judged() -> Judged:
        overall, single = compare(results, LONG, SHORT, results.metrics(QUALITY))
        deciding, vetoing = settle([overall], DECIDING), settle(single, VETOING)
        evidence = [*map(str, deciding), *map(str, vetoing)]
        (last,) = budgets.labels(connector="EVLGen", budget=250)
        for row in budgets.experiment.rows:
            if row.values["connector"] == "EVLGen" and float(row.values["budget"]) > 250:
                further, _ = compare(budgets, row.label, last, budgets.metrics(QUALITY))
                if further.differences:
                    evidence.append(f"And further: {settle([further], DECIDING)[0]}")
        if sentence := follows_nothing([results, budgets]):
            evidence.insert(1, sentence)
        return conclude(deciding, vetoing), evidence

    return claim_of(
        "C4",
        "Longer training helps further (150K to 250K steps).",
        "Holds if 250K steps are shown to be better overall than 150K and in no single metric worse; "
        "does not hold if they are shown to be worse overall.",
        [(results, LONG), (results, SHORT)],
        judged,
    )
