"""A small run of each op on a device, held against the reference on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import library, reference
from .backend import REFERENCE, QuantizedActivation, choose
from .codecs import CODECS, Codec, codec_of
from .split import ChannelSplit
from .weight import QuantizedWeight

Check = Callable[[torch.device, torch.dtype], float]
"""Device and dtype of the tokens -> largest error, as a share of what is allowed; at most 1 is right."""

_CPU = torch.device("cpu")
ROUNDING = 8 * 2.0**-23
"""Room for float32 roundings, relative to the sum of magnitudes."""


def checks() -> dict[str, Check]:
    """A check for each op of `backend.who_runs`."""
    linears = {
        f"dual_scale_linear {codec.format.removeprefix('qarvd_')}": partial(_linear, codec) for codec in CODECS.values()
    }
    return {"quantize_activation": _activation, **linears, "kv_append": _append, "kv_attention": _attention}


def compute_dtype(device: torch.device) -> torch.dtype:
    """What models compute in there: float32 on a CPU, else bfloat16, or float16 where the card lacks that."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def _draws() -> Callable[..., Tensor]:
    """Normal numbers on the CPU, the same at each run."""
    return partial(torch.randn, generator=torch.Generator().manual_seed(0))


def _worst(came: Tensor, due: Tensor, allowed: Tensor | float) -> float:
    """Largest error as a share of what is allowed; infinite for what is no number."""
    share = (came.cpu().double() - due.double()).abs() / allowed
    return share.nan_to_num(nan=math.inf).max().item()


def _difference(came: tuple[Tensor, ...], due: tuple[Tensor, ...]) -> float:
    """0 where all tensors are equal, else infinite."""
    return 0.0 if all(torch.equal(a.cpu(), b) for a, b in zip(came, due, strict=True)) else math.inf


def _weight(codec: Codec) -> QuantizedWeight:
    """72 outputs of 160 inputs, 32 of them outliers, with zero points."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(codec.low, codec.high + 1, (72, 160), dtype=torch.int8, generator=generator)
    zero = torch.randint(-3, 4, (72, 2), dtype=torch.int8, generator=generator)
    scale = torch.rand(72, 2, generator=generator) * torch.tensor([0.1, 0.01]) + 0.01
    return QuantizedWeight(codec, ChannelSplit.of(160, range(3, 160, 5)), codec.pack(codes), scale, zero)


def _activation(device: torch.device, dtype: torch.dtype) -> float:
    draw, split = _draws(), ChannelSplit.of(160, range(3, 160, 5))
    x = draw(9, 160).to(dtype)
    came = library.quantize_activation(x.to(device), split.order.to(device), split.n_outlier, 0.1)
    return _difference(came, reference.quantize_activation(x, split.order, split.n_outlier, 0.1))


def _linear(codec: Codec, device: torch.device, dtype: torch.dtype) -> float:
    """Allowed: half a unit of the normal range, and rounding."""
    draw, weight = _draws(), _weight(codec)
    x, bias, n = draw(33, 160), draw(72), weight.split.n_outlier
    quantized = reference.quantize_activation(x, weight.split.order, n, weight.guard)
    there = weight.to(device)
    run = choose(there).prepare(there, bias.to(device))
    codes, scale, sums = quantized
    came = run(QuantizedActivation(codes.to(device), scale.to(device), sums.to(device), x.shape, dtype))
    due = REFERENCE.prepare(weight, bias)(QuantizedActivation(*quantized, x.shape, torch.float32))

    most, wide = codes.double().abs(), codec.unpack(weight.codes).double().abs()
    steps = scale[:, None].double() * weight.scale.double()  # [M, N, 2]
    terms = torch.stack([most[:, part] @ wide[:, part].T for part in (slice(n), slice(n, None))], dim=-1)
    assert weight.zero is not None
    magnitude = (steps * (terms + sums[:, None].double().abs() * weight.zero.double().abs())).sum(-1) + bias.abs()
    unit = steps[..., 1] / codec.unit
    return _worst(came, due, 0.5 * unit + ROUNDING * magnitude + torch.finfo(dtype).eps * due.abs())


_Ring = tuple[Tensor, Tensor, Tensor, Tensor]


def _ring(bits: int, device: torch.device) -> _Ring:
    """An empty ring of 96 slots for 2 heads of 64 channels."""

    def codes() -> Tensor:
        return torch.zeros(1, 2, 96, 64 * bits // 8, dtype=codec_of(bits).stored, device=device)

    def scale() -> Tensor:
        return torch.zeros(1, 2, 96, device=device)

    return codes(), scale(), codes(), scale()


def _append(device: torch.device, dtype: torch.dtype) -> float:
    """The last of the tokens come first in the ring."""
    draw = _draws()
    key, value, offset = draw(1, 2, 60, 64).to(dtype), draw(1, 2, 60, 64).to(dtype), draw(1, 2, 64)
    worst = 0.0
    for bits in _ring_bits():
        came, due = _ring(bits, device), _ring(bits, _CPU)
        library.kv_append(key.to(device), value.to(device), offset.to(device), *came, 76, bits)
        reference.kv_append(key, value, offset, *due, 76, bits)
        worst = max(worst, _difference(came, due))
    return worst


def _attention(device: torch.device, dtype: torch.dtype) -> float:
    """Allowed, relative to the largest value: a few roundings of keys, weights and values in `dtype`."""
    draw = _draws()
    query, key, value = (draw(1, 2, tokens, 64).to(dtype) for tokens in (7, 60, 60))
    sink_key, sink_value, new_key, new_value = (draw(1, 2, tokens, 64).to(dtype) for tokens in (5, 5, 9, 9))
    held = (sink_key, sink_value, new_key, new_value)
    offset = draw(1, 2, 64)
    allowed = (4 * torch.finfo(dtype).eps + 1e-5) * value.abs().max().item()
    worst = 0.0
    for bits in _ring_bits():
        ring = _ring(bits, _CPU)
        reference.kv_append(key, value, offset, *ring, 0, bits)
        due = reference.kv_attention(query.float(), *ring, 60, offset, *held, bits)
        before, after = ([t.to(device) for t in tensors] for tensors in ((query, *ring), (offset, *held)))
        came = library.kv_attention(*before, 60, *after, bits)
        worst = max(worst, _worst(came, due, allowed))
    return worst


def _ring_bits() -> list[int]:
    return sorted(codec.bits for codec in CODECS.values())
