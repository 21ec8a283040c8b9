"""Eight bits: a code a byte."""

from __future__ import annotations

import torch
from torch import Tensor

from .codec import Codec


def _same(codes: Tensor) -> Tensor:
    return codes


CODEC = Codec(bits=8, low=-127, high=127, unit=1, stored=torch.int8, pack=_same, unpack=_same, keeps_cache=True)
