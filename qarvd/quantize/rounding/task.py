"""What a rounding method is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...calibrate.stats import LayerStats
from ...ops.codecs import Codec
from ...ops.split import ChannelSplit
from ..cholesky import factor

DAMPING = 0.02
"""Share of the Hessian's diagonal that is added to it; unlike a share of its mean, it treats a channel alike whatever
the scale of its activations."""
ENOUGH = 24
"""Clips from which on that is enough; of fewer, the inputs tell less of other clips' (docs/quality.md)."""


@dataclass(frozen=True)
class Task:
    """One linear to quantize."""

    weight: Tensor
    """[out, in], logical columns."""
    split: ChannelSplit
    codec: Codec
    symmetric: bool = True
    """Else codes use the whole range of their bits, with a zero point for each row and range."""
    stats: LayerStats | None = None
    """What is known of its inputs."""
    free_bias: bool = False
    """The layer's bias is corrected afterwards, so that the mean of the output is not the rounding's concern."""
    clips: int = ENOUGH
    """How many calibration clips the statistics are of."""
    sample_tokens: float = 1.0
    """Tokens of a calibration sample, what one model call reads of one clip; AdaRound's loss sums over them."""

    @property
    def damping(self) -> float:
        """Share of the Hessian's diagonal to add."""
        return DAMPING * max(1.0, ENOUGH / self.clips) ** 1.5

    @cached_property
    def problem(self) -> tuple[Tensor, Tensor]:
        """Target T [out, in] and damped Hessian H [in, in] of the least squares that V, quantized, should solve.

        The target is asymmetric: on the inputs x that the quantized model feeds it, the layer is to put out what the
        full-precision one puts out on its own inputs (arXiv 2504.02692). Minimising sum w |W x_full - V x|^2 over V is
        minimising (V - T) H (V - T)^T, with H = sum w x x^T, C = sum w (x_full - x) x^T and T = W + W C H^-1. Both are
        float32 and in logical order; damping draws T towards W, and gives channels that are always zero a say.
        """
        assert self.stats is not None
        hessian, cross = self.stats.moments(centred=self.free_bias)
        diagonal = hessian.diagonal()
        diagonal += self.damping * diagonal.clamp_min(0)
        weight = self.weight.detach().to(hessian.dtype)
        shift = torch.cholesky_solve((weight @ cross).T, factor(hessian)).T
        return (weight + shift).float(), hessian.float()

    @property
    def in_order(self) -> tuple[Tensor, Tensor | None]:
        """`problem` in kernel column order; without statistics the weight itself, float32, and None."""
        if self.stats is None:
            return self.split.to_columns(self.weight.detach().float()), None
        target, hessian = self.problem
        return self.split.to_columns(target), self.split.square_to_columns(hessian)
