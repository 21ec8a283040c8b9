"""A cache whose older chunks are int8: attention reads the codes, no 16-bit copy is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import library
from .cache import KVCache, shift_in_time


@dataclass
class _Layer:
    """What one transformer block holds; all tensors are [batch, heads, tokens, head_dim], scales without the last."""

    ring: tuple[Tensor, Tensor, Tensor, Tensor]
    """Key codes, key scale, value codes, value scale of frames between the sink and the newest chunk."""
    newest: tuple[Tensor, Tensor]
    sink: tuple[Tensor, Tensor] | None = None
    key_offset: Tensor | None = None
    """Mean key of the first chunk, [batch, heads, head_dim]; taken off all keys, which softmax does not see."""


class Int8Cache(KVCache):
    """Int8 keys and values with a scale per token and head; the sink and the newest chunk stay as they come.

    A chunk is quantized once, when the next one begins, and its codes never change. The ring has room for the window
    less the sink and a full chunk, so a shorter chunk that ends a rolled window sees that much less.
    """

    @property
    def _ring_frames(self) -> int:
        return self.frames - self.sink - self.chunk_frames

    def reset(self) -> None:
        super().reset()
        self._layers: dict[int, _Layer] = {}

    def _close(self) -> None:
        sink_tokens = max(0, min(self.end, self.sink) - self.start) * self.frame_tokens
        for layer in self._layers.values():
            key, value = layer.newest
            if layer.key_offset is None:
                layer.key_offset = key.float().mean(2)
            if sink_tokens:
                held_key, held_value = layer.sink or (key[:, :, :0], value[:, :, :0])
                layer.sink = (
                    torch.cat([held_key, key[:, :, :sink_tokens]], dim=2),
                    torch.cat([held_value, value[:, :, :sink_tokens]], dim=2),
                )
            room = self._ring_frames * self.frame_tokens
            key, value = (x[:, :, sink_tokens:][:, :, -room:] if room else x[:, :, :0] for x in (key, value))
            if key.shape[2]:
                last = (self.end - self.sink) * self.frame_tokens
                library.kv_append(key, value, layer.key_offset, *layer.ring, (last - key.shape[2]) % room)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        held = self._layers.get(layer)
        if held is None:
            held = self._layers[layer] = _Layer(self._empty_ring(key), (key, value))
        held.newest = (key, value)
        sink_key, sink_value = held.sink or (None, None)
        if sink_key is not None and self.sink_follows and self.evicted:
            sink_key = shift_in_time(sink_key, self.evicted)
        older = max(0, self.start - self.sink)
        length = min(older, self._ring_frames) * self.frame_tokens
        return library.kv_attention(query, *held.ring, length, held.key_offset, sink_key, sink_value, key, value)

    def _empty_ring(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, heads, _, head_dim = like.shape
        room = (batch, heads, self._ring_frames * self.frame_tokens)
        codes = [like.new_zeros((*room, head_dim), dtype=torch.int8) for _ in range(2)]
        scales = [like.new_zeros(room, dtype=torch.float32) for _ in range(2)]
        return codes[0], scales[0], codes[1], scales[1]

    @property
    def nbytes(self) -> int:
        tensors = [t for held in self._layers.values() for t in (*held.ring, *held.newest, *(held.sink or ()))]
        return sum(t.nbytes for t in tensors)
