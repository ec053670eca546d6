"""Tasks for the tests of the pool."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tell = Callable[[Any], None]


def write(tell: Tell, path: str, text: str) -> None:
    tell(text)
    Path(path).write_text(text)


def fail(tell: Tell, message: str) -> None:
    raise ValueError(message)


def die(tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(tell: Tell, seconds: float) -> None:
    time.sleep(seconds)
