"""Which device computes, how it gives the same bits each time, and what to do where its memory is full."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from evlgen.errors import UserError

STATED = "EVLGEN_DEVICE"
NAMES = ("auto", "cpu", "cuda", "mps")
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def chosen() -> torch.device:
    """The device of this process: what the environment variable ``EVLGEN_DEVICE`` says (``--device`` sets
    it), else a GPU where there is one, else the CPU. An Apple GPU (``mps``) is taken only if it is named.

    Raises:
        UserError: the variable names no device, or one that is not there.
    """
    return device_called(os.environ.get(STATED) or "auto", f"--device ({STATED})")


def device_called(name: str, where: str = "--device") -> torch.device:
    """The device called ``name``: one of `NAMES`, or a GPU by its number (``cuda:1``).

    Args:
        where: what the name was given by, for messages.

    Raises:
        UserError: there is no such name, or no such device on this machine.
    """
    kind, _, number = name.partition(":")
    if kind not in NAMES or (number and not (kind == "cuda" and number.isdigit())):
        raise UserError(f"{where} {name}: no such device; there are: {', '.join(NAMES)}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        reason = "this PyTorch is built for CPUs" if torch.version.cuda is None else "PyTorch sees no GPU"
        raise UserError(f"{where} {name}: {reason} ({torch.__version__}); choose cpu or auto")
    if number and int(number) >= torch.cuda.device_count():
        raise UserError(f"{where} {name}: this process sees {torch.cuda.device_count()} GPUs, from cuda:0 on")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{where} mps: PyTorch sees no Apple GPU here; choose cpu or auto")
    return torch.device(name)


def same_bits() -> None:
    """Have this process compute the same bits each time, on a GPU as well; call before anything is computed.

    On a GPU attention and `index_add` then sum in a fixed order. PyTorch refuses cuBLAS's products unless
    their workspace is fixed, too.
    """
    if os.environ.get(_WORKSPACE) not in (":4096:8", ":16:8"):
        os.environ[_WORKSPACE] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    # Writing NaN into every new buffer, to catch reads of it, would cost a twelfth of a small model's step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextlib.contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turns a device's lack of memory inside into a `UserError` that says what to do.

    Args:
        advice: which settings need less.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"{_full(error)}; {advice}") from error
    except RuntimeError as error:
        # "DefaultCPUAllocator: can't allocate memory", and what MPS says
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        raise UserError(f"{_full(error)}; {advice}") from error


def _full(error: RuntimeError) -> str:
    if torch.cuda.is_available() and isinstance(error, torch.cuda.OutOfMemoryError):
        device = torch.cuda.current_device()
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        name = torch.cuda.get_device_name(device)
        held = torch.cuda.max_memory_allocated(device) / 2**30
        return (
            f"out of memory: {name} has {total:.0f} GiB, this process has held {held:.1f} of them, "
            f"{free:.1f} are free"
        )
    return f"out of memory: {' '.join(str(error).split())[:200]}"
