"""Every method that benchmarks/quality.py compares, by name: how a full-precision model becomes a quantized one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from qarvd.calibrate.calibration import Calibration
from qarvd.checkpoint.model import Model
from qarvd.jobs.calibrate import CalibrationPlan, calibrate, setting_of
from qarvd.jobs.quantize import quantize
from qarvd.ops.split import ChannelSplit
from qarvd.quantize import model as groups
from qarvd.quantize.model import linear_groups
from qarvd.quantize.rounding import ROUNDING, gptq
from qarvd.quantize.rounding.adaround import ITERATIONS
from qarvd.quantize.search import Search, search_split
from qarvd.recipe import Recipe

from . import published, rotation, smoothquant, stock
from .inputs import Samples, collect
from .rounding import plain_gptq


@dataclass(frozen=True)
class Case:
    """One quantization to make: `bits` for weights, 8 for activations."""

    model: Model
    """In full precision, float32; not to be changed."""
    text: Tensor
    """Calibration prompts, [prompts, tokens, text_dim]."""
    size: tuple[int, int]
    frames: int
    seed: int
    """Of the calibration's noise."""
    bits: int
    calibration: Callable[[int], Calibration]
    """Of the first so many prompts; made once for all methods."""
    iterations: int = ITERATIONS
    """Of published AdaRound."""


@dataclass(frozen=True)
class Method:
    """How to quantize, and how many calibration prompts that takes (0: none)."""

    build: Callable[[Case], tuple[Any, int]]
    """The quantized tree, and the bytes of its linears."""
    prompts: int = 0
    repeat: bool = True
    """Whether to run it with further calibration seeds."""


def measured(case: Case) -> Calibration:
    """The calibration that this repository's methods use: recorded roll-outs, and the effect of every chunk."""
    plan = CalibrationPlan(case.size, case.frames, Recipe(weight_bits=case.bits), case.seed)
    return calibrate(case.model, case.text, plan)


def ours(
    recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe, prompts: int = 64, all_calls: bool = True
) -> Method:
    """This repository's quantizer with a changed recipe."""

    def build(case: Case) -> tuple[Any, int]:
        model = replace(case.model, tree=copy.deepcopy(case.model.tree))
        wanted = recipe(Recipe(weight_bits=case.bits))
        needs = wanted != wanted.without_data()
        made, reports = quantize(model, wanted, case.calibration(prompts) if needs else None, all_calls=all_calls)
        return made.tree, sum(report.nbytes for report in reports)

    return Method(build, prompts)


def changed(**fields: Any) -> Callable[[Recipe], Recipe]:
    """A recipe with other fields."""
    return lambda recipe: replace(recipe, **fields)


def nearest(outliers: str) -> Method:
    """Round to nearest without data."""
    return replace(ours(lambda recipe: replace(recipe.without_data(), outliers=outliers)), prompts=0)


def as_released(prompts: int, static: bool) -> Method:
    """Q-ARVD as its authors released it."""

    def build(case: Case) -> tuple[Any, int]:
        tree, text = copy.deepcopy(case.model.tree), case.text[:prompts]
        names = [name for group in linear_groups(case.model.config.num_layers) for name in group]
        setting = setting_of(case.model, case.size, case.frames)
        seeds = range(case.seed, case.seed + len(text))
        weights = case.calibration(prompts).weights(setting.chunk_sizes).values
        stored = published.quantize(
            tree, names, lambda t: collect(t, setting, names, text, seeds), weights, case.bits, static, case.iterations
        )
        return tree, stored

    return Method(build, prompts, repeat=not static)


def rotated(dual_scale: bool, prompts: int = 0) -> Method:
    """Hadamard rotation, and rounding to nearest or, where there are prompts, by GPTQ."""

    def build(case: Case) -> tuple[Any, int]:
        tree = copy.deepcopy(case.model.tree)
        inputs = shared_inputs(case, prompts) if prompts else None
        return tree, rotation.quantize(tree, case.model.config.num_layers, case.bits, dual_scale, inputs)

    return Method(build, prompts)


def stock_format() -> Method:
    """ComfyUI's stock W4A8, without data."""

    def build(case: Case) -> tuple[Any, int]:
        tree = copy.deepcopy(case.model.tree)
        return tree, stock.quantize(tree, case.model.config.num_layers)

    return Method(build)


def smoothed(prompts: int, by_gptq: bool = False) -> Method:
    """SmoothQuant, and rounding to nearest or by GPTQ."""

    def build(case: Case) -> tuple[Any, int]:
        tree, inputs = copy.deepcopy(case.model.tree), shared_inputs(case, prompts)
        return tree, smoothquant.quantize(tree, case.model.config.num_layers, inputs, case.bits, by_gptq)

    return Method(build, prompts)


def shared_inputs(case: Case, prompts: int) -> dict[str, Samples]:
    """What the first of linears that share an input reads, on the first `prompts` prompts."""
    text, names = case.text[:prompts], [group[0] for group in linear_groups(case.model.config.num_layers)]
    setting = setting_of(case.model, case.size, case.frames)
    return collect(case.model.tree, setting, names, text, range(case.seed, case.seed + len(text)))


def patched(method: Method, target: Any, **names: Any) -> Method:
    """The same with some of a module's names replaced."""

    def build(case: Case) -> tuple[Any, int]:
        with mock.patch.multiple(target, **names):
            return method.build(case)

    return replace(method, build=build)


def random_outliers() -> Method:
    """Ours with as many outliers as the search finds, but any; others in every layer and for every calibration seed."""

    def build(case: Case) -> tuple[Any, int]:
        with mock.patch.object(groups, "search_split", random_split(case.seed)):
            return ours().build(case)

    return replace(ours(), build=build)


def random_split(seed: int) -> Callable[..., Search]:
    """A search that gives every layer it is called for channels of its own."""
    generator = torch.Generator().manual_seed(seed)

    def split(*given: Any) -> Search:
        found = search_split(*given)
        channels = found.split.channels
        chosen = torch.randperm(channels, generator=generator)[: found.split.n_outlier]
        return replace(found, split=ChannelSplit.of(channels, chosen.tolist(), found.split.rotation))

    return split


def once(method: Method) -> Method:
    """The same with one calibration seed."""
    return replace(method, repeat=False)


BARE = changed(outliers="none", compensate=False, frame_weights=False, call_weights=False, correct_bias=False)

METHODS: dict[str, Method] = {
    "ours": ours(),
    "published": as_released(64, static=True),
    "published_dynamic": as_released(64, static=False),
    "published_1_prompt": as_released(1, static=True),
    "published_dynamic_1_prompt": as_released(1, static=False),
    "stock_w4a8": stock_format(),
    "nearest": nearest("none"),
    "nearest_dual_scale": nearest("published"),
    "smoothquant": smoothed(64),
    "rotation": rotated(dual_scale=False),
    "rotation_dual_scale": rotated(dual_scale=True),
    "rotation_gptq": rotated(dual_scale=False, prompts=64),
    "smoothquant_gptq": smoothed(64, by_gptq=True),
    "gptq": patched(ours(BARE), groups, ROUNDING={**ROUNDING, "gptq": plain_gptq}),
    "ours_1_prompt": ours(prompts=1),
    "ours_4_prompts": ours(prompts=4),
    "ours_24_prompts": ours(prompts=24),
    "drawn_calls": ours(all_calls=False),
    "without_weights": ours(changed(frame_weights=False, call_weights=False)),
    "without_frame_weights": ours(changed(frame_weights=False)),
    "without_call_weights": once(ours(changed(call_weights=False))),
    "without_compensation": ours(changed(compensate=False)),
    "without_dual_scale": ours(changed(outliers="none")),
    "without_bias_correction": once(ours(changed(correct_bias=False))),
    "without_zero_points": once(ours(changed(symmetric=True))),
    "without_descent": once(patched(ours(), gptq, ROUNDS=0, descend=lambda codes, *rest: codes)),
    "detected_outliers": once(ours(changed(outliers="published"))),
    "random_outliers": random_outliers(),
    "ours_rotated": ours(changed(rotation=256)),
    "ours_rotated_by_32": once(ours(changed(rotation=32))),
    "adaround": once(ours(changed(rounding="adaround"))),
}
"""By name; the first ones are run first."""
