"""What a training says on its way, and how it is asked to stop.

Without torch: a launcher reads these messages, and an interruption in the middle of an import of torch may
end it with SIGABRT, or be lost.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        phase: ``train``, ``validate`` or ``evaluate``.
        loss: the last one logged (nats), None if there is none.
        rate: samples a second.
    """

    phase: str
    step: int
    steps: int
    loss: float | None
    rate: float


class Stop(Exception):
    """Raised by a ``progress`` function: end the training after this step, with a checkpoint of it."""
