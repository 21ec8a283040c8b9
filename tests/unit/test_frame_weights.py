"""Frame weights: what they say of measured errors, how sure they are, how they go on in longer streams."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qarvd.calibrate.decay import fit_decay
from qarvd.calibrate.frame_weights import FrameWeights, converged
from qarvd.calibrate.horizon import complete, full_horizon, short_horizon
from qarvd.errors import SettingError


def errors_like(own: list[float], later: list[float], prompts: int, noise: float = 0.0) -> Tensor:
    """Errors [prompts, chunks, chunks] of chunks with such errors of their own and in every later chunk."""
    chunks = len(own)
    clean = torch.diag(torch.tensor(own).double())
    clean += torch.tensor([*later, 0.0]).double()[:, None] * torch.ones(chunks, chunks).double().triu(1)
    spread = torch.randn(prompts, chunks, chunks, generator=torch.Generator().manual_seed(0)).double()
    return clean * (noise * spread).exp()


def falling(chunks: int, rate: float, floor: float) -> list[float]:
    return [floor + (1 - floor) * float(torch.tensor(-rate * k).exp()) for k in range(chunks)]


def test_weights_are_the_published_measure_and_average_one() -> None:
    errors = errors_like([4.0, 2.0, 1.0], [3.0, 0.5], 5)
    found = FrameWeights.from_errors(errors, (3, 3, 2))
    frames = torch.tensor([3.0, 3.0, 2.0]).double()
    expected = (errors.mean(0) * frames).sum(1)
    torch.testing.assert_close(torch.tensor(found.values).double(), expected / expected.mean())
    assert sum(found.sensitivity) == pytest.approx(1)
    assert found.own == pytest.approx((1, 0.5, 0.25))
    assert found.later == pytest.approx((0.75, 0.125))
    per_affected = torch.tensor([(12 + 9 + 6) / 8, (6 + 1) / 5, 1.0])  # squared error over the frames it can reach
    assert found.per_affected == pytest.approx((per_affected / per_affected[0]).tolist())


@pytest.mark.parametrize("order", [[2, 0, 1, 3], [3, 2, 1, 0]])
def test_the_order_of_prompts_does_not_matter(order: list[int]) -> None:
    errors = errors_like([1.0, 0.5, 0.4], [0.8, 0.2], 4, noise=0.5)
    one, other = (FrameWeights.from_errors(e, (1, 1, 1)) for e in (errors, errors[order]))
    assert one.low == pytest.approx(other.low) and one.values == pytest.approx(other.values)


def test_intervals_hold_the_value_and_shrink_with_more_prompts() -> None:
    few, many = (FrameWeights.from_errors(errors_like([1.0, 0.5], [0.8], n, noise=0.5), (3, 3)) for n in (6, 96))
    for found in (few, many):
        assert all(a <= v <= b for a, v, b in zip(found.low, found.sensitivity, found.high, strict=True))
    assert (many.high[0] - many.low[0]) < (few.high[0] - few.low[0]) / 2


def test_measuring_stops_when_every_interval_is_narrow() -> None:
    noisy = errors_like([1.0, 0.5, 0.4], [0.8, 0.2], 64, noise=1.0)
    assert not converged(noisy[:3] * 0 + 1, (1, 1, 1))  # too few to know
    assert not converged(noisy[:6], (1, 1, 1))
    assert converged(errors_like([1.0, 0.5, 0.4], [0.8, 0.2], 8, noise=0.01), (1, 1, 1))


def test_an_interval_that_is_narrow_but_for_one_side_is_not_narrow() -> None:
    """One prompt in eight has most of a chunk's error: the interval reaches further up than down, or the reverse."""
    errors = torch.ones(40, 2, 2).double().triu()
    errors[::8, 1, 1] = 6.0
    found = FrameWeights.from_errors(errors, (3, 3))
    ends = list(zip(found.low, found.high, found.sensitivity, strict=True))
    most = max(max(high - v, v - low) / v for low, high, v in ends)
    half = max((high - low) / 2 / v for low, high, v in ends)
    within = (most + half) / 2
    assert half < within < most and not converged(errors, (3, 3), within=within)
    assert converged(errors, (3, 3), within=most * 1.001)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_errors_that_are_not_finite_name_prompt_and_chunk(bad: float) -> None:
    errors = errors_like([1.0, 0.5, 0.4], [0.8, 0.2], 4)
    errors[2, 1, 2] = bad
    with pytest.raises(SettingError, match="prompt 3 with chunk 2"):
        FrameWeights.from_errors(errors, (3, 3, 3))


def test_no_error_anywhere_weighs_all_chunks_alike() -> None:
    assert FrameWeights.from_errors(torch.zeros(4, 3, 3), (3, 3, 3)).values == pytest.approx((1, 1, 1))


def test_they_survive_json() -> None:
    found = FrameWeights.from_errors(errors_like([1.0, 0.5, 0.4], [0.8, 0.2], 4, noise=0.3), (3, 3, 3))
    assert FrameWeights.from_json(found.to_json()) == found


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"chunk_frames": [3]}', "null"])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="frame weights"):
        FrameWeights.from_json(text)


@settings(deadline=None)
@given(st.floats(0.1, 3), st.floats(0, 0.8), st.integers(4, 12))
def test_a_decay_is_found_again(rate: float, floor: float, chunks: int) -> None:
    values = falling(chunks, rate, floor)
    found = fit_decay(values)
    assert [found.at(k) for k in range(chunks)] == pytest.approx(values, rel=0.1, abs=1e-3)


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0], [0.5, 0.5, 0.5], [0.1, 0.2, 0.4]])
def test_what_does_not_decay_is_level(values: list[float]) -> None:
    found = fit_decay(values)
    assert found.rate == 0 or found.height < 1e-6 or found.at(0) <= found.at(5) * 1.05


def test_a_longer_stream_keeps_measured_effects_and_goes_on_with_the_decays() -> None:
    own, later = falling(14, 1.5, 0.4), falling(13, 1.0, 0.1)
    short = FrameWeights.from_errors(errors_like(own[:7], later[:6], 4), (3,) * 7)
    whole = FrameWeights.from_errors(errors_like(own, later, 4), (3,) * 14)
    assert short.extend((3,) * 14).values == pytest.approx(whole.values, rel=0.05)
    assert short.extend((3,) * 7).values == pytest.approx(short.values)
    assert short.extend((3,) * 4).values == pytest.approx(
        FrameWeights.from_errors(errors_like(own[:4], later[:3], 4), (3,) * 4).values
    )


def test_the_short_reach_tells_the_full_measure_where_errors_settle_at_once() -> None:
    own, later = [1.0, *[0.5] * 6], [0.8, *[0.15] * 5]
    errors = errors_like(own, later, 16, noise=0.2)
    horizon = short_horizon(7)
    assert (sum(horizon), sum(full_horizon(7))) == (11, 28)
    cut = errors.clone()
    for k, far in enumerate(horizon):
        cut[:, k, k + far :] = 0
    full, short = (FrameWeights.from_errors(e, (3,) * 7, r) for e, r in ((errors, None), (cut, horizon)))
    assert short.values == pytest.approx(full.values, rel=0.1)
    assert torch.equal(complete(errors, full_horizon(7)), errors)


def test_what_is_told_from_other_chunks_has_their_spread() -> None:
    """Chunk 6 was followed through itself alone, and alike for all prompts; what the share of chunk 3 adds is not."""
    errors = errors_like([1.0] * 7, [0.5] * 6, 16)
    errors[::2, 2, 3:] *= 0.2
    cut = torch.zeros_like(errors)
    for k, far in enumerate(short_horizon(7)):
        cut[:, k, k : k + far] = errors[:, k, k : k + far]
    alone = cut.clone()
    alone[:, 2, 3] = cut[:, 2, 3].mean()
    wide, narrow = (FrameWeights.from_errors(e, (3,) * 7, short_horizon(7)) for e in (cut, alone))
    assert wide.sensitivity == pytest.approx(narrow.sensitivity)
    assert wide.high[5] - wide.low[5] > 0.02 * wide.sensitivity[5] > 1e3 * (narrow.high[5] - narrow.low[5])


@pytest.mark.parametrize("chunks", [1, 2, 3, 5])
def test_reach_never_goes_beyond_the_clip(chunks: int) -> None:
    assert all(1 <= far <= chunks - k for k, far in enumerate(short_horizon(chunks)))
    errors = errors_like([1.0] * chunks, [0.5] * (chunks - 1), 2)
    assert complete(errors, short_horizon(chunks)).shape == errors.shape
