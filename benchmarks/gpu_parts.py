"""What the parts of ``benchmarks/gpu_check.py`` do, by their names (`benchmarks.gpu_page.PARTS`)."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import gpu_checks, gpu_speed
from benchmarks.gpu_found import Found, Settings

FUNCTIONS: dict[str, Callable[[Settings], Found]] = {
    "smoke": gpu_checks.smoke,
    "parity": gpu_checks.parity,
    "precision": gpu_checks.precision,
    "resume": gpu_checks.resume,
    "generate": gpu_checks.generate,
    "graphs": gpu_checks.graphs,
    "connectors": gpu_speed.connectors,
    "captioners": gpu_speed.captioners,
    "connectors_compiled": gpu_speed.connectors_compiled,
    "captioners_compiled": gpu_speed.captioners_compiled,
}
