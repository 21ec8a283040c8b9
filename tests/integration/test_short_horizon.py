"""The cheaper measure of frame weights is accepted: close to the full one, on the demo model and its hostile twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plant_outliers import plant

from qarvd.calibrate.frame_weights import FrameWeights
from qarvd.calibrate.horizon import short_horizon
from qarvd.calibrate.rollout import roll_out
from qarvd.checkpoint.model import load
from qarvd.demo.bundle import MODEL, embed
from qarvd.demo.prompts import split_prompts
from qarvd.jobs.calibrate import setting_of
from qarvd.quantize.model import quantize_tree
from qarvd.recipe import RECIPES

PROMPTS, CHUNKS = 16, 7


@pytest.mark.slow
@pytest.mark.parametrize("twin", [False, True], ids=["natural", "twin"])
def test_every_weight_is_within_25_percent_and_nearer_than_any_exponential(twin: bool) -> None:
    full, other = load(MODEL), load(MODEL)
    for model in (full, other):
        model.tree.float()
        if twin:
            plant(model.tree)
    quantize_tree(other.tree, other.config.num_layers, RECIPES["w4a8"].without_data())
    setting = setting_of(full, (8, 8), 3 * CHUNKS)
    text = embed(split_prompts()[0][:PROMPTS])
    _, errors = roll_out(setting, full.tree, text, range(PROMPTS), other.tree)
    _, cut = roll_out(setting, full.tree, text, range(PROMPTS), other.tree, short_horizon(CHUNKS))
    assert errors is not None and cut is not None
    for k, far in enumerate(short_horizon(CHUNKS)):
        assert torch.equal(cut[:, k, : k + far], errors[:, k, : k + far])
        assert not cut[:, k, k + far :].any()
    measured, short = (
        np.array(FrameWeights.from_errors(e, setting.chunk_sizes, horizon).values)
        for e, horizon in ((errors, None), (cut, short_horizon(CHUNKS)))
    )
    assert np.abs(short / measured - 1).max() < 0.25
    line = np.polyfit(np.arange(CHUNKS), np.log(measured), 1)  # the exponential nearest to the truth
    exponential = np.polyval(line, np.arange(CHUNKS))
    assert np.square(np.log(short / measured)).mean() < np.square(exponential - np.log(measured)).mean()
