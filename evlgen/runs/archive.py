"""The records of finished runs, one file a table, which a project can keep: ``run.py pack`` and ``unpack``.

Where a table is committed, the runs behind it can be committed beside it: tables, claims, figures and the
report are then made from them by whoever has the checkout, and a sweep that is continued elsewhere does not
begin anew. Weights and checkpoints are left out. A stage 1 without its weights is trained again, to the same
bits, if a run that is still missing starts from it.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from pathlib import Path

from evlgen.runtime import paths
from evlgen.errors import UserError
from evlgen.runtime.files import write_atomic
from sweeps import leases
from evlgen.runs import store

ARCHIVE = "runs.tar.xz"  # beside the table
RESULT = "result.json"
# What tables, claims and curves are made of; the result is last, since it is what makes a run finished.
RECORDS = ("config.json", "outcome.json", "provenance.json", "metrics.jsonl", RESULT)
# What pictures are drawn from, kept of some runs only.
PICTURED = ("predictions.json", "soft_prompts.npz", "merge_maps.npz")
NAMES = (*PICTURED, *RECORDS)
_MEMBER = re.compile(rf"([0-9a-f]{{16}})/({'|'.join(map(re.escape, NAMES))})")


def path_of(table: str, scale: str) -> Path:
    """Where the archive of a table is, whether it exists or not."""
    return paths.results_folder() / table / scale / ARCHIVE


def pack(path: Path, runs: list[str], pictured: list[str]) -> list[str]:
    """Write the records of those runs that are complete; equal runs give an equal file.

    Args:
        pictured: the runs of which what pictures are drawn from is kept as well.

    Returns:
        The runs that are in it; none, and nothing is written, if none is complete.

    Raises:
        UserError: the file that is there has runs which the new one would lack.
    """
    packed = [run for run in sorted(runs) if store.is_complete(paths.runs_folder() / run)]
    if not packed:
        return []
    lost = _contents(path).keys() - set(packed) if path.exists() else set()
    if lost:
        raise UserError(
            f"{path}: has {len(lost)} runs that are not complete in {paths.runs_folder()}; `unpack` puts "
            "them there; if they are of code that is no more, delete the file first"
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", format=tarfile.USTAR_FORMAT) as archive:
        for run in packed:
            for name in NAMES if run in pictured else RECORDS:
                file = paths.runs_folder() / run / name
                if file.exists():
                    content = file.read_bytes()
                    member = tarfile.TarInfo(f"{run}/{name}")  # no times and owners: they would differ
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
    return packed


def unpack(path: Path) -> list[str]:
    """Put the runs of an archive into the run store; those that are complete or being made there stay.

    Returns:
        The runs that were put there.

    Raises:
        UserError: there is no archive, it is damaged, or holds something else.
    """
    put = []
    for run, files in _contents(path).items():
        folder = paths.runs_folder() / run
        if store.is_complete(folder):  # perhaps from another table's file, without its pictures
            for name in PICTURED:
                if name in files and not (folder / name).exists():
                    write_atomic(folder / name, files[name])
            continue
        if RESULT not in files:
            continue
        claim = leases.claim(folder)
        if claim is None:
            print(f"{run}: is being made here; left alone", flush=True)
            continue
        for name in sorted(files, key=NAMES.index):
            write_atomic(folder / name, files[name])
        claim.release()
        put.append(run)
    return put


def _contents(path: Path) -> dict[str, dict[str, bytes]]:
    """Run -> name of a file -> its bytes."""
    contents: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(path, "r:xz") as archive:
            for member in archive:
                found = _MEMBER.fullmatch(member.name)
                file = archive.extractfile(member) if member.isreg() else None
                if found is None or file is None:
                    raise UserError(f"{path}: holds {member.name!r}, which is no record of a run")
                contents.setdefault(found[1], {})[found[2]] = file.read()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; `pack` in the place of `unpack` makes it") from error
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{path}: damaged ({error}); fetch it again") from error
    return contents
