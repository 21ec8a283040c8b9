"""Statistics of a layer are sums: in any order, in any grouping, they are those of all tokens at once."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qarvd.calibrate.collect import Collector
from qarvd.calibrate.stats import SAMPLES, LayerStats

laws = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**31)
FIELDS = ("gram", "cross", "total", "drift", "samples", "sample_weight", "sample_key")


def part(seed: int, tokens: int, channels: int = 8) -> tuple[LayerStats, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, channels, generator=generator)
    full = x + 0.1 * torch.randn(tokens, channels, generator=generator)
    weight = torch.rand(tokens, generator=generator) + 0.1
    return LayerStats.of(x, full, weight, generator), x, full, weight


def assert_same(a: LayerStats, b: LayerStats) -> None:
    assert abs(a.weight - b.weight) < 1e-9 * a.weight
    for name in FIELDS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-4)


@laws
@given(seeds, st.lists(st.integers(1, 400), min_size=3, max_size=3))
def test_merging_is_associative_and_commutative(seed: int, sizes: list[int]) -> None:
    a, b, c = (part(seed + i, size)[0] for i, size in enumerate(sizes))
    assert_same((a + b) + c, a + (b + c))
    ab, ba = a + b, b + a
    assert all(torch.equal(getattr(ab, name), getattr(ba, name)) for name in FIELDS)
    a += b
    assert all(torch.equal(getattr(a, name), getattr(ab, name)) for name in FIELDS)


@laws
@given(seeds, st.integers(1, 300), st.integers(1, 300))
def test_merged_sums_are_those_of_all_tokens(seed: int, n: int, m: int) -> None:
    (a, *first), (b, *second) = part(seed, n), part(seed + 1, m)
    x, full, weight = (torch.cat(pair).double() for pair in zip(first, second, strict=True))
    both = a + b
    weighted = x * weight[:, None]
    sums = {
        "gram": weighted.T @ x,
        "cross": (full - x).T @ weighted,
        "total": weighted.sum(0),
        "drift": ((full - x) * weight[:, None]).sum(0),
    }
    for name, expected in sums.items():
        torch.testing.assert_close(getattr(both, name).double(), expected, rtol=1e-4, atol=1e-4)
    assert len(both.samples) == min(SAMPLES, n + m)
    rows = {tuple(row) for row in x.float().tolist()}
    assert all(tuple(row) in rows for row in both.samples.tolist())


@laws
@given(seeds)
def test_centred_moments_do_not_see_a_constant_that_is_added_to_the_inputs(seed: int) -> None:
    _, x, full, weight = part(seed, 200)
    generator = torch.Generator()
    plain = LayerStats.of(x, full, weight, generator).moments(centred=True)
    moved = LayerStats.of(x + 3, full + 5, weight, generator).moments(centred=True)
    for a, b in zip(plain, moved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_collector_beyond_its_limit_keeps_a_share_without_bias() -> None:
    collector = Collector(("layer",), tokens=131_072 * 4)
    collector.add(torch.ones(4, 10_000, 2), None, 1.0)
    assert collector.stats is not None
    assert abs(collector.stats.weight - 10_000) < 500


def test_a_collector_that_keeps_hardly_any_token_of_a_part_goes_on() -> None:
    collector = Collector(("layer",), tokens=131_072 * 50)
    for _ in range(500):
        collector.add(torch.ones(2, 3), None, 1.0)
    assert collector.stats is not None and 0 < collector.stats.weight < 60
