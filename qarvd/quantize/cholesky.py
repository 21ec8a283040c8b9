"""Cholesky factors of sums that rounding errors may have left indefinite."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CheckpointError

FLOOR = 1e-4
"""Share of the diagonal's mean that is added to it at least, for channels that are always zero."""


def factor(hessian: Tensor) -> Tensor:
    """Lower Cholesky factor of `hessian` [in, in], to whose diagonal as much is added, in place, as that takes.

    Where inputs hardly vary about a large mean, rounding errors in their sums can leave it indefinite. Raises
    CheckpointError where it is not finite.
    """
    mean = float(hessian.diagonal().mean().clamp_min(1e-30))
    if not torch.isfinite(hessian).all():
        raise CheckpointError("The squares of a layer's inputs overflow: the checkpoint or the prompts are damaged.")
    added, wanted = 0.0, FLOOR * mean
    while True:
        hessian.diagonal().add_(wanted - added)
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            return lower
        added, wanted = wanted, 10 * wanted
