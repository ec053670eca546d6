"""What the id of a run depends on, tried by editing a copy of the checkout, weights and data."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evlgen import config as schema
from evlgen.config import RunConfig, to_json
from evlgen.runs import behaviour, identity
from evlgen.runtime.paths import ROOT
from evlgen.runtime.sources import write_checksums
from experiments.base import seeded
from experiments.scales import blip2, evlgen

# Prints the ids of every run of the miniature, by experiment, row and seed.
IDS = """
import json
from experiments import EXPERIMENTS, load
from experiments.base import seeded
from evlgen.runs.identity import run_id
found = {}
for name in EXPERIMENTS:
    for row in load(name, "mini").rows:
        for seed in range(5):
            config = seeded(row.config, seed)
            for part, one in (("", config), (" stage 1", config.init_from)):
                if one is not None:
                    label = f"{name}, {row.label}, seed {seed}{part}"
                    found[label] = [run_id(one), one.connector.kind, one.language]
print(json.dumps(found))
"""


def ids_in(checkout: Path) -> dict[str, tuple[str, str, str]]:
    """Label -> id, connector and language model, by the code in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run(
        [sys.executable, "-c", IDS],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    return {label: tuple(value) for label, value in json.loads(told.stdout).items()}


@pytest.fixture(scope="module")
def original() -> dict[str, tuple[str, str, str]]:
    return ids_in(ROOT)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what ids come from."""
    for name in ("evlgen", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def replaced(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text, f"{path} has no {old!r}"
        (root / path).write_text(text.replace(old, new, 1))

    return edit


def appended(path: str, text: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with (root / path).open("a") as file:
            file.write(text)

    return edit


def other_weights(name: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        folder = root / "evlgen" / "miniworld" / "weights"
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
        write_checksums(folder)

    return edit


KEPT: dict[str, Callable[[Path], None]] = {
    "another language model is known": replaced(
        "evlgen/runtime/sources.py",
        '    "flan-t5-xl"',
        '    "opt-30b": Source("language", "opt-30b", ""),\n    "flan-t5-xl"',
    ),
    "a connector is declared": replaced(
        "evlgen/config.py",
        "ConnectorConfig = ",
        '@dataclass(frozen=True)\nclass NewConfig:\n    kind: Literal["new"] = "new"\n'
        '    init: str = "random"\n\n\n'
        "ConnectorConfig = NewConfig | ",
    ),
    "a field is added": replaced(
        "evlgen/config.py",
        "    accumulate: int = 1\n",
        "    accumulate: int = 1\n    momentum: float = 0.0\n",
    ),
    "an error is worded anew": replaced("evlgen/connectors/pool.py", "UserError(", "UserError('Oh! ' + "),
    "a package is added": appended("evlgen/empty/__init__.py", ""),
    "a comment and a function are added": appended(
        "evlgen/training.py", "\n\n# Why\ndef helper() -> None: ...\n"
    ),
    "a scorer gets another number": replaced(
        "evlgen/runs/behaviour.py", '    "captions": 1', '    "captions": 2'
    ),
    "a component that no run uses gets another number": replaced(
        "evlgen/runs/behaviour.py", '    "capfilt": 2', '    "capfilt": 3'
    ),
    "a default changes that every run of the miniature states": replaced(
        "evlgen/config.py", "    batch_size: int = 1600", "    batch_size: int = 800"
    ),
}
# With whether a run is changed by it: of connector kind and language model
Changed = Callable[[str, str], bool]
CHANGED: dict[str, tuple[Callable[[Path], None], Changed]] = {
    "merging behaves otherwise": (
        replaced("evlgen/runs/behaviour.py", '    "merging": 1', '    "merging": 2'),
        lambda kind, language: kind == "tomeformer",
    ),
    "training behaves otherwise": (
        replaced("evlgen/runs/behaviour.py", '    "training": 1', '    "training": 2'),
        lambda kind, language: True,
    ),
    "other weights of one language model": (
        other_weights("mini-llama.safetensors"),
        lambda kind, language: language == "mini-llama",
    ),
    "other weights of the image encoder": (
        other_weights("mini-vit.safetensors"),
        lambda kind, language: True,  # but for runs with the other encoder, see below
    ),
    "a default changes that runs rely on": (
        replaced("evlgen/config.py", "    weight_decay: float = 0.05", "    weight_decay: float = 0.1"),
        lambda kind, language: True,
    ),
}


@pytest.mark.parametrize("edit", KEPT)
def test_ids_are_kept(edit: str, checkout: Path, original: dict[str, tuple[str, str, str]]) -> None:
    KEPT[edit](checkout)
    assert ids_in(checkout) == original


@pytest.mark.parametrize("edit", CHANGED)
def test_ids_change(edit: str, checkout: Path, original: dict[str, tuple[str, str, str]]) -> None:
    change, is_changed = CHANGED[edit]
    change(checkout)
    now = ids_in(checkout)
    for label, (run, kind, language) in original.items():
        if "mini-clip" in label:
            continue
        assert (now[label][0] != run) == is_changed(kind, language), label
    assert len(now) == len(original) > 800


def test_an_id_says_what_it_stands_for() -> None:
    for config in (evlgen("mini"), blip2("mini"), seeded(blip2("smoke"), 3), evlgen("paper")):
        whole = identity.identify(config)
        assert whole.id == identity.run_id(config) == identity.id_of(config, whole.versions)
        assert whole.id.partition("-")[0] == identity.config_hash(config)
        assert whole.components == behaviour.components_of(config)
    assert "stage1" in identity.identify(blip2("mini")).components  # of the stage that it starts from


def test_an_id_depends_on_every_field() -> None:
    base = evlgen("mini")
    others = [
        seeded(base, 1),
        dataclasses.replace(base, optim=dataclasses.replace(base.optim, lr=1.01e-3)),
        dataclasses.replace(base, language="mini-llama"),
        dataclasses.replace(base, data=dataclasses.replace(base.data, views=2)),
    ]
    assert identity.run_id(base) == identity.run_id(evlgen("mini"))
    assert len({identity.run_id(config) for config in [base, *others]}) == 5


def test_every_default_is_written_down() -> None:
    """What is not would be looked up in the code of today, and change its meaning with it."""
    written = json.loads((ROOT / "evlgen/runs/defaults.json").read_text())
    for name in written:
        kind = getattr(schema, name)
        parts = ("connector", "data", "optim", "evaluation") if kind is RunConfig else ()
        now = {key: value for key, value in to_json(kind()).items() if key not in parts}
        assert written[name].keys() == now.keys(), f"{name}: add the new field's default to defaults.json"


def test_contents_of_weights_count_and_not_their_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real weights, found by name below EVLGEN_WEIGHTS or by a path, on one machine or another."""
    first, second, third = (tmp_path / name / "opt-2.7b" for name in ("one", "two", "three"))
    for folder, weights in ((first, b"weights"), (second, b"weights"), (third, b"others")):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "config.json").write_text("{}")
    (second / "README.md").write_text("of no importance")
    config = evlgen("paper")
    found = []
    for folder in (first, second, third):
        monkeypatch.setenv("EVLGEN_WEIGHTS", str(folder.parent))
        identity.forget_fingerprints()
        by_path = dataclasses.replace(evlgen("mini"), language=str(folder))
        found.append((identity.run_id(config), identity.run_id(by_path)))
    assert found[0] == found[1]
    assert not set(found[0]) & set(found[2])
    assert found[0][0].partition("-")[0] == found[2][0].partition("-")[0]  # of one configuration
    identity.forget_fingerprints()


def test_large_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until size or time change; a process that starts later reads what was kept."""
    monkeypatch.setenv("EVLGEN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "large.pth"
    path.write_bytes(bytes(2**24))
    script = (
        "import sys; from evlgen.runtime import files, sources\n"
        "if sys.argv[2] == 'kept':\n"
        "    def refused(path): raise AssertionError(f'{path} was read again')\n"
        "    sources.sha256_of = refused\n"
        "print(sources.fingerprint_of_weights(sys.argv[1]))"
    )

    def ask(how: str) -> str:
        command = [sys.executable, "-c", script, str(path), how]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    before = ask("read")
    assert ask("kept") == before
    path.write_bytes(bytes(2**24 - 1) + b"x")
    assert ask("read") != before


def test_own_data_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another captions.jsonl, another image or other questions are other data; the place is not."""
    base = evlgen("smoke")
    config = dataclasses.replace(
        base, data=dataclasses.replace(base.data, world="folder", pools=(("mine", 8),))
    )

    def run(place: str, caption: str, image: bytes) -> str:
        folder = tmp_path / place / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "captions.jsonl").write_text(json.dumps({"file": "a.png", "caption": caption}))
        (folder / "a.png").write_bytes(image)
        monkeypatch.setenv("EVLGEN_DATA", str(tmp_path / place))
        identity.forget_fingerprints()
        return identity.run_id(config)

    first = run("one", "a cat", b"cat")
    assert run("two", "a cat", b"cat") == first
    assert len({first, run("one", "a dog", b"cat"), run("one", "a cat", b"a larger cat")}) == 3
    identity.forget_fingerprints()


def test_every_folder_of_own_images_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second as well, images behind links, and nothing that the lists do not name."""
    monkeypatch.setenv("EVLGEN_DATA", str(tmp_path))
    base = evlgen("smoke")
    data = dataclasses.replace(base.data, world="folder", pools=(("pets", 8), ("birds", 8)))
    config = dataclasses.replace(base, data=data)
    (tmp_path / "elsewhere").mkdir()
    for name in ("pets", "birds"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "images").symlink_to(tmp_path / "elsewhere")
        line = json.dumps({"file": f"images/{name}.png", "caption": name})
        (tmp_path / name / "captions.jsonl").write_text(line)
        (tmp_path / "elsewhere" / f"{name}.png").write_bytes(b"image")

    def run() -> str:
        identity.forget_fingerprints()
        return identity.run_id(config)

    first = run()
    (tmp_path / "pets" / ".DS_Store").touch()
    assert run() == first
    (tmp_path / "elsewhere" / "birds.png").write_bytes(b"another image")
    second = run()
    (tmp_path / "birds" / "captions.jsonl").write_text(line.replace("birds", "gulls"))
    assert len({first, second, run()}) == 3
    identity.forget_fingerprints()


def test_ten_thousand_ids_take_a_moment() -> None:
    config, since = blip2("mini"), time.process_time()
    for seed in range(10_000):
        identity.run_id(seeded(config, seed))
    assert (
        time.process_time() - since < 10
    )  # two seconds on a quiet machine; a hash of files would take minutes
