"""What shipped workflows are made of: nodes and links, published files, and groups of nodes that several have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HUB = "https://huggingface.co"
REPACKAGED = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
FILES = {
    "self_forcing_dmd.pt": (
        f"{HUB}/gdhe17/Self-Forcing/resolve/main/checkpoints/self_forcing_dmd.pt",
        "diffusion_models",
    ),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (
        f"{REPACKAGED}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "text_encoders",
    ),
    "wan_2.1_vae.safetensors": (f"{REPACKAGED}/vae/wan_2.1_vae.safetensors", "vae"),
}
"""Where published files come from, and their folder below models/."""
QUANTIZED = "self-forcing-w4a8.safetensors"
EXPORTED = "self-forcing-stock-w4a8.safetensors"
FULL = "self_forcing_dmd.pt"
PROMPT = (
    "A stylish woman strolls down a bustling Tokyo street, the warm glow of neon lights and animated city signs "
    "casting vibrant reflections."
)
LATER_PROMPT = (
    "A stylish woman strolls down a bustling Tokyo street as heavy rain sets in; she opens a red umbrella, and neon "
    "lights shimmer in the puddles."
)


@dataclass(frozen=True)
class Out:
    """An output of another node."""

    node: str
    index: int = 0


@dataclass(frozen=True)
class Node:
    """A node: its widgets that are not left as they are, its links, its place."""

    kind: str
    at: tuple[int, int]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (330, 0)
    title: str | None = None


def note(at: tuple[int, int], size: tuple[int, int], text: str) -> Node:
    return Node("MarkdownNote", at, {"text": text}, size)


TEXT = {"clip": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "vae": "wan_2.1_vae.safetensors"}


def encoders(x: int, y: int, prompt: bool = True) -> dict[str, Node]:
    """Wan's text encoder, and a prompt."""
    found = {"clip": Node("CLIPLoader", (x, y), {"clip_name": TEXT["clip"], "type": "wan"}, (330, 110))}
    if prompt:
        found["text"] = Node(
            "CLIPTextEncode", (x, y + 160), {"clip": Out("clip"), "text": PROMPT}, (330, 150), "Prompt"
        )
    return found


def video(images: str, x: int, y: int, name: str) -> dict[str, Node]:
    """An mp4 of 16 frames a second."""
    return {
        f"{name} video": Node("CreateVideo", (x, y), {"images": Out(images), "fps": 16.0}, (250, 80)),
        f"{name} file": Node(
            "SaveVideo",
            (x, y + 170),
            {"video": Out(f"{name} video"), "filename_prefix": f"video/qarvd-{name}"},
            (420, 360),
        ),
    }
