"""Our formats as comfy-kitchen layouts, so that ComfyUI's own linears hold, move, patch and run them.

Needs comfy-kitchen: `layout.py` imports this where it is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from comfy_kitchen.tensor import (
    BaseLayoutParams,
    QuantizedLayout,
    QuantizedTensor,
    dequantize_args,
    register_layout_class,
    register_layout_op,
)
from torch import Tensor

from ..qarvd.checkpoint.quantized import FORMATS, stored_parts
from ..qarvd.ops.codecs import Codec
from ..qarvd.ops.linear import forget, remembered, run_linear
from ..qarvd.ops.split import ChannelSplit
from ..qarvd.ops.weight import QuantizedWeight
from ..qarvd.quantize.grid import assemble
from ..qarvd.quantize.merge import grid_of, requantize
from ..qarvd.quantize.outliers import published_split
from ..qarvd.quantize.rounding.nearest import ROUND
from ..qarvd.quantize.rounding.task import Task
from ..qarvd.recipe import ROTATIONS


class DualScaleLayout(QuantizedLayout):
    """Codes in kernel column order, with two scales a row (docs/format.md); the logical shape is [out, in]."""

    CODEC: Codec

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """What goes with the codes; `scale` is float32 [out, 2]. All plain values are derived once, when loading."""

        outlier_idx: Tensor
        """int32 [n_outlier], ascending."""
        order: Tensor | None
        """See QuantizedWeight.order."""
        zero: Tensor | None
        """int8 [out, 2]."""
        split: ChannelSplit
        guard: float
        """See QuantizedWeight.guard."""
        group_scale: Tensor | None = None
        """float8_e4m3fn or float32 [out, in / group]."""
        table: Tensor | None = None
        """float32 [2^bits]."""
        transposed: bool = False

        def _tensor_fields(self) -> list[str]:
            every = ("scale", "outlier_idx", "order", "zero", "group_scale", "table")
            return [name for name in every if getattr(self, name) is not None]

        def copy_from(self, src: Any, non_blocking: bool = False) -> None:
            super().copy_from(src, non_blocking)
            forget()

    @classmethod
    def params_of(cls, weight: QuantizedWeight, dtype: torch.dtype, where: torch.device | str | None) -> Params:
        """What goes with the codes of `weight`, on the device `where`."""

        def placed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(where)

        return cls.Params(
            scale=weight.scale.to(where),
            orig_dtype=dtype,
            orig_shape=weight.shape,
            outlier_idx=torch.tensor(weight.split.outliers, dtype=torch.int32).to(where),
            order=placed(weight.order),
            zero=placed(weight.zero),
            split=weight.split,
            guard=weight.guard,
            group_scale=placed(weight.group_scale),
            table=placed(weight.table),
        )

    @classmethod
    def quantize(
        cls,
        tensor: Tensor,
        scale: Tensor | str | None = None,
        stochastic_rounding: int | None = 0,
        inplace_ops: bool = False,
        like: Params | None = None,
        **_: Any,
    ) -> tuple[Tensor, Params]:
        """Quantize `tensor` [out, in], like a weight of which it is a changed version, or without knowing any.

        `scale` is always fitted: ComfyUI asks for "recalculate". `stochastic_rounding` is a seed (0: to nearest), of
        which `requantize` makes use as far as it helps. `inplace_ops` would allow to overwrite `tensor`, which a
        permuted copy has no use for.
        """
        if like is None:
            split = published_split(tensor)
            if cls.CODEC.group:  # a table of levels is for rotated weights
                split = replace(split, rotation=ROTATIONS[-1])
            weight = ROUND(Task(tensor, split, cls.CODEC))
            return weight.codes, cls.params_of(weight, tensor.dtype, tensor.device)
        near = cast(Any, like).to_device(tensor.device)
        stored = tensor.new_empty(tensor.shape[0], tensor.shape[1] * cls.CODEC.bits // 8, dtype=cls.CODEC.stored)
        old = cls.weight_of(stored, near)
        columns, n_outlier = near.split.to_columns(tensor.float()), near.split.n_outlier
        codes, grid = requantize(columns, n_outlier, cls.CODEC, grid_of(old), stochastic_rounding)
        made = assemble(codes, grid, near.split, cls.CODEC)
        return made.codes, cls.params_of(made, tensor.dtype, tensor.device)

    @classmethod
    def requantize_kwargs(cls, qtensor: Any) -> dict[str, Any]:
        """A patched weight keeps its outlier channels, and zero points if it has any."""
        return {"like": qtensor._params}

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        """[out, in] in the logical column order, also of a transposed weight."""
        return cls.weight_of(qdata, params).dequantize().to(params.orig_dtype)

    @classmethod
    def weight_of(cls, qdata: Tensor, params: Params) -> QuantizedWeight:
        """The library's weight that shares these tensors."""
        return QuantizedWeight(
            cls.CODEC,
            params.split,
            qdata,
            params.scale,
            params.zero,
            params.group_scale,
            params.table,
            order=params.order,
            guard=params.guard,
        )

    @classmethod
    def get_plain_tensors(cls, qtensor: Any) -> tuple[Tensor, ...]:
        params = qtensor._params
        return qtensor._qdata, *(getattr(params, name) for name in params._tensor_fields())

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        """The format's tensors by the ends of their names; the marker is ComfyUI's to write."""
        parts = stored_parts(cls.weight_of(qdata, params))
        return {part.removeprefix("weight"): tensor for part, tensor in parts.items()}

    @classmethod
    def get_logical_shape_from_storage(cls, storage_shape: tuple[int, ...]) -> tuple[int, ...]:
        """[out, in] of codes stored as `storage_shape`."""
        out, stored = storage_shape
        return out, stored * 8 // cls.CODEC.bits


LAYOUTS: dict[str, type[DualScaleLayout]] = {
    name: type(f"Qarvd{name.removeprefix('qarvd_').upper()}Layout", (DualScaleLayout,), {"CODEC": codec})
    for name, codec in FORMATS.items()
}
"""By the name of the format."""
NAMES = {layout.__name__ for layout in LAYOUTS.values()}


def register_layouts() -> None:
    """Tell comfy-kitchen; a second time, or by a second copy of this pack, replaces the first by its like."""
    for layout in LAYOUTS.values():
        register_layout_class(layout.__name__, layout)
    aten = torch.ops.aten
    for op, run in ((aten.t, _transpose), (aten.linear, _linear), (aten.addmm, _addmm), (aten.mm, _mm)):
        register_layout_op(op.default, DualScaleLayout)(run)


def _transpose(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight = args[0]
    shape = weight._params.orig_shape
    params = replace(weight._params, orig_shape=shape[::-1], transposed=not weight._params.transposed)
    return QuantizedTensor(weight._qdata, weight._layout_cls, params)


def _linear(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x, weight, bias = (*args, None)[:3]
    if kwargs or not _is_ours(weight, transposed=False):
        return F.linear(*_plain(args), **_plain(kwargs))
    return multiply(x, weight, bias)


def _addmm(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    bias, x, weight = args
    if kwargs or bias.ndim != 1 or not _is_ours(weight, transposed=True):
        return torch.addmm(*_plain(args), **_plain(kwargs))
    return multiply(x, weight, bias)


def _mm(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x, weight = args
    if kwargs or not _is_ours(weight, transposed=True):
        return torch.mm(*_plain(args), **_plain(kwargs))
    return multiply(x, weight, None)


def _plain(values: Any) -> Any:
    """Arguments with every quantized tensor dequantized."""
    return dequantize_args(values)


def _is_ours(weight: Any, transposed: bool) -> bool:
    """Whether `weight` is in one of our formats, and so turned."""
    ours = isinstance(weight, QuantizedTensor) and weight._layout_cls in NAMES
    return ours and weight._params.transposed == transposed


def multiply(x: Any, weight: Any, bias: Tensor | None) -> Tensor:
    """`F.linear` of tokens [..., in] with a weight in one of our formats, as `run_linear` computes it."""
    return run_linear(_plain(x), weight_of(weight), bias)


def weight_of(tensor: Any) -> QuantizedWeight:
    """The library's weight of a tensor in one of our formats; the same one, until its codes change."""
    codes, params, layout = tensor._qdata, tensor._params, tensor.layout_cls
    if type(codes) is not Tensor:  # a graph is being traced
        return layout.weight_of(codes, params)
    return remembered(codes, lambda alias: layout.weight_of(alias, params))
