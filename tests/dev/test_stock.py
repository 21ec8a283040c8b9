"""The stock format that ours is compared with is comfy-kitchen's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from baselines import stock
from tiny.model import CONFIG, tiny_model
from torch import nn

kitchen = pytest.importorskip("comfy_kitchen", reason="needs comfy-kitchen, which has the format")


def test_a_linear_is_its_dequantized_weight_but_for_8_bit_tokens() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(512, 96), torch.randn(2, 40, 512)
    made = stock.StockLinear(linear)
    restored = kitchen.dequantize_w4a8_int8_weight(*made.parts, made.correction, output_dtype=torch.float32)
    wanted = F.linear(x, restored, linear.bias)
    with torch.no_grad():
        error = (made(x) - wanted).square().mean() / wanted.square().mean()
    assert 0 < error < 2e-4  # tokens rounded to 8 bits
    lost = (restored - linear.weight.detach()).square().sum() / linear.weight.detach().square().sum()
    assert lost.item() == pytest.approx(0.005, rel=0.2)
    assert 8 * made.nbytes / linear.weight.numel() == pytest.approx(4 + 8 / 16 + 32 / 512, abs=0.02)


def test_all_linears_of_a_tree_are_replaced() -> None:
    model = tiny_model()
    before = {name for name, module in model.tree.named_modules() if isinstance(module, nn.Linear)}
    stored = stock.quantize(model.tree, CONFIG.num_layers)
    made = {name: module for name, module in model.tree.named_modules() if isinstance(module, stock.StockLinear)}
    assert len(made) == 20 + 1 and set(made) < before  # of two blocks, and the second of the text embedding
    kept = 2 * CONFIG.text_dim * CONFIG.dim  # the first one, whose 16 channels are too few
    assert stored == kept + sum(module.nbytes for module in made.values())
