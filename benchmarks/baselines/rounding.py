"""How baselines round: to nearest, or by GPTQ (arXiv 2210.17323), on inputs that may be transformed first."""

from __future__ import annotations

import torch
from torch import Tensor

from qarvd.calibrate.stats import LayerStats
from qarvd.ops.codecs import codec_of
from qarvd.ops.split import ChannelSplit
from qarvd.ops.weight import QuantizedWeight
from qarvd.quantize.fit import fit_grid
from qarvd.quantize.grid import assemble
from qarvd.quantize.lattice import round_in_order
from qarvd.quantize.rounding import ROUNDING, Task


def plain_gptq(task: Task) -> QuantizedWeight:
    """One pass, the clip of each row by the error of the weight, nothing afterwards."""
    target, hessian = task.in_order
    assert hessian is not None
    grid = fit_grid(target, task.split.n_outlier, task.codec, task.symmetric)
    order = hessian.diagonal().argsort(descending=True)
    codes = round_in_order(target, hessian, order, grid, task.split.n_outlier)
    return assemble(codes, grid, task.split, task.codec)


def rounded(weight: Tensor, split: ChannelSplit, bits: int, gram: Tensor | None = None) -> Tensor:
    """`weight` [out, in] as `bits` leave it: to nearest, or by GPTQ where the inputs' `gram` [in, in] is known."""
    task = Task(weight, split, codec_of(bits), symmetric=False, stats=None if gram is None else _stats(gram))
    return (ROUNDING["nearest"] if gram is None else plain_gptq)(task).dequantize()


def gram_of(x: Tensor) -> Tensor:
    """Second moments of inputs [..., in]: [in, in]."""
    flat = x.flatten(0, -2)
    return flat.T @ flat / len(flat)


def _stats(gram: Tensor) -> LayerStats:
    none, zero = torch.zeros(0), torch.zeros(len(gram), dtype=torch.float64)
    return LayerStats(1.0, gram, torch.zeros_like(gram), zero, zero, gram[:0], none, none.double())
