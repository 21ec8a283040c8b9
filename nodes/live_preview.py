"""What the page sees while a stream runs: each chunk's frames, how soon the first came, how fast they come."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import folder_paths
import torch
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..qarvd.demo import bundle, pixels
from ..qarvd.report.pixels import to_bytes
from ..qarvd.report.png import png_bytes
from ..qarvd.stream.presets import PRESETS
from ..qarvd.stream.preview import rgb_preview
from ..qarvd.stream.sampler import Chunk
from ..qarvd.stream.scale import WAN
from . import host

EVENT = "qarvd.chunk"
KEPT = 480
"""Latent frames in the animation that is left when the stream has ended; a longer one keeps the newest."""


class LivePreview:
    """Shows one stream on the page, chunk by chunk."""

    def __init__(self, node: str | None, demo: bool, chunks: int | None, first_frame: int = 0) -> None:
        self.node, self.demo, self.chunks, self.first_frame = node, demo, chunks, first_frame
        self.began = time.perf_counter()
        self.first_after = 0.0
        self.done = self.latent_frames = 0
        self.frames: list[Tensor] = []

    @property
    def rate(self) -> float:
        """Latent frames a second at which the video plays: Wan's are 16 pixel frames, 4 of each latent frame."""
        return bundle.FRAMES_PER_SECOND if self.demo else 4

    def show(self, chunk: Chunk) -> Image.Image:
        """Send a chunk to the panel, and give the picture for ComfyUI's own preview."""
        seconds = time.perf_counter() - self.began
        self.first_after = self.first_after or seconds
        frames = self.pictures(chunk.latents)
        self.frames = [*self.frames, *frames][-KEPT:]
        self.done, self.latent_frames = self.done + 1, self.latent_frames + len(frames)
        height, width = frames.shape[1:3]
        strip = torch.cat(list(frames), dim=1)  # side by side
        server = PromptServer.instance
        event = {
            "node": self.node,
            "prompt_id": getattr(server, "last_prompt_id", None),
            "chunk": self.done - 1,
            "chunks": self.chunks,
            "first_frame": chunk.start,
            "frames": len(frames),
            "frames_per_second": self.rate,
            "width": width,
            "height": height,
            "sprite": f"data:image/png;base64,{base64.b64encode(png_bytes(strip)).decode()}",
            **self.figures(),
        }
        server.send_sync(EVENT, event, server.client_id)
        return Image.fromarray(to_bytes(frames[-1]).numpy())

    def pictures(self, latents: Tensor) -> Tensor:
        """RGB frames [frames, height, width, 3] in 0..1 of the first video of a batch."""
        if self.demo:
            return pixels.decode(latents[:1].cpu())[0].unsqueeze(-1).repeat(1, 1, 1, 3)
        return rgb_preview(latents[0])

    def figures(self) -> dict[str, Any]:
        """Seconds until the first chunk was there, and pixel frames a second so far."""
        scale = PRESETS[host.DEMO].scale if self.demo else WAN
        total = scale.pixel_frames(self.first_frame + self.latent_frames) - scale.pixel_frames(self.first_frame)
        seconds = time.perf_counter() - self.began
        return {
            "first_frame_seconds": round(self.first_after, 3),
            "pixel_frames": total,
            "pixel_frames_per_second": round(total / max(seconds, 1e-9), 3),
        }

    def result(self) -> dict[str, Any]:
        """What the panel keeps: figures, and an animation in ComfyUI's temporary folder."""
        figures = {"chunks": self.done, "latent_frames": self.latent_frames, **self.figures()}
        return {"qarvd_stream": [{**figures, "preview": animation(self.frames, self.rate)}]}


def animation(frames: Sequence[Tensor], rate: float) -> dict[str, str]:
    """Write frames [height, width, 3] as an animated picture into ComfyUI's temporary folder."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"qarvd_{token_hex(6)}.webp"
    pictures = [Image.fromarray(to_bytes(frame).numpy()) for frame in frames]
    first, *others = pictures
    first.save(folder / name, save_all=True, append_images=others, duration=round(1000 / rate), loop=0, quality=80)
    return {"filename": name, "subfolder": "", "type": "temp"}
