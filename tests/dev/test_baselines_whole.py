"""Baselines quantize whole trees: every linear is replaced, by one of as many values as its bits allow."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from baselines import published, rotation, smoothquant
from baselines.fake import FakeLinear, Static
from baselines.inputs import Samples, collect
from baselines.methods import METHODS, Case
from tiny.model import CONFIG as TINY
from tiny.model import tiny_model
from torch import Tensor

from qarvd.calibrate.rollout import Setting
from qarvd.jobs.calibrate import CalibrationPlan, calibrate
from qarvd.quantize.model import linear_groups
from qarvd.quantize.outliers import published_split
from qarvd.recipe import Recipe
from qarvd.stream.presets import PRESETS
from qarvd.stream.rollout import roll_out
from qarvd.wan.tree import WanTree

CONFIG = replace(TINY, text_dim=32)
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
    expected = clips(full)
    return float((clips(tree) - expected).square().mean() / expected.square().mean())


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


def test_published_ranges_are_those_of_the_rounded_model_and_samples_weigh_as_their_chunks(
    full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Samples]] = []
    learned: list[published.Layer] = []

    def collected(tree: Any) -> dict[str, Samples]:
        given.append(inputs(tree))
        return dict(given[-1])

    def learning(layer: published.Layer, *rest: Any) -> Any:
        learned.append(layer)
        return adaround(layer, *rest)

    adaround = published.adaround
    monkeypatch.setattr(published, "adaround", learning)
    published.quantize(copy.deepcopy(full), NAMES, collected, [1.5, 0.5], 4, True, 1)
    before, after = given
    names = [n for n in NAMES if not any(part in n for part in ("cross_attn.k", "cross_attn.v", "text_embedding"))]
    for name, layer in zip(names, learned, strict=True):
        assert layer.samples is before[name].x and layer.ranged is after[name].x
        assert not torch.equal(layer.samples, layer.ranged)
        assert torch.equal(layer.chunk_weights, torch.tensor([1.5, 0.5])[before[name].chunk])


def test_every_input_of_a_rotated_tree_is_rotated(full: Any) -> None:
    tree = copy.deepcopy(full)
    rotation.quantize(tree, CONFIG.num_layers, 8, dual_scale=True)
    for name in NAMES:
        made, linear = tree.get_submodule(name), full.get_submodule(name)
        transform = rotation.rotation(published_split(*(full.get_submodule(n).weight for n in group_of(name))))
        assert isinstance(made, FakeLinear) and made.transform is not None and torch.equal(made.transform, transform)
        assert not torch.equal(transform, torch.eye(len(transform)))
        back = made.weight @ transform.T
        torch.testing.assert_close(back, linear.weight, rtol=0, atol=0.02 * linear.weight.abs().max())
    assert error(tree, full) < 1e-2


def group_of(name: str) -> tuple[str, ...]:
    return next(group for group in linear_groups(CONFIG.num_layers) if name in group)


def test_what_is_rotated_or_smoothed_can_be_rounded_by_gptq(full: Any) -> None:
    known, layers = inputs(full), CONFIG.num_layers
    errors: dict[str, list[float]] = {"rotation": [], "smoothquant": []}
    for by_gptq in (False, True):
        tree = copy.deepcopy(full)
        rotation.quantize(tree, layers, 4, dual_scale=False, inputs=known if by_gptq else None)
        errors["rotation"].append(error(tree, full))
        tree = copy.deepcopy(full)
        smoothquant.quantize(tree, layers, known, 4, by_gptq)
        errors["smoothquant"].append(error(tree, full))
    assert all(compensated < 0.7 * nearest for nearest, compensated in errors.values()), errors


def tiny(bits: int) -> Case:
    """A case of the tiny model, calibrated once."""
    text = TEXT[..., : TINY.text_dim]
    model = tiny_model()
    plan = CalibrationPlan(SETTING.size, SETTING.frames, Recipe(weight_bits=bits), 0)
    calibration = calibrate(model, text, plan)
    return Case(model, text, SETTING.size, SETTING.frames, 0, bits, lambda prompts: calibration)


def last_chunk(tree: Any, case: Case) -> Tensor:
    chunks = roll_out(tree, TINY, SETTING.preset, case.text, SETTING.size, SETTING.frames, range(3))
    return list(chunks)[-1].latents


def test_every_variant_of_ours_makes_another_model() -> None:
    """Variants that replace a name of a module would silently be ours where another module holds that name, too."""
    case = tiny(4)
    named = (
        *("ours", "ours_stock", "ours_g64", "ours_g32", "budget", "data_free", "data_free_stock"),
        *("gptq", "drawn_calls", "detected_outliers", "random_outliers", "one_rounding_kept"),
    )
    variants = (*named, *(name for name in METHODS if name.startswith("without_")))
    made = {name: last_chunk(METHODS[name].build(case)[0], case) for name in variants}
    assert not [pair for pair in combinations(made, 2) if torch.equal(*(made[name] for name in pair))]


def test_smoothquant_takes_the_strength_of_least_error_for_every_input(full: Any) -> None:
    tree, known, chosen = copy.deepcopy(full), inputs(full), set()
    smoothquant.quantize(tree, CONFIG.num_layers, known, 4)
    for names in linear_groups(CONFIG.num_layers):
        linears = [full.get_submodule(name) for name in names]
        tried = {s: smoothquant.smoothed(linears, known[names[0]].x, s, 4) for s in smoothquant.STRENGTHS}
        best = min(tried, key=lambda s: tried[s][0])
        chosen.add(best)
        for name, expected in zip(names, tried[best][1], strict=True):
            assert torch.equal(tree.get_submodule(name).weight, expected.weight)
    assert len(chosen) > 1


def test_smoothquant_quantizes_every_linear_and_is_the_model_at_8_bits(full: Any) -> None:
    errors, sizes = [], []
    for bits in (4, 8):
        tree = copy.deepcopy(full)
        heard: list[str] = []
        sizes.append(smoothquant.quantize(tree, CONFIG.num_layers, inputs(tree), bits, on_layer=heard.append))
        assert heard == NAMES and all(isinstance(tree.get_submodule(name), FakeLinear) for name in NAMES)
        errors.append(error(tree, full))
    assert errors[1] < 0.2 * errors[0] and errors[1] < 1e-2 and sizes[0] < 0.7 * sizes[1]
