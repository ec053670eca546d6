"""Other formats: models of `transformers`, checkpoints of other projects."""

from evlgen.interop.transformers_model import from_run

__all__ = ["from_run"]
