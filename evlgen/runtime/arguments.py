"""Command lines of modules: a mistake in what was typed is one line, with the nearest flag."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from evlgen.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """An `argparse` parser that raises a `UserError`; its description keeps its lines."""

    def __init__(self, prog: str, description: str, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`."""
        unknown = re.match(r"unrecognized arguments: (-\S+)", message)
        if unknown:
            near = nearest(unknown[1].partition("=")[0], self._option_string_actions)
            raise UserError(f"{unknown[1]}: no such flag{near or f'; {self.prog} --help lists them'}")
        raise UserError(re.sub(r"^argument (\S+): ", r"\1: ", message) + f"; see {self.prog} --help")
