"""Put what is under ``results/`` into README.md: ``python -m analysis.readme``.

A part stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``. ``claims`` is the table of verdicts of
``results/claims.json``, each with the first sentence of its evidence, ``headline`` the figure of quality
against cost, any other name the first part of the Markdown in ``results/NAME/mini``. What is not there stays
as it is.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from evlgen.errors import UserError, exit_code
from evlgen.runtime.files import write_atomic

ROOT = Path(__file__).parents[1]
HEADLINE = "quality_cost"
_HEADLINE_TEXT = "Quality against training cost: EVLGen, BLIP-2 in a single stage and in two stages"


def with_results(page: str, results: Path) -> str:
    """The page with every marked part replaced by what is under ``results``; those not there stay.

    Raises:
        UserError: ``claims.json`` is damaged.
    """

    def replace(found: re.Match[str]) -> str:
        name = found["name"]
        text = {"claims": _claims, "headline": _headline}.get(name, lambda results: _table(results, name))(
            results
        )
        return found[0] if text is None else f"<!-- {name} -->\n{text}\n<!-- /{name} -->"

    return re.sub(r"<!-- (?P<name>\w+) -->.*?<!-- /(?P=name) -->", replace, page, flags=re.DOTALL)


def _table(results: Path, name: str) -> str | None:
    path = results / name / "mini" / "table.md"
    if not path.exists():
        return None
    head = path.read_text().split("\n## ")[0]  # the rest, every seed and every difference, stays there
    return re.sub(r"^# ", "### ", head, flags=re.MULTILINE).strip()


def _headline(results: Path) -> str | None:
    path = Path("figures", "mini", f"{HEADLINE}.png")
    return f"![{_HEADLINE_TEXT}](results/{path.as_posix()})" if (results / path).exists() else None


def _claims(results: Path) -> str | None:
    claims = read_claims(results / "claims.json")
    if claims is None:
        return None
    lines = ["| claim of the paper | verdict | what decided |", "|---|---|---|"]
    for claim in claims:
        words = (f"{claim['id']}: {claim['claim']}", f"**{claim['verdict']}**", *claim["evidence"][:1])
        lines.append("| " + " | ".join(" ".join(word.replace("|", "\\|").split()) for word in words) + " |")
    if (results / "claims.md").exists():
        lines += ["", "All evidence, the rules and the runs: [claims.md](results/claims.md)."]
    return "\n".join(lines)


def read_claims(path: Path) -> list[dict[str, Any]] | None:
    """The verdicts in a file; None if it is not there.

    Returns:
        Of each claim ``id``, ``claim``, ``verdict``, ``rule``, ``scale`` (words, empty where the file has
        none), ``evidence`` (a list of sentences) and ``runs`` (a list of ids).

    Raises:
        UserError: the file is damaged.
    """
    try:
        claims = []
        for claim in json.loads(path.read_text()):
            words = {name: str(claim.get(name, "")) for name in ("claim", "rule", "scale")}
            evidence = claim["evidence"]
            claims.append(
                {
                    "id": str(claim["id"]),
                    "verdict": str(claim["verdict"]),
                    **words,
                    "evidence": [evidence] if isinstance(evidence, str) else [str(one) for one in evidence],
                    "runs": [str(run) for run in claim.get("runs", [])],
                }
            )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{path}: damaged ({type(error).__name__}: {error}); "
            "make it again with `python -m analysis.claims`"
        ) from error
    return claims


def main() -> int:
    """Exit code: 0, or 2 where the user must do something first."""

    def act() -> None:
        readme = ROOT / "README.md"
        write_atomic(readme, with_results(readme.read_text(), ROOT / "results").encode())

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main())
