"""Each op as a launch: which kernel, what grid, what it takes. Knows nothing of how kernels get onto a card."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..values import KeyValue, PackedWeight, Ring, Tokens
from .arguments import (
    ALIGNMENT,
    TYPES,
    ActivationArguments,
    AppendArguments,
    AttentionArguments,
    LinearArguments,
    aligned,
    place,
    pointer,
)


class Launcher(Protocol):
    """What launches kernels: a card (`driver.Launcher`), or the emulator of the tests."""

    def prepare(self, kernel: str, shared: int) -> None:
        """Load a kernel that is going to use `shared` bytes of dynamic shared memory."""
        ...

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        shared: int,
        arguments: ctypes.Structure,
        stream: int,
    ) -> None:
        """Start a kernel that was prepared; `block` in threads, `shared` in bytes."""
        ...


ACTIVATION, ACTIVATION_THREADS = "qarvd_quantize_activation", 256
APPEND, APPEND_TOKENS = "qarvd_kv_append", 4
APPEND_HEAD_DIMS = tuple(range(32, 257, 32))
THREADS = 128
HEAD_DIMS = (64, 128)
QUERIES = KEYS = 64
"""Of an attention block, and of a tile of it."""
K_TILE = 64
CHANNEL_GROUP = 32
"""Both ranges of a linear's input are multiples of this."""


def refuses_activation(x: Tensor, n_outlier: int) -> str | None:
    """Why tokens [..., channels] can't be quantized, or None."""
    if x.shape[-1] % 4 or n_outlier % 4:
        return f"{n_outlier} outliers of {x.shape[-1]} channels; both must be multiples of 4"
    return None


def prepare_activation(launcher: Launcher) -> None:
    launcher.prepare(ACTIVATION, 0)


def quantize_activation(
    launcher: Launcher, stream: int, x: Tensor, order: Tensor | None, n_outlier: int, guard: float
) -> Tokens:
    """As `reference.quantize_activation`, to the bit, for what `refuses_activation` lets pass."""
    channels = x.shape[-1]
    rows = _rows(x.reshape(-1, channels))
    count = rows.shape[0]
    made = Tokens(
        rows.new_empty((count, channels), dtype=torch.int8),
        rows.new_empty((count, 2), dtype=torch.float32),
        rows.new_empty((count, 2), dtype=torch.int32),
    )
    if count:
        order = aligned(None if order is None else order.to(torch.int32))
        held = map(pointer, (rows, order, *made))
        arguments = ActivationArguments(*held, rows.stride(0), channels, n_outlier, guard, TYPES[rows.dtype])
        launcher.launch(ACTIVATION, (count, 1, 1), ACTIVATION_THREADS, 0, arguments, stream)
    return made


@dataclass(frozen=True)
class Tile:
    """A block's share of a linear's result, and how many steps of K are loaded ahead."""

    size: str
    rows: int
    outputs: int
    stages: int

    def kernel(self, bits: int) -> str:
        return f"qarvd_linear_w{bits}_{self.size}"

    def shared(self, bits: int) -> int:
        return self.stages * (self.rows + self.outputs * bits // 8) * K_TILE

    def blocks(self, rows: int, outputs: int) -> tuple[int, int]:
        return math.ceil(outputs / self.outputs), math.ceil(rows / self.rows)


_SMALL = Tile("small", 64, 64, 4)
TILES = {8: (Tile("large", 128, 128, 3), _SMALL), 4: (Tile("large", 128, 128, 4), _SMALL)}
"""By bits, the one with the highest throughput first."""


def refuses_bits(bits: int) -> str | None:
    """Why there is no linear for weights of `bits` bits, or None."""
    return None if bits in TILES else f"{bits}-bit weights; they must have {_names(TILES)} bits"


def refuses_linear(channels: int, n_outlier: int, bits: int) -> str | None:
    """Why there is no linear for a weight of so many input channels, or None."""
    if channels % CHANNEL_GROUP or n_outlier % CHANNEL_GROUP:
        return f"{n_outlier} outliers of {channels} channels; both must be multiples of {CHANNEL_GROUP}"
    return refuses_bits(bits)


def prepare_linear(launcher: Launcher, bits: int) -> None:
    for tile in TILES[bits]:
        launcher.prepare(tile.kernel(bits), tile.shared(bits))


def choose_tile(bits: int, rows: int, outputs: int, multiprocessors: int) -> Tile:
    """Large tiles where they keep every multiprocessor busy."""
    large, small = TILES[bits]
    return large if math.prod(large.blocks(rows, outputs)) >= multiprocessors else small


def dual_scale_linear(
    launcher: Launcher,
    stream: int,
    tile: Tile,
    tokens: Tokens,
    weight: PackedWeight,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """As `reference.dual_scale_linear`, to the bit, for what `refuses_linear` lets pass."""
    (rows, channels), outputs = tokens.codes.shape, len(weight.codes)
    out = tokens.codes.new_empty((rows, outputs), dtype=dtype)
    if out.numel():
        bias = None if bias is None else bias.float()
        given = (tokens.codes, weight.codes, tokens.scale, tokens.sums, weight.scale, weight.zero, bias)
        held = [aligned(x) for x in given]
        arguments = LinearArguments(
            *map(pointer, (*held, out)), rows, outputs, channels, weight.n_outlier, TYPES[dtype]
        )
        across, down = tile.blocks(rows, outputs)
        shared = tile.shared(weight.bits)
        launcher.launch(tile.kernel(weight.bits), (across, down, 1), THREADS, shared, arguments, stream)
    return out


def refuses_append(key: Tensor, value: Tensor, ring: Ring) -> str | None:
    """Why keys and values [batch, heads, tokens, head_dim] can't go to `ring`, or None."""
    if key.dtype != value.dtype:
        return f"keys of {key.dtype} and values of {value.dtype}; they must be of one dtype"
    if key.shape[-1] not in APPEND_HEAD_DIMS:
        return f"heads of {key.shape[-1]} channels; they must be a multiple of 32 up to {APPEND_HEAD_DIMS[-1]}"
    return _refuses_ring(ring)


def prepare_append(launcher: Launcher) -> None:
    launcher.prepare(APPEND, 0)


def kv_append(
    launcher: Launcher, stream: int, key: Tensor, value: Tensor, key_offset: Tensor | None, ring: Ring, position: int
) -> None:
    """As `reference.kv_append`, to the bit, for what `refuses_append` lets pass."""
    batch, heads, tokens, head_dim = key.shape
    if not key.numel():
        return
    key, value = _rows(key), _rows(value)
    offset = aligned(None if key_offset is None else key_offset.float())
    arguments = AppendArguments(
        (pointer(key), pointer(value)),
        (pointer(ring.key_codes), pointer(ring.value_codes)),
        (pointer(ring.key_scale), pointer(ring.value_scale)),
        pointer(offset),
        (place(key), place(value)),
        heads,
        tokens,
        head_dim,
        ring.capacity,
        position % ring.capacity,
        ring.bits,
        TYPES[key.dtype],
    )
    launcher.launch(
        APPEND, (math.ceil(tokens / APPEND_TOKENS), heads, 2 * batch), APPEND_TOKENS * 32, 0, arguments, stream
    )


def refuses_attention(
    query: Tensor, ring: Ring, sink: KeyValue | None, new: KeyValue | None, turing: bool
) -> str | None:
    """Why `kv_attention` can't take these tensors, or None."""
    if query.shape[-1] not in HEAD_DIMS:
        return f"heads of {query.shape[-1]} channels; they must have {_names(HEAD_DIMS)}"
    held = (*(sink or ()), *(new or ()))
    if query.dtype == torch.float32 or any(x.dtype != query.dtype for x in held):
        return "queries, sink and newest chunk must all be torch.float16, or all torch.bfloat16"
    if turing and query.dtype == torch.bfloat16:
        return "cards before Ampere have no bfloat16 products; take torch.float16"
    return _refuses_ring(ring)


def _refuses_ring(ring: Ring) -> str | None:
    """What is written can't be copied first, as `aligned` does with what is read."""
    if not all(x.is_contiguous() for x in ring.tensors):
        return "the ring's tensors are not contiguous"
    if any(x.data_ptr() % ALIGNMENT for x in ring.tensors):
        return f"the ring's tensors do not begin at multiples of {ALIGNMENT} bytes"
    return None


def _names(choices: Iterable[object]) -> str:
    return " or ".join(map(str, choices))


def attention_kernel(query: Tensor, bits: int) -> tuple[str, int]:
    """Name, and bytes of shared memory: keys and values, their scales, queries."""
    head_dim = query.shape[-1]
    name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[query.dtype]
    shared = 2 * KEYS * head_dim * 2 + 2 * KEYS * 4 + QUERIES * head_dim * 2
    return f"qarvd_attention_{head_dim}_{name}_kv{bits}", shared


def kv_attention(
    launcher: Launcher,
    stream: int,
    query: Tensor,
    ring: Ring,
    length: int,
    key_offset: Tensor | None,
    sink: KeyValue | None,
    new: KeyValue | None,
) -> Tensor:
    """As `reference.kv_attention` but for rounding, for what `refuses_attention` lets pass; the kernel is prepared."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if not query.numel():
        return out
    batch, heads, rows, head_dim = query.shape
    query = _rows(query)
    plain = [None if held is None else KeyValue(*map(_rows, held)) for held in (sink, new)]
    offset = aligned(None if key_offset is None else key_offset.float())
    arguments = AttentionArguments(
        pointer(query),
        pointer(out),
        (pointer(ring.key_codes), pointer(ring.value_codes)),
        (pointer(ring.key_scale), pointer(ring.value_scale)),
        pointer(offset),
        tuple((None, None) if held is None else tuple(map(pointer, held)) for held in plain),
        place(query),
        place(out),
        tuple(((0, 0, 0),) * 2 if held is None else tuple(map(place, held)) for held in plain),
        heads,
        rows,
        length,
        ring.capacity,
        tuple(0 if held is None else held.key.shape[2] for held in plain),
        math.log2(math.e) / math.sqrt(head_dim),
    )
    kernel, shared = attention_kernel(query, ring.bits)
    launcher.launch(kernel, (math.ceil(rows / QUERIES), heads, batch), THREADS, shared, arguments, stream)
    return out


def _rows(x: Tensor) -> Tensor:
    """`x` with every token's channels in a row that begins at a multiple of 16 bytes."""
    unit = ALIGNMENT // x.element_size()
    fits = x.stride(-1) == 1 and all(stride % unit == 0 for stride in x.stride()[:-1])
    return x if fits and x.data_ptr() % ALIGNMENT == 0 else x.clone(memory_format=torch.contiguous_format)
