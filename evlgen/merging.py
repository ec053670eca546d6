"""Token merging: which tokens are merged, and how. Pure functions on tensors.

Source: Bolya et al., "Token Merging: Your ViT But Faster" (ToMe, ICLR 2023), as EVLGen uses it. The tokens of
a sequence are split into those at even and those at odd positions. Each even token is linked to its most
similar odd token, and the r best links are merged. The matching is computed once, as a `Matching`, and then
applied to everything that travels with the tokens: features, sizes, source maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evlgen.errors import UserError
from evlgen.schedule import merge_limit, merge_schedule, token_counts

__all__ = [
    "Matching",
    "bipartite_soft_matching",
    "merge_limit",
    "merge_schedule",
    "position_matching",
    "random_matching",
    "token_counts",
]


@dataclass(frozen=True, eq=False)
class Matching:
    """Where each token of a batch of sequences goes in one merging step.

    Attributes:
        destination: (B, N) int64, the output position of each input token.
        tokens_out: N_out, the number of output tokens.

    Where even tokens are linked to odd ones, outputs are in this order: the unmerged even tokens in their old
    order (the class token, at position 0, in front), then all odd tokens in their old order, each with the
    even tokens merged into it. Those of `position_matching` are in the order of the sequence.
    """

    destination: Tensor
    tokens_out: int

    def merge(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N_out, C): the mean of the tokens that land in each output.

        Args:
            x: any floating dtype; gradients flow through.
            size: (B, N, 1), how many original tokens each one stands for. With it the mean is weighted
                (ToMe), without it all tokens of this step count alike (EVLGen). New sizes: ``add(size)``.
        """
        if size is None:
            counts = torch.ones((*self.destination.shape, 1), dtype=x.dtype, device=x.device)
            return self.add(x) / self.add(counts)
        size = size.to(x.dtype)
        return self.add(x * size) / self.add(size)

    def add(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N_out, C): the sum of the tokens that land in each output."""
        batch, tokens, channels = x.shape
        out = torch.zeros(batch * self.tokens_out, channels, dtype=x.dtype, device=x.device)
        # Whole rows are added: several times faster on a CPU than scatter_reduce with an expanded index, and
        # the backward pass only copies rows. Adding to zero leaves unmerged tokens as they are, to the bit.
        out = out.index_add(0, self._rows(), x.reshape(batch * tokens, channels))  # (B * N_out, C)
        return out.view(batch, self.tokens_out, channels)

    def unmerge(self, x: Tensor) -> Tensor:
        """(B, N_out, C) -> (B, N, C): each output copied back to all the input positions it was made of."""
        batch, tokens_out, channels = x.shape
        copied = x.reshape(batch * tokens_out, channels).index_select(0, self._rows())  # (B * N, C)
        return copied.view(batch, -1, channels)

    def source(self, x: Tensor | None = None) -> Tensor:
        """Which input positions went into which output token, as zeros and ones.

        Args:
            x: (B, N, N_0), the source map up to this step; None stands for the first step, where N_0 = N.

        Returns:
            (B, N_out, N_0) in the dtype of ``x`` (float32 without); every column has exactly one 1.
        """
        if x is None:
            batch, tokens = self.destination.shape
            x = torch.eye(tokens, device=self.destination.device).expand(batch, -1, -1)
        return self.add(x)

    def _rows(self) -> Tensor:
        """(B * N,) row of each input token's destination in a (B * N_out, C) matrix.

        Computed anew each time: functools.cached_property has a lock, which torch.compile cannot enter.
        """
        first = torch.arange(len(self.destination), device=self.destination.device) * self.tokens_out  # (B,)
        return (self.destination + first[:, None]).flatten()


def bipartite_soft_matching(
    metric: Tensor, r: int, class_token: bool = True, dtype: torch.dtype | None = None
) -> Matching:
    """Link each even token to the odd token with the highest cosine similarity and merge the r best links.

    Deterministic: of equal similarities the token at the lower position wins. A zero vector has similarity 0
    to every other. No gradient flows into ``metric``.

    Args:
        metric: (B, N, C), any floating dtype.
        r: number of tokens that disappear; 0 is the identity.
        class_token: position 0 is a class token: it is never merged, and nothing is merged into it.
        dtype: of the similarities; None is float32 at least. In half precision, which the authors' code
            has under autocast, the unit vectors are computed in float32, and many similarities are equal.

    Raises:
        UserError: r is negative or more than `merge_limit` allows.
    """
    batch, tokens, _ = metric.shape
    _check_r(r, tokens, class_token)
    if r == 0:
        return _identity(batch, tokens, metric.device)
    device = "cpu" if metric.is_meta else metric.device.type  # autocast knows no meta device
    with torch.no_grad(), torch.autocast(device, enabled=False):
        metric = F.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
        metric = metric if dtype is None else metric.to(dtype)
        even, odd = metric[:, 2 * class_token :: 2], metric[:, 1::2]  # the class token is no candidate
        return _match(even @ odd.transpose(1, 2), r, tokens)


def random_matching(
    metric: Tensor,
    r: int,
    class_token: bool = True,
    generator: torch.Generator | None = None,
    shared: bool = False,
) -> Matching:
    """`bipartite_soft_matching` with random numbers in place of similarities (an ablation).

    Args:
        metric: (B, N, C); only its shape and device are used.
        generator: source of the random numbers, drawn on its own device; None takes torch's global one.
        shared: one draw for all sequences of the batch, instead of one for each.

    Raises:
        UserError: as `bipartite_soft_matching`.
    """
    batch, tokens, _ = metric.shape
    _check_r(r, tokens, class_token)
    if r == 0:
        return _identity(batch, tokens, metric.device)
    even, odd = (tokens + 1) // 2 - int(class_token), tokens // 2
    device = metric.device if generator is None else generator.device
    similarity = torch.rand((1 if shared else batch, even, odd), generator=generator, device=device)
    return _match(similarity.to(metric.device).expand(batch, -1, -1), r, tokens)


def position_matching(metric: Tensor, r: int, class_token: bool = True) -> Matching:
    """Merge r pairs of neighbours, spread evenly over the sequence, whatever their content (an ablation).

    This is plain pooling in place of token merging. The tokens after the class token form P pairs of
    neighbours; pairs number floor((j + 1/2) P / r), j = 0 .. r - 1, become one token each. The order of the
    sequence stays, so that neighbours in the image are neighbours in the next step, too. (The last patch of a
    row and the first of the next one count as neighbours.)

    Args:
        metric: (B, N, C); only its shape and device are used.

    Raises:
        UserError: as `bipartite_soft_matching`.
    """
    batch, tokens, _ = metric.shape
    _check_r(r, tokens, class_token)
    pairs = merge_limit(tokens, class_token)
    chosen = (2 * torch.arange(r, device=metric.device) + 1) * pairs // (2 * max(r, 1))  # (r,)
    absorbed = torch.zeros(tokens, dtype=torch.bool, device=metric.device)
    absorbed[class_token + 2 * chosen + 1] = True  # the second of a pair goes where the first one is
    destination = (~absorbed).cumsum(0) - 1  # (N,)
    return Matching(destination.expand(batch, -1), tokens - r)


def _match(similarity: Tensor, r: int, tokens: int) -> Matching:
    """Matching from the similarities (B, E, O) of the E even tokens that may be merged to the O odd ones."""
    batch, candidates, num_odd = similarity.shape
    best, link = similarity.max(dim=-1)  # (B, E); the first of equal ones
    order = best.argsort(dim=-1, descending=True, stable=True)  # (B, E)
    kept_even = tokens - num_odd - r
    num_protected = tokens - num_odd - candidates  # 1 with a class token, else 0

    merged = torch.zeros_like(link, dtype=torch.bool).scatter_(1, order[:, :r], True)
    place = (~merged).cumsum(1) - 1 + num_protected  # rank among the even tokens that stay
    destination = torch.zeros(batch, tokens, dtype=torch.int64, device=similarity.device)  # class token: 0
    destination[:, 2 * num_protected :: 2] = torch.where(merged, kept_even + link, place)
    destination[:, 1::2] = torch.arange(kept_even, kept_even + num_odd, device=similarity.device)
    return Matching(destination, tokens - r)


def _identity(batch: int, tokens: int, device: torch.device) -> Matching:
    return Matching(torch.arange(tokens, device=device).expand(batch, -1), tokens)


def _check_r(r: int, tokens: int, class_token: bool) -> None:
    limit = merge_limit(tokens, class_token)
    if not 0 <= r <= limit:
        kind = "with" if class_token else "without"
        raise UserError(
            f"r = {r}: {tokens} tokens {kind} a class token allow merging 0 to {limit} in one step"
        )
