"""``claims.json`` and ``claims.md``: verdicts as files, and on a terminal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from analysis.claims.claim import REGIME, Claim
from analysis.tables import LEVEL, count_text
from analysis.terminal import console, show_rows
from evlgen.errors import UserError
from evlgen.runtime import paths
from evlgen.runtime.files import write_atomic

RULES_CAME_FIRST = (
    "The rules were written before the runs, but for three seeds of tables 1 and 2, which had been seen; "
    "what was changed later is named with its claim. The gates (has stage 1 learned, does a metric follow "
    "what it measures) came after the runs and only take verdicts back"
)


def results_file(scale: str) -> Path:
    """``claims.json`` in the results for the scale ``mini``, ``claims-SCALE.json`` for any other."""
    name = "claims.json" if scale == "mini" else f"claims-{scale}.json"
    return paths.results_folder() / name


def write(claims: Sequence[Claim], scale: str) -> Path:
    """Write verdicts to `results_file` and as Markdown beside it; returns the path of the former.

    Raises:
        UserError: a file cannot be written.
    """
    path = results_file(scale)
    entries = [dataclasses.asdict(claim) for claim in claims]
    write_atomic(path, (json.dumps(entries, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(path.with_suffix(".md"), markdown(claims, scale).encode())
    return path


def read(path: Path) -> list[Claim] | None:
    """The verdicts in a file; None if it is not there.

    Raises:
        UserError: the file is damaged.
    """
    try:
        claims = []
        for entry in json.loads(path.read_text("utf-8")):
            evidence = entry["evidence"]
            claims.append(
                Claim(
                    id=str(entry["id"]),
                    claim=str(entry.get("claim", "")),
                    verdict=entry["verdict"],
                    evidence=(evidence,) if isinstance(evidence, str) else tuple(map(str, evidence)),
                    rule=str(entry.get("rule", "")),
                    scale=str(entry.get("scale", "")),
                    regime=str(entry.get("regime", "")),
                    runs=tuple(map(str, entry.get("runs", ()))),
                )
            )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{path}: damaged ({type(error).__name__}: {error}); "
            "make it again with `python -m analysis.claims`"
        ) from error
    return claims


def markdown(claims: Sequence[Claim], scale: str) -> str:
    """A table of the verdicts, and below it the rule and the evidence of each."""
    lines = [f"# Claims of the paper (scale `{scale}`)", "", "| | claim | verdict |", "|---|---|---|"]
    lines += [f"| {one.id} | {one.claim} | **{one.verdict}** |" for one in claims]
    lines += [
        "",
        f"{RULES_CAME_FIRST} ([analysis/claims](../analysis/claims)). "
        "Differences are paired by seed and in percent of the second row's mean, with their 95% "
        'bootstrap intervals over seeds; overall is the mean over the metrics. "Shown" is what lies on '
        f"one side by its interval and by a paired t test, p at most {LEVEL:g} after Holm's correction "
        "over the claim's comparisons that decide, or those that can veto "
        "([analysis/significance.py](../analysis/significance.py)). All runs have the regime "
        f"`{REGIME}`: the best settings that were found, not the paper's own (experiments/CALIBRATION.md).",
        "",
    ]
    for one in claims:
        lines += [f"## {one.id}: {one.verdict}", "", one.claim, "", f"*Rule.* {one.rule}", ""]
        lines += [f"- {sentence}" for sentence in one.evidence]
        if one.runs:
            many = count_text(len(one.runs), "complete run")
            lines += ["", f"{many} looked at; their ids are in `{results_file(scale).name}`."]
        lines.append("")
    return "\n".join(lines)


def show(claims: Sequence[Claim], scale: str, path: Path) -> None:
    """Print the verdicts with what decided them."""
    rows = [(one.id, one.claim, one.verdict, one.evidence[0]) for one in claims]
    show_rows(f"Claims of the paper, {scale}", ("id", "claim", "verdict", "evidence"), rows, whole=(0,))
    console.print(f"rules and all evidence: {path.with_suffix('.md')}", soft_wrap=True)
