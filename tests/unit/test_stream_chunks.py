"""A model may be fitted for streams longer than the clips that it was calibrated on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from qarvd.checkpoint.model import checksum, state_tensors
from qarvd.errors import SettingError
from qarvd.jobs.calibrate import calibrate, setting_of
from qarvd.jobs.quantize import quantize
from qarvd.recipe import RECIPES

from .conftest import CONFIG, tiny_model

RECIPE = RECIPES["w4a8"]
SIZE, FRAMES = (4, 6), 5
"""Two chunks, of three and of two frames."""


def test_chunks_weigh_as_in_a_longer_stream_where_that_is_asked_for() -> None:
    texts = torch.randn(4, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(1))
    made = calibrate(tiny_model(), texts, SIZE, FRAMES, RECIPE)
    setting = setting_of(tiny_model(), SIZE, FRAMES)
    weights = made.weights(setting.chunk_sizes)
    with pytest.raises(SettingError, match="streams of 1 chunks, but calibration clips have 2"):
        quantize(tiny_model(), replace(RECIPE, stream_chunks=1), made)
    tables, files = [], []
    for chunks in (None, 2, 20):
        found, _ = quantize(tiny_model(), replace(RECIPE, stream_chunks=chunks), made)
        table: Any = found.notes["call_weights"]
        tables.append([sum(row) / len(row) for row in table])
        files.append(checksum(state_tensors(found)))
        assert found.recipe is not None and found.recipe.stream_chunks == chunks
    assert tables[0] == pytest.approx(weights.values)
    assert tables[1] == pytest.approx(tables[0])
    long = weights.extend((3, 2, *[3] * 18)).values
    assert tables[2] == pytest.approx([2 * value / sum(long[:2]) for value in long[:2]])
    assert tables[2] != pytest.approx(tables[0]) and files[2] != files[0]
