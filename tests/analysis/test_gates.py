"""What has not learned is not judged, and what follows nothing is said to."""

from __future__ import annotations

import dataclasses
import math

import pytest

from analysis import gates, tables
from analysis.claims.c1_time import c1
from analysis.claims.c2_collapse import c2
from analysis.claims.c3_data import c3
from analysis.claims.c4_steps import c4
from analysis.claims.c6_transfer import c6
from analysis.claims.claim import LESS_DATA, LONG, STAGE_2_ONLY
from analysis.table import page_markdown
from experiments import load
from tests.analysis.made_results import LEARNED, Metrics, results_of
from tests.analysis.test_claims import BLIP2, found, paper_like, scores

NOT_LEARNED: Metrics = {"retrieval@1": 2.0, "val_itm": 0.6363}


def table1(stage1: Metrics | None = LEARNED, seeds: int = 5):
    experiment = load("table1", "mini")
    return results_of(
        experiment, {row.label: [scores(100)] * seeds for row in experiment.rows}, stage1=stage1
    )


def test_the_prior_is_the_loss_of_a_guess_that_one_pair_in_three_matches() -> None:
    by_hand = -(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3))
    assert pytest.approx(by_hand) == gates.ITM_PRIOR
    assert f"{gates.ITM_PRIOR:.4f}" == "0.6365"


@pytest.mark.parametrize(
    ("stage1", "learned"),
    [
        (LEARNED, True),
        ({"retrieval@1": 50.0, "val_itm": 0.318}, True),
        ({"retrieval@1": 49.9, "val_itm": 0.1}, False),
        ({"retrieval@1": 90.0, "val_itm": 0.319}, False),
        ({"retrieval@1": 90.0}, False),  # trained with ITM, but its loss is not known
        (None, False),
    ],
)
def test_stage_1_has_learned_if_it_finds_half_of_the_pairs_and_matches(
    stage1: Metrics | None, learned: bool
) -> None:
    results = table1(stage1)
    assert (gates.stage1_failure(results, BLIP2) is None) == learned
    assert gates.stage1_failure(results, LONG) is None  # has no stage 1


def test_losses_that_were_left_out_are_not_asked_for() -> None:
    experiment = load("two_stage", "mini")
    made = {row.label: [scores(100)] for row in experiment.rows}
    results = results_of(experiment, made, stage1={"retrieval@1": 90.0})
    assert gates.stage1_failure(results, "without ITM in stage 1") is None
    assert gates.stage1_failure(results, "without LM in stage 1") is not None
    results = results_of(experiment, made, stage1={"val_itm": 0.1})
    assert gates.stage1_failure(results, "without ITC in stage 1") is None


@pytest.mark.parametrize("judge", [c1, c6])
def test_what_rests_on_a_stage_1_that_did_not_learn_is_not_testable(judge) -> None:
    claim = judge(found(paper_like(), stage1=NOT_LEARNED))
    assert claim.verdict == "not testable yet"
    retrieval = "ts stage 1 did not learn: retrieval@1 of 2.0% of 256 (by seed)"
    sentence = f"{retrieval}, ITM loss 0.636 at its prior of 0.6365."
    assert claim.evidence[0].endswith(sentence)
    kept = judge(found(paper_like())).evidence
    assert set(kept) < set(claim.evidence)  # all numbers are still there
    unknown = judge(found(paper_like(), stage1=None))
    assert unknown.verdict == "not testable yet"
    assert "the records of its stage 1 are missing (seed 0, 1, 2, 3, 4)" in unknown.evidence[0].lower()


@pytest.mark.parametrize("judge", [c2, c3, c4])
def test_other_claims_do_not_look_at_stage_1(judge) -> None:
    assert judge(found(paper_like(), stage1=NOT_LEARNED)).verdict == "holds"


def test_one_seed_that_did_not_learn_is_enough() -> None:
    everything = found(paper_like())
    (label,) = everything["budgets"].labels(connector="BLIP-2, two stages", budget=1.0)
    first = everything["budgets"].runs[label][3].first
    assert first is not None
    first.metrics["retrieval@1"] = 3.0  # type: ignore[index]
    claim = c1(everything)
    assert claim.verdict == "not testable yet"
    assert (
        "retrieval@1 of 85.0 / 85.0 / 85.0 / 3.0 / 85.0% of 256 (by seed), ITM loss 0.100 where"
        in claim.evidence[0]
    )


def test_tables_say_what_did_not_learn() -> None:
    page = page_markdown(tables.page(table1(NOT_LEARNED)))
    assert "is not testable yet: stage 1 did not learn (retrieval@1 of 2.0% of 256, ITM loss of 0.636" in page
    assert f"as it is meant to be: {BLIP2}." in page
    assert "not testable" not in page_markdown(tables.page(table1()))


def test_a_metric_that_follows_nothing_is_said_to() -> None:
    """OK-VQA is the same high or low number whatever CIDEr is; or it is a tenth of CIDEr."""
    experiment = load("table1", "mini")
    for follows in (False, True):
        made: dict[str, list[Metrics | None]] = {}
        for place, row in enumerate(experiment.rows):
            made[row.label] = [
                scores(100.0 + 10 * place + seed) | {"okvqa": 10.0 + place if follows else 20.0 + seed % 2}
                for seed in range(4)
            ]
        sentence = gates.follows_nothing([results_of(experiment, made)])
        if follows:
            assert sentence is None
        else:
            assert sentence is not None
            assert sentence.startswith(
                "OK-VQA with mini-opt follows nothing: over the 20 runs of table1 with"
            )
            assert "with COCO CIDEr (VQAv2 1.00, GQA 1.00); over all 20" in sentence
    assert gates.follows_nothing([results_of(experiment, {row.label: [] for row in experiment.rows})]) is None


def test_claims_that_okvqa_decides_say_so() -> None:
    """It falls as CIDEr rises."""
    rows = paper_like()
    for made in (*rows["table1"].values(), *rows["budgets"].values()):
        made["okvqa"] = 200.0 - float(made["coco/CIDEr"])
    for judge in (c1, c4, c6):
        evidence = judge(found(rows)).evidence
        assert any("OK-VQA with mini-opt follows nothing" in line for line in evidence)


def test_c2_refutes_nothing_outside_of_the_papers_regime() -> None:
    rows = paper_like()
    rows["table1"][STAGE_2_ONLY] = scores(100)
    claim = c2(found(rows))
    assert claim.verdict == "does not hold here"
    assert claim.regime == "tuned"
    assert claim.evidence[0] == (
        "No collapse seen at 4 layers from random weights; the paper's regime (BERT's weights, low rates, 12 "
        "layers) is not tested."
    )
    everything = found(rows)
    config = next(row.config for row in load("table1", "paper").rows if row.label == STAGE_2_ONLY)
    of = everything["table1"]
    papers = tuple(
        dataclasses.replace(row, config=config) if row.label == STAGE_2_ONLY else row
        for row in of.experiment.rows
    )
    experiment = dataclasses.replace(of.experiment, rows=papers)
    claim = c2({**everything, "table1": dataclasses.replace(of, experiment=experiment)})
    assert claim.verdict == "does not hold"  # with the paper's settings


def test_c3_tells_a_cleaner_tenth_from_a_plain_one() -> None:
    rows = paper_like()
    rows["table1"][LESS_DATA] = scores(120)
    assert c3(found(rows)).evidence[0] == (
        "A cleaner tenth, the 11M pairs without the noisiest pool, is shown to cost no more than a little; "
        "of a "
        "plain tenth of all pools it is shown, too."
    )
    rows["data_fractions"]["EVLGen, 1/10 of the data, equal steps"] = scores(97.3)
    claim = c3(found(rows))
    assert claim.verdict == "holds"
    assert claim.evidence[0].endswith("of a plain tenth of all pools it is not shown.")
