"""What ``benchmarks/gpu_check.py`` has found, as a page in Markdown."""

from __future__ import annotations

from typing import Any

PARTS = {  # in the order in which they are done: titles, and seconds that each may take
    "smoke": ("A table through the user's command", 90),
    "parity": ("Connectors beside the CPU", 40),
    "precision": ("Training in each precision", 40),
    "resume": ("The same bits", 40),
    "generate": ("Captions from `from_run`", 30),
    "graphs": ("Waits and graphs", 40),
    "connectors": ("A step of the connectors", 50),
    "captioners": ("A step of the whole captioner", 80),
    "connectors_compiled": ("A step of the connectors, compiled", 120),
    "captioners_compiled": ("A step of the whole captioner, compiled", 140),
}


AIM = "The aim is at least 2. Where a batch did not fit into memory, it is a smaller one."
_REFERENCES = {"tomeformer, reference": "tomeformer, ", "qformer, reference": "qformer, ", "blip2": ""}


def _speeds(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Our speeds in those of the references, of the parts that time both."""
    found = []
    for eager, compiled in (("connectors", "connectors_compiled"), ("captioners", "captioners_compiled")):
        rows = [*parts[eager].get("rows", []), *parts[compiled].get("rows", [])]
        rates = {row["what"]: row for row in rows}
        for reference, beginning in _REFERENCES.items():
            if reference not in rates:
                continue
            for name, row in rates.items():
                if name != reference and name.startswith(beginning):
                    times = row["samples/s"] / rates[reference]["samples/s"]
                    found.append(
                        {
                            "ours": name,
                            "reference": reference,
                            "times as fast": f"{times:.2f}",
                            "samples/s": row["samples/s"],
                            "MFU": row["MFU"],
                            "batch": f"{row['batch']}, {rates[reference]['batch']}",
                        }
                    )
    return found


def page(record: dict[str, Any]) -> str:
    """The record of `benchmarks.gpu_check` as Markdown: one table of all parts, then a section for each."""
    machine, parts = record["machine"], record["parts"]
    size = ", tiny shapes: its speeds mean nothing" if record["tiny"] else ""
    lines = [
        f"# {machine['device']}{size}",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items() if name != "device"),
        "",
        "Made by `make gpu-check` ([what it does](../README.md#on-a-gpu-gpu_checkpy)).",
        "",
        *table([_summary(name, part) for name, part in parts.items()]),
    ]
    if speeds := _speeds(parts):
        lines += ["", "## Beside the references", "", *table(speeds), "", AIM]
    for name, part in parts.items():
        if not (part.get("rows") or part.get("notes")):
            continue
        lines += ["", f"## {PARTS[name][0]}", ""]
        lines += table(part["rows"]) if part.get("rows") else []
        for note in part.get("notes", []):
            lines += ["", note]
    return "\n".join(lines) + "\n"


def _summary(name: str, part: dict[str, Any]) -> dict[str, Any]:
    seconds = "" if part["seconds"] is None else f"{part['seconds']:.0f}"
    return {"part": PARTS[name][0], "outcome": part["outcome"], "found": part["line"], "s": seconds}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table; its columns are the keys of the first row."""
    columns = list(rows[0])
    body = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *body)]


def _cell(value: Any) -> str:
    text = f"{value:.2g}" if isinstance(value, float) and 0 < abs(value) < 0.01 else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
