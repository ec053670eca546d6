"""Which code a run was made by: its own repository or none, and a difference that `git apply` takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evlgen.runs.checkout import within

ROOT = Path(__file__).parents[3]
ASK = """
import json, sys
from evlgen.runs import checkout
code = checkout.code_state()
sys.stdout.buffer.write(json.dumps([code.commit, code.difference is None]).encode() + b"\\n")
sys.stdout.buffer.write(code.difference or b"")
"""


def git(
    folder: Path, *words: str, data: bytes = b"", check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *names, *words], cwd=folder, input=data, capture_output=True, check=True)


def ask(folder: Path, **variables: str) -> tuple[str | None, bool, bytes]:
    """Commit, whether the difference is unknown, the difference."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **variables},
        capture_output=True,
        check=True,
    )
    first, _, rest = done.stdout.partition(b"\n")
    commit, is_unknown = json.loads(first)
    return commit, is_unknown, rest


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this project's library, as it is here."""
    folder = tmp_path_factory.mktemp("source") / "evlgen code"  # with a space
    shutil.copytree(ROOT / "evlgen", folder / "evlgen", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "README.md").write_text("one\ntwo\nthree, without an end of line")
    (folder / "picture.bin").write_bytes(bytes(range(256)))
    (folder / ".gitignore").write_text("__pycache__/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


@pytest.fixture
def checkout(source: Path, tmp_path: Path) -> Path:
    git(tmp_path, "clone", "-q", str(source), "clone")
    return tmp_path / "clone"


def change(folder: Path) -> dict[str, bytes]:
    """Changes of every kind; the contents by name."""
    (folder / "README.md").write_text("one\n2\n\nthree, still without an end of line")
    (folder / "picture.bin").write_bytes(bytes(reversed(range(256))) * 40)
    (folder / "evlgen" / "stage1.py").unlink()
    git(folder, "mv", "evlgen/merging.py", "evlgen/merged.py")
    for name in ("ä ö.txt", 'quo"te.txt', "tab\there.txt", "-dash", "new\nline"):
        (folder / name).write_text("new\n")
        git(folder, "add", "--", name)
    (folder / "evlgen" / "empty.py").touch()
    (folder / "evlgen" / "not known to git.py").write_text("x = 1")  # no `git add`
    (folder / "evlgen" / "new.bin").write_bytes(b"\x00\xff" * 300)
    (folder / "evlgen" / "collapse.py").chmod(0o755)
    (folder / "link").symlink_to("README.md")
    git(folder, "add", "link")
    listed = git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split(b"\0")
    paths = [folder / os.fsdecode(name) for name in listed if name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.exists()}


def test_the_difference_is_what_git_apply_takes(checkout: Path, tmp_path: Path) -> None:
    wanted = change(checkout)
    index = (checkout / ".git" / "index").read_bytes()
    commit, is_unknown, difference = ask(checkout)
    assert commit is not None
    assert not is_unknown
    assert (checkout / ".git" / "index").read_bytes() == index  # nobody asked to add anything
    git(tmp_path, "clone", "-q", str(checkout), "fresh")
    git(tmp_path / "fresh", "apply", "--index", data=difference)
    listed = [os.fsdecode(n) for n in git(tmp_path / "fresh", "ls-files", "-z").stdout.split(b"\0") if n]
    found = {name: (tmp_path / "fresh" / name).read_bytes() for name in listed}
    assert found == wanted


def test_code_that_the_user_ignores_is_code(checkout: Path, tmp_path: Path) -> None:
    """By `core.excludesFile`, or by the checkout's own list."""
    (tmp_path / "ignored").write_text("scratch*\n")
    git(checkout, "config", "core.excludesFile", str(tmp_path / "ignored"))
    (checkout / ".git" / "info" / "exclude").write_text("private*\n")
    (checkout / "evlgen" / "data" / "scratch.py").write_text("x = 1\n")
    (checkout / "evlgen" / "private.py").write_text("x = 2\n")
    (checkout / "evlgen" / "scratch.swp").write_text("an editor's")
    _, _, difference = ask(checkout)
    assert sorted(line for line in difference.splitlines() if line.startswith(b"+++")) == [
        b"+++ b/evlgen/data/scratch.py",
        b"+++ b/evlgen/private.py",
    ]


@pytest.mark.parametrize(
    "setting",
    [
        *("color.ui=always", "color.diff=always", "diff.external=/bin/echo", "diff.noprefix=true"),
        *("diff.mnemonicPrefix=true", "core.quotePath=false", "diff.context=0", "diff.interHunkContext=9"),
        *("diff.wsErrorHighlight=all", "diff.renames=copies", "diff.submodule=log", "diff.relative=true"),
        *(
            "diff.suppressBlankEmpty=true",
            "core.pager=false",
            "diff.algorithm=patience",
            "diff.colorMoved=zebra",
        ),
    ],
)
def test_the_users_settings_of_git_change_nothing(checkout: Path, setting: str) -> None:
    (checkout / "README.md").write_text("one\n2\n\nthree")
    (checkout / "picture.bin").write_bytes(b"\x00\x01")
    _, _, plain = ask(checkout)
    key, _, value = setting.partition("=")
    counted = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": key, "GIT_CONFIG_VALUE_0": value}
    assert ask(checkout, **counted)[2] == plain
    assert plain.startswith(b"diff --git a/README.md b/README.md\n")


def test_variables_of_git_lead_nowhere_else(checkout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "secret").write_text("token")
    git(other, "add", ".")
    git(other, "commit", "-qm", "x")
    right = ask(checkout)
    for variables in (
        {"GIT_DIR": str(other / ".git")},
        {"GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(other)},
        {"GIT_INDEX_FILE": str(other / ".git" / "index")},
        {"GIT_EXTERNAL_DIFF": "/bin/echo"},
        {"GIT_DIFF_OPTS": "--unified=0"},
    ):
        assert ask(checkout, **variables) == right


def unpacked(source: Path, folder: Path) -> Path:
    """The project without its repository, as an archive unpacks."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    return folder


def test_another_repository_is_never_recorded(source: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "notes.txt").write_text("one\n")
    git(tmp_path, "add", "notes.txt")
    git(tmp_path, "commit", "-qm", "x")
    (tmp_path / "notes.txt").write_text("token=SECRET\n")
    inside = unpacked(source, tmp_path / "evlgen-main")
    assert ask(inside) == (None, True, b"")
    git(tmp_path, "add", "evlgen-main")
    git(tmp_path, "commit", "-qm", "vendored")
    assert ask(inside) == (None, True, b"")
    # unpacked straight into another one's folder, which does not have it
    other = tmp_path / "other"
    unpacked(source, other)
    git(other, "init", "-q")
    (other / "notes.txt").write_text("one\n")
    git(other, "add", "notes.txt")
    git(other, "commit", "-qm", "x")
    assert ask(other) == (None, True, b"")


@pytest.mark.parametrize(
    "variables", [{"PATH": "/nonexistent"}, {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}], ids=["no git", "owner"]
)
def test_what_git_cannot_tell_is_unknown_not_clean(checkout: Path, variables: dict[str, str]) -> None:
    (checkout / "README.md").write_text("changed\n")
    assert ask(checkout, **variables) == (None, True, b"")


def test_a_repository_without_a_commit_or_with_a_broken_index_is_unknown(
    source: Path, tmp_path: Path
) -> None:
    empty = unpacked(source, tmp_path / "empty")
    git(empty, "init", "-q")
    assert ask(empty) == (None, True, b"")
    git(tmp_path, "clone", "-q", str(source), "broken")
    (tmp_path / "broken" / ".git" / "index").write_bytes(b"no index")
    assert ask(tmp_path / "broken")[1:] == (True, b"")


def test_of_a_large_difference_whole_files_are_kept() -> None:

    pieces = [b"diff --git a/%d b/%d\n+%s\n" % (n, n, b"x" * 20) for n in range(3)]
    kept, left_out = within(b"".join(pieces), 2 * len(pieces[0]))
    assert kept == pieces[0] + pieces[1]
    assert left_out == ["diff --git a/2 b/2"]
    whole: Any = within(b"".join(pieces), 1000)
    assert whole == (b"".join(pieces), [])
