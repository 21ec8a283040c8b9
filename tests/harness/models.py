"""Small models and a LoRA to load, where ComfyUI looks for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from qarvd.checkpoint.model import load, save
from qarvd.demo import bundle
from qarvd.wan.config import WanConfig
from qarvd.wan.tree import WanTree

DEMO, OTHER, TRUNCATED, STRANGER = (f"{name}.safetensors" for name in ("demo", "other", "truncated", "stranger"))
"""The demo; a model of its family with other weights; half of it; a Wan model that doesn't tell what it is."""
LORA = "demo-lora.safetensors"
RANK = 4


def write_models(folder: Path) -> None:
    """Write them below ComfyUI's folder of models."""
    models, loras = folder / "diffusion_models", folder / "loras"
    for each in (models, loras):
        each.mkdir(parents=True, exist_ok=True)
    whole = bundle.MODEL.read_bytes()
    (models / DEMO).write_bytes(whole)
    (models / TRUNCATED).write_bytes(whole[: len(whole) // 2])
    demo = load(bundle.MODEL)
    demo.tree.head.head.bias.data += 0.01
    save(replace(demo, notes={}), models / OTHER)
    torch.manual_seed(0)
    stranger = WanTree(WanConfig(dim=128, ffn_dim=256, num_heads=1, num_layers=2, text_dim=32))
    save_file(stranger.state_dict(), models / STRANGER)
    down, up = torch.randn(RANK, 256) * 0.02, torch.randn(256, RANK)
    name = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, loras / LORA)
