"""Quantized linears for any ComfyUI: its `Linear`, subclassed, takes the tensors of our format as a file has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management as management
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..qarvd.checkpoint.quantized import GROUP_SCALE, MARKER, read_linear, write_linear
from ..qarvd.ops.linear import run_linear, share_input
from ..qarvd.ops.values import QuantizedActivation
from ..qarvd.ops.weight import QuantizedWeight
from ..qarvd.quantize.grid import assemble
from ..qarvd.quantize.merge import grid_of, round_near
from .side_branch import is_patched


def operations() -> Any:
    """A set of ComfyUI operations of its own for one model, whose linears may be quantized."""

    class Operations(comfy.ops.manual_cast):
        class Linear(HostedLinear):
            pass

    return Operations


class HostedLinear(comfy.ops.manual_cast.Linear):
    """ComfyUI's linear; `weight` holds packed codes where the file has them, so that offloading moves those.

    Scales, zero points, outliers and the format's marker are small buffers, so that its state dict is what a file
    holds.
    """

    quantized: QuantizedWeight | None = None
    """As loaded; codes of a patched model differ. None in full precision."""
    _placed: QuantizedWeight | None = None
    """`quantized` with the codes of `weight` where they are, as the last call found them."""

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if f"{prefix}{MARKER}" not in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        weight = read_linear(prefix[:-1], state_dict).ready_for(management.get_torch_device())
        bias = state_dict.get(f"{prefix}bias")
        self.quantized = weight
        self.weight = nn.Parameter(weight.codes, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        for key, tensor in write_linear("", weight):
            if key == f".{GROUP_SCALE}" and weight.group_scale is not None:
                tensor = weight.group_scale
            if key != ".weight":
                self.register_buffer(key[1:], tensor)

    def _apply(self, fn: Any, recurse: bool = True) -> HostedLinear:
        """Follow `.to(device)`: what was laid out for the old place is dropped."""
        self._placed = None
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor | QuantizedActivation, *args: Any, **kwargs: Any) -> Tensor:
        if self.quantized is None:
            return super().forward(x, *args, **kwargs)
        if self.weight_function or self.bias_function:  # a LoRA that ComfyUI adds while running
            return self._patched(x)
        device = _device(x)
        return run_linear(x, self.placed(device), None if self.bias is None else self.bias.to(device))

    def share_input(self, x: Tensor, linears: Sequence[nn.Module]) -> Tensor | QuantizedActivation:
        """`x` quantized once for all of `linears` that read it, where none of them is changed from outside."""
        plain = [
            linear
            for linear in linears
            if isinstance(linear, HostedLinear) and linear.quantized is not None and not is_patched(linear)
        ]
        if len(plain) < len(linears) or any(linear.weight_function or linear.bias_function for linear in plain):
            return x
        return share_input(x, [linear.placed(x.device) for linear in plain])

    def placed(self, device: torch.device) -> QuantizedWeight:
        """What is multiplied on `device`; kept for as long as the weight stays there."""
        if self.weight.device != device:
            return self._weight(self.weight.to(device))
        if self._placed is None or self._placed.codes.data_ptr() != self.weight.data_ptr():
            self._placed = self._weight(self.weight)  # ComfyUI puts another tensor in its place to add a LoRA
        return self._placed

    def _weight(self, codes: Tensor) -> QuantizedWeight:
        """This weight with other codes, where they are."""
        assert self.quantized is not None
        moved = self.quantized.to(codes.device)
        return replace(moved, codes=codes.detach())

    def _patched(self, x: Tensor | QuantizedActivation) -> Tensor:
        assert isinstance(x, Tensor)
        weight = self._weight(self.weight.to(x.device)).dequantize().to(x.dtype)
        for function in self.weight_function:
            weight = function(weight)
        bias = None if self.bias is None else self.bias.to(x)
        for function in self.bias_function if bias is not None else ():
            bias = function(bias)
        return F.linear(x, weight, bias)

    def convert_weight(self, weight: Tensor, inplace: bool = False, **_: Any) -> Tensor:
        """ComfyUI is about to add a LoRA to `weight`, which is the codes in float32: the floats they stand for."""
        return weight if self.quantized is None else self._weight(weight.to(self.weight.dtype)).dequantize()

    def set_weight(
        self,
        weight: Tensor,
        inplace_update: bool = False,
        seed: int | None = None,
        return_weight: bool = False,
        **_: Any,
    ) -> Tensor | None:
        """ComfyUI gives back the floats [out, in] with a LoRA added: round them to this layer's grid.

        Scales and outliers stay as they were calibrated. With a `seed`, changes smaller than a step have their effect
        in the mean.
        """
        if self.quantized is not None:
            weight = requantize(self._weight(self.weight.to(weight.device)), weight, seed)
        weight = weight.to(self.weight.dtype)
        if return_weight:
            return weight
        self._placed = None
        self.weight = nn.Parameter(weight, requires_grad=False)
        return None


def requantize(old: QuantizedWeight, weight: Tensor, seed: int | None) -> Tensor:
    """Packed codes of floats `weight` [out, in] on the grid of `old`."""
    columns = old.split.to_columns(weight.float())
    grid = grid_of(old)
    return assemble(round_near(columns, old.split.n_outlier, grid, seed), grid, old.split, old.codec).codes


def _device(x: Tensor | QuantizedActivation) -> torch.device:
    return x.device if isinstance(x, Tensor) else x.tokens.codes.device
