"""Which backend runs a linear: the first that does not refuse, chosen before the first call.

Linears lay their weights out first, so each has a `Backend`. The other ops are dispatched by torch, by the device of
their tensors; what has no kernel of its own there runs as the reference says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ...errors import SettingError
from ..codecs import CODECS
from ..cuda import device
from ..cuda.device import ForNow
from ..weight import QuantizedWeight, sample_weight
from .base import Backend
from .cpu import CPU
from .cuda import CUDA
from .kitchen import KITCHEN
from .reference import REFERENCE
from .weight_only import WEIGHT_ONLY

BACKENDS: tuple[Backend, ...] = (CPU, CUDA, KITCHEN, WEIGHT_ONLY, REFERENCE)
"""All that run linears, fastest first."""

VARIABLE = "QARVD_BACKEND"
"""What the command line, the nodes and the Python API read the name of a forced backend from."""

_forced: list[Backend] = []


def force(name: str | None) -> None:
    """Have this backend run all linears prepared from now on, or (None or "") choose again. Raises SettingError."""
    found = [backend for backend in BACKENDS if backend.name == name]
    if name and not found:
        names = ", ".join(backend.name for backend in BACKENDS)
        raise SettingError(f"There is no backend {name!r} ({VARIABLE}); choose one of {names}.")
    _forced[:] = found


@contextmanager
def forced(name: str) -> Iterator[None]:
    """`force` for a while."""
    before = [*_forced]
    force(name)
    try:
        yield
    finally:
        _forced[:] = before


def choose(weight: QuantizedWeight) -> Backend:
    """The fastest backend that runs `weight` where it lies, or the forced one. Raises SettingError if that refuses."""
    for backend in _forced:
        reason = backend.refuses(weight)
        if reason is not None:
            raise SettingError(f"The backend {backend.name} was asked for ({VARIABLE}), but it can't run: {reason}.")
        return backend
    return next(backend for backend in BACKENDS if backend.refuses(weight) is None)


def calls_op(where: torch.device) -> bool:
    """Whether a graph of torch.compile on `where` should call the op, as REFERENCE does, or dequantize weights.

    Backends that lay weights out can't do so in a graph. So the op is for CPUs, where it gives the same but for
    rounding, and for cards with our kernels, unless a backend is forced that does not quantize tokens as the op does.
    """
    if _forced:
        return _forced[0] not in (WEIGHT_ONLY, KITCHEN)
    return where.type == "cpu" or device.refuses(where) is None


def refused_for_now(weight: QuantizedWeight) -> ForNow | None:
    """Why a backend that would be faster than the chosen one does not run `weight` now, but may at the next call."""
    return next((reason for _, reason in _faster(weight) if isinstance(reason, ForNow)), None)


def why(weight: QuantizedWeight) -> str:
    """Why the chosen backend runs `weight`, and no faster one."""
    if _forced:
        return "forced"
    return "; ".join(f"{name}: {reason}" for name, reason in _faster(weight)) or "the first choice"


def _faster(weight: QuantizedWeight) -> Iterator[tuple[str, str]]:
    """Backends before the chosen one, and why they refuse; none if one is forced."""
    for backend in () if _forced else BACKENDS:
        reason = backend.refuses(weight)
        if reason is None:
            return
        yield backend.name, reason


class Standing(NamedTuple):
    """Whether a backend runs an op."""

    backend: str
    refusal: str | None
    """Why not."""


REFERENCE_STANDING = Standing(REFERENCE.name, None)

_DISPATCHED: dict[str, Callable[[torch.device], str | None]] = {"cuda": device.refuses, "cpu": lambda where: None}
"""Kinds of device that ops may have kernels for, and why they can't run there."""


def who_runs(where: torch.device) -> dict[str, list[Standing]]:
    """Every op, and the standing of every backend for tensors on `where`, fastest first (only of a forced one)."""
    weight = sample_weight(CODECS["int8"]).to(where)
    linear = [Standing(backend.name, backend.refuses(weight)) for backend in _forced or BACKENDS]
    before, after = ("quantize_activation", "decode_weight"), ("kv_append", "kv_attention")
    table = {op: _dispatched(op, where) for op in before} | {"dual_scale_linear": linear}
    return table | {op: _dispatched(op, where) for op in after}


def _dispatched(op: str, where: torch.device) -> list[Standing]:
    def refusal(kind: str, refuses: Callable[[torch.device], str | None]) -> str | None:
        if where.type != kind:
            return f"the tensors are on {where}"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"qarvd::{op}", kind.upper()):
            return "it has no kernel for this op"
        return refuses(where)

    return [*(Standing(kind, refusal(kind, refuses)) for kind, refuses in _DISPATCHED.items()), REFERENCE_STANDING]
