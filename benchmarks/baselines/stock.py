"""ComfyUI's stock formats: comfy-kitchen's own quantizer, without data, and its own linear, in torch on a CPU.

Columns are rotated, 256 wide where that divides. `asym_w4a8_int8` has an 8-bit scale for each group of 16 and, with 4
bits, a table of 16 levels; tokens have 8 bits. In `convrot_w4a4` they have 4.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from qarvd.ops.split import ALIGNMENT
from qarvd.quantize.model import linear_groups
from qarvd.recipe import POWERS_OF_4

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "w4a8": ("AsymW4A8Int8Layout", {"convrot_groupsize": True}),
    "w6a8": ("AsymW4A8Int8Layout", {"convrot_groupsize": True, "bits": 6}),
    "w8a8": ("TensorWiseINT8Layout", {"convrot_groupsize": True, "per_channel": True, "convrot": True}),
    "w8a8_plain": ("TensorWiseINT8Layout", {"per_channel": True}),
    "w4a4": ("TensorCoreConvRotW4A4Layout", {"convrot_groupsize": True}),
}
"""Layouts, and what they are asked for; True stands for the width of the rotation."""


class StockLinear(nn.Module):
    """A linear in one of those forms."""

    def __init__(self, linear: nn.Linear, form: str) -> None:
        super().__init__()
        layout, options = FORMS[form]
        width = next(width for width in reversed(POWERS_OF_4) if linear.in_features % width == 0)
        options = {key: width if key == "convrot_groupsize" else value for key, value in options.items()}
        kitchen: Any = import_module("comfy_kitchen.tensor")
        self.held = kitchen.QuantizedTensor.from_float(linear.weight.detach().float(), layout, **options)
        self.bias = linear.bias

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored, the bias apart."""
        return sum(part.nbytes for part in self.held.state_dict("weight").values())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(0, -2), self.held, self.bias).unflatten(0, x.shape[:-1])


def quantize(tree: Any, num_layers: int, form: str) -> int:
    """Quantize the tree's linears in place; returns the bytes that they take."""
    stored = 0
    for name in (name for names in linear_groups(num_layers) for name in names):
        linear = tree.get_submodule(name)
        if linear.in_features % ALIGNMENT:
            stored += 2 * linear.weight.numel()
            continue
        made = StockLinear(linear, form)
        tree.set_submodule(name, made)
        stored += made.nbytes
    return stored
