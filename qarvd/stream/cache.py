"""The key/value cache of one stream: a sink that stays, a window that rolls, one codec behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingError
from ..wan.rope import rotate, time_shift


class KVCache(ABC):
    """Keys (already rotated) and values of the newest `frames` latent frames; the first `sink` are never evicted.

    `begin` says which frames the next calls are about; calling it again for the same frames overwrites them,
    which is what every denoising step of a chunk does. Frame f of the sink lives in slot f, and any other in
    slot sink + (f - origin) mod (frames - sink), so nothing is ever moved. Attention does not mind the order.
    `origin` is the first frame after the sink, until `rewind` forgets all but the sink and goes on from an earlier one.
    """

    def __init__(self, frames: int, sink: int = 0, sink_follows: bool = False, chunk_frames: int = 1) -> None:
        """`sink_follows` keeps the sink at its distance from the window instead of at its absolute position.

        `chunk_frames` is the size of a full chunk. Raises SettingError where that does not fit beside the sink.
        """
        if sink < 0 or chunk_frames < 1 or frames - sink < chunk_frames:
            raise SettingError(
                f"A window of {frames} latent frames with a sink of {sink} has no room for chunks of {chunk_frames}."
            )
        self.frames, self.sink, self.sink_follows, self.chunk_frames = frames, sink, sink_follows, chunk_frames
        self.reset()

    def reset(self) -> None:
        """Forget everything, and free it."""
        self.start = self.end = self.frame_tokens = 0
        self.origin = self.sink
        """The frame that lies in the first slot after the sink."""

    def begin(self, start: int, frames: int, frame_tokens: int) -> None:
        """Place the chunk of latent frames [start, start + frames), of `frame_tokens` tokens each."""
        if start + frames - max(start, self.sink) > self.frames - self.sink:
            raise SettingError(
                f"A chunk of {frames} latent frames does not fit a window of {self.frames} with a sink of {self.sink}."
            )
        if start not in (self.start, self.end):
            raise SettingError(f"The cache ends at latent frame {self.end}; a chunk cannot start at {start}.")
        if start == self.end:
            self._close()
        self.start, self.end, self.frame_tokens = start, start + frames, frame_tokens

    @property
    def oldest(self) -> int:
        """The first latent frame after the sink that is in the window."""
        return max(self.origin, self.oldest_at(self.end))

    def oldest_at(self, end: int) -> int:
        """The first latent frame after the sink of a full window that ends at latent frame `end`."""
        return max(self.sink, end - (self.frames - self.sink))

    def rewind(self, start: int) -> None:
        """Forget all latent frames after the sink; the next chunk begins at `start`.

        Raises SettingError where that lies in the sink or ahead.
        """
        if not self.sink <= start <= self.end:
            raise SettingError(f"A cache with a sink of {self.sink} that ends at {self.end} cannot go back to {start}.")
        self._close()
        self.start = self.end = self.origin = start

    def _close(self) -> None:  # noqa: B027
        """Called when the chunk [self.start, self.end) is final, before the next one begins."""

    @property
    def evicted(self) -> int:
        """Latent frames that have left the window."""
        return max(0, self.end - self.frames)

    def _slots(self, start: int, end: int) -> Iterator[tuple[slice, slice]]:
        """Token ranges (of the chunk, of the cache) that hold the frames [start, end)."""
        n = self.frame_tokens
        frame = start
        while frame < end:
            ring = self.frames - self.sink
            slot = frame if frame < self.sink else self.sink + (frame - self.origin) % ring
            run = min(end - frame, (self.sink if frame < self.sink else self.frames) - slot)
            source = (frame - start) * n
            yield slice(source, source + run * n), slice(slot * n, (slot + run) * n)
            frame += run

    @abstractmethod
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the current chunk's key and value for `layer` and attend to all that is held.

        All tensors are [batch, heads, tokens, head_dim].
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held by keys, values and scales."""


class FloatCache(KVCache):
    """Keys and values in the dtype they come in (16-bit on a GPU); attention reads views, never a copy."""

    def reset(self) -> None:
        super().reset()
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self._sinks: dict[int, tuple[Tensor, int]] = {}
        """Of each layer, the sink's keys where they stood, and by how many frames the cache's copy is shifted."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self._pair(layer, key)
        for source, slot in self._slots(self.start, self.end):
            keys[:, :, slot], values[:, :, slot] = key[:, :, source], value[:, :, source]
        if self.sink_follows and (self.evicted or layer in self._sinks):  # it may have moved before a `rewind`
            self._move_sink(layer, keys)
        held = (min(self.end, self.sink) + max(0, self.end - self.oldest)) * self.frame_tokens
        return F.scaled_dot_product_attention(query, keys[:, :, :held], values[:, :, :held])

    def detach(self) -> None:
        """Forget, where attention ran with gradients, how keys and values were computed."""
        self._pairs = {layer: (key.detach(), value.detach()) for layer, (key, value) in self._pairs.items()}

    def _pair(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._pairs:
            batch, heads, _, head_dim = like.shape
            shape = (batch, heads, self.frames * self.frame_tokens, head_dim)
            self._pairs[layer] = (like.new_empty(shape), like.new_empty(shape))
        return self._pairs[layer]

    def _move_sink(self, layer: int, keys: Tensor) -> None:
        tokens = self.sink * self.frame_tokens
        original, shifted = self._sinks.get(layer) or (keys[:, :, :tokens].clone(), 0)
        if shifted != self.evicted:
            keys[:, :, :tokens] = shift_in_time(original, self.evicted)
            self._sinks[layer] = (original, self.evicted)

    @property
    def nbytes(self) -> int:
        tensors = [t for pair in self._pairs.values() for t in pair] + [
            original for original, _ in self._sinks.values()
        ]
        return sum(t.nbytes for t in tensors)


def shift_in_time(keys: Tensor, frames: int) -> Tensor:
    """Rotated `keys` [batch, heads, tokens, head_dim] as if they stood `frames` latent frames later."""
    return rotate(keys, time_shift(torch.tensor([frames]), keys.shape[-1]).to(keys.device))
