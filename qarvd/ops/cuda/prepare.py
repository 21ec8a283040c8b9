"""All kernels made ready when a card's module is loaded: no op has to load anything while a CUDA graph is captured."""

from __future__ import annotations

import torch

from . import kernels
from .kernels import Launcher


def prepare(launcher: Launcher, turing: bool) -> None:
    """Load every kernel with the shared memory that its launches take; Turing has none for bfloat16 attention."""
    kernels.prepare_activation(launcher)
    kernels.prepare_append(launcher)
    for bits in kernels.TILES:
        kernels.prepare_linear(launcher, bits)
        for head_dim in kernels.HEAD_DIMS:
            for dtype in (torch.float16,) if turing else (torch.float16, torch.bfloat16):
                launcher.prepare(*kernels.attention_kernel(torch.empty(0, head_dim, dtype=dtype), bits))
