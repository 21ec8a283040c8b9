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
from qarvd.checkpoint.stock import BY_BITS, TENSORWISE
from qarvd.jobs.calibrate import CalibrationPlan, calibrate, setting_of
from qarvd.jobs.quantize import quantize
from qarvd.ops.split import ChannelSplit
from qarvd.quantize import model as groups
from qarvd.quantize.model import linear_groups
from qarvd.quantize.rounding import ROUNDING, gptq
from qarvd.quantize.rounding.adaround import ITERATIONS
from qarvd.quantize.search import Search, search_split
from qarvd.recipe import RECIPES, Recipe

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
    repeat: bool = False
    """Whether to run it with further calibration seeds."""
    bits: tuple[int, ...] = (4,)
    """Of the weights that it is run with."""


def measured(case: Case) -> Calibration:
    """The calibration that this repository's methods use: recorded roll-outs, and the effect of every chunk."""
    plan = CalibrationPlan(case.size, case.frames, RECIPES["w8a8" if case.bits == 8 else "w4a8"], case.seed)
    return calibrate(case.model, case.text, plan)


def ours(
    recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    prompts: int = 64,
    all_calls: bool = True,
    bits: tuple[int, ...] = (4,),
) -> Method:
    """This repository's quantizer with a changed recipe."""

    def build(case: Case) -> tuple[Any, int]:
        model = replace(case.model, tree=copy.deepcopy(case.model.tree))
        wanted = recipe(RECIPES[f"w{case.bits}a8"])
        needs = wanted != wanted.without_data()
        made, reports = quantize(model, wanted, case.calibration(prompts) if needs else None, all_calls=all_calls)
        return made.tree, sum(report.nbytes for report in reports)

    return Method(build, prompts, bits=bits)


def changed(**fields: Any) -> Callable[[Recipe], Recipe]:
    """A recipe with other fields."""
    return lambda recipe: replace(recipe, **fields)


def brought(format: str | None = None, **fields: Any) -> Callable[[Recipe], Recipe]:
    """A recipe in a stock format, the one that holds its bits if none is named."""
    return lambda recipe: replace(recipe.in_format(format or BY_BITS[recipe.weight_bits]), **fields)


def plain(**fields: Any) -> Callable[[Recipe], Recipe]:
    """A recipe of those bits without groups and without rotation, with other fields."""
    return lambda recipe: Recipe(recipe.weight_bits, **fields)


def data_free(recipe: Callable[[Recipe], Recipe], bits: tuple[int, ...] = (4, 8)) -> Method:
    """This repository's quantizer, rounding to nearest without data."""
    return replace(ours(lambda given: recipe(given).without_data(), bits=bits), prompts=0)


def budget(*bits: int) -> Method:
    """Ours with as many bits a weight as the recipe takes, given where they matter."""
    return ours(lambda recipe: replace(recipe, target=f"{BUDGETS[recipe.weight_bits]} bits"), bits=bits)


BUDGETS = {3: 3.65, 4: 4.65}
"""Bits a weight, by those of the recipe that takes nearly as much everywhere."""


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

    return Method(build, prompts, repeat=not static, bits=(4, 8))


def rotated(dual_scale: bool, prompts: int = 0) -> Method:
    """Hadamard rotation, and rounding to nearest or, where there are prompts, by GPTQ."""

    def build(case: Case) -> tuple[Any, int]:
        tree = copy.deepcopy(case.model.tree)
        inputs = shared_inputs(case, prompts) if prompts else None
        return tree, rotation.quantize(tree, case.model.config.num_layers, case.bits, dual_scale, inputs)

    return Method(build, prompts, repeat=True, bits=(4, 8))


def stock_format(*bits: int, form: str = "w{}a8") -> Method:
    """ComfyUI's stock format of those bits, without data."""

    def build(case: Case) -> tuple[Any, int]:
        tree = copy.deepcopy(case.model.tree)
        return tree, stock.quantize(tree, case.model.config.num_layers, form.format(case.bits))

    return Method(build, bits=bits)


def smoothed(prompts: int, by_gptq: bool = False) -> Method:
    """SmoothQuant, and rounding to nearest or by GPTQ."""

    def build(case: Case) -> tuple[Any, int]:
        tree, inputs = copy.deepcopy(case.model.tree), shared_inputs(case, prompts)
        return tree, smoothquant.quantize(tree, case.model.config.num_layers, inputs, case.bits, by_gptq)

    return Method(build, prompts, repeat=True, bits=(4, 8))


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


def repeated(method: Method) -> Method:
    """The same with several calibration seeds."""
    return replace(method, repeat=True)


BARE = plain(outliers="none", compensate=False, frame_weights=False, call_weights=False, correct_bias=False)

METHODS: dict[str, Method] = {
    "ours": repeated(ours(bits=(3, 4, 6, 8))),
    "ours_stock": repeated(ours(brought(), bits=(4, 6, 8))),
    "stock": stock_format(4, 6, 8),
    "ours_g64": ours(changed(group=64), bits=(3, 4, 6)),
    "ours_g32": ours(changed(group=32)),
    "ours_stock_g64": ours(brought(group=64)),
    "ours_stock_plain": ours(brought(TENSORWISE, rotation=0), bits=(8,)),
    "stock_plain": stock_format(8, form="w8a8_plain"),
    "stock_w4a4": stock_format(4, form="w4a4"),
    "data_free": data_free(changed()),
    "data_free_stock": data_free(brought()),
    "ours_24_prompts": ours(prompts=24),
    "ours_4_prompts": ours(prompts=4),
    "ours_1_prompt": ours(prompts=1),
    "drawn_calls": ours(all_calls=False),
    "budget": budget(3, 4),
    "published": as_released(64, static=True),
    "published_dynamic": as_released(64, static=False),
    "published_1_prompt": replace(as_released(1, static=True), bits=(4,)),
    "published_dynamic_1_prompt": replace(as_released(1, static=False), bits=(4,)),
    "nearest": data_free(plain(outliers="none")),
    "nearest_dual_scale": data_free(plain(), bits=(4,)),
    "smoothquant": smoothed(64),
    "rotation": replace(rotated(dual_scale=False), repeat=False),
    "rotation_dual_scale": replace(rotated(dual_scale=True), repeat=False, bits=(4,)),
    "rotation_gptq": rotated(dual_scale=False, prompts=64),
    "smoothquant_gptq": smoothed(64, by_gptq=True),
    "gptq": patched(repeated(ours(BARE, bits=(4, 8))), groups, ROUNDING={**ROUNDING, "gptq": plain_gptq}),
    "without_groups": ours(changed(group=0)),
    "without_rotation": ours(changed(rotation=0)),
    "random_outliers": random_outliers(),
    "detected_outliers": ours(changed(outliers="published")),
    "without_weights": ours(changed(frame_weights=False, call_weights=False)),
    "without_compensation": ours(changed(compensate=False)),
    "without_bias_correction": ours(changed(correct_bias=False)),
    "one_rounding_kept": patched(ours(), gptq, KEPT=1),
}
"""By name; the first ones are run first."""
