"""Eight bits: a code a byte."""

from __future__ import annotations

import torch
from torch import Tensor

from .codec import Codec


def _same(codes: Tensor) -> Tensor:
    return codes


CODECS = (Codec("int8", bits=8, stored=torch.int8, pack=_same, unpack=_same, low=-127, high=127, keeps_cache=True),)
