"""Which code this is: the commit of the checkout and what differs from it, or that it is not known."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from evlgen.runtime.paths import ROOT

_NEW_FILE_BYTES = 2**20  # of a new file that is taken for code
_CODE = ("evlgen", "experiments", "analysis", "paper_figures", "sweeps")  # where new files count as code
_PYTHON = tuple(f"{folder}/*.py" for folder in _CODE)
# Options and settings by which `git apply` takes what `git diff` writes, whatever the user's git is set to.
_PLAIN_DIFF = (
    *("--binary", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames"),
    *("--no-relative", "--submodule=short", "--src-prefix=a/", "--dst-prefix=b/"),
    *("--unified=3", "--inter-hunk-context=0", "--diff-algorithm=myers", "--ws-error-highlight=none"),
)
_PLAIN_GIT = (
    *("core.fsmonitor=false", "core.quotePath=true", "core.pager=cat", "color.ui=false"),
    *("diff.noprefix=false", "diff.mnemonicPrefix=false", "diff.orderFile=/dev/null"),
    *("diff.suppressBlankEmpty=false", "diff.ignoreSubmodules=none"),
)
# Variables that lead git to another repository, or to another way of writing.
_ASTRAY = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"),
    *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS"),
    *("GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS"),
)


@dataclass(frozen=True)
class Code:
    """Which code this is.

    Attributes:
        commit: of the checkout; None where there is none that is this project's own, or git cannot tell.
        difference: from the commit, as `git apply` takes it; None where it is unknown.
    """

    commit: str | None = None
    difference: bytes | None = None


@functools.cache
def code_state() -> Code:
    """The commit of the checkout, and what the checkout has that its commit has not.

    New files count where code is (`_CODE`); what is written into ``results`` does not. The repository must be
    the project's own: of one that the project was unpacked into, nothing is recorded.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(os.fsdecode(top.rstrip(b"\n"))).resolve() != ROOT.resolve():
        return Code()
    here = Path(__file__).resolve()
    if here.is_relative_to(ROOT.resolve()):  # a repository around it that does not have it
        name = here.relative_to(ROOT.resolve()).as_posix()
        if _git("cat-file", "-e", f"HEAD:{name}") is None:
            return Code()
    commit = _git("rev-parse", "--verify", "HEAD^{commit}")
    if commit is None:
        return Code()
    return Code(commit.decode().strip(), _compare())


def _compare() -> bytes | None:
    """`git diff` of the checkout, with its new files; None if git cannot tell."""
    wanted = ("--", ".", ":(exclude,top)results")
    new = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *_CODE)
    # Python is code even where the user's own list of ignored files has it.
    modules = _git("ls-files", "--others", "--exclude-per-directory=.gitignore", "-z", "--", *_PYTHON)
    index = _git("rev-parse", "--git-path", "index")
    if new is None or modules is None or index is None:
        return None
    found = sorted({*new.split(b"\0"), *modules.split(b"\0")})
    names = [name for name in found if name and _is_small(ROOT / os.fsdecode(name))]
    if not names:
        return _git("diff", *_PLAIN_DIFF, "HEAD", *wanted)
    try:
        with tempfile.TemporaryDirectory() as folder:  # the user's own index stays as it is
            copy = Path(folder) / "index"
            shutil.copyfile(ROOT / os.fsdecode(index.rstrip(b"\n")), copy)
            environment = {"GIT_INDEX_FILE": str(copy), "GIT_LITERAL_PATHSPECS": "1"}
            if (
                _git("add", "--force", "--intent-to-add", "--", *map(os.fsdecode, names), **environment)
                is None
            ):
                return None
            return _git("diff", *_PLAIN_DIFF, "HEAD", *wanted, GIT_INDEX_FILE=str(copy))
    except OSError:  # no room, or an index that may not be read
        return None


def _is_small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= _NEW_FILE_BYTES


def within(difference: bytes, limit: int) -> tuple[bytes, list[str]]:
    """The files of a difference, one after the other, as far as they fit; first lines of those left out."""
    if not difference:
        return b"", []
    first, *others = difference.split(b"\ndiff --git ")  # no line of a file's content begins so
    kept, left_out, size = [], [], 0
    for piece in (first, *(b"diff --git " + other for other in others)):
        piece = piece if piece.endswith(b"\n") else piece + b"\n"
        if size + len(piece) <= limit:
            kept.append(piece)
            size += len(piece)
        else:
            left_out.append(piece.splitlines()[0].decode(errors="replace"))
    return b"".join(kept), left_out


def _git(*arguments: str, **variables: str) -> bytes | None:
    """What git says of the checkout; None if it cannot."""
    environment = {name: value for name, value in os.environ.items() if name not in _ASTRAY}
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    environment |= {"GIT_CEILING_DIRECTORIES": str(ROOT.parent), **variables}
    settings = [word for setting in _PLAIN_GIT for word in ("-c", setting)]
    try:
        return subprocess.run(
            ["git", *settings, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
