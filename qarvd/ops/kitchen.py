"""The linear through comfy-kitchen's `int8_linear`, where that comes with ComfyUI: one call for each range.

It quantizes tokens itself, per range, as ours does but without the guard (its ranges have an accumulator each), and
adds the second range's product to the first's. 4-bit codes grow to a byte each.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .backend import Backend, Run
from .weight import QuantizedWeight


def refuses(weight: QuantizedWeight) -> str | None:
    """Why comfy-kitchen can't run `weight`."""
    where = weight.codes.device
    if where.type != "cuda":
        return f"the tensors are on {where}"
    return _trouble()


@cache
def _trouble() -> str | None:
    """Why the installed comfy-kitchen, if any, can't be used."""
    try:
        kitchen = import_module("comfy_kitchen")
        found = kitchen.registry.list_backends()["cuda"]
    except ImportError as error:
        return f"comfy-kitchen is not installed ({error})"
    except (AttributeError, KeyError) as error:
        return f"this comfy-kitchen is another than we know ({error!r})"
    return None if found["available"] else f"comfy-kitchen can't use the card: {found['unavailable_reason']}"


def prepare(weight: QuantizedWeight, bias: Tensor | None) -> Run:
    """Lay the ranges out as weights of their own."""
    return prepare_with(import_module("comfy_kitchen").int8_linear, weight, bias)


def prepare_with(int8_linear: Any, weight: QuantizedWeight, bias: Tensor | None) -> Run:
    """The same with `int8_linear` given."""
    codes = weight.codec.unpack(weight.codes)
    n, order = weight.split.n_outlier, weight.split.order.to(codes.device)
    outlier, normal = codes[:, :n].contiguous(), codes[:, n:].contiguous()
    scales = [scale.contiguous() for scale in weight.scale.unbind(1)]
    ones = torch.ones(len(codes), device=codes.device)
    shift = None if weight.zero is None else weight.scale * weight.zero.float()  # [out, 2]

    def run(x: Tensor) -> Tensor:
        columns = x[..., order]
        out = int8_linear(columns[..., n:], normal, scales[1], bias, x.dtype)
        if n:
            out = int8_linear(
                columns[..., :n], outlier, scales[0], None, x.dtype, residual=out, residual_scale=ones.to(x.dtype)
            )
        if shift is not None:
            sums = torch.stack([columns[..., :n].float().sum(-1), columns[..., n:].float().sum(-1)], dim=-1)
            out = (out.float() - sums @ shift.T).to(x.dtype)
        return out

    return run


KITCHEN = Backend("comfy-kitchen", refuses, prepare, takes_floats=True)
