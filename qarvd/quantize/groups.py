"""Scales of groups: how they are fitted to weights, and how they follow codes that are fitted to the inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..ops.codecs import Codec
from .grid import Grid, Groups, levels_of

ROUNDS = 3
"""Times that scales and codes are fitted to each other."""
NEIGHBOURS = (-1, 0, 1)
"""Which storable scales about the fitted one are tried, in steps of the format."""
STEPS = (-2, -1, 0, 1, 2)
TINY = 1e-12


def fit_groups(columns: Tensor, n_outlier: int, codec: Codec, weight: Tensor | None = None) -> Grid:
    """A grid of least squared error for `columns` [rows, in]; with `weight` [in], of each column's, weighted."""
    table = columns.new_tensor(codec.table)
    parts = []
    for span in (slice(0, n_outlier), slice(n_outlier, None)):
        if columns[:, span].shape[1]:
            parts.append(_fit(columns[:, span], codec.group, table, None if weight is None else weight[span]))
    scale = torch.stack([parts[0][0], parts[-1][0]], dim=1)
    groups = Groups(codec.group, torch.cat([part[1] for part in parts], dim=1), table)
    return Grid(codec.low, codec.high, scale, None, groups)


def _fit(columns: Tensor, size: int, table: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Row scales [rows] and relative ones [rows, groups] of one range."""
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
    return scale.clamp(2.0**-9, 448).to(torch.float8_e4m3fn).to(scale.dtype)


def neighbour(scale: Tensor, step: int) -> Tensor:
    """The storable scale that many steps above."""
    bits = scale.to(torch.float8_e4m3fn).view(torch.uint8).int() + step
    return bits.clamp(1, 0x7E).to(torch.uint8).view(torch.float8_e4m3fn).to(scale.dtype)


def regroup(codes: Tensor, target: Tensor, hessian: Tensor, grid: Grid, n_outlier: int) -> tuple[Tensor, Grid]:
    """Choose each group's scale anew, with the codes of its columns, where that lessens its row's error.

    Given all other columns, a group's error is a small least-squares problem: with each scale tried, its columns are
    rounded one after the other, each making up for those before.
    """
    assert grid.groups is not None
    size, relative, codes = grid.groups.size, grid.groups.scale.clone(), codes.clone()
    table, rows = grid.groups.table, len(codes)
    scale, _ = grid.per_column(n_outlier, codes.shape[1])
    difference = scale * codes - target
    for start in range(0, codes.shape[1], size):
        span, group = slice(start, start + size), start // size
        local, row = hessian[span, span], scale[:, start]
        lower = torch.linalg.cholesky(
            local + local.diagonal().mean() * 1e-6 * torch.eye(size, device=local.device, dtype=local.dtype)
        )
        slope = difference @ hessian[:, span]
        wanted = codes[:, span] - torch.cholesky_solve(slope.T, lower).T / row[:, None]  # [rows, size]
        # error of v is |(v - wanted) L|^2 with local = L L^T: columns from the last to the first
        tried = torch.cat([neighbour(relative[:, group], step) for step in STEPS])  # [tried * rows]
        levels = levels_of(table, tried)
        between = (levels[:, 1:] + levels[:, :-1]) / 2
        many = wanted.repeat(len(STEPS), 1)
        found, off = torch.empty_like(many), torch.zeros_like(many)
        for j in range(size - 1, -1, -1):
            aim = many[:, j] - (off[:, j + 1 :] @ (lower[j + 1 :, j] / lower[j, j]) if j + 1 < size else 0)
            found[:, j] = levels.gather(1, torch.searchsorted(between, aim[:, None].contiguous()))[:, 0]
            off[:, j] = found[:, j] - many[:, j]
        error = ((off @ lower).square().sum(1)).view(len(STEPS), rows)
        before = ((codes[:, span] - wanted) @ lower).square().sum(1)
        least, which = error.min(0)
        better = least < before * (1 - 1e-6)
        new = found.view(len(STEPS), rows, size)[which, torch.arange(rows, device=which.device)]
        moved = torch.where(better[:, None], new, codes[:, span])
        difference[:, span] += (moved - codes[:, span]) * row[:, None]
        codes[:, span] = moved
        chosen = tried.view(len(STEPS), rows).gather(0, which[None])[0]
        relative[:, group] = torch.where(better, chosen, relative[:, group])
    return codes, replace(grid, groups=Groups(size, relative, table))
