"""Merge schedules: how many tokens each layer merges, and how many are left. No torch: plans ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from evlgen.errors import UserError


def merge_limit(tokens: int, class_token: bool = True) -> int:
    """Most tokens that one step can merge: half of those that may be merged, (N - class_token) // 2."""
    return max(tokens - class_token, 0) // 2


def merge_schedule(num_layers: int, r: int | tuple[int, ...] | tuple[int, float] | list[int]) -> list[int]:
    """How many tokens each layer merges, in the notation of ToMe.

    - An int: the same in every layer.
    - A tuple of two, (r, inflection): linear in depth, r on average before rounding down. Inflection +1 rises
      from 0 to 2r, -1 falls from 2r to 0, 0 is constant. A tuple of two means this even when there are two
      layers: give a list then.
    - A list, or a tuple of any other length: one entry a layer. (ToMe fills up a short list with zeros; here
      its length must be right.)

    The rounding is exact, so that +1 and -1 mirror each other; floats would lose a token here and there.

    Raises:
        UserError: an entry is no whole number of 0 or more, the inflection is beyond 1, the length is wrong.
    """
    if isinstance(r, tuple) and len(r) == 2:
        return _linear_schedule(num_layers, *r)
    if isinstance(r, list | tuple):
        if len(r) != num_layers:
            raise UserError(f"r = {r}: {len(r)} entries for {num_layers} layers; give one a layer")
        return [_count(entry, r) for entry in r]
    return [_count(r, r)] * num_layers


def _linear_schedule(num_layers: int, mean: int, inflection: float) -> list[int]:
    given = (mean, inflection)
    _count(mean, given)
    if isinstance(inflection, bool) or not -1 <= inflection <= 1:
        raise UserError(
            f"r = {given}: the second entry is the inflection, from -1 to 1 (a list gives one entry a layer)"
        )
    bend = Fraction(str(inflection))
    first = int(mean * (1 - bend))
    last = 2 * mean - first
    if num_layers == 1:
        return [mean]
    return [int(first + Fraction(last - first, num_layers - 1) * layer) for layer in range(num_layers)]


def _count(entry: object, given: object) -> int:
    if not isinstance(entry, int) or isinstance(entry, bool) or entry < 0:
        raise UserError(f"r = {given}: {entry!r} is not a whole number of 0 or more")
    return entry


def token_counts(tokens: int, schedule: Sequence[int], class_token: bool = True) -> list[int]:
    """Tokens that enter the first layer, then those left after each layer: len(schedule) + 1 numbers.

    Raises:
        UserError: a layer has too few tokens left for its r; the message names the layer and the limit.
    """
    counts = [tokens]
    for layer, r in enumerate(schedule):
        limit = merge_limit(counts[-1], class_token)
        if r > limit:
            raise UserError(
                f"r: layer {layer} cannot merge {r} of its {counts[-1]} tokens, {limit} at most; "
                f"choose a smaller r (schedule {list(schedule)}, {tokens} tokens at first)"
            )
        counts.append(counts[-1] - r)
    return counts
