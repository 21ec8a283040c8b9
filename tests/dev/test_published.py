"""The published baseline is the published one: its quantizers are those of the released code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from baselines.fake import FakeLinear, Rounded
from baselines.published import Layer, adaround, nearest, weight_grid
from safetensors import safe_open
from torch import Tensor

from qarvd.ops.split import ChannelSplit

GOLDEN = Path(__file__).parents[1] / "golden" / "quantizer.safetensors"

with safe_open(GOLDEN, "pt") as file:
    CASES: list[dict[str, Any]] = json.loads(file.metadata()["cases"])
    TENSORS: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def layer_of(case: dict[str, Any]) -> Layer:
    name = case["name"]
    weight, inputs = TENSORS[f"{name}.weight"], TENSORS[f"{name}.inputs"]
    outliers = TENSORS[f"{name}.outlier_channels"].tolist() if case["dual_scale"] else []
    sensitivity = torch.tensor(case["sensitivity"] or [1.0] * 7)
    weights = (sensitivity / sensitivity.mean())[TENSORS[f"{name}.chunk"].long()]
    split = ChannelSplit.of(weight.shape[1], outliers)
    return Layer(weight, TENSORS[f"{name}.bias"], split, inputs, inputs, weights)


def weighted_error(case: dict[str, Any], weight: Tensor, rounded: Rounded) -> float:
    layer = layer_of(case)
    difference = FakeLinear(weight, layer.bias, rounded)(layer.samples) - FakeLinear(
        layer.weight, layer.bias, lambda x: x
    )(layer.samples)
    return float((difference.square().sum(1) * layer.chunk_weights[:, None]).mean())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_steps_and_zero_points_are_the_published_ones(case: dict[str, Any]) -> None:
    layer, bits = layer_of(case), case["weight_bits"]
    n = layer.split.n_outlier
    grid = weight_grid(layer.weight[:, layer.split.to_columns(torch.arange(layer.split.channels))], n, bits)
    static = layer.static()
    assert grid.zero is not None
    for group, column, channel in (("outlier", 0, 0), ("normal", 1, -1)) if n else (("all", 1, -1),):
        for mine, its in ((grid.scale, "weight_step"), (grid.zero, "weight_zero")):
            torch.testing.assert_close(mine[:, column], TENSORS[f"{case['name']}.{group}.{its}"], rtol=1e-5, atol=1e-5)
        published = case["groups"][group]
        at = layer.split.to_columns(torch.arange(layer.split.channels))[channel]
        assert float(static.step[at]) == pytest.approx(published["act_step"], rel=1e-5)
        assert float(static.zero[at]) == published["act_zero"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_nearest_outputs_are_the_published_ones(case: dict[str, Any]) -> None:
    layer = layer_of(case)
    weight, static = nearest(layer, case["weight_bits"]), layer.static()
    found = FakeLinear(weight, layer.bias, static)(layer.samples)
    torch.testing.assert_close(found, TENSORS[f"{case['name']}.output_nearest"], rtol=0, atol=1e-4)
    assert weighted_error(case, weight, static) == pytest.approx(case["weighted_error_nearest"], rel=1e-3)


@pytest.mark.parametrize("case", [c for c in CASES if c["adaround_iterations"]], ids=lambda case: case["name"])
def test_adaround_ends_within_5_percent_of_the_published_error(case: dict[str, Any]) -> None:
    layer = layer_of(case)
    weight, rounded = adaround(layer, case["weight_bits"], layer.static(), case["adaround_iterations"])
    assert weighted_error(case, weight, rounded) == pytest.approx(case["weighted_error_adaround"], rel=0.05)
