"""`from_run` under a name that does not change: see `evlgen.interop.transformers_model`."""

from evlgen.interop.transformers_model import from_run

__all__ = ["from_run"]
