"""The self-contained streaming node: a MODEL, a prompt and a size in, a video's latents out, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management as management
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..qarvd.errors import SettingError
from ..qarvd.stream.rollout import roll_out
from ..qarvd.stream.schedule import Schedule
from . import session
from .live_preview import LivePreview
from .models import CATEGORY
from .progress import Progress
from .sampler import changes_input, fitting, stream_inputs
from .sockets import ScheduleSocket


class StreamVideo(io.ComfyNode):
    """Streams a video without further nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdStream",
            display_name="Stream AR Video",
            category=CATEGORY,
            description=(
                "Generates a video chunk by chunk and shows each chunk as soon as it is done. With a window, memory "
                "does not grow with the length. Cancel stops it within one step."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A model in full precision or quantized, with or without a LoRA."),
                io.Conditioning.Input("positive", tooltip="The prompt, from CLIP Text Encode or Demo Model."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip=(
                        "The seed of the noise. The same seed gives the same video as --seed of python -m qarvd stream."
                    ),
                ),
                io.Int.Input(
                    "width",
                    default=832,
                    min=16,
                    max=8192,
                    step=16,
                    tooltip="The width in pixels. The demo model has 32.",
                ),
                io.Int.Input(
                    "height",
                    default=480,
                    min=16,
                    max=8192,
                    step=16,
                    tooltip="The height in pixels. The demo model has 32.",
                ),
                io.Int.Input("chunks", default=7, min=1, max=100_000, tooltip="The number of chunks to generate."),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="The number of videos to make at once, each from its own noise.",
                ),
                *stream_inputs(),
                ScheduleSocket.Input(
                    "schedule",
                    optional=True,
                    tooltip="The output of AR Schedule. Without it, the schedule of the family is used.",
                ),
                io.Latent.Input(
                    "initial", optional=True, tooltip="Latents to continue from, such as the end of a video."
                ),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of this model. Only a start image needs it."),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="An image to begin with, as the first frame. It needs the VAE.",
                ),
                changes_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="LATENT", tooltip="Connect to VAE Decode. A start image or initial latents come first."
                ),
                io.String.Output(
                    display_name="info", tooltip="Seconds to the first chunk, and pixel frames per second."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Sequence[Any],
        seed: int,
        width: int,
        height: int,
        chunks: int,
        batch_size: int,
        family: str,
        chunk_frames: int,
        window: int,
        sink: int,
        cache: str,
        schedule: Schedule | None = None,
        initial: Mapping[str, Tensor] | None = None,
        vae: Any | None = None,
        start_image: Tensor | None = None,
        changes: Mapping[int, Sequence[Any]] | None = None,
    ) -> io.NodeOutput:
        device = model.load_device
        on = session.of(model, model.model, family, (chunk_frames, window, sink), device)
        size = on.preset.scale.latent_size(on.config, width, height)
        given = start(initial, vae, start_image, (height, width))
        with torch.no_grad():
            samples, live = run(
                on,
                model,
                session.text_of(positive, batch_size),
                size,
                chunks,
                seed,
                cache,
                schedule,
                given,
                cls.hidden.unique_id,
                session.prompts_of(changes, batch_size, chunks),
            )
        figures = live.figures()
        info = (
            f"{live.done} chunk{'s'[: live.done > 1]}, {figures['pixel_frames']} pixel frames; first chunk after "
            f"{figures['first_frame_seconds']:.2f} s; {figures['pixel_frames_per_second']:.2f} pixel frames per second"
        )
        return io.NodeOutput({"samples": samples}, info, ui=live.result())


def start(
    initial: Mapping[str, Tensor] | None, vae: Any | None, image: Tensor | None, pixels: tuple[int, int]
) -> Tensor | None:
    """What the video begins with, in ComfyUI's space.

    Raises SettingError for two beginnings, an image without VAE, or the VAE of an image model.
    """
    if image is None:
        return None if initial is None else initial["samples"]
    if initial is not None:
        raise SettingError("initial and start_image are both connected. Disconnect one.")
    if vae is None:
        raise SettingError("A start_image needs the VAE of the model. Connect vae.")
    scaled = comfy.utils.common_upscale(image[:1].movedim(-1, 1), pixels[1], pixels[0], "bilinear", "center").movedim(
        1, -1
    )
    latents = vae.encode(scaled[..., :3])
    if latents.ndim != 5:
        raise SettingError(
            f"The VAE gives latents of shape {tuple(latents.shape)}, but a video needs five axes. Connect the video "
            "VAE of this model (Wan 2.1)."
        )
    return latents


def run(
    on: session.Session,
    patcher: Any,
    text: Tensor,
    size: tuple[int, int],
    chunks: int,
    seed: int,
    codec: str,
    schedule: Schedule | None,
    given: Tensor | None,
    node: str | None,
    prompts: Mapping[int, Tensor],
) -> tuple[Tensor, LivePreview]:
    """Load, make room, stream: latents [batch, channels, frames, height, width] in ComfyUI's space."""
    batch, chosen, chunk_frames = len(text), schedule or on.preset.schedule, on.preset.chunk_frames
    shape = (batch, on.config.in_dim, 1, *size)
    before = 0
    if given is not None:
        given = fitting(given, torch.empty(shape))
        before = given.shape[2]
    frames = chunks * chunk_frames
    cache = on.preset.cache(before + frames, codec)
    needed, working = session.cache_bytes(on, cache, batch, size, codec), session.working_bytes(on, batch, size)
    management.load_models_gpu([patcher], memory_required=needed + working)
    session.make_room(needed, on.device, patcher, working)
    begun = None if given is None else on.to_model(given)
    bar = Progress(session.calls(chosen, frames, before, cache, prompts))
    live = LivePreview(node, on.demo, chunks, before)
    parts = [] if begun is None else [on.to_socket(begun)]
    stream = roll_out(
        on.tree,
        on.config,
        on.preset,
        text.to(on.device, on.dtype),
        size,
        frames,
        session.seeds(seed, batch),
        cache,
        begun,
        lambda step: bar.advance(),
        chosen,
        prompts,
    )
    for chunk in stream:
        parts.append(on.to_socket(chunk.latents))
        live.show(chunk)
    return torch.cat(parts, dim=2), live
