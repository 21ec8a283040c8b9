"""Rounding methods, one a file: the name of the file is that of the method, its function is `ROUND`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from torch import Tensor

from ...ops.codecs import Codec
from ...ops.split import ChannelSplit
from ...ops.weight import QuantizedWeight

Round = Callable[[Tensor, ChannelSplit, Codec], QuantizedWeight]
"""Quantize a float weight [out, in] whose logical columns are split in two ranges."""

ROUNDING: dict[str, Round] = {
    name: import_module(f".{name}", __name__).ROUND for name in (module.name for module in iter_modules(__path__))
}
"""Every rounding method by name."""
