"""A cache whose older chunks have 8 or 4 bits: attention reads the codes, no 16-bit copy is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import library
from ..ops.codecs import cache_codec_of
from ..ops.hadamard import rotate
from ..ops.values import KeyValue, Ring
from .cache import KVCache, shift_in_time


@dataclass
class _Layer:
    """What one transformer block holds; keys and values are [batch, heads, tokens, head_dim]."""

    ring: Ring
    """Frames between the sink and the newest chunk."""
    newest: KeyValue | None = None
    """None from the moment its codes are in the ring."""
    sink: KeyValue | None = None
    key_offset: Tensor | None = None
    """Mean of the first keys in the ring, [batch, heads, head_dim]; taken off all, which softmax does not see."""

    def tensors(self) -> list[Tensor]:
        offset = () if self.key_offset is None else (self.key_offset,)
        return [*self.ring.tensors, *(self.newest or ()), *(self.sink or ()), *offset]


class QuantizedCache(KVCache):
    """Keys and values of `bits` bits with a scale per token and head; the sink and the newest chunk stay as they come.

    A chunk is quantized once, when the next one begins, and its codes never change. The ring has room for the window
    less the sink and a full chunk, so a shorter chunk that ends a rolled window sees that much less. With 4 bits,
    queries and all keys are rotated by a Hadamard matrix, which their products do not see, because single channels of
    the keys are much louder than others.
    """

    def __init__(
        self, frames: int, sink: int = 0, sink_follows: bool = False, chunk_frames: int = 1, bits: int = 8
    ) -> None:
        self.bits = bits
        super().__init__(frames, sink, sink_follows, chunk_frames)

    @property
    def _ring_frames(self) -> int:
        return self.frames - self.sink - self.chunk_frames

    def reset(self) -> None:
        super().reset()
        self._layers: dict[int, _Layer] = {}

    def _close(self) -> None:
        for layer in self._layers.values():
            if layer.newest is not None:
                self._keep(layer, *layer.newest)
                layer.newest = None

    def _keep(self, layer: _Layer, key: Tensor, value: Tensor) -> None:
        """Move a finished chunk to the sink and the ring."""
        sink_tokens = max(0, min(self.end, self.sink) - self.start) * self.frame_tokens
        if sink_tokens:
            held_key, held_value = layer.sink or (key[:, :, :0], value[:, :, :0])
            layer.sink = KeyValue(
                torch.cat([held_key, key[:, :, :sink_tokens]], dim=2),
                torch.cat([held_value, value[:, :, :sink_tokens]], dim=2),
            )
        room = self._ring_frames * self.frame_tokens
        key, value = (x[:, :, sink_tokens:][:, :, -room:] if room else x[:, :, :0] for x in (key, value))
        if key.shape[2]:
            last = (self.end - self.origin) * self.frame_tokens
            position = (last - key.shape[2]) % room
            if layer.key_offset is None:
                layer.key_offset = key.float().mean(2)
            library.kv_append(key, value, layer.key_offset, layer.ring, position)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        held = self._layers.get(layer)
        if held is None:
            held = self._layers[layer] = _Layer(self._empty_ring(key))
        query, key = self._rotated(query), self._rotated(key)
        held.newest = KeyValue(_alone(key), _alone(value))
        sink = held.sink
        if sink is not None and self.sink_follows and self.evicted:
            sink = KeyValue(self._rotated(shift_in_time(self._rotated(sink.key), self.evicted)), sink.value)
        older = max(0, self.start - self.origin)
        length = min(older, self._ring_frames) * self.frame_tokens
        return library.kv_attention(query, held.ring, length, held.key_offset, sink, held.newest)

    def _rotated(self, x: Tensor) -> Tensor:
        """Queries or keys as they are compared, and back: rotating twice changes nothing."""
        if self.bits > 4:
            return x
        return rotate(x, x.shape[-1] & -x.shape[-1])

    def _empty_ring(self, like: Tensor) -> Ring:
        batch, heads, _, head_dim = like.shape
        room = (batch, heads, self._ring_frames * self.frame_tokens)
        stored = cache_codec_of(self.bits).stored
        codes = [like.new_zeros((*room, head_dim * self.bits // 8), dtype=stored) for _ in range(2)]
        scales = [like.new_zeros(room, dtype=torch.float32) for _ in range(2)]
        return Ring(codes[0], scales[0], codes[1], scales[1], self.bits)

    @property
    def nbytes(self) -> int:
        tensors = [t for held in self._layers.values() for t in held.tensors()]
        return sum(t.nbytes for t in tensors)


def _alone(x: Tensor) -> Tensor:
    """`x` without what else lies in its memory, such as the queries of a fused projection."""
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone(memory_format=torch.contiguous_format)
