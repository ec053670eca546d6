"""A run's captions or answers in the form in which a data set's makers take them: ``run.py submit RUN SET``.

COCO, NoCaps and Flickr30K: ``[{"image_id": ..., "caption": ...}]``; VQAv2 and OK-VQA: ``[{"question_id": ...,
"answer": ...}]``; GQA: ``[{"questionId": ..., "prediction": ...}]``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from evlgen.data import worlds
from evlgen.data.base import EvalSet, World
from evlgen.errors import UserError, nearest
from evlgen.runs import folder as files
from evlgen.runs import results
from evlgen.runs.results import Record
from evlgen.runtime import datasets, paths
from evlgen.runtime.files import write_atomic

_SAY_SECONDS = 10.0  # between two lines on how far decoding is


def submit(prefix: str, name: str, out: Path | None = None) -> Path:
    """Write the predictions of a complete run on a set; returns the path of the file.

    Kept predictions are taken where there are those of the whole set; others are made with the run's weights.

    Args:
        prefix: beginning of the run's id.
        name: of an evaluation set of the run's world, or ``nocaps``, its three domains.
        out: the file; default: ``submissions/RUN/SET.json`` in the folder of the results.

    Raises:
        UserError: no such run or set, files of the set or the run's weights are missing.
    """
    record = results.with_id(prefix)
    world = worlds.of(record.config.data)
    entries: list[dict[str, Any]] = []
    for part in _parts(record, world, name):
        if lines := world.missing([part.pool]):
            raise UserError("\n".join(lines))
        count = world.count(part.pool)
        _warn_of_a_part(part, count)
        texts = _kept(record, world, part, count) or _made(record, part, count)
        entries += [_entry(world, part, place, text) for place, text in enumerate(texts)]
    path = out or paths.results_folder() / "submissions" / record.id / f"{name}.json"
    write_atomic(path, (json.dumps(entries, ensure_ascii=False) + "\n").encode())
    print(f"{len(entries)} predictions of {record.id} on {name}")
    return path


def _parts(record: Record, world: World, name: str) -> list[EvalSet]:
    """The sets of images or questions that a name stands for."""
    known = {one.name: one for one in world.eval_sets}
    if record.config.stage != "caption":
        raise UserError(f"submit {record.id}: a stage 1 has no captions; take the run that starts from it")
    if world.ids is None:
        raise UserError(f"submit {record.id}: its images are drawn; nobody but this project scores them")
    if name not in known:
        raise UserError(
            f"submit {record.id} {name}: no such set in the world {world.name!r}; there are: "
            f"{', '.join(known)}{nearest(name, known)}"
        )
    return [known[part] for part in known[name].parts or (name,)]


def _warn_of_a_part(part: EvalSet, count: int) -> None:
    published = datasets.PUBLISHED.get(part.pool)
    if published is not None and count != published:
        print(
            f"{part.name}: {count} are there, {published} were published: a server takes whole sets only",
            file=sys.stderr,
        )


def _kept(record: Record, world: World, part: EvalSet, count: int) -> list[str] | None:
    """The predictions that were kept, if they are of the whole set as it is now."""
    predictions = record.predictions() or {}
    texts = predictions.get("captions" if part.kind == "caption" else "answers", {}).get(part.name, {})
    ids = predictions.get("ids", {}).get(part.name, {})
    assert world.ids is not None
    if len(texts) != count or any(len(one) != count for one in ids.values()):
        return None
    for place in range(count):
        if str(place) not in texts:
            return None
        now = world.ids(part.pool, place)
        if any(one[place] != now[name] for name, one in ids.items()):
            return None  # of another version of the set
    return [texts[str(place)] for place in range(count)]


def _made(record: Record, part: EvalSet, count: int) -> list[str]:
    """Predictions made now."""
    if not (record.folder / files.CONNECTOR).exists():
        raise UserError(
            f"submit {record.id} {part.name}: the predictions were not kept, and its weights "
            f"({files.CONNECTOR}) are not in {record.folder}; run it again"
        )
    import numpy as np

    from evlgen.evaluation.decoding import load_captioner, predict

    captioner = load_captioner(record.config, record.folder)
    done, said = 0, time.monotonic()

    def advance(examples: int) -> None:
        nonlocal done, said
        done += examples
        if time.monotonic() - said > _SAY_SECONDS:
            said = time.monotonic()
            print(f"{part.name}: {done} of {count}", file=sys.stderr, flush=True)

    return predict(captioner, record.config, part.name, np.arange(count), advance)


def _entry(world: World, part: EvalSet, place: int, text: str) -> dict[str, Any]:
    assert world.ids is not None
    ids = world.ids(part.pool, place)
    if part.kind == "caption":
        return {"image_id": ids["image_id"], "caption": text}
    if part.name == "gqa":
        return {"questionId": str(ids["question_id"]), "prediction": text}
    return {"question_id": ids["question_id"], "answer": text}
