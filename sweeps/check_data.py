"""``run.py check-data`` and ``describe-data``: a look at the data that experiments need, before any run.

The page of samples holds its images itself and asks nothing of any server.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from PIL import Image

from evlgen.config import RunConfig
from evlgen.data import survey, worlds
from evlgen.data.base import ENDLESS
from evlgen.data.stream import decoders
from evlgen.data.survey import Count, Sample, Use
from evlgen.errors import UserError
from evlgen.runtime import datasets, paths
from evlgen.runtime.files import write_atomic

_SAMPLES = 12  # of each pool, on the page
_TIMED = 48  # images of each pool
_SIDE = 224  # of a picture on the page, in pixels
_DESCRIBED, _MEASURED = 5000, 500  # texts and images of a pool that are looked at


@dataclass
class _Report:
    """A pool on the page."""

    title: str
    places: list[Path]
    said: str
    samples: list[Sample] = field(default_factory=list)


def check(configs: Sequence[RunConfig], name: str, thorough: bool) -> int:
    """Say what is there of the data of some runs and write the page of samples; 2 if something is missing.

    Args:
        configs: of runs, with the stages that they start from.
        name: of the page.
        thorough: also decode each image of the evaluation sets, and index the pools of pairs.
    """
    problems: dict[str, None] = {}
    reports = []
    for use in survey.uses(configs):
        report, wrong = _report(use, thorough)
        reports.append(report)
        problems |= dict.fromkeys(wrong)
        print(f"{report.title}: {report.said}", flush=True)
        for place in report.places:
            print(f"  {place}")
    for config in configs:
        problems |= dict.fromkeys(worlds.problems(config))
    _say_speed(reports)
    for line in problems:
        print(f"problem: {line}")
    print(f"problems: {len(problems)}")
    if any(report.samples for report in reports):
        path = paths.cache_folder() / "data" / f"{name}.html"
        write_atomic(path, _page(name, reports, list(problems)).encode())
        print(f"samples of each set: {path}")
    return 2 if problems else 0


def _report(use: Use, thorough: bool) -> tuple[_Report, list[str]]:
    """What there is to say of a pool, and what is wrong with it."""
    title = f"{use.eval_set or use.pool}, {use.role}"
    missing = use.world.missing([use.pool])
    if missing:
        return _Report(title, survey.places(use), "not whole" if survey.places(use) else "missing"), missing
    try:
        counted = survey.count(use, thorough)
        samples = survey.samples(use, _SAMPLES, counted)
        rate = survey.images_per_second(use, _TIMED, counted) if use.role == "training" else 0.0
    except UserError as error:
        return _Report(title, survey.places(use), "cannot be read"), [str(error)]
    wrong = []
    if use.role != "training":
        wrong = [sample.problem for sample in samples if sample.problem]
        if thorough and counted.number and counted.number != ENDLESS:
            wrong = survey.unreadable(use, min(counted.number, use.asked))
    said = _counted_in_words(use, counted)
    if broken := sum(bool(sample.problem) for sample in samples):
        said += f"; {broken} of {len(samples)} samples cannot be read"
    said += "".join(f"; {line}" for line in survey.left_out(use, counted))
    if rate:
        said += f"; one process reads {rate:,.0f} images a second"
    return _Report(title, survey.places(use), said, samples), wrong


def _counted_in_words(use: Use, counted: Count) -> str:
    what = "questions" if use.is_questions else "images"
    asked = f"{use.asked:,} asked for" if use.world.is_published else f"up to {use.asked:,} used"
    if counted.number == ENDLESS:
        return f"drawn, {asked}"
    if counted.number is None:
        return f"{what} not counted (--thorough does), {asked}"
    source = f" {counted.source}" if counted.source else ""
    said = f"{counted.number:,} {what}{source}, {asked}"
    published = datasets.PUBLISHED.get(use.pool) if use.world.is_published else None
    if published is None:
        return said
    if use.pool in datasets.ABOUT:
        return f"{said}, about {published:,} published"
    doubt = ""
    if counted.number != published:
        doubt = " (incomplete?)" if counted.number < published else " (others?)"
    return f"{said}, {published:,} published{doubt}"


def _say_speed(reports: Sequence[_Report]) -> None:
    if not any("images a second" in report.said for report in reports):
        return
    try:
        here = decoders()
    except UserError as error:
        print(error)
        return
    print(
        f"At the paper's pace a GPU wants {math.ceil(survey.PAPER_PACE)} images a second. Processes that "
        f"decode for each GPU here (EVLGEN_DECODERS): {here}; cores: {os.cpu_count()}"
    )


# ------------------------------------------------------------------------------------------- the page


def _page(name: str, reports: Sequence[_Report], problems: Sequence[str]) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["picture"] = _picture
    template = environment.from_string(Path(__file__).with_name("check_data.html.jinja").read_text("utf-8"))
    return template.render(name=name, reports=reports, problems=problems)


def _picture(sample: Sample) -> str:
    """The image as a data URL, its longer side cut down to that of the page."""
    assert sample.image is not None
    image = Image.fromarray(sample.image)
    image.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


# ------------------------------------------------------------------------------------------- describing


def describe(configs: Sequence[RunConfig]) -> int:
    """Print what the sets of some runs are like; 2 if one is missing."""
    code = 0
    for use in survey.uses(configs):
        title = f"{use.eval_set or use.pool}, {use.role}"
        try:
            if missing := use.world.missing([use.pool]):
                raise UserError(missing[0])
            counted = survey.count(use)
            found = survey.describe(use, _DESCRIBED, _MEASURED, counted)
        except UserError as error:
            print(f"{title}: {error}")
            code = 2
            continue
        print(f"{title}: {_counted_in_words(use, counted)}")
        for kind, spread in found.texts.items():
            print(f"  words of {kind}: {spread}")
        if found.widths is not None and found.heights is not None:
            print(f"  width of images: {found.widths} pixels")
            print(f"  height of images: {found.heights} pixels")
        for kind, words in found.words.items():
            print(f"  most frequent in {kind}: {', '.join(f'{word} ({number:,})' for word, number in words)}")
        if found.problems:
            print(f"  {len(found.problems)} of them cannot be read, the first: {found.problems[0]}")
        print(f"  of {found.examples:,} examples from all over the set")
    return code
