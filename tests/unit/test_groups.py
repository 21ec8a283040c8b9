"""Scales of groups, as files hold them."""

from __future__ import annotations

import pytest
import torch

from qarvd.checkpoint.quantized import read_linear, write_linear
from qarvd.ops.codecs import CODECS
from qarvd.ops.split import ChannelSplit
from qarvd.ops.weight import LEAST_RATIO
from qarvd.quantize.rounding import ROUNDING, Task


@pytest.mark.parametrize("name", ["int3g16", "int4g16", "int6g64"])
def test_a_row_without_normal_weights_keeps_its_scale_within_what_files_allow(name: str) -> None:
    split = ChannelSplit.of(128, range(64))
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    weight[3, 64:] = 0
    weight[5, 64:] *= 1e-4
    made = ROUNDING["nearest"](Task(weight, split, CODECS[name]))
    again = read_linear("a", dict(write_linear("a", made)))
    assert torch.equal(again.dequantize(), made.dequantize()) and not made.dequantize()[3, 64:].any()
    assert (made.scale[:, 1] >= made.scale[:, 0] * LEAST_RATIO).all()
