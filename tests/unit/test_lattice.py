"""Rounding column by column: GPTQ with one rounding kept, and less error with more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qarvd.ops.codecs import CODECS
from qarvd.quantize import lattice
from qarvd.quantize.cholesky import FLOOR
from qarvd.quantize.fit import fit_grid
from qarvd.quantize.grid import Grid, row_error
from qarvd.quantize.lattice import order_of, round_in_order

laws = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**31)
GRIDS = {"int4": CODECS["int4"], "int4g16": CODECS["int4g16"], "int6g32": CODECS["int6g32"]}


def problem(seed: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A target [rows, columns] and a Hessian of inputs that are correlated."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    hessian = x.T @ x / len(x)
    hessian.diagonal().mul_(1.02)
    return torch.randn(rows, columns, generator=generator), hessian


def error(codes: Tensor, target: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    scale, zero = grid.per_column(0, target.shape[1])
    return row_error((scale * (codes - zero) - target).double(), hessian.double())


@laws
@given(seed=seeds, name=st.sampled_from(list(GRIDS)), symmetric=st.booleans())
def test_with_one_rounding_kept_it_is_gptq_as_published(seed: int, name: str, symmetric: bool) -> None:
    target, hessian = problem(seed, 7, 64)
    grid = fit_grid(target, 0, GRIDS[name], symmetric)
    scale, zero = grid.per_column(0, 64)
    order = hessian.diagonal().argsort(descending=True)
    damped = hessian.double()[order][:, order]
    damped.diagonal().add_(FLOOR * damped.diagonal().mean())
    inverse = torch.linalg.inv(damped)
    rest, expected = target.double()[:, order], torch.empty_like(target)
    for j, column in enumerate(order.tolist()):
        code = grid.nearest((rest[:, j] / scale[:, column] + zero[:, column]).float(), column)
        expected[:, column] = code
        off = (rest[:, j] - scale[:, column] * (code - zero[:, column])) / inverse[j, j]
        rest = rest - torch.outer(off, inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    found = round_in_order(target, hessian, order, grid, 0)
    assert (found == expected).all(1).sum() >= 5  # of 7 rows; float32 and float64 may part at a tie


def every_error(rest: Tensor, inverse: Tensor, places: list[int], grid: Grid) -> list[float]:
    """Errors of all roundings of one row [columns left] that round each column to either neighbour, by recursion."""
    if not places:
        return [0.0]
    column, found = places[0], []
    scale, zero = (float(t[0, column]) for t in grid.per_column(0, 6))
    for code in {float(c) for c in grid.two_nearest((rest[:1, None] / scale + zero).float(), column)}:
        off = (rest[0] - scale * (code - zero)) / inverse[0, 0]
        less = inverse[1:, 1:] - torch.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
        further = every_error(rest[1:] - off * inverse[0, 1:], less, places[1:], grid)
        found += [float(off * off * inverse[0, 0]) + more for more in further]
    return found


@laws
@given(seed=seeds)
def test_with_all_of_them_kept_the_best_of_all_pairs_of_neighbours_is_found(seed: int) -> None:
    target, hessian = problem(seed, 3, 6)
    grid, order = Grid(-3, 3, torch.full((3, 2), 0.4), None), order_of(hessian)
    found = error(round_in_order(target, hessian, order, grid, 0, kept=64), target, hessian, grid)
    inverse = torch.linalg.inv(hessian.double()[order][:, order])
    for row, least in enumerate(found.tolist()):
        every = every_error(target[row].double()[order], inverse, order.tolist(), grid)
        assert least == pytest.approx(min(every), rel=1e-3)


@pytest.mark.parametrize("name", GRIDS)
def test_more_kept_have_less_error(name: str) -> None:
    target, hessian = problem(0, 64, 64)
    grid, order = fit_grid(target, 0, GRIDS[name], False), order_of(hessian)
    errors = [
        error(round_in_order(target, hessian, order, grid, 0, kept), target, hessian, grid).mean()
        for kept in (1, 4, 16)
    ]
    assert errors[1] < 0.95 * errors[0] and errors[2] < 0.98 * errors[1]
    assert all((grid.all_nearest(c) == c).all() for c in [round_in_order(target, hessian, order, grid, 0, 4)])


def test_rows_in_pieces_are_rounded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    target, hessian = problem(1, 24, 64)
    grid, order = fit_grid(target, 0, CODECS["int4g16"], False), order_of(hessian)
    whole = round_in_order(target, hessian, order, grid, 0, 4)
    monkeypatch.setattr(lattice, "NUMBERS", 5 * 4 * 64)
    assert (round_in_order(target, hessian, order, grid, 0, 4) != whole).float().mean() < 0.01


@laws
@given(seed=seeds, columns=st.sampled_from([5, 32, 64]))
def test_of_the_columns_left_the_one_that_varies_least_beside_them_comes_last(seed: int, columns: int) -> None:
    hessian = problem(seed, 1, columns)[1].double()
    order = order_of(hessian)
    assert sorted(order.tolist()) == list(range(columns))
    left = list(range(columns))
    for column in reversed(order.tolist()):
        taken = [c for c in range(columns) if c not in left]
        beside = hessian - hessian[:, taken] @ torch.linalg.solve(hessian[taken][:, taken], hessian[taken])
        least = min(left, key=lambda c: float(beside[c, c]))
        assert float(beside[column, column]) <= 1.01 * float(beside[least, least])
        left.remove(column)


def test_that_order_loses_less_than_the_loudest_column_first() -> None:
    sums = [0.0, 0.0]
    for seed in range(4):
        target, hessian = problem(seed, 32, 192)
        grid = fit_grid(target, 0, CODECS["int4"], False)
        for i, order in enumerate((order_of(hessian), hessian.diagonal().argsort(descending=True))):
            sums[i] += float(error(round_in_order(target, hessian, order, grid, 0), target, hessian, grid).mean())
    assert sums[0] < 0.99 * sums[1]
