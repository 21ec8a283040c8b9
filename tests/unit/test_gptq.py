"""GPTQ and what follows it only ever lower the error of the output."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.weights import KINDS
from torch import Tensor

from qarvd.calibrate.stats import LayerStats
from qarvd.errors import SettingError
from qarvd.ops.codecs import CODECS, Codec
from qarvd.ops.split import ChannelSplit
from qarvd.quantize.fit import fit_grid, full_range
from qarvd.quantize.grid import row_error, to_codes
from qarvd.quantize.groups import regroup
from qarvd.quantize.lattice import round_in_order
from qarvd.quantize.rounding import ROUNDING, Task
from qarvd.quantize.rounding import gptq as steps
from qarvd.quantize.rounding.task import DAMPING

laws = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**31)
codecs = st.sampled_from(list(KINDS.values()))


def layer(seed: int, outliers: int = 0, drift: float = 0.0, dead: int = 0) -> tuple[Tensor, Tensor, Tensor, Task]:
    """Inputs x and x_full [600, 96] that are correlated, a weight [24, 96], and the task to quantize it."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(96, 96, generator=generator) / 10
    x = torch.randn(600, 96, generator=generator) @ mixing + 0.2
    x[:, :dead] = 0
    full = x + drift * torch.randn(600, 96, generator=generator) @ mixing
    weight = torch.randn(24, 96, generator=generator)
    split = ChannelSplit.of(96, torch.randperm(96, generator=generator)[:outliers].tolist())
    weight[:, list(split.outliers)] *= 8
    stats = LayerStats.of(x, full, torch.ones(600), generator)
    return x, full, weight, Task(weight, split, CODECS["int4"], symmetric=False, stats=stats)


def output_error(x: Tensor, full: Tensor, weight: Tensor, restored: Tensor) -> float:
    return float((x @ restored.T - full @ weight.T).square().mean())


@laws
@given(seed=seeds, outliers=st.sampled_from([0, 32]), drift=st.sampled_from([0.0, 0.1]), symmetric=st.booleans())
def test_it_beats_nearest_on_the_output(seed: int, outliers: int, drift: float, symmetric: bool) -> None:
    x, full, weight, task = layer(seed, outliers, drift)
    task = Task(weight, task.split, task.codec, symmetric, task.stats)
    blind = replace(task, stats=None)
    gptq, aimed, nearest = (
        output_error(x, full, weight, ROUNDING[name](t).dequantize())
        for name, t in (("gptq", task), ("nearest", task), ("nearest", blind))
    )
    assert gptq < 0.8 * nearest and aimed < nearest


@laws
@given(seed=seeds)
def test_the_asymmetric_target_makes_up_for_drifting_inputs(seed: int) -> None:
    x, full, weight, task = layer(seed, drift=0.5)
    blind = LayerStats.of(x, None, torch.ones(len(x)), torch.Generator())
    aware, unaware = (
        ROUNDING["gptq"](Task(weight, task.split, CODECS["int8"], stats=stats)).dequantize()
        for stats in (task.stats, blind)
    )
    assert output_error(x, full, weight, aware) < output_error(x, full, weight, unaware)


@laws
@given(seed=seeds, codec=codecs, outliers=st.sampled_from([0, 32]), symmetric=st.booleans())
def test_descent_and_refitting_never_raise_the_error_and_codes_stay_in_range(
    seed: int, codec: Codec, outliers: int, symmetric: bool
) -> None:
    _, _, weight, task = layer(seed, outliers, drift=0.1)
    task = Task(weight, task.split, codec, symmetric, task.stats)
    target, hessian = task.problem
    order = task.split.to_columns(torch.arange(task.split.channels))
    target, hessian = target[:, order], hessian[order][:, order]
    grid = fit_grid(target, outliers, codec, symmetric, hessian)
    scale, zero = grid.per_column(outliers, 96)
    codes = grid.all_nearest(target / scale + zero)

    def error() -> Tensor:
        return row_error(steps.value(codes, grid, outliers) - target, hessian)

    least = error()
    for _ in range(3):
        codes = steps.descend(codes, target, hessian, grid, outliers)
        assert (error() <= least * (1 + 1e-9)).all()
        least = error()
        grid = steps.refit(codes, target, hessian, grid, outliers)
        assert (error() <= least * (1 + 1e-9)).all()
        least = error()
        if grid.groups is not None:
            codes, grid = regroup(codes, target, hessian, grid, outliers)
            assert (error() <= least * (1 + 1e-9)).all()
            assert torch.equal(grid.all_nearest(codes), codes)
            least = error()
    low, high = (codec.low, codec.high) if symmetric or codec.group else full_range(codec)
    assert low <= codes.min() and codes.max() <= high and (codes == codes.round()).all()


@laws
@given(seed=seeds)
def test_channels_that_are_always_zero_do_no_harm(seed: int) -> None:
    x, full, weight, task = layer(seed, dead=16)
    restored = ROUNDING["gptq"](task).dequantize()
    assert torch.isfinite(restored).all()
    assert restored.abs().amax() <= 1.2 * weight.abs().amax()
    assert output_error(x, full, weight, restored) < 0.02 * float((full @ weight.T).square().mean())


@laws
@given(seed=seeds)
def test_inputs_that_hardly_vary_about_a_large_mean_are_fitted_all_the_same(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 300 + 1e-3 * torch.randn(2000, 96, generator=generator)  # float32 sums lose the variance
    weight = torch.randn(24, 96, generator=generator)
    stats = LayerStats.of(x, x + 1, torch.ones(len(x)), generator)
    for free_bias in (True, False):
        task = Task(weight, ChannelSplit(96), CODECS["int4"], False, stats, free_bias)
        restored = ROUNDING["gptq"](task).dequantize()
        assert torch.isfinite(restored).all()
        assert restored.abs().amax() <= 2 * weight.abs().amax()


def test_without_statistics_it_is_refused() -> None:
    with pytest.raises(SettingError, match="needs the statistics of calibration"):
        ROUNDING["gptq"](Task(torch.randn(8, 32), ChannelSplit(32), CODECS["int4"]))


@laws
@given(seed=seeds, outliers=st.sampled_from([0, 32]))
def test_the_loudest_input_is_rounded_before_any_error_could_be_made_up_for(seed: int, outliers: int) -> None:
    target, hessian = layer(seed, outliers)[3].in_order
    assert hessian is not None
    grid = fit_grid(target, outliers, CODECS["int4"], False, hessian)
    scale, zero = grid.per_column(outliers, 96)
    nearest = to_codes(target, scale, zero, grid.low, grid.high)
    codes = round_in_order(target, hessian, hessian.diagonal().argsort(descending=True), grid, outliers)
    loudest = int(hessian.diagonal().argmax())
    assert torch.equal(codes[:, loudest], nearest[:, loudest])
    assert not torch.equal(codes, nearest)


@pytest.mark.parametrize("outliers", [0, 32])
def test_clips_are_chosen_by_the_error_of_the_output(outliers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    task = layer(0, outliers)[3]
    target, hessian = task.in_order
    by_output, by_weight = (fit_grid(target, outliers, task.codec, task.symmetric, h) for h in (hessian, None))
    monkeypatch.setattr(steps, "ROUNDS", 0)  # which would fit the steps anew
    found = ROUNDING["gptq"](task)
    torch.testing.assert_close(found.scale, by_output.scale)
    assert not torch.allclose(by_weight.scale, by_output.scale, rtol=1e-3)


@pytest.mark.parametrize("clips", [64, 24])
def test_inputs_of_enough_clips_are_taken_at_their_word(clips: int) -> None:
    assert replace(layer(0)[3], clips=clips).damping == DAMPING


@laws
@given(seed=seeds, drift=st.floats(0.05, 0.5))
def test_the_fewer_clips_the_nearer_the_target_stays_to_the_weight(seed: int, drift: float) -> None:
    *_, weight, task = layer(seed, drift=drift)
    moved = [float((replace(task, clips=n).problem[0] - weight).norm()) for n in (24, 8, 4, 1)]
    assert moved == sorted(moved, reverse=True) and moved[-1] < 0.9 * moved[0]
