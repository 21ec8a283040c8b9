"""The search finds columns that need a scale of their own, keeps one scale where none do, and knows what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qarvd.calibrate.stats import LayerStats
from qarvd.ops.codecs import CODECS
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.split import ChannelSplit
from qarvd.quantize import search
from qarvd.quantize.rounding import ROUNDING, Task
from qarvd.quantize.search import counts, output_error, search_split

CHANNELS, ROWS, TOKENS = 192, 48, 1500
INT4, INT8 = CODECS["int4"], CODECS["int8"]


def layer(planted: int, factor: float = 12.0, faint: int = 0) -> tuple[Tensor, LayerStats]:
    """A weight [out, in] whose first `planted` columns are loud, as its inputs are faint there; else all is even.

    Of so many further columns the inputs alone are `faint`.
    """
    generator = torch.Generator().manual_seed(0)
    weight, x = (2 * torch.rand(n, CHANNELS, generator=generator) - 1 for n in (ROWS, TOKENS))
    weight[:, :planted] *= factor
    x[:, : planted + faint] /= factor
    return weight, LayerStats.of(x, None, torch.ones(TOKENS), generator)


@pytest.mark.parametrize("planted", [20, 32, 50, 64])
def test_planted_columns_are_found_in_the_fewest_channels_that_hold_them(planted: int) -> None:
    weight, stats = layer(planted)
    found = search_split([weight], stats, INT4, False)
    assert set(range(planted)) <= set(found.split.outliers)
    assert found.split.n_outlier == -(-planted // 32) * 32
    assert found.errors[found.split.n_outlier] == min(found.errors.values())
    assert found.errors[found.split.n_outlier] < 0.5 * found.errors[0]


def test_channels_with_faint_activations_join_those_that_need_a_scale() -> None:
    """20 loud columns leave room for 12: a coarse step does least harm where little comes in."""
    weight, stats = layer(20, faint=12)
    assert search_split([weight], stats, INT4, False).split.outliers == tuple(range(32))


def test_a_further_scale_has_to_gain_a_hundredth(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = {0: 1.0, 32: 0.995, 64: 0.98, 96: 0.975}
    monkeypatch.setattr(search, "output_error", lambda weight, stats, split, *_: gains[split.n_outlier])
    weight, stats = layer(0)
    found = search_split([weight], stats, INT4, False)
    assert found.split.n_outlier == 64 and found.errors == gains


def test_linears_that_read_one_input_share_what_is_found() -> None:
    weight, stats = layer(30)
    even, _ = layer(0)
    assert set(range(30)) <= set(search_split([even, weight], stats, INT4, False).split.outliers)


def test_tokens_without_weight_have_no_say() -> None:
    """Chunks that matter decide: the heavy tokens are faint where the weight is loud, the others loud everywhere."""
    weight, _ = layer(32)
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.rand(400, CHANNELS, generator=generator) - 1  # all are among the samples
    x[:200, :32] /= 12
    x[200:] *= 5
    heavy = torch.cat([torch.ones(200), torch.full((200,), 1e-9)])
    weighted, alone, even = (
        search_split([weight], LayerStats.of(x[:n], None, w, generator), INT4, False)
        for n, w in ((400, heavy), (200, torch.ones(200)), (400, torch.ones(400)))
    )
    assert weighted.errors == pytest.approx(alone.errors, rel=1e-3)
    assert weighted.split == alone.split
    assert even.errors != pytest.approx(alone.errors, rel=0.2)


@pytest.mark.parametrize("codec", [INT4, INT8], ids=["int4", "int8"])
def test_an_even_weight_keeps_a_single_scale(codec: object) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, CHANNELS, generator=generator).sign() for n in (ROWS, TOKENS))
    stats = LayerStats.of(x, None, torch.ones(TOKENS), generator)
    found = search_split([weight], stats, codec, False)  # type: ignore[arg-type]
    assert found.split.n_outlier == 0
    assert list(found.errors) == list(counts(CHANNELS))


@pytest.mark.parametrize("channels", [32, 64, 96, 1536, 8960])
def test_counts_are_aligned_dense_at_first_and_at_most_half(channels: int) -> None:
    tried = list(counts(channels))
    assert tried[0] == 0 and tried == sorted(set(tried)) and tried[-1] <= channels // 2
    assert all(count % 32 == 0 for count in tried)
    assert set(range(0, min(256, channels // 2) + 1, 32)) <= set(tried)
    assert len(tried) < 32  # a wide layer is searched in wider steps


@pytest.mark.parametrize("outliers", [0, 32])
@pytest.mark.parametrize("codec", [INT4, INT8], ids=["int4", "int8"])
def test_the_estimate_is_the_error_of_the_layer_rounded_so(codec: object, outliers: int) -> None:
    weight, stats = layer(32)
    split = ChannelSplit(CHANNELS, tuple(range(outliers)))
    estimate = output_error(weight, stats, split, codec, False)  # type: ignore[arg-type]
    rounded = QuantizedLinear(ROUNDING["nearest"](Task(weight, split, codec, symmetric=False)), None)  # type: ignore[arg-type]
    expected = stats.samples @ weight.T
    error = (rounded(stats.samples) - expected).square().sum() / expected.square().sum()
    assert estimate == pytest.approx(float(error), rel=0.25)
