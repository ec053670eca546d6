"""What users give as paths: relative, with ``~``, links, spaces, slashes at the end, nothing, files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evlgen.errors import UserError
from evlgen.runtime import datasets, paths, sources
from experiments import load

ASKED = {
    "EVLGEN_RUNS": paths.runs_folder,
    "EVLGEN_RESULTS": paths.results_folder,
    "EVLGEN_CACHE": paths.cache_folder,
    "EVLGEN_WEIGHTS": paths.weights_folder,
    "EVLGEN_DATA": datasets.root,
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder that is the current one, too; other folders are not told."""
    for name in ASKED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a", "a"),
        ("a/", "a"),
        ("./a b//c/", "a b/c"),
        ("~/a", "a"),
        ("~", ""),
        ("link/../a", "link/../a"),  # where that leads only the system can tell
        ("$HOME/a", "$HOME/a"),  # the shell's business
    ],
)
def test_a_folder_is_expanded_and_absolute(home, monkeypatch, name, given, meant):
    monkeypatch.setenv(name, given)
    assert ASKED[name]() == home / meant
    paths.settle()
    monkeypatch.chdir("/")
    assert ASKED[name]() == home / meant
    assert os.path.isabs(os.environ[name])


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("given", ["", " ", "\n"])
def test_an_empty_variable_is_none(home, monkeypatch, name, given):
    before = ASKED[name]()
    monkeypatch.setenv(name, given)
    paths.settle()
    assert ASKED[name]() == before


@pytest.mark.parametrize("name", ASKED)
def test_a_file_is_no_folder(home, monkeypatch, name):
    (home / "file").write_text("")
    monkeypatch.setenv(name, "file")
    with pytest.raises(UserError, match=rf"{name} is .*file'?: a file; give a folder"):
        datasets.data_folder() if name == "EVLGEN_DATA" else ASKED[name]()


@pytest.mark.parametrize("name", ASKED)
def test_the_home_of_nobody_is_named(home, monkeypatch, name):
    monkeypatch.setenv(name, "~nobody-is-called-so/a")
    with pytest.raises(UserError, match=rf"{name} is '~nobody-is-called-so/a': nobody of that name"):
        paths.settle()


def test_a_link_stays_a_link(home, monkeypatch):
    (home / "there").mkdir()
    (home / "link").symlink_to("there")
    monkeypatch.setenv("EVLGEN_DATA", "link/")
    assert datasets.data_folder() == home / "link"


def test_data_that_is_not_there_is_named(home, monkeypatch):
    monkeypatch.setenv("EVLGEN_DATA", "no where")
    with pytest.raises(UserError, match="EVLGEN_DATA is 'no where': no such folder"):
        datasets.data_folder()


def test_a_command_refuses_a_file_with_one_line(home):
    (home / "file").write_text("")
    command = [sys.executable, paths.ROOT / "sweeps/run.py", "list"]
    done = subprocess.run(
        command, env={**os.environ, "EVLGEN_RUNS": "file"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: EVLGEN_RUNS is ")


def test_paths_of_models_are_absolute_in_configurations(home):
    (home / "my model").mkdir()
    for given, meant in (
        ("my model", str(home / "my model")),
        ("~/my model/", str(home / "my model")),
        ("./not yet", str(home / "not yet")),
        ("opt-2.7b", "opt-2.7b"),
        ("facebook/opt-2.7b", "facebook/opt-2.7b"),  # perhaps in the hub's cache
    ):
        for field in ("language", "vision"):
            config = load("table1", "mini", (f"{field}={given}",), "EVLGen").rows[0].config
            assert getattr(config, field) == meant
    first = load("table1", "mini", ("stage1.vision=my model",), "two stages").rows[0].config.init_from
    assert first is not None
    assert first.vision == str(home / "my model")


def test_ids_of_own_images_without_their_folder_are_those_of_nothing(home):
    """The current folder, or the root, must not be taken for the data folder that is not told."""
    (home / "mine").mkdir()
    (home / "mine/captions.jsonl").write_text('{"file": "a.jpg", "caption": "a"}\n')
    assert sources.fingerprint_of_data("folder", ["mine"]) == {"mine": sources.MISSING}
    assert sources.fingerprint_of_data("capfilt", ["coco"]) == {"coco/dataset_coco.json": sources.MISSING}
    assert not Path("runs").exists()
