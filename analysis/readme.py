"""Put the tables under ``results/`` into README.md: ``python -m analysis.readme``.

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; it is the first part of the Markdown in
``results/NAME/mini``.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def with_tables(page: str, results: Path) -> str:
    """The page with every marked table replaced by the one under ``results``; those not there stay."""

    def replace(found: re.Match[str]) -> str:
        name = found["name"]
        table = results / name / "mini" / "table.md"
        if not table.exists():
            return found[0]
        head = table.read_text().split("\n## ")[0]  # the rest, every seed and every difference, stays there
        text = re.sub(r"^# ", "### ", head, flags=re.MULTILINE).strip()
        return f"<!-- {name} -->\n{text}\n<!-- /{name} -->"

    return re.sub(r"<!-- (?P<name>\w+) -->.*?<!-- /(?P=name) -->", replace, page, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(), ROOT / "results"))
