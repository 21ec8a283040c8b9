"""A small run of each op on a device, held against the reference on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import library, reference
from .backends.registry import choose
from .codecs import CACHE_CODECS, CODECS, Codec
from .split import ChannelSplit
from .values import KeyValue, QuantizedActivation, Ring, Tokens
from .weight import QuantizedWeight

Check = Callable[[torch.device, torch.dtype], float]
"""Device and dtype of the tokens -> largest error, as a share of what is allowed; at most 1 is right."""

_CPU = torch.device("cpu")
ROUNDING = 8 * 2.0**-23
"""Room for float32 roundings, relative to the sum of magnitudes."""


def checks() -> dict[str, Check]:
    """A check for each op of `registry.who_runs`."""
    return {
        "quantize_activation": _activation,
        "decode_weight": _decode,
        "dual_scale_linear": _linears,
        "kv_append": _append,
        "kv_attention": _attention,
    }


def compute_dtype(device: torch.device) -> torch.dtype:
    """What models compute in there: float32 on a CPU, else bfloat16, or float16 where the card lacks that."""
    if device.type != "cuda":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def _draws() -> Callable[..., Tensor]:
    """Normal numbers on the CPU, the same at each run."""
    return partial(torch.randn, generator=torch.Generator().manual_seed(0))


def _worst(actual: Tensor, expected: Tensor, allowed: Tensor | float) -> float:
    """Largest error as a share of what is allowed; infinite for what is no number."""
    share = (actual.cpu().double() - expected.double()).abs() / allowed
    return share.nan_to_num(nan=math.inf).max().item()


def _difference(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """0 if all tensors are equal, else infinite."""
    return 0.0 if all(torch.equal(a.cpu(), b) for a, b in zip(actual, expected, strict=True)) else math.inf


def _split(rotation: int = 32) -> ChannelSplit:
    """192 inputs, 64 of them outliers."""
    return ChannelSplit.of(192, range(1, 192, 3), rotation)


def _weight(codec: Codec) -> QuantizedWeight:
    """72 outputs, with zero points or scales of groups."""
    generator, split = torch.Generator().manual_seed(1), _split()
    scale = torch.rand(72, 2, generator=generator) * torch.tensor([0.1, 0.01]) + 0.01
    if codec.group:
        places = torch.randint(0, 2**codec.bits, (72, 192), dtype=torch.int8, generator=generator)
        groups = torch.rand(72, 192 // codec.group, generator=generator) + 0.5
        groups *= 100 / max(codec.table)
        table = torch.tensor(codec.table) if codec.has_table else None
        return QuantizedWeight(codec, split, codec.pack(places), scale, None, groups.to(torch.float8_e4m3fn), table)
    codes = torch.randint(codec.low, codec.high + 1, (72, 192), dtype=torch.int8, generator=generator)
    zero = torch.randint(-3, 4, (72, 2), dtype=torch.int8, generator=generator)
    return QuantizedWeight(codec, split, codec.pack(codes), scale, zero)


def _activation(device: torch.device, dtype: torch.dtype) -> float:
    """Equal as they are; where channels are rotated, a rounding may move a code to its neighbour."""
    draw, worst = _draws(), 0.0
    x = draw(9, 192).to(dtype)
    for rotation in (0, 32):
        split = _split(rotation)
        actual = library.quantize_activation(x.to(device), split.columns(device), 0.1)
        expected = reference.quantize_activation(x, split.columns(_CPU), 0.1)
        if not rotation:
            worst = _difference(actual, expected)
            continue
        moved = (actual.codes.cpu().int() - expected.codes.int()).abs()
        few = 0.0 if moved.max() <= 1 and moved.float().mean() <= 0.005 else math.inf
        worst = max(worst, few, _worst(actual.scale, expected.scale, expected.scale.double() * ROUNDING))
    return worst


def _decode(device: torch.device, dtype: torch.dtype) -> float:
    """Every codec."""
    packed = [(_weight(codec), _weight(codec).to(device)) for codec in CODECS.values()]
    return max(_difference((library.decode_weight(there.packed),), (here.decoded.codes,)) for here, there in packed)


def _linears(device: torch.device, dtype: torch.dtype) -> float:
    """Plain codes of 8 and 4 bits, and one with scales of groups."""
    return max(_linear(CODECS[name], device, dtype) for name in ("int8", "int4", "int4g16"))


def _linear(codec: Codec, device: torch.device, dtype: torch.dtype) -> float:
    """From tokens in floating point, many and few, and from quantized ones, if this backend shares those."""
    draw, weight = _draws(), _weight(codec)
    x, bias, there = draw(33, 192).to(dtype), draw(72), weight.to(device)
    prepared = choose(there).prepare(there)
    worst = 0.0
    for some in (x, x[:5]):
        worst = max(worst, _worst(prepared.run(some.to(device), bias.to(device)), *_float_product(some, weight, bias)))
    if prepared.run_quantized is None:
        return worst
    tokens = reference.quantize_activation(x, weight.columns, weight.guard)
    shared = QuantizedActivation(Tokens(*(t.to(device) for t in tokens)), x.shape, dtype)
    actual = prepared.run_quantized(shared, bias.to(device))
    return max(worst, _worst(actual, *_integer_product(tokens, weight, bias, dtype)))


def _float_product(x: Tensor, weight: QuantizedWeight, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The product with the dequantized weight, and the error allowed: half a step of every token's channel, half a
    unit of the normal range, and rounding to the tokens' dtype."""
    wide, columns = weight.dequantize().double(), weight.decoded.restore().double().abs()
    expected = x.double() @ wide.T + bias
    steps = reference.quantize_activation(x, weight.columns, weight.guard).scale.double()
    outlier, normal = (part.sum(1) for part in weight.split.ranges(columns))  # [N]
    half = 0.5 * (steps[:, :1] * outlier + steps[:, 1:] * (normal + weight.scale[:, 1]))
    magnitude = weight.columns.to_columns(x.double()).abs() @ columns.T + bias.abs()
    return expected, half + (torch.finfo(x.dtype).eps + ROUNDING) * magnitude


def _integer_product(
    tokens: Tokens, weight: QuantizedWeight, bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What the reference computes, and the error allowed: half a unit of the normal range, and rounding."""
    expected = reference.dual_scale_linear(tokens, weight.decoded, bias, torch.float32)
    n, most, wide = (
        weight.split.n_outlier,
        tokens.codes.double().abs(),
        weight.decoded.codes.double().abs(),
    )
    steps = tokens.scale[:, None].double() * weight.scale.double()  # [M, N, 2]
    terms = torch.stack([most[:, part] @ wide[:, part].T for part in (slice(n), slice(n, None))], dim=-1)
    zeros = torch.zeros(1) if weight.zero is None else tokens.sums[:, None].double().abs() * weight.zero.double().abs()
    magnitude = (steps * (terms + zeros)).sum(-1) + bias.abs()
    return expected, 0.5 * steps[..., 1] + ROUNDING * magnitude + torch.finfo(dtype).eps * expected.abs()


def _ring(codec: Codec, device: torch.device) -> Ring:
    """An empty ring of 96 slots for 2 heads of 64 channels."""

    def codes() -> Tensor:
        return torch.zeros(1, 2, 96, 64 * codec.bits // 8, dtype=codec.stored, device=device)

    def scale() -> Tensor:
        return torch.zeros(1, 2, 96, device=device)

    return Ring(codes(), scale(), codes(), scale(), codec.bits)


def _append(device: torch.device, dtype: torch.dtype) -> float:
    """The last of the tokens come first in the ring."""
    draw = _draws()
    key, value, offset = draw(1, 2, 60, 64).to(dtype), draw(1, 2, 60, 64).to(dtype), draw(1, 2, 64)
    worst = 0.0
    for codec in CACHE_CODECS.values():
        actual, expected = _ring(codec, device), _ring(codec, _CPU)
        library.kv_append(key.to(device), value.to(device), offset.to(device), actual, 76)
        reference.kv_append(key, value, offset, expected, 76)
        worst = max(worst, _difference(actual.tensors, expected.tensors))
    return worst


def _attention(device: torch.device, dtype: torch.dtype) -> float:
    """Allowed, relative to the largest value: a few roundings of keys, weights and values in `dtype`."""
    draw = _draws()
    query, key, value = (draw(1, 2, tokens, 64).to(dtype) for tokens in (7, 60, 60))
    sink, new = (KeyValue(*(draw(1, 2, tokens, 64).to(dtype) for _ in range(2))) for tokens in (5, 9))
    offset = draw(1, 2, 64)
    allowed = (4 * torch.finfo(dtype).eps + 1e-5) * value.abs().max().item()
    worst = 0.0
    for codec in CACHE_CODECS.values():
        ring = _ring(codec, _CPU)
        reference.kv_append(key, value, offset, ring, 0)
        expected = reference.kv_attention(query.float(), ring, 60, offset, sink, new)
        held = [KeyValue(*(t.to(device) for t in pair)) for pair in (sink, new)]
        actual = library.kv_attention(query.to(device), ring.to(device), 60, offset.to(device), *held)
        worst = max(worst, _worst(actual, expected, allowed))
    return worst
