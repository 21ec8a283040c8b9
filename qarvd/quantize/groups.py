"""Scales of groups: how they are fitted to weights, and how they follow codes that are fitted to the inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..float64 import to_float8
from ..ops.codecs import Codec
from ..ops.weight import LEAST_RATIO
from .grid import Grid, Groups, levels_of

ROUNDS = 3
"""Times that scales and codes are fitted to each other."""
NEIGHBOURS = (-1, 0, 1)
"""Which storable scales about the fitted one are tried, in steps of the format."""
STEPS = (-2, -1, 0, 1, 2)
"""The same, about a scale whose codes are fitted to the inputs."""
TINY = 1e-12


def fit_groups(columns: Tensor, n_outlier: int, codec: Codec, weight: Tensor | None = None) -> Grid:
    """A grid of least squared error for `columns` [rows, in]; with `weight` [in], of each column's, weighted."""
    table = torch.tensor(codec.table).to(columns)
    parts: list[tuple[Tensor, Tensor]] = []
    for span in (slice(0, n_outlier), slice(n_outlier, None)):
        if columns[:, span].shape[1]:
            least = parts[0][0] * LEAST_RATIO if parts else None
            parts.append(_fit(columns[:, span], codec.group, table, None if weight is None else weight[span], least))
    scale = torch.stack([parts[0][0], parts[-1][0]], dim=1)
    groups = Groups(codec.group, torch.cat([part[1] for part in parts], dim=1), table)
    return Grid(codec.low, codec.high, scale, None, groups)


def _fit(
    columns: Tensor, size: int, table: Tensor, weight: Tensor | None, least_row: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Row scales [rows], at least `least_row` if there is one, and relative ones [rows, groups] of one range."""
    x = columns.unflatten(1, (-1, size))
    w = None if weight is None else weight.view(-1, size)
    scale = (x.abs().amax(2) / table.abs().max()).clamp_min(TINY)
    between = (table[1:] + table[:-1]) / 2
    for _ in range(ROUNDS):
        level = table[torch.bucketize(x / scale.unsqueeze(2), between)]
        weighted = level if w is None else level * w
        scale = ((x * weighted).sum(2) / (level * weighted).sum(2).clamp_min(TINY)).clamp_min(TINY)
    level = table[torch.bucketize(x / scale.unsqueeze(2), between)]
    row = storable_row((scale.unsqueeze(2) * level).abs().amax((1, 2)) / 127)
    row = row if least_row is None else torch.maximum(row, least_row)
    relative = storable(scale / row[:, None])
    best, least = relative, torch.full_like(relative, torch.inf)
    place = x / row[:, None, None]
    for step in NEIGHBOURS:
        tried = neighbour(relative, step)
        levels = levels_of(table, tried)
        found = torch.searchsorted((levels[..., 1:] + levels[..., :-1]) / 2, place)
        off = (levels.gather(2, found) - place).square()
        error = (off if w is None else off * w).sum(2)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return row, best


def storable_row(scale: Tensor) -> Tensor:
    """Row scales as the file holds them beside those of groups: bfloat16 numbers above 0."""
    return scale.clamp_min(TINY).bfloat16().to(scale.dtype)


def storable(scale: Tensor) -> Tensor:
    """Scales of groups as the file holds them: float8_e4m3fn numbers above 0."""
    return to_float8(scale.clamp(2.0**-9, 448)).float().to(scale)


def neighbour(scale: Tensor, step: int) -> Tensor:
    """The storable scale that many steps above."""
    bits = to_float8(scale).view(torch.uint8).int() + step
    return bits.clamp(1, 0x7E).to(torch.uint8).view(torch.float8_e4m3fn).float().to(scale)


def regroup(codes: Tensor, target: Tensor, hessian: Tensor, grid: Grid, n_outlier: int) -> tuple[Tensor, Grid]:
    """Choose each group's scale anew, with the codes of its columns, where that lessens its row's error.

    Given all other columns, a group's error is a small least-squares problem: its codes c leave |(c - best) L|^2 more
    than the float ones of least error, L being the Cholesky factor of the group's part of the Hessian.
    """
    assert grid.groups is not None
    size, table, relative = grid.groups.size, grid.groups.table, grid.groups.scale.clone()
    codes, rows = codes.clone(), torch.arange(len(codes), device=codes.device)
    scale, _ = grid.per_column(n_outlier, codes.shape[1])
    difference = scale * codes - target
    for start in range(0, codes.shape[1], size):
        span, group, row = slice(start, start + size), start // size, scale[:, start : start + 1]
        lower = _factor(hessian[span, span])
        slope = difference @ hessian[:, span]  # half the gradient
        best = codes[:, span] - torch.cholesky_solve(slope.T, lower).T / row  # [rows, size]
        tried = torch.stack([neighbour(relative[:, group], step) for step in STEPS])  # [tried, rows]
        found = _round_in_turn(best, lower, levels_of(table, tried))  # [tried, rows, size]
        error, which = _excess(found - best, lower).min(0)
        better = error < _excess(codes[:, span] - best, lower) * (1 - 1e-6)
        moved = torch.where(better[:, None], found[which, rows], codes[:, span])
        difference[:, span] += (moved - codes[:, span]) * row
        codes[:, span] = moved
        relative[:, group] = torch.where(better, tried[which, rows], relative[:, group])
    return codes, replace(grid, groups=Groups(size, relative, table))


def _factor(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor of a part of a damped Hessian."""
    slack = 1e-6 * matrix.diagonal().mean()
    return torch.linalg.cholesky(matrix + slack * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


def _excess(off: Tensor, lower: Tensor) -> Tensor:
    """|off L|^2 of `off` [..., size]."""
    return (off @ lower).square().sum(-1)


def _round_in_turn(best: Tensor, lower: Tensor, levels: Tensor) -> Tensor:
    """Codes among `levels` [tried, rows, 2^bits] near `best` [rows, size], each making up for those before it.

    The last column comes first: with L lower triangular, what it leaves others can still make up for.
    """
    between = (levels[..., 1:] + levels[..., :-1]) / 2
    found = best.repeat(len(levels), 1, 1)  # [tried, rows, size]
    off = torch.zeros_like(found)
    for j in range(best.shape[1] - 1, -1, -1):
        aim = best[:, j] - off[..., j + 1 :] @ (lower[j + 1 :, j] / lower[j, j])
        place = torch.searchsorted(between, aim.unsqueeze(-1).contiguous())
        found[..., j] = levels.gather(-1, place).squeeze(-1)
        off[..., j] = found[..., j] - best[:, j]
    return found
