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
from .grid import Grid
from .rounding.task import factor

BLOCK = 32
"""Columns whose corrections are applied to the rest at once."""
ORDERED = 64
"""Steps in which columns are put in order."""
NUMBERS = 2**27
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
    rest = target[:, None].repeat(1, kept, 1)  # what the columns ahead are to be, for each of the roundings kept
    codes = target.new_zeros(rows, kept, columns)
    error = target.new_full((rows, kept), torch.inf)
    error[:, 0] = 0
    same = torch.arange(kept, device=device).expand(rows, kept)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        ahead, factors = rest[:, :, start:end].clone(), inverse[start:end, start:end]
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for j in range(end - start):
            column = start + j
            step, shift = scale[:, column, None], zero[:, column, None]
            both = torch.stack(grid.two_nearest(ahead[:, :, 0] / step + shift, places[column]), dim=2)
            off = (ahead[:, :, :1] - step[:, :, None] * (both - shift[:, :, None])) / factors[j, j]
            total = error[:, :, None] + off.square()
            total[:, :, 1].masked_fill_(both[:, :, 0] == both[:, :, 1], torch.inf)
            error, chosen = total.flatten(1).topk(kept, dim=1, largest=False)
            parent = chosen // 2
            code, off = both.flatten(1).gather(1, chosen), off.flatten(1).gather(1, chosen)
            steps.append((parent, code, off))
            ahead = ahead[:, :, 1:]
            if kept > 1:
                ahead = ahead.gather(1, parent[:, :, None].expand(-1, -1, ahead.shape[2]))
            ahead = ahead - off[:, :, None] * factors[j, j + 1 :]
        origin, errors = same, target.new_empty(rows, kept, end - start)
        made = torch.empty_like(errors)
        for j, (parent, code, off) in reversed(list(enumerate(steps))):
            made[:, :, j], errors[:, :, j] = code.gather(1, origin), off.gather(1, origin)
            origin = parent.gather(1, origin)
        if kept > 1:
            from_where = origin[:, :, None]
            rest = rest.gather(1, from_where.expand(rest.shape))
            codes = codes.gather(1, from_where.expand(codes.shape))
        codes[:, :, start:end] = made
        rest[:, :, end:] -= errors @ inverse[start:end, end:]
    return codes[:, 0]
