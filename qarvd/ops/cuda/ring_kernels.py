"""The ops of the ring as launches: which kernel, what grid, what it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..values import KeyValue, Ring
from .arguments import ALIGNMENT, TYPES, AppendArguments, AttentionArguments, aligned, place, pointer
from .launcher import THREADS, Launcher, in_rows

APPEND, APPEND_TOKENS = "qarvd_kv_append", 4
APPEND_HEAD_DIMS = tuple(range(32, 257, 32))
HEAD_DIMS = (64, 128)
QUERIES = KEYS = 64
"""Of an attention block, and of a tile of it."""


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
    key, value = in_rows(key), in_rows(value)
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
    query = in_rows(query)
    plain = [None if held is None else KeyValue(*map(in_rows, held)) for held in (sink, new)]
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
