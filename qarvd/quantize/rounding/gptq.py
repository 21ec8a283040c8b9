"""GPTQ on the frame-weighted Hessian of what the layer will really read, then descent over codes and steps.

GPTQ is arXiv 2210.17323, here with several roundings kept (`lattice`). What it aims at is `Task.problem`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...errors import SettingError
from ...ops.weight import QuantizedWeight
from ..fit import fit_grid
from ..grid import Grid, assemble, floored, row_error
from ..groups import regroup, storable_row
from ..lattice import order_of, round_in_order
from .task import Task

KEPT = 32
"""Roundings of each row that are kept from column to column."""
BLOCK = 128
"""Columns whose changes are applied to the rest at once."""
ROUNDS = 2
"""Times that codes and then steps are improved after that."""
SWEEPS = 2
"""Passes over all columns each time."""


def ROUND(task: Task) -> QuantizedWeight:
    """Quantize against the inputs in `task.stats`. Raises SettingError without them."""
    target, hessian = task.in_order
    if hessian is None:
        raise SettingError("GPTQ needs the statistics of calibration; give prompts, or round to nearest.")
    n = task.split.n_outlier
    grid = fit_grid(target, n, task.codec, task.symmetric, hessian)
    codes = round_in_order(target, hessian, order_of(hessian), grid, n, KEPT)
    for _ in range(ROUNDS):
        codes = descend(codes, target, hessian, grid, n)
        grid = refit(codes, target, hessian, grid, n)
        if grid.groups is not None:
            codes, grid = regroup(codes, target, hessian, grid, n)
    codes = descend(codes, target, hessian, grid, n)
    return assemble(codes, grid, task.split, task.codec)


def descend(codes: Tensor, target: Tensor, hessian: Tensor, grid: Grid, n_outlier: int) -> Tensor:
    """Coordinate descent: move each code to where the error of its row is least, given all the others."""
    codes = codes.clone()
    scale, zero = grid.per_column(n_outlier, codes.shape[1])
    difference = scale * (codes - zero) - target  # [rows, in]
    for _ in range(SWEEPS):
        for start in range(0, codes.shape[1], BLOCK):
            span = slice(start, min(start + BLOCK, codes.shape[1]))
            slope = difference @ hessian[:, span]  # half the gradient
            local = hessian[span, span]
            for j in range(slope.shape[1]):
                column = start + j
                wanted = codes[:, column] - slope[:, j] / (local[j, j] * scale[:, column])
                moved = grid.nearest(wanted, column)
                step = (moved - codes[:, column]) * scale[:, column]
                codes[:, column] = moved
                difference[:, column] += step
                slope += torch.outer(step, local[j])
    return codes


def refit(codes: Tensor, target: Tensor, hessian: Tensor, grid: Grid, n_outlier: int) -> Grid:
    """The steps that leave each row the least error with its codes, by least squares over its two ranges."""
    _, zero = grid.per_column(n_outlier, codes.shape[1])
    levels = codes - zero
    parts = torch.stack([levels, levels])
    parts[0, :, n_outlier:] = 0
    parts[1, :, :n_outlier] = 0
    moved = (parts @ hessian).double()  # [2, rows, in]
    right = (moved * target).sum(2)  # [2, rows]
    if n_outlier:
        a, b, d = (moved[0] * parts[0]).sum(1), (moved[0] * parts[1]).sum(1), (moved[1] * parts[1]).sum(1)
        size = (a * d - b * b).clamp_min(1e-300)
        scale = torch.stack([(d * right[0] - b * right[1]) / size, (a * right[1] - b * right[0]) / size], dim=1)
    else:
        normal = right[1] / (moved[1] * parts[1]).sum(1).clamp_min(1e-300)
        scale = torch.stack([normal, normal], dim=1)
    # Where codes are all zero, or a step would turn negative, the old one stays.
    fine = torch.isfinite(scale) & (scale > grid.scale / 4) & (scale < grid.scale * 4)
    scale = torch.where(fine.all(1, keepdim=True), scale.to(grid.scale), grid.scale)
    fitted = floored(replace(grid, scale=scale if grid.groups is None else storable_row(scale)))
    old, new = (row_error(value(codes, g, n_outlier) - target, hessian) for g in (grid, fitted))
    return replace(grid, scale=torch.where((new < old)[:, None], fitted.scale, grid.scale))


def value(codes: Tensor, grid: Grid, n_outlier: int) -> Tensor:
    """The weights that codes stand for, [rows, in]."""
    scale, zero = grid.per_column(n_outlier, codes.shape[1])
    return scale * (codes - zero)
