"""Baselines quantize whole trees: every linear is replaced, by one of as many values as its bits allow."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from baselines import published, smoothquant
from baselines.fake import FakeLinear, Static
from baselines.inputs import Samples, collect
from torch import Tensor

from qarvd.calibrate.rollout import Setting
from qarvd.quantize.model import linear_groups
from qarvd.stream.presets import PRESETS
from qarvd.stream.rollout import roll_out
from qarvd.wan.tree import WanTree

from . import conftest

CONFIG = replace(conftest.CONFIG, text_dim=32)
"""Here even the text embedding's inputs are aligned."""
SETTING = Setting(CONFIG, PRESETS["self-forcing"], (4, 4), 6)
NAMES = [name for group in linear_groups(CONFIG.num_layers) for name in group]
TEXT = torch.randn(3, 4, CONFIG.text_dim, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def full() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WanTree(CONFIG).requires_grad_(False).eval()


def inputs(tree: Any) -> dict[str, Samples]:
    return collect(tree, SETTING, NAMES, TEXT, range(3))


def clips(tree: Any) -> Tensor:
    chunks = roll_out(tree, CONFIG, SETTING.preset, TEXT, SETTING.size, SETTING.frames, range(3))
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


def error(tree: Any, full: Any) -> float:
    due = clips(full)
    return float((clips(tree) - due).square().mean() / due.square().mean())


@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
def test_the_published_method_quantizes_every_linear(static: bool, full: Any) -> None:
    errors, sizes = [], []
    for bits in (4, 8):
        tree = copy.deepcopy(full)
        heard: list[str] = []
        sizes.append(published.quantize(tree, NAMES, inputs, [1.5, 0.5], bits, static, 20, heard.append))
        assert heard == NAMES
        for name in NAMES:
            linear = tree.get_submodule(name)
            assert isinstance(linear, FakeLinear) and isinstance(linear.rounded, Static) == static
            most = max(len(row.unique()) for row in linear.weight)
            assert most <= 2 * 2**bits  # of two ranges
        errors.append(error(tree, full))
    assert errors[1] < 0.2 * errors[0] < 0.2 and sizes[0] < 0.7 * sizes[1]


def test_smoothquant_quantizes_every_linear_and_is_the_model_at_8_bits(full: Any) -> None:
    errors, sizes = [], []
    for bits in (4, 8):
        tree = copy.deepcopy(full)
        heard: list[str] = []
        sizes.append(smoothquant.quantize(tree, CONFIG.num_layers, inputs(tree), bits, heard.append))
        assert heard == NAMES and all(isinstance(tree.get_submodule(name), FakeLinear) for name in NAMES)
        errors.append(error(tree, full))
    assert errors[1] < 0.2 * errors[0] and errors[1] < 1e-2 and sizes[0] < 0.7 * sizes[1]
