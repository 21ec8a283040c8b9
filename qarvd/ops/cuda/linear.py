"""The linear on NVIDIA cards, by our kernels: what `reference.dual_scale_linear` means, to the bit."""

from __future__ import annotations

from torch import Tensor

from ..backend import Backend, Run, prepare_op
from ..weight import QuantizedWeight
from . import device, kernels


def refuses(weight: QuantizedWeight) -> str | None:
    """Why the kernels can't run `weight`."""
    return kernels.refuses_bits(weight.codec.bits) or device.refuses(weight.codes.device)


def prepare(weight: QuantizedWeight, bias: Tensor | None) -> Run:
    """Load the kernels that calls will launch."""
    launcher = device.launcher(weight.codes.device)
    kernels.prepare_activation(launcher)
    kernels.prepare_linear(launcher, weight.codec.bits)
    return prepare_op(weight, bias)


CUDA = Backend("cuda", refuses, prepare)
