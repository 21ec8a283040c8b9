"""Who runs a quantized linear: the first backend that does not refuse, chosen before the first call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import library
from .weight import QuantizedWeight


class QuantizedActivation(NamedTuple):
    """Tokens quantized once for all linears that read them; see `reference.quantize_activation`."""

    codes: Tensor
    scale: Tensor
    sums: Tensor
    shape: torch.Size
    """Shape of the tokens before quantizing; the last axis is the input channels."""
    dtype: torch.dtype


Run = Callable[[QuantizedActivation], Tensor]
"""A prepared linear: quantized tokens -> [M, out]."""


@dataclass(frozen=True)
class Backend:
    """One way to run the linear; all that allocates or loads happens in `prepare`."""

    name: str
    refuses: Callable[[QuantizedWeight], str | None]
    """Why it can't run this weight, or None."""
    prepare: Callable[[QuantizedWeight, Tensor | None], Run]
    caveat: Callable[[QuantizedWeight], str | None] = lambda weight: None
    """What the user should be told once, such as that it will be slower than full precision."""


def _prepare_reference(weight: QuantizedWeight, bias: Tensor | None) -> Run:
    def run(x: QuantizedActivation) -> Tensor:
        return library.dual_scale_linear(
            x.codes,
            x.scale,
            x.sums,
            weight.codes,
            weight.scale,
            weight.zero,
            bias,
            weight.split.n_outlier,
            weight.codec.bits,
            x.dtype,
        )

    return run


REFERENCE = Backend(
    "reference",
    refuses=lambda weight: None,
    prepare=_prepare_reference,
    caveat=lambda weight: "Quantized linears run in plain torch here, which is slower than full precision.",
)


def choose(weight: QuantizedWeight) -> Backend:
    """The fastest backend that runs `weight` where it lies."""
    from .cpu import CPU

    return next(backend for backend in (CPU, REFERENCE) if backend.refuses(weight) is None)
