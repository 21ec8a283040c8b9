"""One stream on a MODEL that ComfyUI has loaded: latents in and out in its space, room for the cache, cancelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as management
import torch
from torch import Tensor

from ..qarvd.errors import DeviceError, SettingError, ShapeError
from ..qarvd.stream.cache import KVCache
from ..qarvd.stream.presets import PRESETS, Preset
from ..qarvd.stream.sampler import check_prompts, frame_tokens, spans
from ..qarvd.stream.schedule import Schedule
from ..qarvd.wan.config import WanConfig
from . import host

RESERVE = 1.1
"""A cache must leave a tenth of itself free."""


@dataclass(frozen=True)
class Session:
    """What a stream runs on."""

    base: Any
    """ComfyUI's model, loaded and patched."""
    config: WanConfig
    preset: Preset
    """The family with the user's window, sink and chunk size."""
    device: torch.device
    demo: bool
    """Whether it is the bundled model, whose latents are pixels."""

    @property
    def tree(self) -> Any:
        """Its module tree."""
        return self.base.diffusion_model

    @property
    def dtype(self) -> torch.dtype:
        """In which the model computes."""
        return self.base.manual_cast_dtype or self.base.get_dtype()

    def to_model(self, latents: Tensor) -> Tensor:
        """Latents from ComfyUI's space into the model's."""
        return self.base.process_latent_in(latents).to(self.device, self.dtype)

    def to_socket(self, latents: Tensor) -> Tensor:
        """Latents from the model's space into ComfyUI's, where sockets can take them."""
        return self.base.process_latent_out(latents.float()).to(management.intermediate_device())


def of(patcher: Any, base: Any, family: str, frames: tuple[int, int, int], device: torch.device) -> Session:
    """What a stream on a MODEL runs on, with the user's chunk size, window and sink (0, 0 and -1: the family's).

    Raises QarvdErrors for a MODEL that is none of ours.
    """
    name = host.family_of(patcher, family)
    return Session(base, host.config_of(patcher), changed(PRESETS[name], *frames), device, name == host.DEMO)


def changed(preset: Preset, chunk_frames: int, window: int, sink: int) -> Preset:
    """The preset with the user's choices: 0 frames, and a negative sink, leave the family's."""
    preset = replace(preset, chunk_frames=chunk_frames or preset.chunk_frames, window=window or preset.window)
    return replace(preset, sink=preset.sink if sink < 0 else sink)


def cache_bytes(session: Session, cache: KVCache, batch: int, size: tuple[int, int], codec: str) -> int:
    """About how many bytes a full cache takes."""
    per_token = 2 * session.config.num_layers * session.config.dim * batch
    tokens = frame_tokens(session.config, *size)
    wide = session.dtype.itemsize
    whole = cache.frames if codec == "16-bit" else min(cache.frames, cache.sink + cache.chunk_frames)
    older = cache.frames - whole
    narrow = {"16-bit": wide, "int8": 1, "int4": 0.5}[codec] * (1 + 4 / session.config.head_dim)
    return int(tokens * per_token * (whole * wide + older * narrow))


def working_bytes(session: Session, batch: int, size: tuple[int, int]) -> int:
    """About how many bytes a model call on one chunk takes beside weights and cache, as ComfyUI estimates it."""
    return int(session.base.memory_required([batch, session.config.in_dim, session.preset.chunk_frames, *size]))


def make_room(bytes_needed: int, device: torch.device, patcher: Any, working: int = 0) -> None:
    """Free memory for a cache, and `working` bytes beside it, by unloading other models, then parts of this one.

    Raises DeviceError where there is not enough.
    """
    wanted = int(bytes_needed * RESERVE) + working
    kept = [loaded for loaded in management.current_loaded_models if loaded.model is patcher]
    management.free_memory(wanted, device, keep_loaded=kept)
    free = management.get_free_memory(device)
    if free < wanted and device != patcher.offload_device:
        patcher.partially_unload(patcher.offload_device, wanted - free)
        management.soft_empty_cache()
        free = management.get_free_memory(device)
    if free < wanted:
        raise DeviceError(
            f"The cache of keys and values takes {bytes_needed / 1e9:.2f} GB and a step {working / 1e9:.2f} GB, but "
            f"only {free / 1e9:.2f} GB are free on {device}. Choose a smaller window, an int8 or int4 cache, or a "
            "smaller size."
        )


def calls(schedule: Schedule, frames: int, before: int, cache: KVCache, prompts: Mapping[int, Tensor]) -> int:
    """Model calls of a stream of `frames` latent frames after `before` ones.

    The last chunk is not written into the cache; a change of prompt writes the chunks that begin in the window anew.
    """
    given = [span.start for span in spans(before, cache.chunk_frames)] if before else []
    starts = given + [span.start for span in spans(frames, cache.chunk_frames, before)]
    total = len(given) + sum(len(schedule.of_chunk(index)) + 1 for index in range(len(given), len(starts))) - 1
    for index in prompts:
        at = starts[len(given) + index]
        total += sum(cache.oldest_at(at) <= start < at for start in starts)
    return total


def seeds(seed: int, batch: int) -> list[int]:
    """One for each video of a batch, none beyond 64 bits."""
    return [(seed + index) % 2**64 for index in range(batch)]


def prompts_of(changes: Mapping[int, Sequence[Any]] | None, batch: int, chunks: int) -> dict[int, Tensor]:
    """The embeddings that take over, by the index of the generated chunk. Raises SettingError for one out of reach."""
    check_prompts(changes or (), chunks)
    return {index: text_of(conditioning, batch) for index, conditioning in (changes or {}).items()}


def text_of(conditioning: Sequence[Any], batch: int) -> Tensor:
    """The embeddings [batch, tokens, text_dim] of a CONDITIONING. Raises SettingError for several at once."""
    if len(conditioning) != 1:
        raise SettingError(
            f"The prompt has {len(conditioning)} conditionings, but a stream takes one. Connect one CLIP Text Encode."
        )
    entry = conditioning[0]
    tensor = entry["cross_attn"] if isinstance(entry, dict) else entry[0]
    if tensor is None or tensor.ndim != 3:
        raise ShapeError("The prompt has no text embeddings. Connect CLIP Text Encode with a Wan text encoder.")
    if len(tensor) not in (1, batch):
        raise ShapeError(f"There are {len(tensor)} prompts for {batch} videos. Give one, or one for each.")
    return tensor.expand(batch, -1, -1)
