"""Rounding a changed weight again: what was not changed stays, what was changed shows."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.weights import KINDS
from torch import Tensor

from qarvd.ops.codecs import Codec
from qarvd.ops.weight import LEAST_RATIO
from qarvd.quantize.fit import fit_grid
from qarvd.quantize.grid import Grid
from qarvd.quantize.merge import DITHERS, NOISE, requantize, round_near

laws = settings(max_examples=25, deadline=None)
codecs = st.sampled_from(list(KINDS.values()))
heads = st.sampled_from([0, 32, 64])
seeds = st.integers(0, 2**32)
each_codec = pytest.mark.parametrize("codec", KINDS.values(), ids=KINDS)


def quantized(codec: Codec, n_outlier: int, symmetric: bool, seed: int) -> tuple[Tensor, Tensor, Grid]:
    """Codes [24, 192], the floats they stand for, and their grid."""
    columns = torch.randn(24, 192, generator=torch.Generator().manual_seed(seed))
    columns[:, :n_outlier] *= 6
    grid = fit_grid(columns, n_outlier, codec, symmetric)
    scale, zero = grid.per_column(n_outlier, 192)
    codes = grid.all_nearest(columns / scale + zero)
    return codes, scale * (codes - zero), grid


def restored(codes: Tensor, grid: Grid, n_outlier: int) -> Tensor:
    scale, zero = grid.per_column(n_outlier, codes.shape[1])
    return scale * (codes - zero)


def step_of(columns: Tensor, grid: Grid, n_outlier: int) -> Tensor:
    """The distance between the codes about each of `columns`, in its own unit."""
    scale, zero = grid.per_column(n_outlier, columns.shape[1])
    below, above = grid.around(columns / scale + zero)
    return scale * (above - below)


def product(size: float, rank: int = 4) -> Tensor:
    """A random matrix [24, 192] of low rank, of elements of about `size`."""
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(24, rank, generator=generator), torch.randn(rank, 192, generator=generator)
    return left @ right * (size / rank**0.5)


@laws
@given(codec=codecs, n_outlier=heads, symmetric=st.booleans(), seed=seeds)
def test_what_was_not_changed_stays_as_it_was(codec: Codec, n_outlier: int, symmetric: bool, seed: int) -> None:
    codes, columns, grid = quantized(codec, n_outlier, symmetric, seed)
    again, new = requantize(columns, n_outlier, codec, grid, seed)
    assert torch.equal(again, codes) and torch.equal(new.scale, grid.scale)
    assert (new.zero is None) == (symmetric or codec.group > 0)
    if new.zero is not None and grid.zero is not None:
        assert torch.equal(new.zero, grid.zero)


def test_not_one_of_a_million_weights_is_changed_by_rounding_errors_of_its_own() -> None:
    scale = torch.rand(1024, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    grid = Grid(-127, 127, scale, None)
    codes = torch.randint(-127, 128, (1024, 1024), generator=torch.Generator().manual_seed(1)).float()
    columns = restored(codes, grid, 32)
    assert not torch.equal(columns / grid.per_column(32, 1024)[0], codes), "there are none"
    assert torch.equal(round_near(columns, 32, grid, 9), codes)


@laws
@given(codec=codecs, n_outlier=heads, symmetric=st.booleans(), size=st.floats(0, 5), seed=seeds)
def test_codes_and_scales_stay_what_the_format_allows(
    codec: Codec, n_outlier: int, symmetric: bool, size: float, seed: int
) -> None:
    _, columns, tight = quantized(codec, n_outlier, symmetric, seed)
    grid = replace(tight, scale=tight.scale * 1.5)
    scale, zero = grid.per_column(n_outlier, 192)
    columns = restored(grid.all_nearest(columns / scale + zero), grid, n_outlier)
    columns[:, n_outlier:] += product(size)[:, n_outlier:]
    columns[:, n_outlier:] *= 1e-4  # tempts the normal scale below its floor
    codes, new = requantize(columns, n_outlier, codec, grid, seed)
    assert codes.min() >= new.low and codes.max() <= new.high
    outlier, normal = new.scale.unbind(1)
    assert (outlier > 0).all() and (normal >= outlier * LEAST_RATIO).all()
    if not n_outlier:
        assert torch.equal(outlier, normal)
    if new.zero is not None:
        assert new.zero.min() >= new.low and new.zero.max() <= new.high


@laws
@given(codec=codecs, n_outlier=heads, symmetric=st.booleans(), seed=seeds)
def test_rounding_is_up_or_down_and_no_further(codec: Codec, n_outlier: int, symmetric: bool, seed: int) -> None:
    _, columns, grid = quantized(codec, n_outlier, symmetric, seed)
    columns = columns + product(0.05)
    scale, zero = grid.per_column(n_outlier, 192)
    below, above = grid.around(columns / scale + zero)
    place = (columns / scale + zero).clamp(below, above)
    step = (above - below).clamp_min(1)
    assert ((round_near(columns, n_outlier, grid, seed) - place).abs() < 1.001 * step).all()
    assert ((round_near(columns, n_outlier, grid, None) - place).abs() < 0.501 * step).all()


@each_codec
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_change_far_below_a_step_shows_with_a_seed_and_is_lost_without(codec: Codec, symmetric: bool) -> None:
    _, columns, grid = quantized(codec, 32, symmetric, 0)
    change = product(0.05) * step_of(columns, grid, 32)  # 5 % of a step
    for seed, least, most in ((7, 0.7, 1.3), (None, 0, 0.05)):
        after = restored(round_near(columns + change, 32, grid, seed), grid, 32)
        kept = ((after - columns) * change).sum() / change.square().sum()
        assert least <= kept <= most


@pytest.mark.parametrize("codec", [KINDS["int8"], KINDS["int4"]], ids=["int8", "int4"])
def test_a_change_of_many_steps_is_rounded_to_nearest(codec: Codec) -> None:
    """Where dither has nothing to mend, it would only add noise."""
    _, columns, grid = quantized(codec, 64, True, 0)
    grid = replace(grid, scale=grid.scale * 1.01)  # so that columns do not lie near its codes
    columns = columns + product(2.0) * step_of(columns, grid, 64)
    near, random = (round_near(columns, 64, grid, seed) for seed in (None, 5))
    changed = (near != random).any(1)  # a few rows may chance to lie near codes
    assert changed.float().mean() < 0.25 < min(DITHERS)


@each_codec
@pytest.mark.parametrize("size", [0.05, 0.5])
def test_rounding_at_random_keeps_its_error_below_what_is_allowed(codec: Codec, size: float) -> None:
    _, columns, grid = quantized(codec, 64, True, 0)
    columns = columns + product(size) * step_of(columns, grid, 64)
    step, near = step_of(columns, grid, 64), restored(round_near(columns, 64, grid, None), grid, 64)
    off = restored(round_near(columns, 64, grid, 5), grid, 64) - columns
    inside = (near - columns).abs() <= 0.5 * step  # what is clipped is further away
    allowed = NOISE * step.square()
    assert off[inside].square().sum() <= 1.05 * allowed[inside].sum()


@each_codec
def test_the_same_seed_gives_the_same_codes(codec: Codec) -> None:
    _, columns, grid = quantized(codec, 32, True, 0)
    columns = columns + product(0.2) * step_of(columns, grid, 32)
    once, again, other = (requantize(columns, 32, codec, grid, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(once, again) and not torch.equal(once, other)


@each_codec
def test_a_change_that_widens_a_row_gets_a_wider_grid(codec: Codec) -> None:
    _, columns, grid = quantized(codec, 32, True, 0)
    wide = columns * torch.linspace(1, 4, 24)[:, None]
    codes, new = requantize(wide, 32, codec, grid, None)
    assert torch.equal(new.scale[0], grid.scale[0]) and (new.scale[-1] > 2 * grid.scale[-1]).all()
    off = (restored(codes, new, 32) - wide).square().sum(1) / wide.square().sum(1)
    assert off.max() < (1e-3 if codec.bits == 8 else 3e-2)
