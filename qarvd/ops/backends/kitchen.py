"""The linear through comfy-kitchen's `int8_linear`, which comes with ComfyUI: one call for each range.

It quantizes tokens itself, per range, as ours does but without the guard (its ranges have an accumulator each). The
second range is added to the first by that call, or by an addition if this comfy-kitchen (before 0.2.36) knows no
`residual`. Codes are decoded to a byte each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ...errors import first_line
from ..values import Prepared
from ..weight import QuantizedWeight
from .base import Backend, is_traced

FAST = ("cuda", "hip")
"""comfy-kitchen's own backends, for NVIDIA and AMD cards, whose `int8_linear` is worth taking; its others are slow."""

Int8Linear = Callable[..., Tensor]


def refuses(weight: QuantizedWeight) -> str | None:
    """Why comfy-kitchen can't run `weight`."""
    where = weight.codes.device
    if where.type != "cuda":
        return f"the tensors are on {where}"
    if is_traced(weight):
        return "a graph is being traced, and weights can't be laid out in it"
    return _trouble()


@cache
def _trouble() -> str | None:
    """Why the installed comfy-kitchen, if any, can't be used."""
    try:
        kitchen: Any = import_module("comfy_kitchen")
        found = kitchen.registry.list_backends()
        why = {name: _lacks(found[name]) for name in FAST if name in found}
    except ImportError as error:
        return f"comfy-kitchen is not installed ({first_line(error)})"
    except (AttributeError, KeyError, TypeError) as error:
        return f"this comfy-kitchen is another than we know ({error!r})"
    if None in why.values():
        return None
    return "comfy-kitchen can't use the card: " + "; ".join(f"{name}: {reason}" for name, reason in why.items())


def _lacks(backend: dict[str, Any]) -> str | None:
    """Why one of comfy-kitchen's backends can't be used."""
    if not backend["available"]:
        return str(backend["unavailable_reason"])
    if backend["disabled"]:
        return "it is switched off (torch built for CUDA 13 is needed)"
    return None if "int8_linear" in backend["capabilities"] else "it has no int8_linear on this card"


@cache
def adds_residual(int8_linear: Int8Linear, device: torch.device) -> bool:
    """Whether `int8_linear` adds its product to a tensor, found by running a small one."""
    x, weight = torch.ones(1, 32, device=device), torch.ones(16, 32, dtype=torch.int8, device=device)
    ones = torch.ones(16, device=device)
    try:
        out = int8_linear(x, weight, ones, None, x.dtype, residual=ones.expand(1, 16), residual_scale=ones)
    except TypeError:  # an unexpected keyword argument
        return False
    return bool(((out - 33).abs() < 0.1).all())


def prepare(weight: QuantizedWeight) -> Prepared:
    """Lay the ranges out as weights of their own."""
    return prepare_with(import_module("comfy_kitchen").int8_linear, weight)


def prepare_with(int8_linear: Int8Linear, weight: QuantizedWeight) -> Prepared:
    """The same with `int8_linear` given."""
    n, to_columns = weight.split.n_outlier, weight.columns.to_columns
    outlier, normal = (part.contiguous() for part in weight.split.ranges(weight.decoded.codes))
    outlier_scale, normal_scale = (scale.contiguous() for scale in weight.scale.unbind(1))
    ones = torch.ones(len(normal), device=normal.device)
    adds = bool(n) and adds_residual(int8_linear, normal.device)
    shift = None if weight.zero is None else weight.scale * weight.zero.float()  # [out, 2]

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        if not x.numel():
            return x.new_empty(*x.shape[:-1], len(normal))
        columns = to_columns(x)
        bias = None if bias is None else bias.to(x.dtype)
        out = int8_linear(columns[..., n:], normal, normal_scale, bias, x.dtype)
        if adds:
            residual = {"residual": out, "residual_scale": ones.to(x.dtype)}
            out = int8_linear(columns[..., :n], outlier, outlier_scale, None, x.dtype, **residual)
        elif n:
            out = out + int8_linear(columns[..., :n], outlier, outlier_scale, None, x.dtype)
        if shift is not None:
            sums = torch.stack([columns[..., :n].float().sum(-1), columns[..., n:].float().sum(-1)], dim=-1)
            out = (out.float() - sums @ shift.T).to(x.dtype)
        return out

    return Prepared(run, traces=False)


KITCHEN = Backend("comfy-kitchen", refuses, prepare)
