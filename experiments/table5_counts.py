"""The numbers of table 5, counted and not measured.

Nothing is trained and no weights are read: the real modules run on torch's meta device (`evlgen.cost`). The
notes of each table say what it counts.
"""

from __future__ import annotations

import dataclasses

import torch

from evlgen.config import RunConfig, TomeFormerConfig
from evlgen.cost import (
    RunCost,
    Stage1Macs,
    image_features,
    is_counted,
    meta_connector,
    meta_vision,
    run_cost,
    stage1_macs,
    step_cost,
    with_text_branch,
)
from evlgen.merging import merge_limit, merge_schedule, token_counts
from evlgen.throughput import A100S, step_seconds, training_hours, utilisation
from experiments import table1
from experiments.base import Experiment, Row
from experiments.cost_tables import CostRow, CostTable, CostTables, CsvTable
from experiments.table5 import PAPER_STAGE1

GIGA, MEGA, GIB, MIB = 1e9, 1e6, 2**30, 2**20
CALIBRATION = ("EVLGen, 104M, 250K", 133.0)  # the row of table 1, and its hours, that give the device's rate


def count(experiment: Experiment, scale: str) -> CostTables:
    """All tables.

    Raises:
        UserError: the cost of an encoder or a language model is not known, or a merge schedule is impossible.
    """
    costs = {row.label: run_cost(row.config) for row in experiment.rows}
    tables = [_macs(experiment, costs), _memory(experiment, costs), _steps(experiment, costs)]
    tables += [_stage1(row, costs[row.label]) for row in experiment.rows if row.config.stage == "represent"]
    if scale == "paper":
        tables.append(_hours())
    merging = next((row.config for row in experiment.rows if row.config.connector.kind == "tomeformer"), None)
    schedules = () if merging is None else (_schedules(merging),)
    return CostTables(f"{experiment.title} (scale `{scale}`)", tuple(tables), schedules)


# ------------------------------------------------------------------------------------ one row, one run


def _macs(experiment: Experiment, costs: dict[str, RunCost]) -> CostTable:
    rows = tuple(
        CostRow(
            row.label,
            {
                "macs": costs[row.label].macs / GIGA,
                "full_macs": costs[row.label].full_macs / GIGA,
                "soft_tokens": costs[row.label].soft_tokens,
            },
            {name: value for name, value in row.paper.items() if isinstance(value, float)},
        )
        for row in experiment.rows
    )
    return CostTable(
        "The connector, forward, for one sample",
        {"macs": "MACs of its linear layers, G", "full_macs": "all MACs, G", "soft_tokens": "soft tokens"},
        rows,
        (
            "The first column follows the paper's convention: linear layers of the connector; no attention "
            "products, no embeddings, no projection in or out. All MACs are every matrix product of what is "
            "trained: also attention, merging, projections, and the heads of stage 1.",
            "Stage 1 is a sample's share of one pass of this project's loss, with the longest texts; the "
            "table on stage 1 below has other ways to count it.",
        ),
    )


def _memory(experiment: Experiment, costs: dict[str, RunCost]) -> CostTable:
    rows = []
    for row in experiment.rows:
        cost, optim = costs[row.label], row.config.optim
        frozen = 4 if optim.precision == "fp32" else 2
        states = 16 * cost.trained + frozen * (cost.vision + cost.language)
        on_device = optim.batch_size / A100S.number if optim.precision == "fp16" else optim.batch_size
        kept = cost.activations + cost.language_activations
        rows.append(
            CostRow(
                row.label,
                {
                    "trained": cost.trained / MEGA,
                    "vision": cost.vision / MEGA,
                    "language": cost.language / MEGA,
                    "activations": cost.activations / MIB,
                    "language_activations": cost.language_activations / MIB,
                    "states": states / GIB,
                    "device": (states + kept * on_device) / GIB,
                },
            )
        )
    return CostTable(
        "Parameters and memory",
        {
            "trained": "trained, M",
            "vision": "image encoder, frozen, M",
            "language": "language model, frozen, M",
            "activations": "activations of what is trained, MiB a sample",
            "language_activations": "of the language model, MiB a sample",
            "states": "weights, gradients, AdamW, GiB",
            "device": "with the activations of a device's batch, GiB",
        },
        tuple(rows),
        (
            "Activations are the tensors that autograd keeps for the backward pass of one step, in training "
            "mode, each memory once and without parameters. Attention is in its plain form, which keeps its "
            "probabilities: fused kernels need less. Mixed precision counts as 2 bytes everywhere, though "
            "norms and softmax stay in 4. Temporary memory is not counted.",
            "Weights and states: 16 bytes for a trained parameter (fp32 weight, gradient, two moments), 2 or "
            "4 for a frozen one. A device has an eighth of the batch at the scale `paper` (200 samples, 20 "
            "with Vicuna-7B), all of it elsewhere.",
        ),
    )


def _steps(experiment: Experiment, costs: dict[str, RunCost]) -> CostTable:
    rows = []
    for row in experiment.rows:
        cost = costs[row.label]
        rows.append(
            CostRow(
                row.label,
                {
                    "vision_flop": 2 * cost.vision_macs / GIGA,
                    "trained_flop": 2 * cost.trained_macs / GIGA,
                    "language_flop": 2 * cost.language_macs / GIGA,
                    "step_flop": cost.step_flop / GIGA,
                    "trained_share": 200 * cost.trained_macs / cost.step_flop,
                },
            )
        )
    text = experiment.rows[0].config.data.max_text_tokens
    return CostTable(
        "A whole training step, for one sample",
        {
            "vision_flop": "image encoder, forward, GFLOP",
            "trained_flop": "what is trained, forward and backward, GFLOP",
            "language_flop": "language model, forward and backward to its inputs, GFLOP",
            "step_flop": "step, GFLOP",
            "trained_share": "share of what is trained, %",
        },
        tuple(rows),
        (
            f"Two operations a MAC; all matrix products; texts of {text} tokens, the longest ones (shorter "
            "ones cost less); images encoded in every step.",
        ),
    )


# ---------------------------------------------------------------------------------------------- stage 1


def stage1_countings(macs: Stage1Macs, ours: int) -> dict[str, int]:
    """MACs of stage 1 for one sample by several conventions, this project's own first.

    BLIP-2's code (LAVIS) projects the image again for ITM's passes and computes all tokens of the last layer.
    The MACs of its passes are sums of the counted parts: ITC encodes queries and image, and the text alone;
    each of ITM's three passes has queries, text and image; LM has the text after the queries.
    """
    images = macs.queries + macs.image  # ITC
    pairs = macs.queries + macs.text + macs.image  # one of ITM's three
    decoded = macs.text  # LM, with the queries' keys and values of ITC
    head = macs.generation + macs.vocabulary
    lavis = images + macs.text + 3 * pairs + decoded
    return {
        "this project, image projected once, last layers cut to what is used": ours,
        "this project, with the LM head": ours + head - macs.generation,
        "LAVIS, ITC + 3 x ITM + LM": lavis,
        "LAVIS, with the LM head": lavis + head,
        "LAVIS, with the LM head, without ITC's text pass": lavis + head - macs.text,
        "LAVIS, without LM": lavis - decoded,
        "LAVIS, ITM counted twice": lavis - pairs,
        "LAVIS, ITM counted once": lavis - 2 * pairs,
        "LAVIS, ITM's three passes alone": 3 * pairs,
    }


def _stage1(row: Row, cost: RunCost) -> CostTable:
    text = row.config.data.max_text_tokens
    macs = stage1_macs(with_text_branch(row.config), meta_vision(row.config.vision)[2], text)
    countings = stage1_countings(macs, cost.macs)
    per_token = (5 * macs.text + macs.generation + macs.vocabulary) / text
    without_text = 4 * (macs.queries + macs.image)
    notes = [
        f"Linear layers for one sample with texts of {text} tokens, [CLS] and the end among them. The LM "
        "head is its dense layer and the vocabulary; this project's pass has the dense layer and the small "
        "heads of ITC and ITM (0.03 G together at the paper's sizes) in every count. It is not known what "
        "the paper's 36.7 G count."
    ]
    if row.config.data.world != "miniworld":
        name = min(countings, key=lambda name: abs(countings[name] / GIGA - PAPER_STAGE1))
        off = countings[name] / GIGA - PAPER_STAGE1
        length = (PAPER_STAGE1 * GIGA - without_text) / per_token
        notes.append(
            f'Nearest comes "{name}", {off:+.2f} G, but nothing says that the authors counted so: "LAVIS, '
            f'with the LM head" would give 36.7 G, too, with a text of {length:.1f} tokens. This '
            f"project's pass is {cost.macs / GIGA - PAPER_STAGE1:+.1f} G away because it shares work, for "
            "the same losses."
        )
    return CostTable(
        "Stage 1, counted in several ways",
        {"stage1_macs": "MACs, G", "off": "minus the paper's, G"},
        tuple(
            CostRow(
                f"stage 1: {name}",
                {"stage1_macs": value / GIGA, "off": value / GIGA - PAPER_STAGE1},
                {"stage1_macs": PAPER_STAGE1},
            )
            for name, value in countings.items()
        ),
        tuple(notes),
    )


# ----------------------------------------------------------------------------------------------- hours


def _hours() -> CostTable:
    """Predicted hours of the runs of table 1, from the speed of one of them."""
    rows = table1.build("paper").rows
    name, known = CALIBRATION
    calibrated = next(row.config for row in rows if row.label == name)
    paper_seconds = known * 3600 / calibrated.optim.steps
    used = utilisation(_step_flop(calibrated), paper_seconds, A100S)

    def seconds(config: RunConfig) -> float:
        return step_seconds(_step_flop(config), A100S, used)

    predicted = []
    for row in rows:
        stages = [config for config in (row.config.init_from, row.config) if config is not None]
        hours = [training_hours(config.optim.steps, seconds(config)) for config in stages]
        values = {"hours": sum(hours)}
        if len(stages) == 1:
            values["seconds"] = seconds(row.config)
        paper = {"hours": float(row.paper["hours"])} if "hours" in row.paper else {}
        predicted.append(CostRow(row.label, values, paper))
        if len(stages) == 1:
            continue
        for stage, config, part in zip(("stage 1", "stage 2"), stages, hours, strict=True):
            label = f"{row.label}: {stage} of it"
            predicted.append(CostRow(label, {"hours": part, "seconds": seconds(config)}))
        left = (float(row.paper["hours"]) - hours[1]) * 3600 / stages[0].optim.steps
        two_stages = (
            f"The paper's {row.paper['hours']} h for BLIP-2 are not explained by arithmetic: with stage 2 as "
            f"predicted they leave {left:.2f} s for a step of stage 1, {left / seconds(stages[0]):.1f} times "
            f"the {seconds(stages[0]):.2f} s predicted. A step of stage 1 has "
            f"{_step_flop(stages[0]) / _step_flop(calibrated):.0%} of the operations of a step of EVLGen, "
            "and computing it without shared work, as LAVIS does, adds a tenth to that. The model has only "
            "matrix products; it lacks loading and decoding images, gathering features over devices, and "
            "memory-bound kernels. Which of these takes the rest is not known."
        )
    return CostTable(
        "Hours of table 1, on 8 x A100",
        {"hours": "hours", "seconds": "seconds a step"},
        tuple(predicted),
        (
            "Hours = steps x seconds a step; seconds = operations of a step of 1,600 samples / (8 devices x "
            f"312 TFLOP/s x used share). The used share, {used:.1%} (MFU), is taken from the paper's "
            f'{known:.0f} h for "{name}", {paper_seconds:.3f} s a step: this row agrees by construction, the '
            "other two of EVLGen because a step costs the same, those of BLIP-2 are predictions.",
            two_stages,
        ),
    )


def _step_flop(config: RunConfig) -> int:
    """Floating-point operations of one update of a run."""
    return run_cost(config).step_flop * config.optim.batch_size


# ------------------------------------------------------------------------------------------- schedules


def merge_schedules(config: TomeFormerConfig, tokens: int) -> dict[str, list[int]]:
    """Schedules by name: r = 0 to 21, inflections, and three lists. Some merge more than ``tokens`` allow."""
    layers, base = config.num_layers, config.r
    mean = base if isinstance(base, int) else sum(merge_schedule(layers, base)) // layers
    schedules = {f"r = {r}": merge_schedule(layers, r) for r in range(22)}
    for quarter in range(-4, 5):
        bend = quarter / 4
        schedules[f"r = ({mean}, {bend:+g})"] = merge_schedule(layers, (mean, bend))
    at_once: list[int] = []
    left = mean * layers
    for _ in range(layers):
        at_once.append(min(left, merge_limit(tokens - sum(at_once), config.class_token)))
        left -= at_once[-1]
    schedules["as early as possible"] = at_once
    schedules["every second layer"] = [2 * mean * (layer % 2) for layer in range(layers)]
    schedules["second half only"] = [2 * mean * (2 * layer >= layers) for layer in range(layers)]
    return schedules


def cut(schedule: list[int], tokens: int, class_token: bool) -> list[int]:
    """The schedule with every entry cut to what its layer can merge, as ToMe does silently."""
    entries: list[int] = []
    for r in schedule:
        entries.append(min(r, merge_limit(tokens - sum(entries), class_token)))
    return entries


def _schedules(run: RunConfig) -> CsvTable:
    config, tokens = run.connector, meta_vision(run.vision)[2]
    assert isinstance(config, TomeFormerConfig)
    dtype = torch.float32 if run.optim.precision == "fp32" else torch.float16
    rows = []
    for name, wanted in merge_schedules(config, tokens).items():
        schedule = cut(wanted, tokens, config.class_token)
        merging = dataclasses.replace(config, r=tuple(schedule))
        connector = meta_connector(merging).train().to(dtype)
        image = image_features(merging, tokens).to(dtype)
        cost = step_cost(connector, image, include=is_counted, backward=False)
        counts = token_counts(tokens, schedule, config.class_token)
        rows.append(
            (
                name,
                "yes" if schedule != wanted else "no",
                " ".join(map(str, schedule)),
                " ".join(map(str, counts)),
                str(counts[-1]),
                f"{cost.linear_macs / GIGA:.6g}",
                f"{cost.full_macs / GIGA:.6g}",
                f"{cost.activations / MIB:.6g}",
            )
        )
    return CsvTable(
        "schedules.csv",
        f"Merge schedules, {tokens} image tokens",
        ("schedule", "cut", "r", "tokens", "soft_tokens", "macs", "full_macs", "activations_mib"),
        tuple(rows),
        ("schedule", "cut", "tokens", "soft_tokens", "macs", "activations_mib"),
        (
            "Tokens before the first layer and after each one; MACs in G by the paper's convention and "
            "activations of the connector in MiB, both of the forward pass of one image.",
            "A layer can merge half of its tokens at most (the class token left out). A schedule that asks "
            'for more is an error in this project; "cut: yes" shows what ToMe\'s code silently makes of it.',
        ),
    )
