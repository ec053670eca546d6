"""Every block of shell or Python in README.md and docs/ is executed, from top to bottom, as it stands.

What is not executed as it stands is listed in `INSTEAD`, each with its reason.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evlgen.backbones.eva import EvaConfig
from evlgen.config import TomeFormerConfig
from evlgen.connectors import build_connector
from evlgen.interop.convert import checkpoint_names
from tests.evlgen import real_sets, real_weights
from tests.sweeps import cluster as real
from tests.walk import checkout
from tests.walk.checkout import ROOT, Checkout

pytestmark = pytest.mark.xdist_group("walk-docs")

MINUTES = "trains in miniature for minutes or hours: planned instead"
INSTALLED = "would change the environment that the tests run in"
DAYS = "trains for days on GPUs: planned instead"
FEW = "the folder here has 100 images"
PLACEHOLDER = "a place for the reader's own"

# Commands that find the sets here too small for what is asked, and say so.
TOO_SMALL = r"--scale paper (--set updates=\S+ )?(--dry-run|--executor)|check-data table1$"

# Blocks that need a queue; where there is no SLURM they are skipped.
QUEUE = r"--executor slurm(?!.*--dry-run)"

# What a line has -> what it has instead (None: the line is left out), why.
INSTEAD: list[tuple[str, str | None, str]] = [
    (r"^make test$", None, "this test is a part of it"),
    (r"pip install", None, INSTALLED),
    (r"^img2dataset", None, "fetches images from the web"),
    (r"^(make table[12])$", r'\1 ARGS="--dry-run"', MINUTES),
    (r'^(make table[12] ARGS="--seeds 5)"$', r'\1 --dry-run"', MINUTES),
    (r"(sweeps/run\.py (table1 --rows EVLGen (?!.*--dry-run)|all).*)$", r"\1 --dry-run", MINUTES),
    (r'^(make merge_search ARGS="--space free --trials 40)"$', r'\1 --dry-run"', MINUTES),
    (r"(sweeps/merge_search\.py (?!.*--dry-run).*)$", r"\1 --dry-run", MINUTES),
    (r"(run\.py table1 --rows .* --set data\.world=folder.*)$", r"\1 --set updates=0.01", MINUTES),
    (r'"mine", 5000\]', '"mine", 80]', FEW),
    (r'"captions", 500\], \["questions", 500\]', '"captions", 5], ["questions", 5]', FEW),
    (r"evaluation\.validation=200", "evaluation.validation=5", FEW),
    (r"(run\.py table1 --scale paper --rows .*)$", r"\1 --dry-run", DAYS),
    (r"^python -m paper_figures --scale mini$", None, "the same as `make figures`, which README has"),
    (r"^python -m analysis\.report --out page\.html$", None, "the same as `make report`, which README has"),
    (r"/(models|data|shared)\b", r"$HOME/\1", "no such folders at the root of this machine"),
    (r"(--executor slurm --cluster my\.toml --gpus 8)$", r"\1 --dry-run", "there are not 8 GPUs"),
    (r"(run\.py table2 --executor slurm --cluster my\.toml)$", r"\1 --dry-run", MINUTES),
    (r"run\.py wait table2$", None, "waits for what the line before has not queued here"),
    (r"EXPERIMENT\|all \[FLAGS\]", "table2 --dry-run", PLACEHOLDER),
    (r"\b(RUN|ID)\b", "{run}", PLACEHOLDER),
]

DONE: set[str] = set()  # commands that were executed


def blocks() -> list[tuple[str, str, str]]:
    """Name, language and text of each block."""
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        texts = re.findall(
            r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        found += [(f"{path.name} {n}", language, text) for n, (language, text) in enumerate(texts, 1)]
    return [block for block in found if block[1] in ("", "sh", "bash", "shell", "console", "python")]


def commands(text: str) -> list[str]:
    """The commands of a block of shell, with their comments."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and line[0] != "#"]


def adapted(line: str) -> tuple[str | None, list[str]]:
    """What is executed for a line of a block, and which entries of `INSTEAD` were used."""
    code, used = re.sub(r"\s+# .*", "", line).strip(), []
    for pattern, replacement, _ in INSTEAD:
        if re.search(pattern, code):
            used.append(pattern)
            if replacement is None:
                return None, used
            code = re.sub(pattern, replacement, code)
    return code, used


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Not the one that other tests walk in, and that this worker may have as well."""
    return checkout.make(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def reader(place: Checkout) -> Checkout:
    """Somebody who has what the documents speak of: data, weights, a folder of images, a run, a profile."""
    home = Path(place.env["HOME"])
    (home / "data").symlink_to(place.env["EVLGEN_DATA"])
    shutil.copytree(place.env["EVLGEN_WEIGHTS"], home / "models")
    real_weights.eva(home / "models/eva_vit_g.pth", EvaConfig(num_layers=2))  # of the published width
    real_sets.own_folder(home / "data/mine", 100)
    for name, form in (("picture.png", "PNG"), ("one.png", "PNG"), ("two.jpg", "JPEG")):
        (place.path / name).write_bytes(real_sets.jpeg(1, form))
    profile = (place.path / "clusters/example.toml").read_text(encoding="utf-8")
    profile = re.sub(r"^cpus = 0", "cpus = 2", profile, flags=re.MULTILINE)
    profile = re.sub(r"^time = .*", "time = 20", profile, flags=re.MULTILINE)
    (place.path / "my.toml").write_text(profile, encoding="utf-8")
    real_sets.own_folder(place.path / "new-pictures", 2)
    _authors_checkpoint(place.path / "CHECKPOINT")
    there = Checkout(place.path, {**place.env, "EVLGEN_WEIGHTS": str(home / "models")})
    there.run("table2", "--scale", "smoke", "--rows", "EVLGen, OPT")
    return there


def _authors_checkpoint(path: Path) -> None:
    """EVLGen's in its real shapes: views of one number, which take no room."""
    connector = TomeFormerConfig()
    with torch.device("meta"):
        inside = build_connector(connector).state_dict()
    shapes = {f"connector.{name}": tuple(tensor.shape) for name, tensor in inside.items()}
    shapes |= {"norm.weight": (1408,), "norm.bias": (1408,)}
    shapes |= {"projection.weight": (2560, 768), "projection.bias": (2560,)}
    state = {}
    for ours, shape in shapes.items():
        keys = checkpoint_names(connector, "evlgen", "opt_proj")[ours]
        state |= {key: torch.ones(()).expand(shape[0] // len(keys), *shape[1:]) for key in keys}
    state["VLconnector.embeddings.token_type_embeddings.weight"] = torch.ones(()).expand(2, 768)
    torch.save({"model": state, "epoch": 3}, path)


@pytest.fixture(scope="module")
def login_node(tmp_path_factory: pytest.TempPathFactory, reader: Checkout) -> Iterator[Checkout]:
    """The same reader where commands find a real SLURM."""
    for cluster in real.running(tmp_path_factory):
        yield Checkout(reader.path, {**reader.env, "SLURM_CONF": str(cluster.folder / "slurm.conf")})


@pytest.mark.parametrize(("language", "text"), [b[1:] for b in blocks()], ids=[b[0] for b in blocks()])
def test_block(request: pytest.FixtureRequest, language: str, text: str) -> None:
    needs_queue = re.search(QUEUE, text) is not None
    reader: Checkout = request.getfixturevalue("login_node" if needs_queue else "reader")
    run = next(path.parent.name for path in reader.runs.glob("*/connector.safetensors"))
    if language == "python":
        reader.python("-c", re.sub(r"\b(RUN|ID)\b(?!:)", run, text))
        return
    exports: list[str] = []
    for line in commands(text):
        code, _ = adapted(line)
        if code is None:
            continue
        code = code.replace("{run}", run).replace(".venv/bin/python ", "python ")
        if code.startswith("export "):
            exports.append(code)
            continue
        if code in DONE:
            continue  # a document before this one has it, too
        DONE.add(code)
        codes = {0, *map(int, re.findall(r"exit code (\d)", line))}
        if re.search(TOO_SMALL, code):
            codes = {2}
        said = reader.bash("\n".join([*exports, code]), expect=codes)
        assert "Traceback" not in said


def test_the_list_of_exceptions_is_needed() -> None:
    """And no longer than it must be."""
    used = {
        pattern
        for _, language, text in blocks()
        for line in ([text] if language == "python" else commands(text))
        for pattern in adapted(line)[1]
    }
    assert used == {pattern for pattern, _, _ in INSTEAD}
