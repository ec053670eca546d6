"""README.md shows the committed results, not older ones."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from analysis.readme import ROOT, read_claims, with_results
from evlgen.errors import UserError


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
    """Whether a README agrees neither with the results in the checkout nor with the committed ones.

    Whoever runs a table has other results than the committed ones, which is no fault; to commit new ones
    without a new README is.
    """
    if with_results(page, repository / "results") == page:
        return False
    return with_results(page, committed_results(repository, folder)) != page


def test_readme_is_not_stale(tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text()
    assert not is_stale(page, ROOT, tmp_path), "run `python -m analysis.readme`"


def test_own_results_are_no_fault_but_committed_ones_without_a_new_readme_are(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    table = repository / "results" / "table1" / "mini" / "table.md"
    table.parent.mkdir(parents=True)
    table.write_text("# Title\n\n| a |\n|---|\n| 1 |\n")
    page = with_results("<!-- table1 -->\n<!-- /table1 -->\n", repository / "results")
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qam", "results"]
    for command in (["git", "init", "-q"], ["git", "add", "."], commit):
        subprocess.run(command, cwd=repository, check=True)
    assert not is_stale(page, repository, tmp_path / "1")
    table.write_text("# Title\n\n| a |\n|---|\n| 2 |\n")  # as `make table1` does
    assert not is_stale(page, repository, tmp_path / "2")
    assert not is_stale(with_results(page, repository / "results"), repository, tmp_path / "3")
    subprocess.run(commit, cwd=repository, check=True)
    assert is_stale(page, repository, tmp_path / "4")


def test_without_git_nothing_is_blamed(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "table1" / "mini"
    folder.mkdir(parents=True)
    (folder / "table.md").write_text("# Title\n")
    with pytest.raises(pytest.skip.Exception, match="git does not tell"):
        is_stale("<!-- table1 -->\nold\n<!-- /table1 -->\n", tmp_path, tmp_path / "1")


def test_tables_are_replaced_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "table1" / "mini"
    folder.mkdir(parents=True)
    (folder / "table.md").write_text("# Title\n\n| a |\n|---|\n| 1 |\n\n## More\n\nnot here\n")
    page = "top\n<!-- table1 -->\nold\n<!-- /table1 -->\nmiddle\n<!-- table2 -->\nkept\n<!-- /table2 -->\n"
    new = with_results(page, tmp_path)
    assert "<!-- table1 -->\n### Title\n\n| a |\n|---|\n| 1 |\n<!-- /table1 -->\nmiddle" in new
    assert "old" not in new
    assert "kept" in new
    assert with_results(new, tmp_path) == new


def test_claims_and_headline(tmp_path: Path) -> None:
    page = "<!-- claims -->\n<!-- /claims -->\n<!-- headline -->\n<!-- /headline -->\n"
    assert with_results(page, tmp_path) == page
    claim = {
        "id": "C2",
        "claim": "collapses | or not",
        "verdict": "does not hold",
        "evidence": ["gap\n0.9.", "more."],
    }
    (tmp_path / "claims.json").write_text(json.dumps([claim]))
    assert "more." not in with_results(page, tmp_path)
    (tmp_path / "claims.md").touch()
    assert "(results/claims.md).\n<!-- /claims -->" in with_results(page, tmp_path)
    (tmp_path / "claims.md").unlink()
    figure = tmp_path / "figures" / "mini" / "quality_cost.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"")
    new = with_results(page, tmp_path)
    assert "| C2: collapses \\| or not | **does not hold** | gap 0.9. |\n<!-- /claims -->" in new
    assert "](results/figures/mini/quality_cost.png)\n<!-- /headline -->" in new
    assert with_results(new, tmp_path) == new


@pytest.mark.parametrize("text", ["{", "[1]", '[{"id": "C1"}]', '{"id": "C1"}'])
def test_damaged_claims_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "claims.json").write_text(text)
    with pytest.raises(UserError, match=r"claims\.json: damaged .*analysis\.claims"):
        read_claims(tmp_path / "claims.json")
