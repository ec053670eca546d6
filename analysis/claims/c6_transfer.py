"""C6: the approach carries over to other image encoders (CLIP ViT-L/14) and LLMs (Vicuna-7B)."""

from __future__ import annotations

import dataclasses

from analysis.claims.claim import (
    BLIP2_TWO_STAGES,
    LITTLE,
    LITTLE_IN_ONE,
    QUALITY,
    ZERO_SHOT,
    Claim,
    Experiments,
    Judged,
    all_are,
    claim_of,
    conclude,
    in_words,
    with_stage1,
)
from analysis.gates import follows_nothing
from analysis.significance import DECIDING, VETOING, compare, settle
from experiments.scales import get


def c6(found: Experiments) -> Claim:
    """The approach carries over to other image encoders (CLIP ViT-L/14) and LLMs (Vicuna-7B).

    "Carries over" is read as: with the other part, too, EVLGen in its single stage is no more than a little
    worse than BLIP-2 in its two, which cost more. A little is that of `c3`. With the other language model
    that is asked of table 2's sets (NoCaps, Flickr30K), with the other image encoder of table 1's, in
    `encoders`. (The paper has EVLGen above BLIP-2; whether it is so here stands in the evidence.)

    Holds if that is shown for both, no single metric is shown to be too much worse, and all runs of EVLGen
    use their images. Not testable yet if the stage 1 of one of those they are compared with did not learn
    (`analysis.gates`). Does not hold if EVLGen is shown to be more than a little worse with one of them, or
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
    rows = [(results, label) for results, *labels, _ in pairs for label in labels]

    def judged() -> Judged:
        asked = [
            compare(results, a, b, results.metrics(names), -LITTLE, -LITTLE_IN_ONE)
            for results, a, b, names in pairs
        ]
        deciding = settle([overall for overall, _ in asked], DECIDING)
        vetoing = settle([one for _, single in asked for one in single], VETOING)
        better = settle([dataclasses.replace(overall, against=0.0) for overall, _ in asked], DECIDING)
        states = [results.states(label) for results, label, _, _ in pairs]
        verdict = conclude(deciding, vetoing)
        if any(len(one) >= DECIDING and all_are(one, "collapsed") for one in states):
            verdict = "does not hold"
        elif verdict == "holds" and not all(all_are(one, "conditioned") for one in states):
            verdict = "undecided"
        evidence = [
            f"{finding}; {'' if above.side == 'above' else 'not '}shown to be better; image {in_words(state)}"
            for finding, above, state in zip(deciding, better, states, strict=True)
        ]
        if sentence := follows_nothing([found["table1"], found["budgets"]]):
            evidence.append(sentence)
        evidence += map(str, vetoing)
        return with_stage1(rows, (verdict, evidence))

    return claim_of(
        "C6",
        "The approach carries over to other image encoders (CLIP ViT-L/14) and LLMs (Vicuna-7B).",
        f"Holds if EVLGen is shown to be no more than {LITTLE:g}% worse overall than BLIP-2's two stages "
        f"with the other image encoder and with the other language model, in no metric shown to be more than "
        f"{LITTLE_IN_ONE:g}% worse, and uses its images; does not hold if with one of them it is shown "
        "to be worse than that, or has collapsed. Not testable as long as BLIP-2's stage 1 did not learn "
        "(retrieval and matching, analysis/gates.py).",
        rows,
        judged,
    )
