"""Round to nearest, with the clip of each row and range that leaves the least squared error in the weight."""

from __future__ import annotations

from ...ops.weight import QuantizedWeight
from ..grid import assemble, fit_grid, to_codes
from .task import Task


def ROUND(task: Task) -> QuantizedWeight:
    """Quantize without looking at the inputs."""
    split = task.split
    columns = task.weight.detach().float()[:, split.order.to(task.weight.device)]
    grid = fit_grid(columns, split.n_outlier, task.codec, task.symmetric)
    scale, zero = grid.per_column(split.n_outlier, split.channels)
    return assemble(to_codes(columns, scale, zero, grid.low, grid.high), grid, split, task.codec)
