"""The streaming sampler as a SAMPLER, for ComfyUI's SamplerCustomAdvanced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..qarvd.demo.bundle import LATENT_SIDE
from ..qarvd.errors import SettingError, ShapeError
from ..qarvd.stream.noise import from_seeds
from ..qarvd.stream.presets import CACHES
from ..qarvd.stream.rollout import check_guidance, roll_out_from
from ..qarvd.stream.sampler import frame_tokens, spans
from ..qarvd.stream.schedule import Schedule
from . import host, session
from .live_preview import LivePreview
from .models import CATEGORY, FAMILIES, FAMILY_TIP
from .progress import Progress
from .schedules import agreed
from .sockets import Changes, ScheduleSocket


def stream_inputs() -> list[Any]:
    """Widgets that both streaming nodes have."""
    return [
        io.Combo.Input("family", options=FAMILIES, default=host.AUTOMATIC, tooltip=FAMILY_TIP),
        io.Int.Input(
            "chunk_frames", default=0, min=0, max=64, tooltip="Latent frames in a chunk. 0: as the family has it."
        ),
        io.Int.Input(
            "window",
            default=0,
            min=0,
            max=10_000,
            tooltip=(
                "Latent frames in the cache, including the sink and the current chunk. It limits the memory. 0: as the "
                "family has it."
            ),
        ),
        io.Int.Input(
            "sink",
            default=-1,
            min=-1,
            max=1000,
            tooltip="The number of first latent frames that always stay in the cache. -1: as the family has it.",
        ),
        io.Combo.Input(
            "cache",
            options=list(CACHES),
            default="16-bit",
            tooltip=(
                "How the cache keeps older frames. int8 halves their memory and int4 quarters it. The sink and the "
                "newest chunk always have 16 bits."
            ),
        ),
    ]


def changes_input() -> Any:
    """The socket for changes of prompt that both streaming nodes have."""
    return Changes.Input(
        "changes", optional=True, tooltip="The output of Change Prompt: other prompts for later chunks."
    )


class StreamingSampler(io.ComfyNode):
    """A SAMPLER that denoises chunk by chunk over a cache."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdSampler",
            display_name="Streaming AR Sampler",
            category=CATEGORY,
            description=(
                "A SAMPLER that generates a video chunk by chunk and shows each chunk as soon as it is done. Use it in "
                "SamplerCustomAdvanced, with BasicGuider (these models run without guidance) and AR Schedule."
            ),
            inputs=[
                *stream_inputs(),
                ScheduleSocket.Input(
                    "schedule",
                    optional=True,
                    tooltip=(
                        "The output of AR Schedule. It adds what sigmas cannot hold: other steps for the first chunk."
                    ),
                ),
                io.Latent.Input(
                    "initial",
                    optional=True,
                    tooltip=(
                        "Latents to continue from, such as an encoded image. They replace the first frames of the "
                        "video."
                    ),
                ),
                changes_input(),
            ],
            outputs=[io.Sampler.Output(display_name="SAMPLER", tooltip="Connect to SamplerCustomAdvanced.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        family: str,
        chunk_frames: int,
        window: int,
        sink: int,
        cache: str,
        schedule: Schedule | None = None,
        initial: Mapping[str, Tensor] | None = None,
        changes: Mapping[int, Sequence[Any]] | None = None,
    ) -> io.NodeOutput:
        options = {
            "family": family,
            "frames": (chunk_frames, window, sink),
            "codec": cache,
            "schedule": schedule,
            "initial": None if initial is None else initial["samples"],
            "node": cls.hidden.unique_id,
            "changes": changes,
        }
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample, options))


@torch.no_grad()
def sample(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    *,
    family: str,
    frames: tuple[int, int, int],
    codec: str,
    schedule: Schedule | None,
    initial: Tensor | None,
    node: str | None,
    changes: Mapping[int, Sequence[Any]] | None = None,
) -> Tensor:
    """Denoise `x`, noise [batch, channels, frames, height, width] in the model's space, as ComfyUI's samplers do."""
    guider = model.inner_model
    check_guidance(getattr(guider, "cfg", 1.0))
    patcher, base = guider.model_patcher, guider.inner_model
    check_latents(x, base)
    on = session.of(patcher, base, family, frames, x.device)
    batch, _, total, height, width = x.shape
    size = (height, width)
    if on.demo and size != (LATENT_SIDE, LATENT_SIDE):
        raise SettingError(
            f"The latents are {width} x {height}, but the demo model draws {LATENT_SIDE} x {LATENT_SIDE}. Set width "
            f"and height of the empty video latent to {8 * LATENT_SIDE}."
        )
    frame_tokens(on.config, *size)
    chosen = agreed(sigmas, schedule, on.preset.schedule)
    begun = None if initial is None else on.to_model(fitting(initial, x))
    before = 0 if begun is None else begun.shape[2]
    if before >= total:
        raise SettingError(
            f"The initial latents have {before} frames, and the video has only {total}. Make the video longer."
        )
    noise = starting(model, x).to(on.dtype)
    parts = [noise[:, :, span.start : span.stop] for span in spans(total - before, on.preset.chunk_frames, before)]
    cache = on.preset.cache(total, codec)
    needed, working = session.cache_bytes(on, cache, batch, size, codec), session.working_bytes(on, batch, size)
    session.make_room(needed, on.device, patcher, working)
    # ComfyUI drew `x` from the seed itself; the same numbers again between steps would not be fresh noise.
    seeds = session.seeds(((extra_args or {}).get("seed") or 0) + 1, batch)
    fresh = from_seeds(seeds, on.device, on.dtype)
    text = session.text_of(guider.conds["positive"], batch).to(on.device, on.dtype)
    live = LivePreview(node, on.demo, len(parts), before)
    prompts = session.prompts_of(changes, batch, len(parts))
    bar = Progress(session.calls(chosen, total - before, before, cache, prompts))
    out = x.clone()
    if begun is not None:
        out[:, :, :before] = begun
    for chunk in roll_out_from(
        on.tree, on.config, text, parts, fresh, chosen, cache, begun, lambda step: bar.advance(), prompts
    ):
        out[:, :, chunk.start : chunk.start + chunk.latents.shape[2]] = chunk.latents
        bar.picture(live.show(chunk))
    return out


def starting(model: Any, x: Tensor) -> Tensor:
    """What chunks are denoised from.

    ComfyUI scales noise by the first sigma, which is right beside latents to change. With none, families that start
    below 1 take it whole.
    """
    return x if torch.count_nonzero(model.latent_image) else model.noise


def check_latents(x: Tensor, base: Any) -> None:
    """Raise ShapeError for latents that are no video of this model."""
    channels = base.diffusion_model.in_dim
    if x.ndim != 5 or x.shape[1] != channels:
        raise ShapeError(
            f"The latents have shape {tuple(x.shape)}, but a video needs [batch, {channels}, frames, height, width]. "
            "Make them with an empty video latent node for Wan."
        )


def fitting(initial: Tensor, x: Tensor) -> Tensor:
    """Initial latents for every video of the batch. Raises ShapeError for those of another size or VAE."""
    if initial.ndim != 5 or initial.shape[1] != x.shape[1] or initial.shape[3:] != x.shape[3:]:
        raise ShapeError(
            f"The initial latents have shape {tuple(initial.shape)}, but the video has {tuple(x.shape)} (batch, "
            "channels, frames, height, width). Encode them with the VAE of this model, at the size of the video."
        )
    if len(initial) not in (1, len(x)):
        raise ShapeError(f"There are {len(initial)} initial latents for {len(x)} videos. Give one, or one for each.")
    return initial.expand(len(x), -1, -1, -1, -1)
