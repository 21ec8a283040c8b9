"""What tests of quantized linears share."""

from __future__ import annotations

import torch
from torch import Tensor


def tokens(*shape: int, seed: int = 1) -> Tensor:
    """Normal tokens, every fifth channel of which is loud."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., ::5] *= 20
    return x
