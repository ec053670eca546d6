"""The metrics of runs: what each is called in tables and figures, and which way is better.

Records hold metrics by name: that of a metric (``val_loss``), that of a question set for the accuracy on it
(``vqav2``), or a set and what is measured on it (``coco/CIDEr``, ``vqav2/yes-no``). A new metric needs a line
in `METRICS`; evaluation sets come with their worlds (`evlgen.data.base.EvalSet`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evlgen.data.base import SHUFFLED


@dataclass(frozen=True)
class Metric:
    """A metric, as tables and figures show it.

    Attributes:
        name: in records (``result.json``); one with a slash in front follows the name of a set.
        title: in a head of a table.
        decimals: shown in tables.
        higher_is_better: None where neither is better, or where it depends on the reader.
        axis: label at an axis of a figure, with the unit; empty: the title.
        is_cost: known beforehand, or a measure of the machine as much as of the run; shown with its
            differences, but not in the family whose p values are corrected.
        is_detail: shown below a table, where it was measured: whether the image is used, and what runs cost.
    """

    name: str
    title: str
    decimals: int = 1
    higher_is_better: bool | None = None
    axis: str = ""
    is_cost: bool = False
    is_detail: bool = False

    @property
    def label(self) -> str:
        """What stands at an axis of a figure."""
        return self.axis or self.title


def _cost(name: str, title: str, axis: str = "", decimals: int = 1, is_detail: bool = True) -> Metric:
    return Metric(name, title, decimals, False, axis, is_cost=True, is_detail=is_detail)


def _merging(name: str, title: str) -> Metric:
    return Metric(name, title, 3, True)


def _better(name: str, title: str) -> Metric:
    return Metric(name, title, higher_is_better=True)


# Details are shown in this order.
METRICS = (
    Metric("val_loss", "validation loss", 3, False, "validation loss (nats a token)", is_detail=True),
    Metric("gap", "loss gap, shuffled images", 3, True, "loss gap, shuffled images (nats)", is_detail=True),
    Metric("/objects_right", "objects right, %", higher_is_better=True, is_detail=True),
    Metric("/colours_right", "colours right, %", higher_is_better=True, is_detail=True),
    Metric("distinct_captions", "distinct captions, %", higher_is_better=True, is_detail=True),
    Metric("/official", "by the official script", higher_is_better=True, is_detail=True),
    Metric("cosine", "cosine over images", 3, is_detail=True),
    Metric("effective_rank", "effective rank", is_detail=True),
    Metric("attention_entropy", "attention entropy", 2, is_detail=True),
    _cost("train_seconds", "training, s"),
    _cost("total_seconds", "training with stage 1, s", "training, stage 1 included (s)"),
    _cost("peak_memory_gib", "peak memory of a run, GiB"),
    _cost("hours", "hours, 8 x A100"),
    _cost("connector_gmacs", "MACs of the connector, G", decimals=3, is_detail=False),
    _better("/CIDEr", "CIDEr"),
    _better("/BLEU-4", "BLEU-4"),
    _better("/METEOR", "METEOR"),
    _better("/ROUGE-L", "ROUGE-L"),
    _better("/SPICE", "SPICE"),
    _better("/CLIPScore", "CLIPScore"),
    _better("/RefCLIPScore", "RefCLIPScore"),
    Metric(
        "shuffled_loss",
        "validation loss, shuffled images",
        3,
        axis="validation loss, shuffled images (nats a token)",
    ),
    Metric(
        "blind_loss", "validation loss, mean prompt", 3, False, "validation loss, mean prompt (nats a token)"
    ),
    Metric("/images", "images", 0),
    Metric("/questions", "questions", 0),
    _merging("purity", "purity of merged groups"),
    _merging("purity_untrained", "purity, untrained"),
    _merging("purity_random", "purity, random groups"),
    _merging("purity_untrained_random", "purity, random groups of the untrained sizes"),
    _merging("purity_grid", "purity, grid"),
    _merging("purity_untrained_grid", "purity, grid, of the tokens merged untrained"),
    _merging("purity_objects", "purity for objects"),
    _merging("purity_objects_untrained", "purity for objects, untrained"),
    _merging("purity_objects_random", "purity for objects, random groups"),
    _merging("purity_objects_untrained_random", "purity for objects, random groups of the untrained sizes"),
    _merging("purity_objects_grid", "purity for objects, grid"),
    _merging("purity_objects_untrained_grid", "purity for objects, grid, of the tokens merged untrained"),
    _merging("merge_ari", "adjusted Rand index of merged groups"),
    _merging("merge_ari_untrained", "adjusted Rand index, untrained"),
    _merging("merge_ari_grid", "adjusted Rand index, grid"),
    _merging("merge_ari_untrained_grid", "adjusted Rand index, grid of the untrained number"),
)
_BY_NAME: Mapping[str, Metric] = {one.name: one for one in METRICS}


@functools.cache
def metric(name: str) -> Metric:
    """The metric called ``name`` in records; one that nobody has described is called by its name."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    place, _, measure = name.partition("/")
    known = _sets().get(place.removesuffix(SHUFFLED))
    if known is None:
        return Metric(name, name)
    title, kind = known
    if place.endswith(SHUFFLED):
        title += ", images shuffled"
    measured = _BY_NAME.get(f"/{measure}")
    if kind == "question" and measured is None:  # the accuracy, of all answers or of one type
        title = f"{title} {measure}".strip()
        return Metric(name, title, higher_is_better=True, axis=f"{title} accuracy (%)")
    measured = measured or Metric(measure, measure)
    return dataclasses.replace(measured, name=name, title=f"{title} {measured.title}".strip(), axis="")


def details(names: Iterable[str]) -> list[str]:
    """Those of the metrics that are shown below a table, in the order of `METRICS`."""
    order = {one.name: place for place, one in enumerate(METRICS)}
    found = [name for name in dict.fromkeys(names) if metric(name).is_detail]
    return sorted(found, key=lambda name: (order["".join(name.rpartition("/")[1:])], name))


def set_title(name: str) -> str:
    """What an evaluation set is called in a table; its name if no world has it."""
    return _sets()[name][0] if name in _sets() else name


def examples(name: str, metrics: Mapping[str, object]) -> tuple[int, str] | None:
    """On how many examples of the evaluation set ``name`` a run was scored, and what they are.

    Args:
        metrics: of the run's record.

    Returns:
        The number and ``image`` or ``question``; None where the record does not say.
    """
    for noun in ("image", "question"):
        count = metrics.get(f"{name}/{noun}s")
        if isinstance(count, int | float):
            return int(count), noun
    return None


@functools.cache
def _sets() -> Mapping[str, tuple[str, str]]:
    """Name of an evaluation set -> its title and kind, over all worlds."""
    from evlgen.data import worlds  # imports numpy, which a list of metrics does not need

    return {one.name: (one.title, one.kind) for one in worlds.all_sets()}
