"""Who runs each op: the first backend that does not refuse, chosen before the first call.

Linears lay their weights out first, so each has a `Backend`. The other ops are dispatched by torch, by the device of
their tensors; what has no kernel of its own there runs as the reference says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import library
from .codecs import CODECS, Codec
from .cuda import device
from .split import ChannelSplit
from .weight import QuantizedWeight


class QuantizedActivation(NamedTuple):
    """Tokens quantized once for all linears that read them; see `reference.quantize_activation`."""

    codes: Tensor
    scale: Tensor
    sums: Tensor
    shape: torch.Size
    """Shape of the tokens before quantizing; the last axis is the input channels."""
    dtype: torch.dtype


Run = Callable[[Any], Tensor]
"""A prepared linear: quantized tokens -> [M, out]; or, of a backend that takes floats, [..., in] -> [..., out]."""


@dataclass(frozen=True)
class Backend:
    """One way to run the linear; all that allocates or loads happens in `prepare`."""

    name: str
    refuses: Callable[[QuantizedWeight], str | None]
    """Why it can't run this weight, or None."""
    prepare: Callable[[QuantizedWeight, Tensor | None], Run]
    takes_floats: bool = False
    """Whether it quantizes tokens itself, or not at all."""
    caveat: Callable[[QuantizedWeight], str | None] = lambda weight: None
    """What the user should be told once, such as that it will be slower than full precision."""


def prepare_op(weight: QuantizedWeight, bias: Tensor | None) -> Run:
    """The linear as torch dispatches it."""
    if bias is not None:
        bias = bias.float()

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
    prepare=prepare_op,
    caveat=lambda weight: "Quantized linears run in plain torch here, which is slower than full precision.",
)


def backends() -> tuple[Backend, ...]:
    """All that run linears, fastest first."""
    from .cpu import CPU
    from .cuda.linear import CUDA
    from .kitchen import KITCHEN
    from .weight_only import WEIGHT_ONLY

    return CPU, CUDA, KITCHEN, WEIGHT_ONLY, REFERENCE


def choose(weight: QuantizedWeight) -> Backend:
    """The fastest backend that runs `weight` where it lies."""
    return next(backend for backend in backends() if backend.refuses(weight) is None)


class Standing(NamedTuple):
    """Whether a backend runs an op."""

    backend: str
    refusal: str | None
    """Why not."""


REFERENCE_STANDING = Standing(REFERENCE.name, None)

_DISPATCHED: dict[str, Callable[[torch.device], str | None]] = {"cuda": device.refuses, "cpu": lambda where: None}
"""Kinds of device that ops may have kernels for, and why they can't run there."""


def who_runs(where: torch.device) -> dict[str, list[Standing]]:
    """Every op, and the standing of every backend for tensors on `where`, fastest first."""
    table = {"quantize_activation": _dispatched("quantize_activation", where)}
    for codec in CODECS.values():
        weight = _sample(codec).to(where)
        standings = [Standing(backend.name, backend.refuses(weight)) for backend in backends()]
        table[f"dual_scale_linear {codec.format.removeprefix('qarvd_')}"] = standings
    return table | {op: _dispatched(op, where) for op in ("kv_append", "kv_attention")}


def _dispatched(op: str, where: torch.device) -> list[Standing]:
    def refusal(kind: str, refuses: Callable[[torch.device], str | None]) -> str | None:
        if where.type != kind:
            return f"the tensors are on {where}"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"qarvd::{op}", kind.upper()):
            return "it has no kernel for this op"
        return refuses(where)

    return [*(Standing(kind, refusal(kind, refuses)) for kind, refuses in _DISPATCHED.items()), REFERENCE_STANDING]


def _sample(codec: Codec) -> QuantizedWeight:
    """A small weight with all that a linear can have."""
    split, zero = ChannelSplit.of(64, range(32)), torch.zeros(32, 2, dtype=torch.int8)
    return QuantizedWeight(codec, split, codec.pack(torch.zeros(32, 64, dtype=torch.int8)), torch.ones(32, 2), zero)
