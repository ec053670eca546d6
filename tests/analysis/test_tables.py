"""The three forms of a table: complete, incomplete, with the paper's numbers and without."""

import csv
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from analysis.table import COLUMNS, latex_escaped
from analysis.tables import DIFFERENCES, write_tables
from evlgen.config import DataConfig, EvalConfig, RunConfig
from evlgen.errors import UserError
from experiments import load
from experiments.base import Experiment, Row
from tests.analysis.made_results import Metrics, results_of

CONFIG = RunConfig(
    evaluation=EvalConfig(sets=(("coco", 50), ("nocaps_in", 10), ("nocaps_near", 20), ("vqav2", 1)))
)
EXPERIMENT = Experiment(
    name="table9",
    title="Table 9: a & b",
    rows=(
        Row("first, 50% of data_a", CONFIG, {"vqav2": 46.9, "coco/CIDEr": "collapse", "hours": 80}),
        Row("second | #2", CONFIG, {"vqav2": 44.0}),
    ),
    metrics=("vqav2", "coco/CIDEr", "nocaps/CIDEr"),
    seeds=3,
)


def run(**metrics: float | str) -> Metrics:
    return {name.replace("__", "/"): value for name, value in metrics.items()}


def tables(
    folder: Path,
    made: Mapping[str, Sequence[Metrics | None]],
    seeds: int | None = None,
    experiment: Experiment = EXPERIMENT,
    scale: str = "mini",
) -> list[Path]:
    """Write the tables of these metrics by row and seed; what is not there is not complete."""
    wanted = seeds or experiment.seeds
    whole = {row.label: [*made.get(row.label, ()), *[None] * wanted][:wanted] for row in experiment.rows}
    return write_tables(dataclasses.replace(results_of(experiment, whole), scale=scale), folder)


RESULTS = {
    "first, 50% of data_a": [
        run(vqav2=41.0, coco__CIDEr=100.0, gap=1.5, val_loss=0.5, state="conditioned"),
        run(vqav2=42.0, coco__CIDEr=110.0, gap=1.25, val_loss=0.75, state="plateau"),
        run(vqav2=46.0, coco__CIDEr=120.0, gap=1.0, val_loss=math.nan),
    ],
    "second | #2": [run(vqav2=40.0, coco__CIDEr=104.0), None, run(vqav2=45.5, coco__CIDEr=90.0)],
}


def read_csv(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return {(line["row"], line["metric"]): line for line in reader}


def markdown(folder: Path) -> str:
    return (folder / "table.md").read_text()


def test_csv(tmp_path: Path) -> None:
    paths = tables(tmp_path / "a" / "b", RESULTS)
    assert [path.name for path in paths] == ["table.csv", "table.md", "table.tex", "differences.csv"]
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "differences.csv",
        "table.csv",
        "table.md",
        "table.tex",
    ]
    lines = read_csv(tmp_path / "a" / "b")
    first, second = EXPERIMENT.rows[0].label, EXPERIMENT.rows[1].label
    assert lines[first, "vqav2"] == {
        "row": first,
        "metric": "vqav2",
        "mean": "43",
        "ci_low": "41",
        "ci_high": "46",
        "n_seeds": "3",
        "paper": "46.9",
    }
    assert lines[first, "coco/CIDEr"]["paper"] == "collapse"
    # Nothing measured, nothing known: empty, not zero.
    unknown = lines[second, "nocaps/CIDEr"]
    assert [unknown[name] for name in COLUMNS[2:]] == ["", "", "", "0", ""]
    assert lines[first, "hours"]["paper"] == "80"
    assert lines[second, "vqav2"]["n_seeds"] == "2"
    assert lines[second, "vqav2"]["mean"] == "42.75"
    # A loss that is not a number is missing, and the other seeds stay.
    assert lines[first, "val_loss"]["mean"] == "0.625"
    assert lines[first, "val_loss"]["n_seeds"] == "2"
    # The rows in the experiment's order, its metrics first.
    assert [key for key in lines if key[0] == first][:3] == [(first, m) for m in EXPERIMENT.metrics]


def test_markdown(tmp_path: Path) -> None:
    tables(tmp_path, RESULTS)
    text = markdown(tmp_path)
    assert "| row | VQAv2 | COCO CIDEr | NoCaps, all CIDEr | seeds |" in text
    assert "43.0 [41.0, 46.0] (paper: 46.9)" in text
    assert "110.0 [100.0, 120.0] (paper: collapse)" in text
    assert "– (paper: ?)" in text
    assert "| 2 of 3 (incomplete) |" in text
    assert "Incomplete, some seeds missing: second | #2." in text
    assert "Evaluated on 1 question of VQAv2, 50 images of COCO.\n" in text  # NoCaps has no score
    assert "1.250 [1.000, 1.500]" in text
    assert "40.0 / – / 45.5" in text
    grids = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    for table in grids:  # every row of a grid has as many cells as its head
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert len(grids) == 4


def test_sizes_are_those_that_were_scored(tmp_path: Path) -> None:
    """A set may have fewer examples than a run asks for; older records do not count questions."""
    counts = {"coco/images": 7.0, "nocaps/images": 30.0}
    made = {label: [seed and {**seed, **counts} for seed in seeds] for label, seeds in RESULTS.items()}
    tables(tmp_path, made)
    assert "Evaluated on 1 question of VQAv2, 7 images of COCO, 30 images of NoCaps, all." in markdown(
        tmp_path
    )
    made = {
        label: [seed and {**seed, "vqav2/questions": 5.0} for seed in seeds] for label, seeds in made.items()
    }
    tables(tmp_path, made)
    assert "Evaluated on 5 questions of VQAv2, 7 images of COCO" in markdown(tmp_path)


def test_only_what_was_evaluated_is_said_to_be(tmp_path: Path) -> None:
    """Never what was asked for: sets of files may have had less."""
    real = dataclasses.replace(CONFIG, data=DataConfig(world="capfilt", pools=(("coco", 5),)))
    rows = tuple(dataclasses.replace(row, config=real) for row in EXPERIMENT.rows)
    experiment = dataclasses.replace(EXPERIMENT, rows=rows)
    tables(tmp_path, RESULTS, experiment=experiment)
    assert "Evaluated on" not in markdown(tmp_path)
    counted = {
        label: [seed and {**seed, "coco/images": 4.0 + place} for place, seed in enumerate(seeds)]
        for label, seeds in RESULTS.items()
    }
    tables(tmp_path, counted, experiment=experiment)
    assert "Evaluated on 4 to 6 images of COCO.\n" in markdown(tmp_path)
    tables(tmp_path, {}, experiment=experiment)
    assert "Evaluated on" not in markdown(tmp_path)


def test_experiments_that_are_not_the_paper_s_have_no_column_for_it(tmp_path: Path) -> None:
    ours = dataclasses.replace(
        EXPERIMENT, rows=tuple(dataclasses.replace(row, paper={}) for row in EXPERIMENT.rows)
    )
    tables(tmp_path, RESULTS, experiment=ours)
    for text in (markdown(tmp_path), (tmp_path / "table.tex").read_text()):
        assert "paper:" not in text
        assert "No number of the paper is known for these rows." in text


def test_differences_are_paired_and_signed(tmp_path: Path) -> None:
    """second - first over seeds 0 and 2: VQAv2 -1, -0.5; CIDEr +4, -30."""
    tables(tmp_path, RESULTS)
    (line,) = [line for line in markdown(tmp_path).splitlines() if " minus " in line]
    assert line.startswith("| second \\| #2 minus first, 50% of data_a |")
    assert "-0.75 [-1.00, -0.50] lower" in line
    assert "-13.00 [-30.00, +4.00] undecided" in line
    assert (
        "with 2 seeds such a verdict alone proves little (no sign-flip test can give a p below 0.5)"
        in markdown(tmp_path)
    )


def test_differences_are_corrected(tmp_path: Path) -> None:
    """Two differences: -1.2, -0.9, -0.9, -1.0 (t = -14.1, p = 0.0008) and one of no size; a family of two."""
    first = [run(vqav2=41.0 + i, coco__CIDEr=100.0) for i in range(4)]
    second = [
        run(vqav2=41.0 + i - by, coco__CIDEr=100.0 + sign)
        for i, (by, sign) in enumerate([(1.2, 1.0), (0.9, -1.0), (0.9, 1.0), (1.0, -1.0)])
    ]
    results = dict(zip([row.label for row in EXPERIMENT.rows], (first, second), strict=True))
    tables(tmp_path, results, seeds=4)
    lines = {line["metric"]: line for line in lines_of_differences(tmp_path)}
    assert tuple(next(iter(lines.values()))) == DIFFERENCES
    assert list(lines) == ["vqav2", "coco/CIDEr"]  # what no seed has is left out
    line = lines["vqav2"]
    assert (line["row"], line["minus"]) == ("second | #2", "first, 50% of data_a")
    assert (line["mean"], line["n_seeds"], line["verdict"]) == ("-1", "4", "lower")
    assert float(line["ci_low"]) < -1 < float(line["ci_high"]) < 0
    assert float(line["p_sign_flip"]) == 2 / 16
    assert float(line["p_t"]) == pytest.approx(0.000767, rel=1e-2)
    assert float(line["p_holm"]) == pytest.approx(2 * float(line["p_t"]), rel=1e-4)
    assert lines["coco/CIDEr"]["verdict"] == "undecided"
    assert lines["coco/CIDEr"]["p_holm"] == "1"
    text = markdown(tmp_path)
    assert re.search(r"-1.00 \[-1.\d\d, -0.\d\d\] lower\\\* \| 0.00 \[.*\] undecided \|", text)
    assert "over the 2 differences of this table" in text


def lines_of_differences(folder: Path) -> list[dict[str, str]]:
    with (folder / "differences.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_compared_with_those_they_name(tmp_path: Path) -> None:
    """Two groups with a reference each, and a row whose reference was left out."""
    named = {"a": "", "a1": "", "a2": "a", "b": "b", "b1": "b", "b2": "b", "c": "gone", "d": "b1"}
    rows = tuple(Row(label, CONFIG, against=against) for label, against in named.items())
    experiment = Experiment("many", "Many", rows, ("vqav2",), 2)
    results = {
        label: [run(vqav2=10.0 * place), run(vqav2=10.0 * place + 1)] for place, label in enumerate(named)
    }
    tables(tmp_path, results, experiment=experiment)
    lines = lines_of_differences(tmp_path)
    assert {(line["row"], line["minus"]): float(line["mean"]) for line in lines} == {
        ("a1", "a"): 10.0,
        ("a2", "a"): 20.0,
        ("b1", "b"): 10.0,
        ("b2", "b"): 20.0,
        ("d", "b1"): 30.0,
    }
    few = Experiment("few", "Few", rows[:6], ("vqav2",), 2)
    tables(tmp_path, results, experiment=few)
    assert len(lines_of_differences(tmp_path)) == 15  # each with each


def test_costs_are_no_part_of_the_family(tmp_path: Path) -> None:
    """What a row costs differs beyond doubt: it is shown, and the scores are corrected as if it were not."""
    metrics = ("vqav2", "connector_gmacs", "train_seconds", "total_seconds", "coco/CIDEr")
    experiment = Experiment("costs", "Costs", (Row("a", CONFIG), Row("b", CONFIG)), metrics, 3)
    results = {
        label: [
            run(
                vqav2=score + by,
                coco__CIDEr=50.0 + by,
                connector_gmacs=cost,
                train_seconds=cost + by,
                total_seconds=2 * cost + by,
            )
            for by in (0.0, 0.1, noise)
        ]
        for label, score, cost, noise in (("a", 40.0, 1.0, 0.2), ("b", 41.0, 2.0, 0.3))
    }
    tables(tmp_path, results, experiment=experiment)
    lines = {line["metric"]: line for line in lines_of_differences(tmp_path)}
    assert tuple(lines) == metrics
    for cost in metrics[1:4]:
        assert float(lines[cost]["mean"]) > 0
        assert lines[cost]["verdict"] == "higher"
        assert lines[cost]["p_holm"] == ""
    assert float(lines["vqav2"]["p_holm"]) == pytest.approx(2 * float(lines["vqav2"]["p_t"]), rel=1e-4)
    assert "over the 2 differences of this table, costs left out" in markdown(tmp_path)
    (line,) = [line for line in markdown(tmp_path).splitlines() if " minus " in line]
    assert line.count(r"\*") == 1  # VQAv2's


def test_rows_and_seeds_that_are_missing(tmp_path: Path) -> None:
    tables(tmp_path, {})
    assert all(line["n_seeds"] == "0" and line["mean"] == "" for line in read_csv(tmp_path).values())
    text = markdown(tmp_path)
    assert text.count("0 of 3 (incomplete)") == 2
    assert "paired by seed" not in text
    # Fewer results than seeds are wanted: the last ones are missing.
    tables(tmp_path, {EXPERIMENT.rows[0].label: [run(vqav2=1.0)]}, seeds=2)
    assert "1 of 2 (incomplete)" in markdown(tmp_path)
    assert "| 1.0 (paper: 46.9) |" in markdown(tmp_path)  # one seed has no interval


def test_one_seed_is_complete_if_one_was_asked_for(tmp_path: Path) -> None:
    results = {row.label: [run(vqav2=1.0, coco__CIDEr=2.0)] for row in EXPERIMENT.rows}
    tables(tmp_path, results, seeds=1, scale="smoke")
    assert "incomplete" not in markdown(tmp_path)
    assert "Scale smoke; means over 1 seed." in markdown(tmp_path)
    assert "paired by seed" not in markdown(tmp_path)  # one seed shows nothing


def test_scores_without_java_are_said(tmp_path: Path) -> None:
    results = {EXPERIMENT.rows[0].label: [run(vqav2=1.0, ptb_tokenizer=0.0)]}
    tables(tmp_path, results)
    assert "without Java" in markdown(tmp_path)
    tables(tmp_path, RESULTS)
    assert "without Java" not in markdown(tmp_path)


def test_latex(tmp_path: Path) -> None:
    tables(tmp_path, RESULTS)
    text = (tmp_path / "table.tex").read_text()
    assert "Table 9: a \\& b" in text
    assert "first, 50\\% of data\\_a & 43.0 {\\scriptsize [41.0, 46.0]}" in text
    assert "second \\textbar{} \\#2 \\emph{{[}seeds: 2 of 3 (incomplete)]}" in text
    assert "\\emph{paper: 46.9} & \\emph{paper: collapse} & \\emph{paper: ?}" in text
    for begun in re.findall(r"\\begin\{(\w+)\}", text):
        assert f"\\end{{{begun}}}" in text
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 1 + 2 * len(EXPERIMENT.rows)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(EXPERIMENT.metrics)}
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)[%$#_^~]", text.split("\n", 1)[1])


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b & 50% #1 $2 {x}", "a\\_b \\& 50\\% \\#1 \\$2 \\{x\\}"),
        (
            "\\ ~ ^ < >",
            "\\textbackslash{} \\textasciitilde{} \\textasciicircum{} \\textless{} \\textgreater{}",
        ),
        ("[1, 2] –", "{[}1, 2] --"),
    ],
)
def test_latex_escaped(text: str, escaped: str) -> None:
    assert latex_escaped(text) == escaped


def test_a_failed_write_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables(tmp_path, RESULTS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space"):
        tables(tmp_path, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_states_of_all_seeds(tmp_path: Path) -> None:
    tables(tmp_path, RESULTS)
    line = next(
        line for line in markdown(tmp_path).splitlines() if "first" in line and " / not yet used / " in line
    )
    assert line.split("|")[2].strip() == "used / not yet used / ?"
    assert ",state," not in (tmp_path / "table.csv").read_text()
    same = {
        EXPERIMENT.rows[0].label: [run(gap=0.5, state="conditioned"), run(gap=0.6, state="conditioned"), None]
    }
    tables(tmp_path, same)
    assert "| used | " in markdown(tmp_path)


def test_tables_say_by_which_conventions(tmp_path: Path) -> None:
    """Of all rows, or of those that have them."""

    def notes(experiment: Experiment) -> list[str]:
        made = {row.label: [run(nocaps__CIDEr=100.0)] for row in experiment.rows}
        tables(tmp_path, made, experiment=experiment)
        lines = (tmp_path / "table.md").read_text().splitlines()
        return [line for line in lines if "conventions of the authors" in line]

    theirs = load("table2", "paper")
    assert [line.endswith("in float32.") for line in notes(theirs)] == [True]
    first, *others = theirs.rows
    plain = dataclasses.replace(first, config=dataclasses.replace(first.config, conventions="plain"))
    (line,) = notes(dataclasses.replace(theirs, rows=(plain, *others)))
    assert line.endswith(f"in float32 ({'; '.join(row.label for row in others)}).")
    assert notes(load("table2", "mini")) == []
