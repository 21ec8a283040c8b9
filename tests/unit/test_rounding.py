"""What every rounding method owes, whatever file was added last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny.weights import KINDS

from qarvd.calibrate.stats import LayerStats
from qarvd.errors import SettingError
from qarvd.ops.codecs import CODECS
from qarvd.ops.split import ChannelSplit
from qarvd.quantize.grid import row_error
from qarvd.quantize.rounding import ROUNDING, Task, adaround

CHANNELS, ROWS = 96, 24


def task(codec: str, symmetric: bool, outliers: int, stats: bool = True) -> Task:
    """Correlated inputs, and a weight whose first channels are loud."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, CHANNELS, generator=generator)
    weight[:, :20] *= 6
    x = torch.randn(600, 30, generator=generator) @ torch.randn(30, CHANNELS, generator=generator)
    x += torch.randn(600, CHANNELS, generator=generator)
    found = LayerStats.of(x, None, torch.ones(600), generator) if stats else None
    return Task(weight, ChannelSplit(CHANNELS, tuple(range(outliers))), CODECS[codec], symmetric, found)


@pytest.mark.parametrize("outliers", [0, 32])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("codec", [*KINDS, "int3g32"])
@pytest.mark.parametrize("method", ROUNDING)
def test_every_method_gives_a_weight_that_can_be_stored_and_is_no_worse_than_nearest(
    method: str, codec: str, symmetric: bool, outliers: int
) -> None:
    given = task(codec, symmetric, outliers)
    if method == "adaround" and given.codec.group:
        with pytest.raises(SettingError, match="codes of groups"):
            ROUNDING[method](given)
        return
    before = given.weight.clone()
    found = ROUNDING[method](given)
    assert torch.equal(given.weight, before)
    assert found.codec == given.codec and found.split == given.split and found.shape == (ROWS, CHANNELS)
    assert (found.zero is None) == (symmetric or bool(found.codec.group))
    assert torch.isfinite(found.scale).all() and (found.scale > 0).all()
    codes = found.decoded.codes
    assert codes.min() >= -found.codec.high - (0 if symmetric else 1) and codes.max() <= found.codec.high

    target, hessian = given.problem
    plain = ROUNDING["nearest"](replace(given, stats=None))
    mine, nearest = (row_error(w.dequantize() - target, hessian).sum() for w in (found, plain))
    assert mine <= nearest * 1.01


def test_adarounds_loss_sums_over_the_tokens_of_a_sample_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    given = task("int4", False, 0)
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(3000, CHANNELS, generator=generator)
    given = replace(
        given, stats=LayerStats.of(sample, None, torch.ones(len(sample)), generator), sample_tokens=len(sample)
    )
    slopes = []

    def learning(target: torch.Tensor, grid: object, n_outlier: int, gradient: Any) -> torch.Tensor:
        value = (target + torch.randn(target.shape, generator=generator)).requires_grad_()
        (sample @ (value - target).T).square().sum(0).mean().backward()
        assert value.grad is not None
        slopes.append((gradient(value.detach(), 0), value.grad))
        raise StopIteration

    monkeypatch.setattr(adaround, "learn", learning)
    with pytest.raises(StopIteration):
        ROUNDING["adaround"](given)
    ((ours, expected),) = slopes
    assert (ours - expected).norm() < 0.05 * expected.norm()  # ours is damped


@pytest.mark.parametrize("method", ROUNDING)
def test_a_method_without_the_statistics_it_needs_says_so(method: str) -> None:
    given = task("int4", False, 32, stats=False)
    if method == "nearest":
        ROUNDING[method](given)
    else:
        with pytest.raises(SettingError, match="give prompts, or round to nearest"):
            ROUNDING[method](given)
