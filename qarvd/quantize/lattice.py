"""Round the rows of a weight so that their outputs change least, column by column.

That is a search for the nearest point of a lattice. GPTQ (arXiv 2210.17323) rounds each column once and has those that
follow make up for its error, which is Babai's walk through the lattice. Here several roundings of each row are kept
until the end, the best of those that round the next column to either of two neighbours (K-best decoding, as in the
detection of signals: Guo and Nilsson 2006).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..calibrate.stats import WIDE
from .cholesky import factor
from .grid import Grid

BLOCK = 16
"""Columns whose corrections are applied to the rest at once."""
ORDERED = 64
"""Steps in which columns are put in order."""
NUMBERS = 120_000_000
"""How many are held at a time: rows are independent, and are searched in pieces."""


def order_of(hessian: Tensor) -> Tensor:
    """Columns in the order of rounding: those come last that vary least beside the ones that come after them.

    What is rounded last has the fewest left to make up for it. (Sorted QR of V-BLAST receivers, several at a time.)
    """
    rest = hessian.double() if len(hessian) <= WIDE else hessian.clone()
    left = torch.arange(len(hessian), device=hessian.device)
    backwards = []
    while len(left):
        ascending = rest.diagonal().argsort()
        last, others = ascending.split([some := min(-(-len(hessian) // ORDERED), len(left)), len(left) - some])
        backwards.append(left[last])
        lower = factor(rest[last][:, last])
        shared = torch.linalg.solve_triangular(lower, rest[last][:, others], upper=False)
        rest, left = rest[others][:, others] - shared.T @ shared, left[others]
    return torch.cat(backwards).flip(0)


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse, [in, in]; computed in float64 where that does not take gigabytes.

    `hessian` is changed where it needs damping.
    """
    precise = hessian.double() if len(hessian) <= WIDE else hessian
    return torch.linalg.cholesky(torch.cholesky_inverse(factor(precise)), upper=True).to(hessian.dtype)


def round_in_order(target: Tensor, hessian: Tensor, order: Tensor, grid: Grid, n_outlier: int, kept: int = 1) -> Tensor:
    """Codes [rows, in] of `target`, columns rounded in that order; with one rounding `kept`, as GPTQ does it."""
    inverse, places = inverse_factor(hessian[order][:, order]), order.tolist()
    pieces = torch.arange(len(target), device=target.device).split(max(1, NUMBERS // (kept * len(order))))
    logical = torch.empty_like(target)
    for rows in pieces:
        some = grid.of_rows(rows)
        scale, zero = (t[:, order] for t in some.per_column(n_outlier, len(order)))
        logical[rows[:, None], order] = _search(target[rows][:, order], inverse, some, scale, zero, places, kept)
    return logical


def _search(
    target: Tensor, inverse: Tensor, grid: Grid, scale: Tensor, zero: Tensor, places: Sequence[int], kept: int
) -> Tensor:
    """Codes of least error found, [rows, in], columns in the order of rounding."""
    (rows, columns), device = target.shape, target.device
    first = torch.arange(rows, device=device)[:, None] * kept  # where a row's roundings begin among all of them
    rest = target.repeat_interleave(kept, dim=0)  # [rows * kept, in], what the columns ahead are to be
    error = target.new_full((rows, kept), torch.inf)
    error[:, 0] = 0
    parents, codes = [], []  # of each column, [rows, kept], as small as they can be held
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        ahead, factors = rest[:, start:end], inverse[start:end, start:end]
        steps: list[tuple[Tensor, Tensor]] = []
        for j in range(end - start):
            step, shift = scale[:, start + j, None], zero[:, start + j, None]
            wanted = ahead[:, 0].view(rows, kept)
            near, far = grid.two_nearest(wanted / step + shift, places[start + j])
            code = torch.cat([near, far], dim=1)
            off = (wanted.repeat(1, 2) - step * (code - shift)) / factors[j, j]  # [rows, 2 * kept]
            total = error.repeat(1, 2) + off.square()
            total[:, kept:].masked_fill_(near == far, torch.inf)
            error, chosen = total.topk(kept, dim=1, largest=False, sorted=False)
            which, off = chosen % kept, off.gather(1, chosen).flatten()
            parents.append(which.short())
            codes.append(code.gather(1, chosen).char())
            parent = (first + which).flatten()
            steps.append((parent, off))
            ahead = ahead[:, 1:].index_select(0, parent).addr_(off, factors[j, j + 1 :], alpha=-1)
        origin = torch.arange(rows * kept, device=device)
        errors = target.new_empty(rows * kept, end - start)
        for j, (parent, off) in reversed(list(enumerate(steps))):
            errors[:, j] = off[origin]
            origin = parent[origin]
        if end < columns:
            rest[:, end:] = rest[:, end:].index_select(0, origin).addmm_(errors, inverse[start:end, end:], alpha=-1)
    best, made = error.argmin(1, keepdim=True), torch.empty_like(target)
    for column in reversed(range(columns)):
        made[:, column] = codes[column].gather(1, best)[:, 0].to(made.dtype)
        best = parents[column].gather(1, best).long()
    return made
