"""AdaRound (arXiv 2004.10568) as Q-ARVD's released code sets it: learn, by gradient descent, which codes to round up.

Ours descends on the Hessian of `Task.problem` instead of on batches of activations. The published loss sums over the
tokens of a sample, which sets it against the regularisation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import SettingError
from ...ops.weight import QuantizedWeight
from ..fit import fit_grid
from ..grid import Grid, assemble
from .task import Task

ITERATIONS = 2000
RATE = 2e-3
REGULARISATION = 0.01
STRETCH = (-0.1, 1.1)
"""What the sigmoid is stretched to before it is cut to 0..1, so that both ends can be reached."""
SHARPNESS = (20.0, 2.0)
"""Exponent of the regularisation, which pulls every code to one of its neighbours, at first and in the end."""
WARM_UP = 0.2
"""Share of the iterations without regularisation."""


def ROUND(task: Task) -> QuantizedWeight:
    """Quantize against the inputs in `task.stats`. Raises SettingError without them."""
    target, hessian = task.in_order
    if hessian is None:
        raise SettingError("AdaRound needs the statistics of calibration; give prompts, or round to nearest.")
    if task.codec.group:
        raise SettingError("AdaRound chooses between whole numbers, which codes of groups are not; take gptq.")
    grid = fit_grid(target, task.split.n_outlier, task.codec, task.symmetric, hessian)

    def gradient(value: Tensor, iteration: int) -> Tensor:
        return (value - target) @ hessian * (2 * task.sample_tokens / len(target))

    codes = learn(target, grid, task.split.n_outlier, gradient)
    return assemble(codes, grid, task.split, task.codec)


@torch.no_grad()
def learn(
    target: Tensor,
    grid: Grid,
    n_outlier: int,
    gradient: Callable[[Tensor, int], Tensor],
    iterations: int = ITERATIONS,
) -> Tensor:
    """Codes [rows, in] next to `target` / scale that minimise a loss, columns in kernel order.

    `gradient(values, iteration)` is the loss's gradient with respect to the dequantized weights [rows, in], which lie
    between grid points while they are learned.
    """
    low, high = STRETCH
    scale, zero = grid.per_column(n_outlier, target.shape[1])
    down = (target / scale).floor()
    rest = target / scale - down
    alpha = -((high - low) / (rest - low) - 1).log()  # sigmoid(alpha), stretched, is what is added to the floor
    down += zero
    optimizer = torch.optim.Adam([alpha], RATE)
    for iteration in range(iterations):
        share = alpha.sigmoid()
        up = (share * (high - low) + low).clamp_(0, 1)
        code = down + up
        slope = gradient(scale * (code.clamp(grid.low, grid.high) - zero), iteration)
        slope = slope * scale * ((code >= grid.low) & (code <= grid.high))
        slope += _pull(up, iteration, iterations)
        alpha.grad = slope * (up > 0) * (up < 1) * (share * (1 - share) * (high - low))
        optimizer.step()
    return (down + (alpha >= 0)).clamp(grid.low, grid.high)


def _pull(up: Tensor, iteration: int, iterations: int) -> Tensor | float:
    """Gradient of the regularisation, sum of 1 - |2 up - 1|^b."""
    done = (iteration + 1) / iterations
    if done < WARM_UP:
        return 0.0
    first, last = SHARPNESS
    b = last + (first - last) * (1 - (done - WARM_UP) / (1 - WARM_UP))
    off = 2 * up - 1
    return off.sign() * off.abs().pow(b - 1) * (-2 * b * REGULARISATION)
