"""README.md and docs/ show the committed results, not older ones."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from analysis import readme
from analysis.claims import files
from analysis.readme import pages, with_results
from evlgen.errors import UserError
from evlgen.runtime.paths import ROOT
from experiments import load
from tests.paper_figures import made_up


def committed_results(repository: Path, folder: Path) -> Path:
    """Write ``results/`` of the last commit into a folder; skips where git does not tell."""
    try:
        answer = subprocess.run(
            ["git", "archive", "--format=tar", "HEAD", "results"],
            cwd=repository,
            capture_output=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"git does not tell what is committed, so README.md cannot be compared with it ({error})")
    with tarfile.open(fileobj=io.BytesIO(answer.stdout)) as archive:
        for member in archive.getmembers():
            if member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())
    return folder / "results"


def is_stale(page: str, repository: Path, folder: Path) -> bool:
    """Whether a page agrees neither with the results in the checkout nor with those committed.

    Whoever runs a table has other results than the committed ones, which is no fault; to commit new ones
    without renewing the page is.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVLGEN_RESULTS", str(repository / "results"))
        if with_results(page) == page:
            return False
        patch.setenv("EVLGEN_RESULTS", str(committed_results(repository, folder)))
        patch.setenv("EVLGEN_RUNS", str(folder / "runs"))
        return with_results(page) != page


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_pages_are_not_stale(path: Path, tmp_path: Path) -> None:
    page = path.read_text()
    with pytest.MonkeyPatch.context() as patch:
        if with_results(page, path.parent) == page:
            return
        patch.setenv("EVLGEN_RESULTS", str(committed_results(ROOT, tmp_path)))
        patch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
        assert with_results(page, path.parent) == page, "run `python -m analysis.readme`"


def put_claims(results: Path, verdict: str) -> None:
    results.mkdir(parents=True, exist_ok=True)
    (results / "claims.json").write_text(json.dumps([{"id": "C1", "verdict": verdict, "evidence": "a."}]))


def test_own_results_are_no_fault_but_committed_ones_without_a_new_page_are(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    put_claims(repository / "results", "holds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVLGEN_RESULTS", str(repository / "results"))
        page = with_results("<!-- claims -->\n<!-- /claims -->\n")
    assert "**holds**" in page
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qam", "results"]
    for command in (["git", "init", "-q"], ["git", "add", "."], commit):
        subprocess.run(command, cwd=repository, check=True)
    assert not is_stale(page, repository, tmp_path / "1")
    put_claims(repository / "results", "undecided")  # as `python -m analysis.claims` does
    assert not is_stale(page, repository, tmp_path / "2")
    subprocess.run(commit, cwd=repository, check=True)
    assert is_stale(page, repository, tmp_path / "4")


def test_without_git_nothing_is_blamed(tmp_path: Path) -> None:
    put_claims(tmp_path / "results", "holds")
    with pytest.raises(pytest.skip.Exception, match="git does not tell"):
        is_stale("<!-- claims -->\nold\n<!-- /claims -->\n", tmp_path, tmp_path / "1")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path))
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    return tmp_path


def test_tables_are_replaced_and_others_stay(results: Path) -> None:
    made_up.fill("initialisation", "mini", seeds=3)
    page = (
        "top\n<!-- initialisation -->\nold\n<!-- /initialisation -->\nmiddle\n"
        "<!-- table2 -->\nkept\n<!-- /table2 -->\n<!-- other -->\nkept, too\n<!-- /other -->\n"
    )
    new = with_results(page)
    experiment = load("initialisation", "mini")
    assert f"<!-- initialisation -->\n### {experiment.title} (scale `mini`)\n\n| row | " in new
    for row in experiment.rows:
        assert f"\n| {row.label} | " in new
    assert "means over 3 seeds" in new
    assert "\n<!-- /initialisation -->\nmiddle" in new
    assert "old" not in new
    assert "kept\n" in new
    assert "kept, too" in new
    assert with_results(new) == new


def test_help_changes_no_page(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    page.write_text("<!-- claims -->\nstale\n<!-- /claims -->\n")
    claim = {"id": "C2", "claim": "it collapses", "verdict": "holds", "evidence": ["gap 0.9."]}
    (results / "claims.json").write_text(json.dumps([claim]))
    with pytest.raises(SystemExit) as ended:
        readme.main(["--help"])
    assert ended.value.code == 0
    assert "usage: python -m analysis.readme [-h]" in capsys.readouterr().out
    assert "stale" in page.read_text()
    assert readme.main([]) == 0
    assert "stale" not in page.read_text()


def test_claims_and_headline(results: Path) -> None:
    page = "<!-- claims -->\n<!-- /claims -->\n<!-- headline -->\n<!-- /headline -->\n"
    assert with_results(page) == page
    claim = {
        "id": "C2",
        "claim": "collapses | or not",
        "verdict": "does not hold",
        "evidence": ["gap\n0.9.", "more."],
    }
    (results / "claims.json").write_text(json.dumps([claim]))
    assert "more." not in with_results(page)
    (results / "claims.md").touch()
    assert "(results/claims.md).\n<!-- /claims -->" in with_results(page)
    assert "(../results/claims.md).\n<!-- /claims -->" in with_results(page, ROOT / "docs")
    (results / "claims.md").unlink()
    figure = results / "figures" / "mini" / "quality_cost.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"")
    new = with_results(page)
    assert "| C2: collapses \\| or not | **does not hold** | gap 0.9. |\n<!-- /claims -->" in new
    assert "](results/figures/mini/quality_cost.png)\n<!-- /headline -->" in new
    assert with_results(new) == new


@pytest.mark.parametrize("text", ["{", "[1]", '[{"id": "C1"}]', '{"id": "C1"}'])
def test_damaged_claims_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "claims.json").write_text(text)
    with pytest.raises(UserError, match=r"claims\.json: damaged .*analysis\.claims"):
        files.read(tmp_path / "claims.json")
