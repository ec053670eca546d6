"""What models of other formats read from a run's folder: its configuration and its weights, both verified.

The folder may have been copied or renamed.
"""

from __future__ import annotations

from pathlib import Path

from evlgen.config import RunConfig, from_json
from evlgen.errors import UserError
from evlgen.runs import choice
from evlgen.runs.folder import CONFIG, CONNECTOR, IDENTITY, OUTCOME, RESULT, Damaged, read_json
from evlgen.runs.identity import id_of
from evlgen.runtime.files import sha256_of
from evlgen.runtime.paths import absolute, runs_folder


def located(name: str | Path) -> Path:
    """Absolute path of a run's folder.

    Args:
        name: a folder, ``~`` allowed; or the id of a run in the run store or the beginning of one, also as
            the last part of a path that is not there (``runs/ID``, seen from another folder).

    Raises:
        UserError: the beginning is that of several runs.
    """
    path = absolute(str(name))
    if not path.exists():
        found = choice.in_store(path.name)
        if len(found) > 1:
            raise UserError(f"{name}: is the beginning of several runs: {', '.join(found[:4])}")
        if found:
            return runs_folder() / found[0]
    return path


def read_run_config(path: Path) -> RunConfig:
    """The configuration in a run's ``config.json``, compared with its checksum.

    Raises:
        UserError: the file is missing or damaged, or a key or value is wrong.
    """
    stored = read_json(path)
    if stored is None:
        raise UserError(f"{path}: no such file")
    try:
        return from_json(stored)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def trained_weights(folder: Path) -> Path:
    """Path of a run's ``connector.safetensors``, compared with its checksum in ``outcome.json``.

    A run whose evaluation has not ended yet has no outcome to compare with.

    Raises:
        UserError: ``connector.safetensors`` is missing, or one of the files is damaged.
    """
    path = folder / CONNECTOR
    if not path.exists():
        if (folder / RESULT).exists():
            raise UserError(
                f"{path}: missing; the run is complete, but archives hold no weights: remove {folder} "
                "and run its experiment again"
            )
        raise UserError(f"{path}: missing; the run it belongs to has not finished its training")
    outcome = read_json(folder / OUTCOME)
    if outcome is None:
        if (folder / RESULT).exists():
            raise UserError(f"{folder / OUTCOME}: missing, so that {CONNECTOR} cannot be verified")
        return path
    if outcome["files"].get(CONNECTOR) != sha256_of(path):
        raise Damaged(f"{path}: damaged (its bytes do not match the checksum in {OUTCOME})")
    versions = read_json(folder / IDENTITY)
    if versions is not None and id_of(read_run_config(folder / CONFIG), versions) != outcome["id"]:
        raise Damaged(
            f"{folder / CONFIG}: or {IDENTITY} is another run's than {outcome['id']}, whose weights these are"
        )
    return path
