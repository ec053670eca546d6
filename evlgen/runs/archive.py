"""The records of finished runs, one file a table, which a project can keep: ``run.py pack`` and ``unpack``.

Where a table is committed, the runs behind it can be committed beside it: tables, claims, figures and the
report are then made from them by whoever has the checkout (`evlgen.runs.results`), and a sweep that is
continued elsewhere does not begin anew. Weights and checkpoints are left out. A stage 1 without its weights
is trained again, to the same bits, if a run that is still missing starts from it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import lzma
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from evlgen.config import from_json
from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs.folder import Damaged
from evlgen.runs.identity import id_of
from evlgen.runtime.files import sha256_of, write_atomic
from evlgen.runtime.paths import cache_folder, results_folder, runs_folder

ARCHIVE = "runs.tar.xz"  # beside the table
# What tables, claims and curves are made of; the result is last, since it is what makes a run finished.
RECORDS = (files.CONFIG, files.IDENTITY, files.OUTCOME, files.PROVENANCE, files.METRICS, files.RESULT)
# What pictures are drawn from, kept of some runs only.
PICTURED = (files.PREDICTIONS, files.SOFT_PROMPTS, files.MERGE_MAPS)
NAMES = (*PICTURED, *RECORDS)
RUN = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}")
LARGEST = 64 * 2**20  # bytes of a file; those of the miniature have at most 0.3 MiB
_LARGEST_IN_ALL = 4 * 2**30

Files = dict[str, bytes]  # name -> content
written_here: list[Path] = []  # archives that this process wrote: readers look again


def path_of(table: str, scale: str) -> Path:
    """Where the archive of a table is, whether it exists or not."""
    return results_folder() / table / scale / ARCHIVE


# ------------------------------------------------------------------------------------------- writing


def pack(path: Path, runs: Sequence[str], pictured: Sequence[str]) -> list[str]:
    """Write the records of those runs that are complete and whole; equal runs give an equal file.

    A run of which a file is damaged is named on stderr and left out.

    Args:
        pictured: the runs of which what pictures are drawn from is kept as well.

    Returns:
        The runs that are in it; none, and nothing is written, if none is complete.

    Raises:
        UserError: the file that is there has runs which the new one would lack.
    """
    packed = {run: found for run in sorted(runs) if (found := _from_store(run, run in pictured)) is not None}
    if not packed:
        return []
    lost = contents(path).keys() - packed.keys() if path.exists() else set()
    if lost:
        raise UserError(
            f"{path}: has {len(lost)} runs that are not complete in {runs_folder()}; `unpack` puts them "
            "there; if they are of a behaviour that you no longer want, delete the file first"
        )
    write(path, packed)
    return list(packed)


def write(path: Path, runs: Mapping[str, Files]) -> None:
    """Write an archive; equal content gives equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", format=tarfile.USTAR_FORMAT) as archive:
        for run, content in sorted(runs.items()):
            for name in NAMES:
                if name in content:
                    member = tarfile.TarInfo(f"{run}/{name}")  # no times and owners: they would differ
                    member.size = len(content[name])
                    archive.addfile(member, io.BytesIO(content[name]))
    write_atomic(path, buffer.getvalue())
    written_here.append(path)


def _from_store(run: str, with_pictures: bool) -> Files | None:
    """The files of a run that is complete; None if it is not, or if one of them is damaged."""
    folder = runs_folder() / run
    if not (folder / files.RESULT).exists():
        return None
    names = NAMES if with_pictures else RECORDS
    found = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    try:
        check(run, found)
    except UserError as error:
        print(
            f"{folder}: {error}: not packed; `sweeps/run.py` makes the run again", file=sys.stderr, flush=True
        )
        return None
    return found


# ------------------------------------------------------------------------------------------- reading


def check(run: str, found: Files) -> None:
    """The files are those of this run, each as it was written.

    Raises:
        UserError: the first that is not.
    """
    values = {}
    for name in (files.CONFIG, files.IDENTITY, files.OUTCOME, files.PROVENANCE, files.RESULT):
        if name not in found:
            raise Damaged(f"{run}/{name}: missing")
        values[name] = files.parse_json(found[name], f"{run}/{name}")
    if (now := id_of(from_json(values[files.CONFIG]), values[files.IDENTITY])) != run:
        raise Damaged(f"{run}: its configuration and versions are those of {now}")
    for name in (files.OUTCOME, files.RESULT):
        if values[name].get("id") != run:
            raise Damaged(f"{run}/{name}: is of the run {values[name].get('id')}")
    listed = values[files.OUTCOME]["files"]
    for name in (files.PROVENANCE, files.METRICS, *PICTURED):
        if name in found and hashlib.sha256(found[name]).hexdigest() != listed.get(name):
            raise Damaged(f"{run}/{name}: damaged (does not match the checksum in {files.OUTCOME})")
    if files.METRICS in listed and files.METRICS not in found:
        raise Damaged(f"{run}/{files.METRICS}: missing")


def contents(path: Path, *ids: re.Pattern[str]) -> dict[str, Files]:
    """Run -> name of a file -> its bytes, not verified yet.

    Args:
        ids: forms of ids that runs may have; by default that of today.

    Raises:
        Damaged: the archive is damaged, or holds something else.
        UserError: there is none, or it cannot be read.
    """
    found: dict[str, Files] = {}
    for run, name, content in _members(path, ids or (RUN,)):
        found.setdefault(run, {})[name] = content
    return found


def _members(path: Path, ids: Sequence[re.Pattern[str]]) -> Iterator[tuple[str, str, bytes]]:
    """Run, name and bytes of each member; what is larger than any record is refused before it is read."""
    total = 0
    try:
        with tarfile.open(path, "r:xz") as archive:
            for member in archive:
                run, _, name = member.name.partition("/")
                file = archive.extractfile(member) if member.isreg() else None
                if file is None or name not in NAMES or not any(form.fullmatch(run) for form in ids):
                    raise Damaged(f"{path}: holds {member.name!r}, which is no record of a run")
                total += member.size
                if member.size > LARGEST or total > _LARGEST_IN_ALL:
                    raise Damaged(
                        f"{path}: {member.name!r} has {member.size:,} bytes, more than a record of a run can "
                        "have; it is not unpacked"
                    )
                yield run, name, file.read()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; `run.py pack` makes it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise Damaged(f"{path}: damaged ({error}); fetch it again") from error


def whole_runs(path: Path) -> tuple[dict[str, Files], list[str]]:
    """As `contents`, without runs that are incomplete or damaged, and a sentence for each of these."""
    whole, complaints = {}, []
    for run, found in contents(path).items():
        try:
            check(run, found)
        except UserError as error:  # noqa: PERF203 (one damaged run must not cost the others)
            complaints.append(f"{error}: skipped")
        else:
            whole[run] = found
    return whole, complaints


def put(folder: Path, found: Files) -> None:
    """Write the files of a run into its folder, the result last."""
    for name in sorted(found, key=NAMES.index):
        write_atomic(folder / name, found[name])


_MANIFEST = "manifest.json"  # of an extracted archive: sizes of its files, and what is damaged in it
_temporary: dict[Path, tempfile.TemporaryDirectory[str]] = {}  # by the place in the cache that failed


def extracted(path: Path) -> Path:
    """A folder with the records of an archive, a folder a run; made in the cache when first asked for.

    What is there is compared with its manifest and made again where a file is missing or has another size.
    Where the cache cannot be written to, the folder is a temporary one, which goes when the process ends.
    Damaged runs are left out, and named on stderr once a process.

    Raises:
        UserError: as `contents`; or neither the cache nor a temporary folder can be written to.
    """
    try:
        target = cache_folder() / "records" / sha256_of(path)[:16]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if target in _temporary:
        target = Path(_temporary[target].name)
    complaints = _complaints(target)
    if complaints is None:
        runs, complaints = whole_runs(path)
        target = _extract(runs, complaints, target)
    for complaint in complaints:
        say_once(f"{path}: {complaint}")
    return target


@functools.cache
def say_once(sentence: str) -> None:
    """Print a sentence on stderr, unless this process has done so."""
    print(sentence, file=sys.stderr, flush=True)


def _complaints(folder: Path) -> list[str] | None:
    """What is damaged in an extracted archive; None if the folder is not as its manifest says."""
    try:
        manifest = files.read_json(folder / _MANIFEST)
        if manifest is None:
            return None
        for run, sizes in manifest["sizes"].items():
            if any(os.stat(f"{folder}/{run}/{name}").st_size != size for name, size in sizes.items()):
                return None
    except (OSError, KeyError, UserError):  # KeyError: of another version of this project
        return None
    complaints: list[str] = manifest["complaints"]
    return complaints


def _extract(runs: Mapping[str, Files], complaints: list[str], target: Path) -> Path:
    """Write the files of an archive to a place in the cache, or to a temporary folder; returns which."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True
        ) as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            _write_extracted(new, runs, complaints)
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, old)
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(new, target)
        if _complaints(target) is not None:
            return target
    except OSError:  # a cache that cannot be written to costs time at each start, nothing else
        pass
    try:
        temporary = tempfile.TemporaryDirectory(prefix="evlgen-records-", ignore_cleanup_errors=True)
        _write_extracted(Path(temporary.name), runs, complaints)
    except OSError as error:
        raise UserError(
            f"{cache_folder()}: cannot be written, nor can a temporary folder ({error.strerror or error}); "
            "make room, or choose another cache with EVLGEN_CACHE"
        ) from error
    _temporary[target] = temporary
    return Path(temporary.name)


def _write_extracted(folder: Path, runs: Mapping[str, Files], complaints: list[str]) -> None:
    for run, found in runs.items():
        (folder / run).mkdir(parents=True)
        for name, content in found.items():
            (folder / run / name).write_bytes(content)
    folder.mkdir(exist_ok=True)
    sizes = {run: {name: len(content) for name, content in found.items()} for run, found in runs.items()}
    (folder / _MANIFEST).write_bytes(files.json_bytes({"sizes": sizes, "complaints": complaints}))
