"""Which linears of a Wan tree are quantized, and how those with one input agree."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from torch import nn

from qarvd.calibrate.stats import LayerStats
from qarvd.errors import CheckpointError, SettingError
from qarvd.ops.linear import QuantizedLinear
from qarvd.quantize.model import LayerReport, corrected_bias, linear_groups, quantize_tree, recipe_codec
from qarvd.quantize.outliers import published_split
from qarvd.recipe import RECIPES, Recipe
from qarvd.wan.config import WanConfig
from qarvd.wan.tree import WanTree

CONFIG = WanConfig(dim=96, ffn_dim=128, num_heads=2, num_layers=2, text_dim=64, text_len=4, freq_dim=32)
W8A8 = RECIPES["w8a8"].without_data()
NAMES = [name for group in linear_groups(CONFIG.num_layers) for name in group]


def tree_of(config: WanConfig = CONFIG) -> WanTree:
    """Random weights with three loud input channels in every linear."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tree = WanTree(config).requires_grad_(False)
    for index, module in enumerate(m for m in tree.modules() if isinstance(m, nn.Linear)):
        module.weight[:, index % 8 : index % 8 + 3] *= 8
    return tree


def quantize(tree: WanTree, recipe: Recipe = W8A8) -> list[LayerReport]:
    return quantize_tree(tree, tree.config.num_layers, recipe)


def quantized_in(tree: WanTree) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in tree.named_modules() if isinstance(module, QuantizedLinear)}


def linear_in(tree: WanTree, name: str) -> nn.Linear:
    linear = tree.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


@pytest.mark.parametrize("recipe", [r.without_data() for r in RECIPES.values()], ids=RECIPES)
def test_linears_of_the_blocks_and_of_the_text_are_quantized_and_no_others(recipe: Recipe) -> None:
    tree = tree_of()
    reports = quantize(tree, recipe)
    assert set(quantized_in(tree)) == set(NAMES)
    full = {name for name, module in tree.named_modules() if isinstance(module, nn.Linear)}
    assert full == {"time_embedding.0", "time_embedding.2", "time_projection.1", "head.head"}
    assert [report.name for report in reports] == NAMES


@pytest.mark.parametrize("recipe", [r.without_data() for r in RECIPES.values()], ids=RECIPES)
def test_the_report_tells_what_each_linear_got(recipe: Recipe) -> None:
    tree, original = tree_of(), tree_of()
    for report in quantize(tree, recipe):
        actual, linear = quantized_in(tree)[report.name], linear_in(original, report.name)
        weight = actual.weight
        assert report.shape == weight.shape == tuple(linear.weight.shape)
        assert (report.bits, report.nbytes) == (recipe_codec(recipe).label, weight.nbytes)
        assert report.n_outlier == weight.split.n_outlier == 32
        error = (weight.dequantize() - linear.weight).norm() / linear.weight.norm()
        assert report.relative_error == pytest.approx(float(error) ** 2, rel=1e-4)
        assert report.relative_error < {8: 1e-4, 6: 1e-3, 4: 1.2e-2, 3: 5e-2}[recipe.weight_bits]
        assert report.kept is None
        assert actual.bias is not None and torch.equal(actual.bias, linear.bias)


def test_linears_with_one_input_share_the_split_of_their_common_norms() -> None:
    tree, original = tree_of(), tree_of()
    quantize(tree)
    linears = quantized_in(tree)
    for group in linear_groups(CONFIG.num_layers):
        expected = replace(published_split(*(linear_in(original, name).weight for name in group)), rotation=256)
        assert all(linears[name].weight.split == expected for name in group)
        assert expected.n_outlier == 32


def test_without_outliers_there_is_a_single_scale() -> None:
    tree = tree_of()
    reports = quantize(tree, Recipe(outliers="none").without_data())
    assert all(linear.weight.split.n_outlier == 0 for linear in quantized_in(tree).values())
    assert all(report.n_outlier == 0 for report in reports)


def test_input_channels_that_are_not_a_multiple_of_32_stay_in_16_bits() -> None:
    tree = tree_of(dataclasses.replace(CONFIG, text_dim=48))
    report = quantize(tree)[0]
    assert report.name == "text_embedding.0"
    assert report.kept == "its 48 input channels are not a multiple of 32"
    assert (report.bits, report.nbytes, report.relative_error) == ("16", 96 * 48 * 2, 0.0)
    assert set(quantized_in(tree)) == set(NAMES) - {"text_embedding.0"}


def test_kept_linears_stay_with_those_that_read_the_same_input() -> None:
    tree = tree_of()
    reports = quantize(tree, Recipe(keep=("blocks.1.ffn.2", "blocks.0.cross_attn.k")).without_data())
    kept = {"blocks.1.ffn.2", "blocks.0.cross_attn.k", "blocks.0.cross_attn.v"}
    assert {report.name for report in reports if report.kept == "kept by the recipe"} == kept
    assert set(quantized_in(tree)) == set(NAMES) - kept


def test_an_unknown_name_to_keep_is_refused_before_anything_changes() -> None:
    tree = tree_of()
    with pytest.raises(SettingError, match=r"keeps 'blocks\.2\.ffn\.0', .* Did you mean blocks\.1\.ffn\.0"):
        quantize(tree, Recipe(keep=("blocks.2.ffn.0", "blocks.1.ffn.0")).without_data())
    assert not quantized_in(tree)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["blocks.1.self_attn.v", "text_embedding.2"])
def test_a_damaged_weight_is_named(name: str, value: float) -> None:
    tree = tree_of()
    linear_in(tree, name).weight[3, 4] = value
    with pytest.raises(CheckpointError, match=f"^{name}.weight holds NaN or infinite values"):
        quantize(tree)


def test_a_quantized_tree_is_not_quantized_again() -> None:
    tree = tree_of()
    quantize(tree)
    with pytest.raises(CheckpointError, match=r"text_embedding.0 is already quantized"):
        quantize(tree)


def test_an_unknown_rounding_method_is_refused() -> None:
    with pytest.raises(SettingError, match=r"no rounding method 'up'; choose from .*nearest"):
        quantize(tree_of(), Recipe(rounding="up"))


def test_every_linear_is_announced_as_it_is_done() -> None:
    tree, seen = tree_of(), []
    quantize_tree(tree, CONFIG.num_layers, RECIPES["w4a8"].without_data(), seen.append)
    assert seen == NAMES


def test_a_weight_of_zeros_is_no_error() -> None:
    tree = tree_of()
    linear_in(tree, "blocks.0.ffn.0").weight.zero_()
    report = next(r for r in quantize(tree) if r.name == "blocks.0.ffn.0")
    assert report.relative_error == 0
    assert not quantized_in(tree)["blocks.0.ffn.0"].weight.dequantize().any()


def test_a_corrected_bias_gives_back_the_mean_output_of_the_full_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 24)
    restored = linear.weight + 0.1 * torch.randn(24, 64, generator=generator)
    full = torch.randn(500, 64, generator=generator) + 1
    x, weight = full + 0.3 * torch.rand(500, 64, generator=generator), torch.rand(500, generator=generator)
    bias = corrected_bias(linear, restored, LayerStats.of(x, full, weight, generator))
    share = weight / weight.sum()
    torch.testing.assert_close(share @ (x @ restored.T + bias), share @ linear(full), rtol=0, atol=1e-5)
