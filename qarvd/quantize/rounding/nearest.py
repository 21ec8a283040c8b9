"""Round to nearest, with the clip of each row and range that leaves the least squared error.

It is the weight's error, or, with statistics, that of the output, and then `Task.problem`'s target is rounded.
"""

from __future__ import annotations

from ...ops.weight import QuantizedWeight
from ..fit import fit_grid
from ..grid import assemble
from .task import Task


def ROUND(task: Task) -> QuantizedWeight:
    """Quantize every weight by itself."""
    split = task.split
    columns, hessian = task.in_order
    grid = fit_grid(columns, split.n_outlier, task.codec, task.symmetric, hessian)
    scale, zero = grid.per_column(split.n_outlier, split.channels)
    return assemble(grid.all_nearest(columns / scale + zero), grid, split, task.codec)
