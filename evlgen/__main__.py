"""``python -m evlgen``: caption images, ask questions about them, draw images of the miniworld.

What a trained run says is decoded as in its evaluation. Texts go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evlgen.data.images import SUFFIXES
from evlgen.errors import UserError, exit_code, nearest
from evlgen.runs import choice
from evlgen.runtime import paths
from evlgen.runtime.arguments import Parser
from evlgen.runtime.files import disk_errors

# Torch and transformers take seconds to import: what can be refused without them is refused first.

COMMANDS = {
    "caption": "a caption for each image",
    "ask": "the answer to a question about each image",
    "draw": "images of the miniworld, to try the others on",
}
EXPLAINED = ".explain.png"
_EVERY = 10.0  # seconds between two lines of progress


def _parser(command: str) -> Parser:
    parser = Parser(f"python -m evlgen {command}", DETAILS[command])
    if command == "draw":
        parser.add_argument("folder", metavar="FOLDER", help="where to; made if it is not there")
        parser.add_argument(
            "--count", type=_positive("--count"), default=8, metavar="N", help="images; default: 8"
        )
        parser.add_argument("--pool", default="coco_test", help="of the miniworld; default: coco_test")
        return parser
    places = "image files and folders; folders are searched with all that is in them"
    if command == "caption":
        parser.add_argument("words", nargs="+", metavar="PATH", help=places)
    else:
        parser.usage = f"{parser.prog} PATH... QUESTION [options]"
        parser.add_argument(
            "words", nargs="+", metavar="PATH... QUESTION", help=f"{places}; last, in quotes, the question"
        )
    parser.add_argument(
        "--run",
        help="id of a run, the beginning of one, a run's folder or that of a converted checkpoint; "
        "default: the best finished run on the data that was trained on last",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help=f"draw which patches the connector merges: NAME{EXPLAINED} beside each image, or in --out",
    )
    parser.add_argument("--out", metavar="FOLDER", help="where the pictures of --explain go")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="JSON lines; this is the default where stdout is no terminal"
    )
    form.add_argument("--plain", action="store_true", help="lines PATH: TEXT; the default on a terminal")
    parser.add_argument(
        "--device", default="", help="cpu, cuda, cuda:1, mps or auto; default: a GPU if there is one"
    )
    parser.add_argument(
        "--batch", type=_positive("--batch"), default=32, metavar="N", help="images at once; default: 32"
    )
    return parser


def _positive(flag: str) -> Callable[[str], int]:
    def checked(word: str) -> int:
        with contextlib.suppress(ValueError):
            if (number := int(word)) > 0:
                return number
        raise UserError(f"{flag} {word}: must be a whole number above 0")

    return checked


DETAILS = {
    "caption": "Write a caption for each image.",
    "ask": 'Answer a question about each image: python -m evlgen ask picture.png "What color is the ball?"',
    "draw": "Draw images of the miniworld, which the miniature's runs are trained on.",
}


# ----------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class Item:
    """An image file, and where it is below the folder that was typed (its name, if the file was)."""

    path: Path
    below: Path


def find_images(words: Sequence[str]) -> tuple[list[Item], list[str]]:
    """The images that the words mean, folders searched with all that is in them, and a line for each fault.

    Hidden files, pictures that ``--explain`` has drawn, and files that are no images are left out; the last
    are counted on stderr.

    Raises:
        UserError: nothing that was typed exists, or there is no image in it.
    """
    items: list[Item] = []
    faults: list[str] = []
    for word in words:
        path = Path(word) if os.path.exists(word) else _expanded(word)  # a name may begin with ~
        if os.path.isdir(path):
            found, others, unread = _in_folder(path)
            faults += unread
            if others:
                _say(f"{word}: {others} {'file is' if others == 1 else 'files are'} no image and left out")
            if not found:
                faults.append(f"{word}: no images in this folder ({', '.join(SUFFIXES)})")
            items += found
        elif os.path.exists(path):
            items.append(Item(path, Path(path.name)))
        else:
            faults.append(f"{word}: no such file or folder")
    if not items:
        raise UserError("; ".join(faults))
    return items, faults


def _expanded(word: str) -> Path:
    try:
        return Path(word).expanduser()
    except RuntimeError:  # ~ of somebody unknown
        return Path(word)


def _in_folder(folder: Path) -> tuple[list[Item], int, list[str]]:
    """Its images, how many other files there are, and a line for each folder that cannot be read."""
    found, others = [], 0
    faults: list[OSError] = []
    seen: set[str] = set()
    for place, inner, names in os.walk(folder, onerror=faults.append, followlinks=True):
        if os.path.realpath(place) in seen:  # a link to where we come from, or to what was searched
            inner.clear()
            continue
        seen.add(os.path.realpath(place))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or name.endswith(EXPLAINED):
                continue
            if path.suffix.lower() in SUFFIXES:
                found.append(Item(path, path.relative_to(folder)))
            else:
                others += 1
    return found, others, [f"{fault.filename}: {fault.strerror or fault}" for fault in faults]


# --------------------------------------------------------------------------------------------- commands


def describe(command: choice.Kind, arguments: argparse.Namespace) -> int:
    """``caption`` and ``ask``; exit code 1 if an image could not be read."""
    words, question = list(arguments.words), ""
    if command == "ask":
        question = words.pop().strip()
        if not words or not question:
            raise UserError('ask takes images and then a question: ask picture.png "What colour is it?"')
        if os.path.exists(question):
            raise UserError(f"{question}: is a file; the question comes last, behind the images")
        for word in words:
            if not os.path.exists(_expanded(word)) and not re.search(r"[./\\~]", word):
                raise UserError(f"{word}: no such file; put the whole question into quotes")
    if arguments.out and not arguments.explain:
        raise UserError("--out: is for the pictures of --explain; add it")
    _refuse_empty(("--run", arguments.run), ("--out", arguments.out), *(("PATH", word) for word in words))
    items, faults = find_images(words)
    if arguments.run:
        chosen = choice.named(arguments.run)
    else:
        chosen = choice.best(command, merging=arguments.explain)
        _say(f"run {chosen.folder.name}: {chosen.why}; choose another with --run")
    for fault in faults:
        _say(fault)
    pictures = _picture_paths(items, arguments.out) if arguments.explain else {}

    from evlgen.interop.describe import Told, describe_images, load
    from evlgen.runtime.sources import fingerprint_of_weights

    describer = load(chosen.folder, arguments.device)
    if changed := choice.changed_since(chosen.folder, describer.config, fingerprint_of_weights):
        _say(f"run {describer.name} was trained with {'; '.join(changed)}: it may say other things than then")
    if arguments.explain:
        describer.check_merging()
    if question:
        _say_unknown(describer.unknown_words(question))
    as_json = arguments.json or not (arguments.plain or sys.stdout.isatty())
    done, unread, started = 0, 0, time.monotonic()
    shown = started
    files = [item.path for item in items]
    for told in describe_images(describer, files, question, arguments.batch, pictures):
        if isinstance(told, Told):
            done += 1
            print(json.dumps(told.as_json()) if as_json else f"{told.path}: {told.text}", flush=True)
        else:
            unread += 1
            _say(told)
        at_end_of_batch = (done + unread) % arguments.batch == 0
        if at_end_of_batch and time.monotonic() - shown > _EVERY:
            shown = time.monotonic()
            rate = (done + unread) / (shown - started)
            _say(f"{done + unread} of {len(items)} images, {rate:.1f} a second")
    failed = unread + len(faults)
    if failed:
        _say(f"{done} images done, {failed} could not be read")
    return 1 if failed else 0


def _refuse_empty(*given: tuple[str, str | None]) -> None:
    """A variable of the shell that is not set is not the current folder, nor the best run."""
    for name, text in given:
        if text is not None and not text.strip():
            raise UserError(f"{name}: is empty; give something, or leave it out")


def _say_unknown(words: Sequence[str]) -> None:
    if words:
        _say(f"the language model of this run does not know: {', '.join(words)}")


def _picture_paths(items: Sequence[Item], out: str | None) -> dict[Path, Path]:
    """Image -> where its picture goes: beside it, or in a folder, where no two have the same place.

    Raises:
        UserError: nothing can be written there.
    """
    root = Path(out).expanduser() if out else None
    found: dict[Path, Path] = {}
    taken: set[Path] = set()
    for item in items:
        if item.path in found:  # typed twice
            continue
        base = item.path if root is None else root / item.below
        path, number = base.with_name(base.name + EXPLAINED), 2
        while path in taken:
            path, number = base.with_name(f"{base.name}.{number}{EXPLAINED}"), number + 1
        taken.add(path)
        found[item.path] = path
    for folder in sorted({path.parent for path in found.values()}):  # before anything is computed
        if root is not None:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder}: cannot be written; choose another place for the pictures with --out")
    return found


def draw(arguments: argparse.Namespace) -> int:
    """``draw``."""
    from PIL import Image

    from evlgen import miniworld

    if arguments.pool not in miniworld.POOLS:
        known = ", ".join(miniworld.POOLS) + nearest(arguments.pool, miniworld.POOLS)
        raise UserError(f"--pool {arguments.pool}: no such pool; there are: {known}")
    _refuse_empty(("FOLDER", arguments.folder))
    folder = Path(arguments.folder).expanduser()
    pool = miniworld.pool(arguments.pool)
    drawn: list[Path] = []
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(arguments.count):
            path = folder / f"{arguments.pool}_{index:04d}.png"
            Image.fromarray(miniworld.render(pool.scene(index))).save(path)
            drawn.append(path)
    for path in drawn:  # a reader that has gone, as `head`, is no fault of the folder
        print(path)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 done, 1 some images could not be read, 2 a user's mistake, 130 interrupted."""
    try:
        return exit_code(lambda: _act(argv))
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _act(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:8} {text}" for name, text in COMMANDS.items()]
        print("usage: python -m evlgen COMMAND ...\n\n" + "\n".join(lines))
        print("\npython -m evlgen COMMAND --help says what each takes.")
        return 0
    paths.settle()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    command, *words = argv
    if command not in COMMANDS:
        raise UserError(
            f"{command}: no such command; there are: {', '.join(COMMANDS)}{nearest(command, COMMANDS)}"
        )
    arguments = _parser(command).parse_intermixed_args(words)
    if command == "draw":
        return draw(arguments)
    return describe("ask" if command == "ask" else "caption", arguments)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of a second's loading of weights
    sys.exit(main(sys.argv[1:]))
