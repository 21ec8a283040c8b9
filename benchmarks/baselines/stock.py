"""ComfyUI's stock W4A8 (`asym_w4a8_int8`): comfy-kitchen's own quantizer, without data, and its own linear in torch.

Columns are rotated, 256 wide where that divides; each group of 16 has an 8-bit scale, and codes point into a table of
16 levels. Tokens are rotated and have 8 bits.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor, nn

from qarvd.ops.split import ALIGNMENT
from qarvd.quantize.model import linear_groups

WIDTHS = (256, 64, 16)
"""Of the rotation: powers of 4."""


class StockLinear(nn.Module):
    """A linear in that format."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.kitchen: Any = import_module("comfy_kitchen")
        self.width = next(width for width in WIDTHS if linear.in_features % width == 0)
        weight = linear.weight.detach().float()
        codes, relative, channel, correction, table = self.kitchen.quantize_w4a8_int8_weight(
            weight, convrot_groupsize=self.width
        )
        self.parts, self.correction, self.bias = (codes, relative, channel, table), correction, linear.bias

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored, the bias apart."""
        return sum(part.nbytes for part in (*self.parts, self.correction) if part is not None)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        out = self.kitchen.w4a8_int8_linear(
            flat, *self.parts, self.correction, self.bias, convrot_groupsize=self.width, out_dtype=x.dtype
        )
        return out.unflatten(0, x.shape[:-1])


def quantize(tree: Any, num_layers: int) -> int:
    """Quantize the tree's linears in place; returns the bytes that they take."""
    stored = 0
    for name in (name for names in linear_groups(num_layers) for name in names):
        linear = tree.get_submodule(name)
        if linear.in_features % ALIGNMENT:
            stored += 2 * linear.weight.numel()
            continue
        made = StockLinear(linear)
        tree.set_submodule(name, made)
        stored += made.nbytes
    return stored
