"""Experiments with ``--set`` and ``--rows``: title, notes, labels and a folder's name say what was changed.

A label must not say what a change contradicts: with ``connector.r=6`` the row "constant, r = 12" becomes
"constant (connector.r=6)", and rows that are now one and the same run are one row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from evlgen.config import RunConfig, to_json
from experiments.base import Experiment, Row
from experiments.changes import changed

_LONGEST = 100  # characters of changes in a label
_FIELDS = 3  # that tell rows of one label apart
_NAME = 60  # characters of changes in a folder's name

_UPDATES = (r"\d+K( \+ \d+K)?", r"\d+x the updates", r"equal (steps|epochs)", r"stage 1 : stage 2 = .*")
_SCHEDULE = (r"constant", r"r = \d+", r"\d+ merged", r"\d+ soft tokens", r"(de|in)creasing", r"all in the .*")
_RULES = (r"by features", r"at random", r"neighbours \(pooling\)")
_MEANS = (r"(weighted )?mean", r"proportional attention")
_STAGE1 = (*_UPDATES, r"without \w+ in stage 1", r"as in table 1", r"lr \S+", r"warm-up \S+")
# Beginning of a key -> the parts of a row's label, between commas, that speak of it. A share of the updates,
# or another size of their batches, leaves what labels say of updates and pairs true in proportion.
_SPEAKS_OF: dict[str, tuple[str, ...]] = {
    "optim.steps": (*_UPDATES, r"warm-up \S+"),
    "optim.warmup_steps": (r"warm-up \S+", "default"),
    "optim.lr": (r"lr \S+", "default"),
    "optim.": ("default",),
    "connector.r": _SCHEDULE,
    "connector.num_layers": (*_SCHEDULE, r"\d+ layers", "default"),
    "connector.num_queries": (r"\d+ soft tokens", "default"),
    "connector.num_latents": (r"\d+ soft tokens",),
    "connector.metric": _RULES,
    "connector.reduce": _MEANS,
    "connector.proportional_attention": _MEANS,
    "connector.init": (r"from \S+( weights)?", r"random", r"\S*bert\S*", r"minilm\S*", "default"),
    "data.": (
        r"\d+M",
        r".* of the data\)?",
        r"all but the noisiest pool.*",
        r"equal (steps|epochs)",
        "easy-VQA",
    ),
    "vision": (r"mini-vit", r"mini-clip", r"(EVA|CLIP).*"),
    "language": (r"OPT-\S+", r"Vicuna-\S+"),
    "init_from": _STAGE1,
    "stage1.": _STAGE1,
    "objectives": (r"without \w+ in stage 1",),
    "stage": (r".*stages?", r"stage \d.*"),
}


def key_of(change: str) -> str:
    """``optim.lr`` of ``optim.lr=1e-3``."""
    return change.partition("=")[0]


def name_of(changes: Sequence[str], rows: str) -> str:
    """What was changed, as a part of a folder's name: ``connector.r=6``; another for each set of changes."""
    words = "_".join([*sorted(changes), *([f"rows={rows.lower()}"] if rows else [])])
    name = re.sub(r"[^A-Za-z0-9.=+_-]", "_", words)
    if name == words and len(name) <= _NAME:
        return name
    return f"{name[:_NAME].rstrip('_')}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def labelled(before: Experiment, after: Experiment, changes: Sequence[str]) -> Experiment:
    """The changed experiment with a title, notes and labels that say so.

    Args:
        before: the same rows as they were.
    """
    if not changes:
        return after
    said = ", ".join(map(_visible, changes))
    new = [
        _relabelled(old, row, [change for change in changes if _matters(old.config, change)])
        for old, row in zip(before.rows, after.rows, strict=True)
    ]
    first: dict[RunConfig, tuple[RunConfig, Row]] = {}  # of rows that are one run by now, the first
    kept = []
    for old, row in zip(before.rows, new, strict=True):
        were, _ = first.setdefault(row.config, (old.config, row))
        if were == old.config:  # two labels for one run stay where the experiment has them
            kept.append(row)
    named = dict(zip(map(id, kept), _told_apart(kept), strict=True))
    rows = [named[id(row)] for row in kept]
    now = {
        old.label: named.get(id(row), named[id(first[row.config][1])]).label
        for old, row in zip(before.rows, new, strict=True)
    }
    rows = [dataclasses.replace(row, against=now.get(row.against, "")) for row in rows]
    flags = " ".join(f"--set '{_visible(change)}'" for change in changes)
    notes = f"Changed by {flags}: these are not the runs of {after.name} as it stands."
    notes = f"{notes} {after.notes}".strip()
    return dataclasses.replace(after, title=f"{after.title}, with {said}", rows=tuple(rows), notes=notes)


def _told_apart(rows: list[Row]) -> list[Row]:
    """The rows; to labels that several of them have is added in which fields these differ."""
    found = []
    for row in rows:
        same = [fields_of(other.config) for other in rows if other.label == row.label]
        mine = fields_of(row.config)
        differ = [key for key in mine if any(other.get(key) != mine[key] for other in same)]
        said = ", ".join(f"{key}={mine[key]}" for key in differ[:_FIELDS])
        found.append(dataclasses.replace(row, label=f"{row.label}, {said}") if said else row)
    return found


def fields_of(config: RunConfig) -> dict[str, str]:
    """Dotted key -> value, of all fields of a run and of the stage 1 that it starts from."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from walk(inner, f"{key}.{name}" if key else name)
        else:
            yield key, f"{value:g}" if isinstance(value, float) else json.dumps(value)

    return dict(walk(to_json(config), ""))


def _matters(config: RunConfig, change: str) -> bool:
    return changed(config, (change,)) != config


def _relabelled(old: Row, row: Row, changes: list[str]) -> Row:
    if not changes:
        return row
    parts = row.label.split(", ")
    kept = [part for part in parts if not any(_contradicts(change, part) for change in changes)]
    said, left = "", list(map(_visible, changes))
    while left and (not said or len(said) + len(left[0]) < _LONGEST):
        said += (", " if said else "") + left.pop(0)
    said += f", {len(left)} more change{'s' if len(left) > 1 else ''}" if left else ""
    label = f"{', '.join(kept)} ({said})" if kept else said
    values = dict(row.values) if kept == parts else {}
    return dataclasses.replace(row, label=label, values=values)


def _contradicts(change: str, part: str) -> bool:
    key = key_of(change)
    patterns = [
        pattern
        for start, found in _SPEAKS_OF.items()
        if key == start or (start.endswith(".") and key.startswith(start))
        for pattern in found
    ]
    return any(re.fullmatch(pattern, part) for pattern in patterns)


def _visible(change: str) -> str:
    """In one line."""
    return "".join(letter if letter.isprintable() else " " for letter in change)
