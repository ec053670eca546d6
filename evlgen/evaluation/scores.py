"""Scores of runs: their captions and answers compared with those of people (`score_runs`).

A world declares how each of its sets is scored (`evlgen.data.base.EvalSet.scorers`). Every scorer has a
whole number in `evlgen.runs.behaviour.SCORERS`, by which a record says how its scores were made. Raise it
when a score changes; `tests/golden/test_scorers.py` fails otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from evlgen import miniworld
from evlgen.config import DataConfig, RunConfig
from evlgen.data import worlds
from evlgen.data.base import SHUFFLED, EvalSet, World
from evlgen.data.images import UnreadableImage
from evlgen.errors import UserError
from evlgen.evaluation import placed_scores
from evlgen.evaluation.answer_scores import ACCURACY, BESIDE
from evlgen.evaluation.caption_scores import CaptionJob, CaptionScorer, distinct_share
from evlgen.evaluation.java import JavaError
from evlgen.evaluation.placed_scores import PLACED
from evlgen.evaluation.scene_truth import scene_truth
from evlgen.runs.behaviour import SCORERS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPredictions:
    """The captions and answers of one run, as in its ``predictions.json``.

    Attributes:
        captions: captioning set -> image id -> caption.
        answers: question set -> question id -> answer; under ``<set>_shuffled`` the answers to the same
            questions on another image.
        data: what the run reads; its world has the references and the right answers.
    """

    captions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)


def scorers_of(config: RunConfig) -> dict[str, int]:
    """Scorer -> its number, of those that score a run of this configuration; sorted by name.

    Those whose models users place are left out where these are not there.

    Raises:
        UserError: an evaluation set that the world does not have.
    """
    if config.stage != "caption":
        return {}
    world = worlds.of(config.data)
    sets = [world.eval_set(name) for name, size in config.evaluation.sets if size]
    names = {name for one in sets for name in one.scorers}
    if names & PLACED.keys():
        names -= placed_scores.absent().keys()
    return {name: SCORERS[name] for name in sorted(names)}


def scorers_used(config: RunConfig, metrics: Mapping[str, object]) -> dict[str, int]:
    """As `scorers_of`, without those that failed, so that the next `rescore` tries them again.

    Args:
        metrics: that the run was scored with.
    """
    given = {name.rpartition("/")[2] for name in metrics}
    return {
        name: number
        for name, number in scorers_of(config).items()
        if name not in PLACED or given & set(PLACED[name])
    }


def score_runs(
    predictions: Sequence[RunPredictions], scorer: CaptionScorer | None = None, meteor: bool = True
) -> list[dict[str, float]]:
    """The scores of each run on its world's evaluation sets, all captions of all runs in one batch.

    Keys: ``<set>/CIDEr``, ``/BLEU-4``, ``/ROUGE-L`` and ``/images`` for each captioning set, and for those
    that are made of others (``nocaps``: the three domains scored together, where a run has all three);
    ``<set>/METEOR`` for sets that want it; ``<set>/SPICE``, ``/CLIPScore`` and ``/RefCLIPScore`` where the
    user has placed their models (`evlgen.evaluation.placed_scores`);
    ``distinct_captions``, the share of distinct captions;
    ``<set>/objects_right`` and ``/colours_right`` (`evlgen.evaluation.scene_truth`, of drawn scenes only);
    ``<set>``, the accuracy of a question set, and ``<set>/questions``; ``<set>/official``, the accuracy by
    the benchmark's own script, of published sets; ``<set>/yes-no``, ``/number`` and ``/other`` by type of
    answer; the accuracies of ``<set>_shuffled``; ``ptb_tokenizer``, 1 or 0 (no Java).
    All but the numbers of examples and the last are percentages (CIDEr: times 100).

    Args:
        scorer: for captions; by default one of its own.
        meteor: False leaves METEOR out of all sets.

    Raises:
        UserError: a set or an id that the world does not have.
    """
    references = functools.cache(_references)
    jobs: list[CaptionJob] = []
    places: list[tuple[int, EvalSet]] = []  # of each job: run and set
    said: list[dict[tuple[str, str], str]] = []  # of each job: part and image -> caption
    results: list[dict[str, float]] = [{} for _ in predictions]
    for run, prediction in enumerate(predictions):
        world = worlds.of(prediction.data)
        given = {
            name: captions
            for name, captions in prediction.captions.items()
            if captions and _declared(world, name, "caption").scorers
        }
        for eval_set in [_declared(world, name, "caption") for name in given]:
            results[run].update(_scores_by_image(eval_set, given[eval_set.name], world))
        for eval_set in _scored_together(world, given):
            texts = {
                (part, image): text
                for part in eval_set.parts or (eval_set.name,)
                for image, text in given[part].items()
            }
            jobs.append(
                CaptionJob(
                    {"/".join(key): references(prediction.data, *key) for key in texts},
                    {"/".join(key): text for key, text in texts.items()},
                    meteor=meteor and eval_set.meteor,
                )
            )
            places.append((run, eval_set))
            said.append(texts)
            results[run][f"{eval_set.name}/images"] = float(len(texts))
        for name, answers in prediction.answers.items():
            if answers and _declared(world, name.removesuffix(SHUFFLED), "question").scorers:
                results[run].update(_score_answers(name, answers, world))
    if jobs:
        with contextlib.ExitStack() as stack:
            used = scorer or stack.enter_context(CaptionScorer())
            scored = used.score(jobs)
            data = [predictions[run].data for run, _ in places]
            sets = [eval_set for _, eval_set in places]
            for extra in (_spice(jobs, sets, used), _clip_scores(jobs, sets, said, data)):
                scored = [one | more for one, more in zip(scored, extra, strict=True)]
            for (run, eval_set), scores in zip(places, scored, strict=True):
                results[run].update({f"{eval_set.name}/{metric}": score for metric, score in scores.items()})
                results[run]["ptb_tokenizer"] = float(used.tokenizer == "ptb")
    return results


def _wanting(scorer: str, sets: Sequence[EvalSet]) -> list[int]:
    """The places of the sets that a scorer is for; none, which is said, where its models are not there."""
    wanted = [place for place, eval_set in enumerate(sets) if scorer in eval_set.scorers]
    if wanted and (lines := placed_scores.absent()) and scorer in lines:
        placed_scores.say_once([lines[scorer]])
        return []
    return wanted


def _spice(
    jobs: Sequence[CaptionJob], sets: Sequence[EvalSet], scorer: CaptionScorer
) -> list[dict[str, float]]:
    """SPICE of each job, in percent; empty for those without. Each caption is parsed once."""
    found: list[dict[str, float]] = [{} for _ in jobs]
    wanted = _wanting("spice", sets)
    if not wanted or scorer.java is None:
        return found
    pairs = {place: jobs[place].pairs for place in wanted}
    tokens = scorer.tokenize(
        text for some in pairs.values() for caption, references in some for text in (caption, *references)
    )
    cut = {
        place: [(tokens[caption], tuple(tokens[text] for text in texts)) for caption, texts in some]
        for place, some in pairs.items()
    }
    distinct = list(dict.fromkeys(pair for some in cut.values() for pair in some))
    try:
        scores = dict(zip(distinct, placed_scores.spice(distinct, scorer.java), strict=True))
    except JavaError as error:
        log.warning("%s; SPICE is left out", error)
        return found
    for place, some in cut.items():
        found[place] = {"SPICE": 100 * sum(scores[pair] for pair in some) / len(some)}
    return found


def _clip_scores(
    jobs: Sequence[CaptionJob],
    sets: Sequence[EvalSet],
    said: Sequence[Mapping[tuple[str, str], str]],
    data: Sequence[DataConfig],
) -> list[dict[str, float]]:
    """CLIPScore and RefCLIPScore of each job, in percent; empty for those without."""
    found: list[dict[str, float]] = [{} for _ in jobs]
    wanted = _wanting("clip_score", sets)
    shown: dict[placed_scores.Caption, None] = {}
    of_job: dict[int, list[placed_scores.Caption]] = {}
    for place in wanted:
        world = worlds.of(data[place])
        of_job[place] = []
        for (part, image), text in said[place].items():
            pool = world.pool_of(part)
            references = tuple(jobs[place].references[f"{part}/{image}"])
            caption = placed_scores.Caption((world.name, pool, int(image)), text, references)
            of_job[place].append(caption)
            shown[caption] = None
    if not shown:
        return found
    reading = {(worlds.of(one).name): one for one in data}

    def pixels(key: tuple[str, str, int]) -> npt.NDArray[np.uint8]:
        return worlds.of(reading[key[0]]).image(key[1], key[2])

    try:
        scores = placed_scores.clip_scores(list(shown), pixels)
    except (UserError, UnreadableImage) as error:
        log.warning("%s; CLIPScore is left out", error)
        return found
    for place, captions in of_job.items():
        pairs = [scores[caption] for caption in captions]
        means = (100 * sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        found[place] = dict(zip(PLACED["clip_score"], means, strict=True))
    return found


def lacking(predictions: RunPredictions, config: RunConfig) -> list[str]:
    """What is not there of a run's predictions: a line for each set that has fewer or others than it must.

    A score of what is left would look like one of the whole.

    Raises:
        UserError: a set that the world does not have, or its files are not there.
    """
    world = worlds.of(config.data)
    lines = []
    for name, asked in config.evaluation.sets:
        size = min(asked, world.count(world.pool_of(name))) if asked else 0
        kind = predictions.captions if name in world.caption_sets else predictions.answers
        wanted = {str(place) for place in range(size)}
        for key in (name, name + SHUFFLED) if name + SHUFFLED in kind else (name,):
            texts = kind.get(key, {})
            there = {place for place, text in texts.items() if isinstance(text, str)}
            if there != wanted or len(texts) > len(there):
                lines.append(f"{key}: {len(there & wanted)} of {size} predictions")
    return lines


def _scored_together(world: World, given: Mapping[str, object]) -> list[EvalSet]:
    """The captioning sets that a run has captions of, and those that are made of several of them."""
    made = [one for one in world.eval_sets if one.parts and all(part in given for part in one.parts)]
    return [*(world.eval_set(name) for name in given), *made]


def _scores_by_image(eval_set: EvalSet, captions: Mapping[str, str], world: World) -> dict[str, float]:
    """The scores of a captioning set that need no references."""
    scores: dict[str, float] = {}
    if "distinct" in eval_set.scorers:
        scores["distinct_captions"] = distinct_share(captions.values())
    if "scene_truth" in eval_set.scorers:
        count = world.count(eval_set.pool)
        drawn = miniworld.pool(eval_set.pool)
        truth = scene_truth((text, drawn.scene(_index(image, count))) for image, text in captions.items())
        scores |= {f"{eval_set.name}/{name}": value for name, value in truth.items()}
    return scores


def _score_answers(name: str, answers: Mapping[str, str], world: World) -> dict[str, float]:
    """Mean accuracy on a question set and, where it is declared so, for each type of answer."""
    eval_set = _declared(world, name.removesuffix(SHUFFLED), "question")
    scorer, *others = eval_set.scorers
    accuracy = ACCURACY[scorer]
    count = world.count(eval_set.pool)
    groups: dict[str, list[float]] = {}
    for number, answer in answers.items():
        question = world.question(eval_set.name, _index(number, count))
        score = accuracy(answer, question.answers)
        groups.setdefault(name, []).append(score)
        if eval_set.by_answer_type:
            groups.setdefault(f"{name}/{question.answer_type.replace('/', '-')}", []).append(score)
        for other in others:
            groups.setdefault(f"{name}/{BESIDE[other]}", []).append(ACCURACY[other](answer, question.answers))
    scores = {group: 100 * sum(values) / len(values) for group, values in groups.items()}
    if name == eval_set.name:
        scores[f"{name}/questions"] = float(len(answers))
    return scores


def _references(data: DataConfig, name: str, image: str) -> tuple[str, ...]:
    """Reference captions of an image of an evaluation set."""
    world = worlds.of(data)
    pool = world.pool_of(name)
    return tuple(world.references(pool, _index(image, world.count(pool))))


def _declared(world: World, name: str, kind: Literal["caption", "question"]) -> EvalSet:
    """The evaluation set that predictions name, which must be of this kind."""
    names, what = (
        (world.caption_sets, "captioning") if kind == "caption" else (world.question_sets, "question")
    )
    if name not in names:
        raise UserError(f"predictions: no {what} set {name!r}; there are: {', '.join(names)}")
    return world.eval_set(name)


def _index(name: str, count: int) -> int:
    if not (name.isascii() and name.isdigit()):
        raise UserError(f"predictions: id {name!r} is not a number")
    if int(name) >= count:
        raise UserError(f"predictions: id {name}: the set has {count} examples")
    return int(name)
