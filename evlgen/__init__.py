"""evlgen: reproduce, test and extend EVLGen (single-stage vision-language training by token merging)."""

__version__ = "0.1.0"
