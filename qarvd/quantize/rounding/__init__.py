"""Rounding methods, one a file: the name of the file is that of the method, its function is `ROUND`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from ...ops.weight import QuantizedWeight
from .task import Task

Round = Callable[[Task], QuantizedWeight]
"""Quantize one linear's weight."""

ROUNDING: dict[str, Round] = {
    name: import_module(f".{name}", __name__).ROUND
    for name in (module.name for module in iter_modules(__path__))
    if name != "task"
}
"""Every rounding method by name."""

__all__ = ["ROUNDING", "Round", "Task"]
