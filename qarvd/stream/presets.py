"""Checkpoint families as data: how each was distilled, and so how it must be streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ..errors import SettingError
from .cache import FloatCache, KVCache
from .quantized_cache import QuantizedCache
from .scale import WAN, Scale
from .schedule import Schedule

CACHES: dict[str, Callable[..., KVCache]] = {
    "16-bit": FloatCache,
    "int8": partial(QuantizedCache, bits=8),
    "int4": partial(QuantizedCache, bits=4),
}
"""Cache codecs by name; 16-bit keeps the model's own dtype."""


@dataclass(frozen=True)
class Preset:
    """One family: frames are latent frames, steps are nominal timesteps."""

    chunk_frames: int
    steps: tuple[int, ...]
    shift: float = 5.0
    warp: bool = True
    first_steps: tuple[int, ...] | None = None
    window: int | None = None
    """Latent frames that stay in the cache, the sink and the current chunk included; None: the whole clip."""
    sink: int = 0
    sink_follows: bool = False
    """Whether the sink keeps its distance to the window (relative positions) or its absolute position."""
    context_noise: float = 0.0
    scale: Scale = field(default=WAN, repr=False)
    text_len: int = field(default=512, repr=False)
    head_dim: int = field(default=128, repr=False)
    """What tensors do not show, for a file that does not tell it: tokens of text that the models attend to, and
    channels of a head."""

    @property
    def schedule(self) -> Schedule:
        return Schedule.from_steps(self.steps, self.shift, self.warp, self.first_steps, self.context_noise)

    def cache(self, frames: int | None, codec: str = "16-bit") -> KVCache:
        """A cache for a clip of `frames` latent frames, or for an endless one. Raises SettingError without a window."""
        if codec not in CACHES:
            raise SettingError(f"There is no cache codec {codec!r}; choose from {', '.join(CACHES)}.")
        if self.window is not None and self.window < self.chunk_frames + max(self.sink, 0):
            raise SettingError(
                f"A window of {self.window} latent frames has no room for a sink of {self.sink} and a chunk of "
                f"{self.chunk_frames}; widen the window or shorten the sink."
            )
        if frames is not None:
            # A short chunk, the first one (an image) or the last one, needs room beside whole ones.
            roomy = frames + (self.chunk_frames - 1 if frames % self.chunk_frames else 0)
            if self.window is None or roomy <= self.window:
                # Nothing is evicted, but a change of prompt leaves the sink as it is here too.
                sink = min(self.sink, roomy - self.chunk_frames)
                return CACHES[codec](roomy, sink, self.sink_follows, self.chunk_frames)
        if self.window is None:
            raise SettingError("An endless stream needs a window: give the number of latent frames to keep.")
        return CACHES[codec](self.window, self.sink, self.sink_follows, self.chunk_frames)


_FOUR = (1000, 750, 500, 250)

PRESETS: dict[str, Preset] = {
    "demo": Preset(
        3,
        _FOUR,
        window=12,
        sink=3,
        sink_follows=True,
        scale=Scale(side=4, frames=1, only=(32, 32)),
        text_len=8,
        head_dim=64,
    ),
    "self-forcing": Preset(3, _FOUR),
    "causal-forcing": Preset(3, _FOUR),
    "causal-forcing-framewise": Preset(1, _FOUR),
    "causal-forcing-2-step": Preset(3, (1000, 500)),
    "causal-forcing-1-step": Preset(3, (1000,), first_steps=_FOUR),
    "causvid": Preset(3, (1000, 757, 522), shift=8.0, warp=False),
    "longlive": Preset(3, _FOUR, window=12, sink=3),
    "longlive-infinity": Preset(3, _FOUR, window=12, sink=3, sink_follows=True),
    "streamdiffusion-v2": Preset(1, (700, 500, 400, 200), shift=8.0, warp=False, window=6, sink=3),
}
"""Families by name (published configurations)."""


def find_preset(name: str) -> Preset:
    """The preset called `name`. Raises SettingError, listing those there are."""
    if name not in PRESETS:
        raise SettingError(f"There is no preset {name!r}; choose from {', '.join(PRESETS)}.")
    return PRESETS[name]
