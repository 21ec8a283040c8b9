"""The one way to run a quantized linear, and the module that does so."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import ShapeError
from ..files import home_folder, kernel_folder
from ..log import LOGGER, warn_once
from .backends import registry, weight_only
from .backends.base import Backend, quantize
from .backends.reference import REFERENCE
from .backends.weight_only import WEIGHT_ONLY
from .cuda import device
from .values import Prepared, QuantizedActivation
from .weight import QuantizedWeight


def run_linear(x: Tensor | QuantizedActivation, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """`F.linear` of tokens [..., in], or of what `share_input` made of them: [..., out] of the tokens' dtype.

    The first call prepares the weight, if `prepare` has not. Raises ShapeError for tokens of another width.
    """
    if x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"A linear of {weight.shape[1]} input channels can't take tokens of shape {tuple(x.shape)}.")
    prepared = prepare(weight)
    if isinstance(x, Tensor):
        return prepared.run(x, bias)
    assert prepared.run_quantized is not None, "tokens were shared with a linear that can't take them"
    return prepared.run_quantized(x, bias)


def share_input(x: Tensor, weights: Sequence[QuantizedWeight]) -> Tensor | QuantizedActivation:
    """`x` [..., in] quantized once for linears of all these weights, if that is possible and pays; else `x` itself."""
    every = [prepare(weight) for weight in weights]
    few = x.numel() <= max(prepared.few for prepared in every) * x.shape[-1]
    if few or any(w.split != weights[0].split for w in weights) or any(p.run_quantized is None for p in every):
        return x
    return quantize(x, weights[0], max(weight.guard for weight in weights))


def prepare(weight: QuantizedWeight, plainly: bool = False) -> Prepared:
    """Do now all that the first call would have to allocate or load.

    `plainly` takes the reference, which lays nothing out. While a graph is traced, or a card refuses for now, nothing
    is kept.
    """
    traced = torch.compiler.is_compiling()
    if weight.prepared is not None and (weight.prepared.traces or not traced):
        return weight.prepared
    if traced:
        return (REFERENCE if _calls_op(weight.codes.device) else WEIGHT_ONLY).prepare(weight)
    reason = None if plainly else registry.refused_for_now(weight)
    if reason:
        warn_once(f"Quantized linears are dequantized at every call, which is slow, until this has passed: {reason}.")
        return WEIGHT_ONLY.prepare(weight)
    backend = REFERENCE if plainly else registry.choose(weight)
    prepared = backend.prepare(weight)
    object.__setattr__(weight, "prepared", prepared)
    if not plainly:
        _tell(weight, backend)
    return prepared


@torch.compiler.assume_constant_result
def _calls_op(where: torch.device) -> bool:
    """`registry.calls_op`, decided while a graph is traced; what is slow is said once, as in `_tell`."""
    calls = registry.calls_op(where)
    if not calls:
        warn_once(weight_only.CAVEAT)
    return calls


def _tell(weight: QuantizedWeight, backend: Backend) -> None:
    (out, channels), where = weight.shape, weight.codes.device
    if LOGGER.isEnabledFor(logging.DEBUG):
        said = (channels, out, weight.codec.bits, where, backend.name, registry.why(weight))
        LOGGER.debug("%d -> %d, w%d, on %s: %s (%s)", *said)
    caveat = backend.caveat(weight)
    if caveat:
        warn_once(caveat)


def configure(environment: Mapping[str, str]) -> None:
    """Take from a process's environment what this folder goes by: a forced backend, and where a user's caches are.

    For whatever is called first: the command line, the nodes, the Python API. Raises SettingError for a backend that
    there is not.
    """
    device.keep_in(kernel_folder(sys.platform, environment, home_folder()))
    registry.force(environment.get(registry.VARIABLE))


_REMEMBERED: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By the tensor of codes, (weight, torch's count of changes of the codes in place); an entry goes with its tensor."""


def remembered(codes: Tensor, make: Callable[[Tensor], QuantizedWeight]) -> QuantizedWeight:
    """The weight whose codes are the tensor `codes`, for owners that keep tensors only, such as ComfyUI.

    `make` is given those codes at the first call, and after each change in place (which torch does not count in
    inference mode: see `forget`).
    """
    version = None if codes.is_inference() else codes._version
    found = _REMEMBERED.get(codes)
    if found is not None and found[1] == version:
        return found[0]
    weight = make(_alias(codes))
    _REMEMBERED[codes] = weight, version
    return weight


def forget() -> None:
    """Make every remembered weight anew: some was overwritten in place."""
    _REMEMBERED.clear()


def _alias(codes: Tensor) -> Tensor:
    """The same memory without a reference to the tensor, which else would keep its own entry alive."""
    return torch.empty(0, dtype=codes.dtype, device=codes.device).set_(
        codes.untyped_storage(), codes.storage_offset(), codes.shape, codes.stride()
    )


class QuantizedLinear(nn.Module):
    """`F.linear` on a QuantizedWeight, with activations quantized per token and range at each call.

    What it stores is the packed codes; what its backend lays out for itself (on a CPU a byte per code) comes on top.
    """

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def backend(self) -> Backend:
        """Who runs this layer where its weight lies."""
        return registry.choose(self.weight)

    def prepare(self) -> None:
        """Do now all that the first call would have to allocate or load."""
        prepare(self.weight)

    def share_input(self, x: Tensor, linears: Sequence[nn.Module]) -> Tensor | QuantizedActivation:
        """`x` quantized once for all of `linears`, if they are quantized with one split."""
        weights = [linear.weight for linear in linears if isinstance(linear, QuantizedLinear)]
        return x if len(weights) < len(linears) else share_input(x, weights)

    def forward(self, x: Tensor | QuantizedActivation) -> Tensor:
        return run_linear(x, self.weight, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Follow `.to(device)`; codes and scales keep their dtypes."""
        super()._apply(fn, recurse)
        self.weight = self.weight.to(fn(torch.empty(0, device=self.weight.codes.device)).device)
        return self

    def extra_repr(self) -> str:
        out, channels = self.weight.shape
        split = self.weight.split
        return f"{channels} -> {out}, {self.weight.codec.bits} bits, {split.n_outlier} outlier channels"
