"""Where the captions and answers of two runs differ: ``sweeps/run.py diff RUN_A RUN_B``.

One HTML page with the images, what people said and what each run said, and a few lines for the terminal. The
predictions are those that were kept, in the run store or in an archive: no model is needed.
"""

from __future__ import annotations

import base64
import difflib
import io
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from evlgen.data import worlds
from evlgen.data.base import EvalSet, World
from evlgen.data.images import UnreadableImage
from evlgen.errors import UserError
from evlgen.evaluation.answer_scores import ACCURACY
from evlgen.runs.results import Record
from evlgen.runtime import paths
from evlgen.runtime.files import write_atomic

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
SHOWN = 100  # of each set, on the page: an image takes 5 to 20 KB
_SIDE = 224  # pixels of an image on the page


@dataclass(frozen=True)
class Example:
    """One image or question on which the runs differ.

    Attributes:
        name: its number in the set and, where the data set has others, its ids.
        people: what people said: references, or answers with how many gave each.
        texts: of both runs; `marked` shows in which words they differ.
        scores: accuracy of both answers (0 to 1); None for captions.
        image: as a data URI; empty where it is not on this machine.
    """

    name: str
    question: str
    people: Sequence[str]
    texts: tuple[str, str]
    scores: tuple[float, float] | None
    image: str = ""

    @property
    def marked(self) -> tuple[Markup, Markup]:
        """Both texts as HTML, with the words marked that the other one does not have there."""
        first, second = (text.split() for text in self.texts)
        sides: tuple[list[Markup], list[Markup]] = ([], [])
        for kind, a, b, c, d in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
            for side, words in zip(sides, (first[a:b], second[c:d]), strict=True):
                text = Markup.escape(" ".join(words))
                if words:
                    side.append(text if kind == "equal" else Markup("<mark>{}</mark>").format(text))
        return Markup(" ").join(sides[0]), Markup(" ").join(sides[1])


@dataclass(frozen=True)
class SetDifference:
    """What differs on one evaluation set.

    Attributes:
        count: examples that both runs have.
        different: those on which they say something else.
        better: of answers, on how many each of the runs is more accurate.
        scores: of both runs on the whole set, as the table has them.
        examples: the first of those that differ: the largest difference first.
    """

    name: str
    title: str
    noun: str
    score: str
    count: int
    different: int
    better: tuple[int, int] | None
    scores: tuple[str, str]
    examples: tuple[Example, ...]


def compare(first: Record, second: Record) -> list[SetDifference]:
    """The differences on all evaluation sets that both runs have.

    Raises:
        UserError: predictions were not kept, or the runs have no set in common.
    """
    predictions = [_predictions(first), _predictions(second)]
    world, other = (worlds.of(record.config.data) for record in (first, second))
    pools = [{one.name: one.pool for one in each.eval_sets if one.pool} for each in (world, other)]
    found = []
    for eval_set in world.eval_sets:
        kind = "captions" if eval_set.kind == "caption" else "answers"
        texts = [one.get(kind, {}).get(eval_set.name) for one in predictions]
        same_pool = world.name == other.name and pools[0].get(eval_set.name) == pools[1].get(eval_set.name)
        if eval_set.pool and same_pool and texts[0] and texts[1]:
            ids = [one.get("ids", {}).get(eval_set.name) for one in predictions]
            if ids[0] and ids[1]:  # of a part or another version of the data, by what it calls them
                texts[1] = _placed(texts[1], ids[1], ids[0])
            found.append(_on_set(world, eval_set, (texts[0], texts[1]), (first, second), ids[0]))
    if not found:
        raise UserError(
            f"diff {first.id} {second.id}: nothing to compare: they have no evaluation set in common"
        )
    return found


def _predictions(record: Record) -> dict[str, Any]:
    found = record.predictions()
    if found is None:
        raise UserError(
            f"{record.id}: its captions and answers are not in {record.source or record.folder} (archives "
            "have those of some seeds only); run it again, or compare other seeds"
        )
    return found


def _placed(
    texts: Mapping[str, str], ids: Mapping[str, Sequence[Any]], wanted: Mapping[str, Sequence[Any]]
) -> dict[str, str]:
    """The texts at the positions that the other run has the same image and question at."""
    keys = list(zip(*(ids[name] for name in sorted(ids)), strict=True))
    places = {key: str(place) for place, key in enumerate(keys)}
    others = list(zip(*(wanted[name] for name in sorted(wanted)), strict=True))
    return {
        str(place): texts[places[key]]
        for place, key in enumerate(others)
        if key in places and places[key] in texts
    }


def _on_set(
    world: World,
    eval_set: EvalSet,
    texts: tuple[Mapping[str, str], Mapping[str, str]],
    records: tuple[Record, Record],
    ids: Mapping[str, Sequence[Any]] | None,
) -> SetDifference:
    common = [place for place in texts[0] if place in texts[1]]
    different = [place for place in common if texts[0][place] != texts[1][place]]
    has_files = _has_files(world, eval_set)
    is_scored = eval_set.kind == "question" and bool(eval_set.scorers) and has_files
    accuracy = ACCURACY[eval_set.scorers[0]] if is_scored else None
    scores: dict[str, tuple[float, float]] = {}
    if accuracy is not None:
        for place in different:
            humans = world.question(eval_set.name, int(place)).answers
            scores[place] = (accuracy(texts[0][place], humans), accuracy(texts[1][place], humans))

    def size(place: str) -> float:
        """How large a difference is: in accuracy, or else in words."""
        if place in scores:
            return abs(scores[place][0] - scores[place][1])
        first, second = (one[place].split() for one in texts)
        return 1 - difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()

    shown = sorted(different, key=lambda place: (-size(place), int(place)))[:SHOWN]
    better = (sum(a > b for a, b in scores.values()), sum(b > a for a, b in scores.values()))
    values = [record.metrics.get(eval_set.metric) for record in records]
    return SetDifference(
        eval_set.name,
        eval_set.title,
        "caption" if eval_set.kind == "caption" else "answer",
        "CIDEr" if eval_set.kind == "caption" else "accuracy, %",
        len(common),
        len(different),
        better if accuracy is not None else None,
        (_text(values[0]), _text(values[1])),
        tuple(
            _example(
                world if has_files else None,
                eval_set,
                int(place),
                (texts[0][place], texts[1][place]),
                scores.get(place),
                ids,
            )
            for place in shown
        ),
    )


def _has_files(world: World, eval_set: EvalSet) -> bool:
    """Whether the set can be read; if not, which is said, its texts are compared all the same."""
    try:
        world.count(eval_set.pool)
    except UserError as error:
        print(f"{eval_set.name}: texts alone are compared: {error}", file=sys.stderr)
        return False
    return True


def _text(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "–"


def _example(
    world: World | None,
    eval_set: EvalSet,
    place: int,
    texts: tuple[str, str],
    scores: tuple[float, float] | None,
    ids: Mapping[str, Sequence[Any]] | None,
) -> Example:
    question, people = "", []
    if world is not None and eval_set.kind == "caption":
        people = list(world.references(eval_set.pool, place))
    elif world is not None:
        asked = world.question(eval_set.name, place)
        question = asked.text
        people = [
            f"{answer} ({n})" if n > 1 else answer for answer, n in Counter(asked.answers).most_common()
        ]
    called = [f"{name.removesuffix('_id')} {ids[name][place]}" for name in ids] if ids else []
    name = " · ".join([str(place), *called])
    image = "" if world is None else _image(world, eval_set.pool, place)
    return Example(name, question, people, texts, scores, image)


def _image(world: World, pool: str, index: int) -> str:
    """A small image as a data URI; empty if it cannot be read here."""
    try:
        image = Image.fromarray(world.image(pool, index))
    except (UserError, UnreadableImage):  # the texts differ all the same
        return ""
    is_small = max(image.size) <= _SIDE
    image.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    image.save(content, "PNG" if is_small else "JPEG", **({} if is_small else {"quality": 85}))
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


# ------------------------------------------------------------------------------------------- the page


def summary(records: tuple[Record, Record], found: Sequence[SetDifference]) -> list[str]:
    """Lines for the terminal."""
    lines = [f"{letter}  {record.id}  {_about(record)}" for letter, record in zip("AB", records, strict=True)]
    for one in found:
        line = f"{one.title}: {one.different} of {one.count} {one.noun}s differ"
        if one.better is not None:
            line += f", A is better on {one.better[0]}, B on {one.better[1]}"
        lines.append(f"{line}; {one.score} A {one.scores[0]}, B {one.scores[1]}")
    return lines


def write(records: tuple[Record, Record], found: Sequence[SetDifference], out: Path | None = None) -> Path:
    """Write the page and return its path; default: ``diff/A--B.html`` in the folder of the results."""
    first, second = records
    path = out or paths.results_folder() / "diff" / f"{first.id}--{second.id}.html"
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        runs=[(letter, one.id, _about(one)) for letter, one in zip("AB", records, strict=True)],
        sets=found,
    )
    write_atomic(path, page.encode())
    return path


def _about(record: Record) -> str:
    """What a run is, in a few words."""
    config = record.config
    stages = "two stages" if config.init_from is not None else "one stage"
    of_what = f"{config.connector.kind}, {config.language}, {stages}"
    return f"{of_what}, {config.optim.steps} updates, seed {config.seed}"
