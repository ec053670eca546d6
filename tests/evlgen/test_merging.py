"""Merging: every token ends somewhere, exactly once, where plain arithmetic says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evlgen.errors import UserError
from evlgen.merging import (
    Matching,
    bipartite_soft_matching,
    merge_limit,
    merge_schedule,
    position_matching,
    random_matching,
    token_counts,
)

# Five tokens: class token, then 2 is closest to 1 (cosine .995) and 4 to 3 (cosine .832).
METRIC = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 1.5]]])
TOKENS = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0], [16.0, 160.0]]])


def reference_groups(metric: Tensor, r: int, class_token: bool) -> list[list[int]]:
    """Input positions of each output token of one sequence (N, C), by plain loops."""
    rows = [[float(value) for value in row] for row in metric]
    if r == 0:
        return [[i] for i in range(len(rows))]

    def cosine(a: list[float], b: list[float]) -> float:
        norms = sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5
        return sum(x * y for x, y in zip(a, b, strict=True)) / norms

    even, odd = list(range(0, len(rows), 2)), list(range(1, len(rows), 2))
    links = []
    for i in even:
        if not (class_token and i == 0):
            best = max(odd, key=lambda j: cosine(rows[i], rows[j]))
            links.append((cosine(rows[i], rows[best]), i, best))
    merged = {i: j for _, i, j in sorted(links, key=lambda link: -link[0])[:r]}
    return [[i] for i in even if i not in merged] + [[j, *(i for i in merged if merged[i] == j)] for j in odd]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, int, bool]:
    """Random metric (B, N, C) in float64, with an r that the number of tokens allows."""
    batch, tokens, channels = draw(st.integers(1, 4)), draw(st.integers(2, 14)), draw(st.integers(1, 5))
    class_token = draw(st.booleans())
    r = draw(st.integers(0, merge_limit(tokens, class_token)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randn(batch, tokens, channels, dtype=torch.float64, generator=generator), r, class_token


def test_merge_by_hand() -> None:
    one = bipartite_soft_matching(METRIC, 1)
    assert one.destination.tolist() == [[0, 2, 2, 3, 1]]
    assert one.merge(TOKENS).tolist() == [[[1, 10], [16, 160], [3, 30], [8, 80]]]
    assert one.add(TOKENS).tolist() == [[[1, 10], [16, 160], [6, 60], [8, 80]]]
    two = bipartite_soft_matching(METRIC, 2)
    assert two.merge(TOKENS).tolist() == [[[1, 10], [3, 30], [12, 120]]]
    assert two.unmerge(two.merge(TOKENS)).tolist() == [[[1, 10], [3, 30], [3, 30], [12, 120], [12, 120]]]
    assert two.source().tolist() == [[[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]]


def test_merge_weighted_by_size() -> None:
    size = torch.tensor([[[1.0], [3.0], [1.0], [1.0], [7.0]]])
    matching = bipartite_soft_matching(METRIC, 2)
    # (3 * 2 + 1 * 4) / 4 = 2.5 and (1 * 8 + 7 * 16) / 8 = 15
    assert matching.merge(TOKENS, size).tolist() == [[[1, 10], [2.5, 25], [15, 150]]]
    assert matching.add(size).tolist() == [[[1], [4], [8]]]


def test_two_tokens_merged_into_the_same_one() -> None:
    metric = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [1.0, 0.2]]])
    merged = bipartite_soft_matching(metric, 2).merge(TOKENS)
    assert merged[0, :, 0].tolist() == [1, pytest.approx((2 + 4 + 16) / 3), 8]


def test_class_token_stays_alone_even_if_most_similar() -> None:
    metric = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 2.0]]])
    assert bipartite_soft_matching(metric, 1).source()[0, 0].tolist() == [1, 0, 0, 0, 0]
    without = bipartite_soft_matching(metric, 1, class_token=False)
    assert without.source()[0].tolist() == [
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1],
        [1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0],
    ]


def test_ties_go_to_the_lower_position() -> None:
    equal = bipartite_soft_matching(torch.ones(2, 9, 3), 2)
    assert equal.destination.tolist() == [[0, 3, 3, 4, 3, 5, 1, 6, 2]] * 2
    assert bipartite_soft_matching(torch.zeros(2, 9, 3), 2).destination.equal(equal.destination)


@given(cases())
@settings(max_examples=150, deadline=None)
def test_agrees_with_plain_loops(case: tuple[Tensor, int, bool]) -> None:
    metric, r, class_token = case
    matching = bipartite_soft_matching(metric, r, class_token)
    source, x = matching.source(), metric + 1
    for b in range(len(metric)):
        groups = reference_groups(metric[b], r, class_token)
        assert [row.nonzero()[:, 0].tolist() for row in source[b]] == [sorted(group) for group in groups]
        expected = torch.stack([x[b, group].mean(0) for group in groups])
        torch.testing.assert_close(matching.merge(x)[b], expected, rtol=0, atol=1e-12)


RULES = (bipartite_soft_matching, random_matching, position_matching)


@given(cases(), st.sampled_from(RULES))
@settings(max_examples=150, deadline=None)
def test_every_token_ends_in_exactly_one(
    case: tuple[Tensor, int, bool], rule: Callable[..., Matching]
) -> None:
    metric, r, class_token = case
    batch, tokens, _ = metric.shape
    matching = rule(metric, r, class_token)
    source = matching.source()
    assert source.shape == (batch, tokens - r, tokens)
    assert source.unique().tolist() in ([0, 1], [1])
    assert (source.sum(1) == 1).all()
    assert (source.sum(2) >= 1).all()
    if class_token:
        assert (source[:, 0, 0] == 1).all()
        assert (source[:, 0].sum(-1) == 1).all()
    if rule is position_matching:  # in the order of the sequence, neighbours alone
        assert (matching.destination.diff(dim=1) >= 0).all()
        assert source.sum(2).max() <= 2
    elif r:  # odd tokens last, each in its own output, in order; unmerged even ones in order before them
        odd = tokens // 2
        assert (source[:, -odd:, 1::2] == torch.eye(odd)).all()
        first = source[:, :-odd].argmax(-1)
        assert (first.diff(dim=1) > 0).all()


@given(cases(), st.sampled_from((bipartite_soft_matching, position_matching)))
@settings(max_examples=100, deadline=None)
def test_weighted_merge_keeps_mass(case: tuple[Tensor, int, bool], rule: Callable[..., Matching]) -> None:
    metric, r, class_token = case
    matching = rule(metric, r, class_token)
    size = torch.rand_like(metric[..., :1]) + 0.5
    x = torch.randn_like(metric)
    merged, new_size = matching.merge(x, size), matching.add(size)
    torch.testing.assert_close((merged * new_size).sum(1), (x * size).sum(1), rtol=0, atol=1e-10)
    torch.testing.assert_close(new_size.sum(1), size.sum(1), rtol=0, atol=1e-10)


@given(cases(), st.sampled_from((bipartite_soft_matching, position_matching)))
@settings(max_examples=100, deadline=None)
def test_unmerge_inverts_merge_where_groups_are_equal(
    case: tuple[Tensor, int, bool], rule: Callable[..., Matching]
) -> None:
    metric, r, class_token = case
    matching = rule(metric, r, class_token)
    y = torch.randn(len(metric), matching.tokens_out, 3, dtype=torch.float64)
    x = matching.unmerge(y)
    torch.testing.assert_close(matching.merge(x), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(matching.unmerge(matching.merge(x)), x, rtol=0, atol=1e-12)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_sequences_do_not_touch_each_other(case: tuple[Tensor, int, bool]) -> None:
    metric, r, class_token = case
    order = torch.randperm(len(metric))
    matching = bipartite_soft_matching(metric, r, class_token)
    permuted = bipartite_soft_matching(metric[order], r, class_token)
    assert permuted.destination.equal(matching.destination[order])
    assert permuted.merge(metric[order]).equal(matching.merge(metric)[order])


@given(st.integers(2, 30), st.integers(0, 2**32), st.lists(st.integers(0, 6), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_source_composes(tokens: int, seed: int, schedule: list[int]) -> None:
    """The source map over several steps, applied to the tokens, is what summing step by step gives."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(2, tokens, 3, dtype=torch.float64, generator=generator)
    x, source = x0, None
    for r in schedule:
        matching = bipartite_soft_matching(x, min(r, merge_limit(x.shape[1])))
        x, source = matching.add(x), matching.source(source)
    assert source is not None
    assert source.shape == (2, x.shape[1], tokens)
    assert (source.sum(1) == 1).all()
    torch.testing.assert_close(source.double() @ x0, x, rtol=0, atol=1e-10)


def test_r_zero_is_the_identity() -> None:
    x = torch.randn(2, 7, 4)
    for matching in (rule(x, 0) for rule in RULES):
        assert matching.merge(x).equal(x)
        assert matching.unmerge(x).equal(x)
        assert matching.source().equal(torch.eye(7).expand(2, -1, -1))


@pytest.mark.parametrize(
    ("tokens", "class_token", "limit"),
    [
        (257, True, 128),
        (256, True, 127),
        (5, False, 2),
        (6, False, 3),
        (1, True, 0),
        (2, True, 0),
        (3, True, 1),
    ],
)
def test_limit(tokens: int, class_token: bool, limit: int) -> None:
    metric = torch.randn(1, tokens, 4)
    for make in (bipartite_soft_matching, random_matching):
        assert make(metric, limit, class_token).tokens_out == tokens - limit
        with pytest.raises(UserError, match=rf"r = {limit + 1}: {tokens} tokens .* 0 to {limit} "):
            make(metric, limit + 1, class_token)
        with pytest.raises(UserError, match="r = -1"):
            make(metric, -1, class_token)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    matching = bipartite_soft_matching(METRIC.to(dtype), 2)
    merged = matching.merge(TOKENS.to(dtype))
    assert merged.dtype == dtype
    assert merged.tolist() == [[[1, 10], [3, 30], [12, 120]]]
    assert matching.merge(TOKENS.to(dtype), torch.ones(1, 5, 1)).dtype == dtype
    # too large for half precision before it is normalised
    assert bipartite_soft_matching(METRIC.to(dtype) * 3e4, 2).destination.equal(matching.destination)


def test_similarities_are_exact_under_autocast() -> None:
    # token 2 is closest to 3, by .0001: half precision cannot tell
    metric = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0501], [1.0, 0.1]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bipartite_soft_matching(metric, 1).destination.tolist() == [[0, 1, 2, 2]]


def test_gradients() -> None:
    metric = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    matching = bipartite_soft_matching(metric, 3)
    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    size = torch.rand(2, 7, 1, dtype=torch.float64) + 0.5
    assert torch.autograd.gradcheck(matching.merge, (x,))
    assert torch.autograd.gradcheck(lambda x: matching.merge(x, size), (x,))
    assert torch.autograd.gradcheck(matching.unmerge, (y,))
    matching.merge(x).sum().backward()
    assert metric.grad is None


def test_unmerged_tokens_keep_their_bits() -> None:
    x = torch.randn(3, 65, 8)
    matching = bipartite_soft_matching(x, 12)
    alone = matching.source().sum(-1) == 1  # (B, N_out)
    copied = matching.unmerge(matching.merge(x))
    assert (copied == x).all(-1).sum() == alone.sum()


def test_random_matching() -> None:
    metric = torch.randn(64, 9, 2)

    def draw(seed: int, shared: bool = False) -> Matching:
        return random_matching(metric, 2, generator=torch.Generator().manual_seed(seed), shared=shared)

    assert draw(1).destination.equal(draw(1).destination)
    assert not draw(1).destination.equal(draw(2).destination)
    assert len({tuple(row) for row in draw(1).destination.tolist()}) > 10
    assert len({tuple(row) for row in draw(1, shared=True).destination.tolist()}) == 1
    # every pair of an even and an odd token is merged at times, and it has nothing to do with the metric
    together = draw(1).source().transpose(1, 2) @ draw(1).source()
    assert (together.sum(0)[2::2, 1::2] > 0).all()
    same = random_matching(-metric, 2, generator=torch.Generator().manual_seed(1))
    assert same.destination.equal(draw(1).destination)
    torch.manual_seed(5)
    first = random_matching(metric, 2)
    torch.manual_seed(5)
    assert random_matching(metric, 2).destination.equal(first.destination)


def test_neighbours_by_hand() -> None:
    """Pairs (1, 2), (3, 4), (5, 6), (7, 8) behind the class token; 9 is left over."""
    x = torch.randn(2, 10, 3)
    groups = {
        1: [[0], [1], [2], [3], [4], [5, 6], [7], [8], [9]],
        2: [[0], [1], [2], [3, 4], [5], [6], [7, 8], [9]],
        3: [[0], [1, 2], [3], [4], [5, 6], [7, 8], [9]],
        4: [[0], [1, 2], [3, 4], [5, 6], [7, 8], [9]],
    }
    for r, expected in groups.items():
        matching = position_matching(x, r)
        for source in matching.source():
            assert [row.nonzero()[:, 0].tolist() for row in source] == expected
        assert matching.destination.equal(position_matching(-x, r).destination)
    halved = position_matching(x, 5, class_token=False)
    assert halved.destination[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    with pytest.raises(UserError, match="r = 5: 10 tokens with a class token allow merging 0 to 4"):
        position_matching(x, 5)


@given(st.integers(3, 300), st.floats(0, 1))
def test_neighbours_are_spread_evenly(tokens: int, share: float) -> None:
    limit = merge_limit(tokens)
    r = round(share * limit)
    source = position_matching(torch.zeros(1, tokens, 1), r).source()[0]
    (merged,) = torch.nonzero(source.sum(1) == 2, as_tuple=True)
    pair = (source[merged].argmax(1) - 1) // 2
    assert len(pair) == r
    if r > 1:  # gaps differ by one at most
        assert int(pair.diff().max() - pair.diff().min()) <= 1
        assert abs(int(pair[0]) - (limit - 1 - int(pair[-1]))) <= 1


def test_schedules_at_the_size_of_the_miniature() -> None:
    """65 tokens in 4 layers: what a layer can merge at once bounds one-shot and rising schedules."""
    for r, counts in (
        ((32, 0, 0, 0), [65, 33, 33, 33, 33]),
        ((0, 0, 0, 32), [65, 65, 65, 65, 33]),
        ((12, -1), [65, 41, 25, 17, 17]),
        (12, [65, 53, 41, 29, 17]),
    ):
        assert token_counts(65, merge_schedule(4, r)) == counts
    with pytest.raises(UserError, match="layer 3 cannot merge 24 of its 41 tokens, 20 at most"):
        token_counts(65, merge_schedule(4, (12, 1)))


def test_schedules_by_hand() -> None:
    assert merge_schedule(12, 19) == [19] * 12
    assert merge_schedule(5, (4, -1)) == [8, 6, 4, 2, 0]
    assert merge_schedule(5, (4, 1)) == [0, 2, 4, 6, 8]
    assert merge_schedule(5, (4, 0)) == [4] * 5
    assert merge_schedule(5, (4, -0.5)) == [6, 5, 4, 3, 2]
    assert merge_schedule(4, (5, -1)) == [10, 6, 3, 0]  # 10, 6.67, 3.33, 0
    assert merge_schedule(12, (15, 1))[-1] == 30  # floats give 29
    assert merge_schedule(1, (7, -1)) == [7]
    assert merge_schedule(3, [5, 0, 2]) == [5, 0, 2]
    assert merge_schedule(3, (5, 0, 2)) == [5, 0, 2]
    assert merge_schedule(2, [3, 1]) == [3, 1]
    assert merge_schedule(2, (3, 1)) == [0, 6]  # a tuple of two is (r, inflection)


@given(st.integers(2, 48), st.integers(0, 64), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_schedules_mirror(layers: int, r: int, inflection: float) -> None:
    rising = merge_schedule(layers, (r, inflection))
    assert rising == sorted(rising)
    assert layers * r - layers < sum(rising) <= layers * r
    if inflection in (0.0, 1.0):
        assert merge_schedule(layers, (r, -inflection)) == rising[::-1]


@pytest.mark.parametrize(
    ("r", "message"),
    [
        (-1, "-1 is not a whole number"),
        (True, "True is not a whole number"),
        ([1, 2], "2 entries for 4 layers"),
        ([1, 2, 3, -4], "-4 is not a whole number"),
        ((3, 2), "inflection, from -1 to 1"),
        ((1.5, 1), "1.5 is not a whole number"),
        ((1, 2, 3), "3 entries for 4 layers"),
    ],
)
def test_wrong_schedules(r: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        merge_schedule(4, r)  # type: ignore[arg-type]


def test_token_counts() -> None:
    assert token_counts(257, merge_schedule(12, 19)) == [257 - 19 * i for i in range(13)]
    assert token_counts(257, merge_schedule(12, 19))[-1] == 29
    assert token_counts(5, []) == [5]
    with pytest.raises(UserError, match="layer 2 cannot merge 12 of its 17 tokens, 8 at most"):
        token_counts(41, [12, 12, 12])
    assert token_counts(4, [2], class_token=False) == [4, 2]
