"""The calibration prompts that come with qarvd, and how encoded prompts lie in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

FILE = Path(__file__).with_name("prompts.txt")
"""64 prompts, one a line: many subjects, motions, cameras and lights, short and long in every four."""


def shipped_prompts() -> list[str]:
    """All of them, in order; any first few are as varied as the rest."""
    return FILE.read_text(encoding="utf-8").splitlines()


def padded(parts: Sequence[Tensor]) -> Tensor:
    """Embeddings [tokens, text_dim] with zeros behind those that are shorter: [prompts, tokens, text_dim]."""
    longest = max(map(len, parts))
    return torch.stack([F.pad(part, (0, 0, 0, longest - len(part))) for part in parts])


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """As `padded`; embeddings of a large encoder become bfloat16."""
    wide = padded(parts)
    return wide.to(torch.bfloat16) if wide.shape[-1] >= 1024 else wide
