"""A linear layer that stores packed codes only and multiplies them as integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import ShapeError
from . import library
from .backend import Backend, QuantizedActivation, Run, choose
from .weight import QuantizedWeight
from .weight_only import FEW_TOKENS, WEIGHT_ONLY


class QuantizedLinear(nn.Module):
    """`F.linear` on a QuantizedWeight, with activations quantized per token and range at each call.

    What it stores is the packed codes; what its backend lays out for itself in `prepare` (on a CPU a byte per code)
    comes on top.
    """

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._order = _order(weight)
        self._of_codes: Run | None = None
        self._of_floats: Run | None = None

    @property
    def backend(self) -> Backend:
        """Who runs this layer where its weight lies."""
        return choose(self.weight)

    def prepare(self) -> None:
        """Do now all that the first call would have to allocate or load."""
        if self._of_codes is None and self._of_floats is None:
            backend = self.backend
            run = backend.prepare(self.weight, self.bias)
            if backend.takes_floats:
                self._of_floats = run
                return
            self._of_codes = run
            if WEIGHT_ONLY.refuses(self.weight) is None:
                self._of_floats = WEIGHT_ONLY.prepare(self.weight, self.bias)

    def _takes_floats(self, x: Tensor) -> bool:
        """Whether tokens `x` are multiplied as they are."""
        few = x.numel() <= FEW_TOKENS * x.shape[-1]
        return self._of_floats is not None and (few or self._of_codes is None)

    def quantize(self, x: Tensor, guard: float) -> QuantizedActivation:
        """Quantize `x` [..., in] for this layer, and for others with its split and at most this guard.

        Raises ShapeError for tokens of another width.
        """
        self._check(x)
        codes, scale, sums = library.quantize_activation(x, self._order, self.weight.split.n_outlier, guard)
        return QuantizedActivation(codes, scale, sums, x.shape, x.dtype)

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.weight.shape[1]:
            raise ShapeError(f"Tokens of shape {tuple(x.shape)} came to a linear of {self.weight.shape[1]} channels.")

    def share_input(self, x: Tensor, linears: Sequence[nn.Module]) -> Tensor | QuantizedActivation:
        """`x` quantized once for all of `linears`, where they are quantized with one split."""
        weights = [linear.weight for linear in linears if isinstance(linear, QuantizedLinear)]
        self.prepare()
        differ = len(weights) < len(linears) or any(w.split != self.weight.split for w in weights)
        if differ or self._takes_floats(x):
            return x
        return self.quantize(x, max(w.guard for w in weights))

    def forward(self, x: Tensor | QuantizedActivation) -> Tensor:
        self.prepare()
        if isinstance(x, Tensor):
            if self._takes_floats(x):
                assert self._of_floats is not None
                self._check(x)
                return self._of_floats(x)
            x = self.quantize(x, self.weight.guard)
        assert self._of_codes is not None
        return self._of_codes(x).view(*x.shape[:-1], self.weight.shape[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Follow `.to(device)`; codes and scales keep their dtypes."""
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self.weight.codes.device)).device
        self.weight, self._of_codes, self._of_floats = self.weight.to(device), None, None
        self._order = _order(self.weight)
        return self

    def extra_repr(self) -> str:
        out, channels = self.weight.shape
        split = self.weight.split
        return f"{channels} -> {out}, {self.weight.codec.bits} bits, {split.n_outlier} outlier channels"


def _order(weight: QuantizedWeight) -> Tensor | None:
    """The input channel of each column where the weight lies, in the integers that are gathered by there."""
    if not weight.split.n_outlier:
        return None
    wanted = torch.int32 if weight.codes.device.type == "cuda" else torch.int64
    return weight.split.order.to(weight.codes.device, wanted)
