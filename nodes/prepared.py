"""Linears on a CPU whose weights ComfyUI owns: each is laid out once for the library's fastest backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..qarvd.ops.backend import Backend, QuantizedActivation, Run, choose
from ..qarvd.ops.codecs import Codec
from ..qarvd.ops.split import ChannelSplit
from ..qarvd.ops.weight import QuantizedWeight
from .log import warn_once


class _Prepared(NamedTuple):
    run: Run
    version: int | None
    """torch's count of changes of the codes in place; None where it keeps none (inference mode)."""


_PREPARED: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By the tensor of codes; an entry goes with its tensor."""


def prepared(codes: Tensor, scale: Tensor, zero: Tensor | None, outliers: Tensor, codec: Codec) -> Run:
    """The linear without its bias, from quantized tokens; tensors as in QuantizedWeight, `outliers` their channels."""
    found = _PREPARED.get(codes)
    if found is None or found.version != _version(codes):
        split = ChannelSplit(codes.shape[1] * 8 // codec.bits, tuple(outliers.tolist()))
        return lay_out(codes, QuantizedWeight(codec, split, _alias(codes), scale, zero))
    return found.run


def lay_out(codes: Tensor, weight: QuantizedWeight, backend: Backend | None = None) -> Run:
    """Have `backend`, or the fastest there is, run the linear whose codes are the tensor `codes`, from now on."""
    chosen = backend or choose(weight)
    if backend is None and (caveat := chosen.caveat(weight)):
        warn_once(caveat)
    run = chosen.prepare(weight, None)
    _PREPARED[codes] = _Prepared(run, _version(codes))
    return run


def forget() -> None:
    """Lay everything out anew: some weight was overwritten in place."""
    _PREPARED.clear()


def finish(run: Run, x: QuantizedActivation, bias: Tensor | None) -> Tensor:
    """Run a prepared linear and add its bias in float32, as backends do that were given it."""
    out = run(x._replace(dtype=torch.float32))
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype).view(*x.shape[:-1], -1)


def _version(codes: Tensor) -> int | None:
    return None if codes.is_inference() else codes._version


def _alias(codes: Tensor) -> Tensor:
    """The same memory without a reference to the tensor, which else would keep its own entry alive."""
    return torch.empty(0, dtype=codes.dtype).set_(
        codes.untyped_storage(), codes.storage_offset(), codes.shape, codes.stride()
    )
