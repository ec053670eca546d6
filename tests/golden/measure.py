"""What a golden case measures: losses, gradients, trained weights, texts; by the calls that a run makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from evlgen.config import RunConfig
from evlgen.data import worlds
from evlgen.data.batches import load_training_data
from evlgen.evaluation.decoding import evaluate
from evlgen.evaluation.inspection import inspect
from evlgen.training import train, untrained_model
from tests.evlgen import folders, real_sets
from tests.golden import cases

Values = dict[str, Any]

_EXAMPLES = 4  # of a pool
_ROUNDING = 1e-6  # relative noise on initial weights: some ten times what rounding does
_DRAWS, _NOISE = 4, 3e-3  # of noise on trained weights, for texts: as much as the tolerance of numbers


def write_files(root: Path) -> dict[str, str]:
    """Tiny data sets and models in their true formats; returns the environment that the cases need."""
    real_sets.write(root / "data")
    real_sets.own_folder(root / "data" / "own", 24)
    _odd_images(root / "data" / "own")
    real_sets.bert(root / "weights" / "bert-base-uncased")
    real_sets.clip(root / "weights" / "clip-vit-large-patch14")
    for family, folder in (("opt", "opt-2.7b"), ("llama", "vicuna-7b-v1.3"), ("flan-t5", "flan-t5-xl")):
        (root / "weights" / folder).mkdir()
        folders.write(family, root / "weights" / folder)
    return {
        "EVLGEN_DATA": str(root / "data"),
        "EVLGEN_WEIGHTS": str(root / "weights"),
        "EVLGEN_CACHE": str(root / "cache"),
        "EVLGEN_DECODERS": "0",
    }


def _odd_images(folder: Path) -> None:
    """Some images lie on their side, some are transparent or grey in sixteen bits, as people have them."""
    for number in range(0, 24, 3):
        path = folder / f"{number}.png"
        image = Image.open(path).copy()
        if number % 9 == 0:
            exif = Image.Exif()
            exif[0x112] = 6
            image.save(path, exif=exif)
        elif number % 9 == 3:
            image.putalpha(Image.linear_gradient("L").resize(image.size))
            image.save(path)
        else:
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)


def run(case: cases.Case, folder: Path, stable_only: bool = False, noise: int | None = None) -> Values:
    """Train a run (and before it the stage 1 that it starts from), decode, look inside.

    Args:
        stable_only: texts that noise on the trained weights changes are None.
        noise: number of a draw of noise that is added to the initial weights, as if another processor had
            rounded otherwise, only more; values of the training alone.
    """
    config, first = case.config, None
    if config.init_from is not None:
        first = folder / "stage1"
        first.mkdir(parents=True)
        _train(config.init_from, first, None, noise)
    folder.mkdir(parents=True, exist_ok=True)
    _train(config, folder, first, noise)
    values = _history(folder)
    values |= _weights(folder / "connector.safetensors")
    if noise is not None:
        return values
    if config.stage == "caption":
        evaluate(config, folder)
        values |= texts(folder)
        for draw in range(_DRAWS if stable_only else 0):
            other = folder / f"noisy{draw}"
            other.mkdir()
            trained = load_file(folder / "connector.safetensors")
            save_file(_noisy(trained, _NOISE, draw), other / "connector.safetensors")
            evaluate(config, other)
            for name, said in texts(other).items():
                values[name] = {k: text if text == said[k] else None for k, text in values[name].items()}
    if case.inspects:
        values |= {f"inspected {name}": value for name, value in inspect(config, folder).items()}
        for path in sorted(folder.glob("*.npz")):
            with np.load(path) as arrays:
                values |= {f"inspected {path.stem} {name}": summary(arrays[name]) for name in sorted(arrays)}
    return values


def _train(config: RunConfig, folder: Path, first: Path | None, noise: int | None) -> None:
    model = None
    if noise is not None:
        model = untrained_model(config)
        model.load_state_dict(_noisy(model.state_dict(), _ROUNDING, noise))
    train(config, folder, load_training_data(config), init_folder=first, model=model)


def texts(folder: Path) -> Values:
    """Captions and answers of a run, by evaluation set."""
    predictions = json.loads((folder / "predictions.json").read_text())
    kinds = ("captions", "answers")
    return {f"said {kind} {name}": said for kind in kinds for name, said in predictions[kind].items()}


def _noisy(tensors: Mapping[str, torch.Tensor], scale: float, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor * (1 + scale * torch.randn(tensor.shape, generator=generator))
        for name, tensor in tensors.items()
    }


def _history(folder: Path) -> Values:
    """What the log says of each update, and the last validation."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values: Values = {name: [line[name] for line in lines] for name in ("loss", "lr", "grad_norm")}
    timed = ("step", "samples_per_second", "mfu", *values)
    return values | {f"validated {name}": value for name, value in lines[-1].items() if name not in timed}


def _weights(path: Path) -> Values:
    """Names, sizes and projections of the trained tensors."""
    tensors = load_file(path)
    groups: dict[str, list[str]] = {}
    for name in sorted(tensors):
        kind = "matrices" if tensors[name].ndim >= 2 else "vectors"
        # The gradient of a key's bias is zero but for rounding, of which AdamW makes whole steps.
        if "key" not in name or not name.endswith("bias"):
            groups.setdefault(f"{name.split('.')[0]} {kind}", []).append(name)
    digest = hashlib.sha256(repr([(n, tuple(tensors[n].shape)) for n in sorted(tensors)]).encode())
    values: Values = {"tensors": f"{len(tensors)} tensors, {digest.hexdigest()[:12]}"}
    for group, names in groups.items():
        values[f"weights {group}"] = projections({name: tensors[name].double().numpy() for name in names})
    return values


def projections(arrays: dict[str, np.ndarray]) -> list[float]:
    """Norm of some arrays taken as one vector, and its cosines with three random ones (times sqrt(size)).

    A cosine times the root of the size is of the order of 1, whatever the size.
    """
    norm = float(np.sqrt(sum(np.square(array).sum() for array in arrays.values())))
    draws = np.zeros(3)
    for name, array in arrays.items():
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        signs = np.random.default_rng(seed).integers(0, 2, (3, array.size)) * 2 - 1
        draws += signs @ array.reshape(-1)
    return [norm, *(draws / norm).tolist()] if norm else [0.0] * 4


def summary(array: np.ndarray) -> Any:
    """Shape and projections of an array of numbers; words as they are."""
    if array.dtype.kind not in "fiub":
        return array.tolist()
    return [*map(float, array.shape), *projections({"array": array.astype(np.float64)})]


def world(name: str) -> Values:
    """What each pool of a world gives: images, captions, references; questions and their answers."""
    source = worlds.of(cases.WORLDS[name])
    values: Values = {}
    for pool in (*cases.POOLS[name], *cases.QUESTIONS[name].values()):
        indices = range(min(_EXAMPLES, source.count(pool)))
        images = {str(i): source.image(pool, i).astype(np.float64) for i in indices}
        values[f"{pool} images"] = projections(images)
        if pool in cases.POOLS[name]:
            values[f"{pool} captions"] = [source.captions(pool, i) for i in indices]
            values[f"{pool} references"] = [source.references(pool, i) for i in indices]
    for kind, pool in cases.QUESTIONS[name].items():
        asked = [source.question(kind, i) for i in range(min(_EXAMPLES, source.count(pool)))]
        values[f"{kind} questions"] = [[q.text, *dict.fromkeys(q.answers), q.answer_type] for q in asked]
    return values
