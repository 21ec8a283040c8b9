"""The stock formats that ours are compared with are comfy-kitchen's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from baselines import stock
from tiny.model import CONFIG, tiny_model
from torch import nn

pytest.importorskip("comfy_kitchen", reason="needs comfy-kitchen, which has the formats")


@pytest.mark.parametrize(
    ("form", "lost", "bits"),
    [
        ("w4a8", 0.005, 4 + 8 / 16 + 32 / 512),
        ("w6a8", 0.0004, 6 + 8 / 16 + 32 / 512),
        ("w8a8", 0.00005, 8 + 32 / 512),
        ("w8a8_plain", 0.00002, 8 + 32 / 512),
        ("w4a4", 0.016, 4 + 32 / 512),
    ],
)
def test_a_linear_is_its_dequantized_weight_but_for_rounded_tokens(form: str, lost: float, bits: float) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(512, 96), torch.randn(2, 40, 512)
    made = stock.StockLinear(linear, form)
    restored = made.held.dequantize()
    wanted = F.linear(x, restored, linear.bias)
    with torch.no_grad():
        error = (made(x) - wanted).square().mean() / wanted.square().mean()
    assert 0 < error < (0.02 if form == "w4a4" else 2e-4)
    found = (restored - linear.weight.detach()).square().sum() / linear.weight.detach().square().sum()
    assert found.item() == pytest.approx(lost, rel=0.3)
    assert 8 * made.nbytes / linear.weight.numel() == pytest.approx(bits, abs=0.02)


def test_all_linears_of_a_tree_are_replaced() -> None:
    model = tiny_model()
    before = {name for name, module in model.tree.named_modules() if isinstance(module, nn.Linear)}
    stored = stock.quantize(model.tree, CONFIG.num_layers, "w4a8")
    made = {name: module for name, module in model.tree.named_modules() if isinstance(module, stock.StockLinear)}
    assert len(made) == 20 + 1 and set(made) < before  # of two blocks, and the second of the text embedding
    kept = 2 * CONFIG.text_dim * CONFIG.dim  # the first one, whose 16 channels are too few
    assert stored == kept + sum(module.nbytes for module in made.values())
