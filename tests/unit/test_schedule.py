"""The noise schedule is the published one."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import SettingError
from qarvd.stream.schedule import Schedule, sigma_table


def test_steps_warp_through_the_shifted_table() -> None:
    assert Schedule.from_steps((1000, 750, 500, 250), 5.0).timesteps == pytest.approx((1000, 937.5, 2500 / 3, 625))


def test_unwarped_steps_stay_as_they_are() -> None:
    assert Schedule.from_steps((1000, 757, 522), 8.0, warp=False).timesteps == (1000.0, 757.0, 522.0)


def test_sigma_of_timestep_0_is_the_last_of_the_table() -> None:
    sigma = Schedule.from_steps((1000,), 5.0).sigma(0.0)
    assert sigma == float(sigma_table(5.0)[-1])
    assert sigma == pytest.approx(0.005, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_added_as_sigma_has_it(dtype: torch.dtype) -> None:
    schedule = Schedule((1000.0,), shift=1.0)
    noisy = schedule.add_noise(torch.full((2,), 2.0, dtype=dtype), torch.full((2,), 4.0, dtype=dtype), 250.0)
    assert noisy.dtype == dtype and noisy.tolist() == [2.5, 2.5]
    bfloat = schedule.add_noise(torch.tensor([1.0]).bfloat16(), torch.tensor([3.0]), 1.0)
    assert bfloat.tolist() == [1.0]  # 1.002, of which the dtype keeps that much


@settings(deadline=None)
@given(st.floats(0, 1000), st.floats(0.5, 12))
def test_sigma_is_the_nearest_of_the_table(timestep: float, shift: float) -> None:
    found = Schedule((1000.0,), shift).sigma(timestep)
    entries = sigma_table(shift).tolist()
    assert found in entries
    assert abs(found * 1000 - timestep) <= min(abs(s * 1000 - timestep) for s in entries) + 1e-4  # float32 table


@settings(deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6, unique=True), st.floats(1, 12), st.booleans())
def test_steps_fall_however_they_are_placed(steps: list[int], shift: float, warp: bool) -> None:
    placed = Schedule.from_steps(sorted(steps, reverse=True), shift, warp).timesteps
    assert all(a > b for a, b in pairwise(placed))
    assert placed[-1] > 0 and placed[0] <= 1000


def test_first_steps_hold_for_the_first_chunk_only() -> None:
    schedule = Schedule.from_steps((1000,), first_steps=(1000, 500))
    assert len(schedule.of_chunk(0)) == 2
    assert all(schedule.of_chunk(i) == (1000.0,) for i in (1, 2, 50))
    assert Schedule.from_steps((1000, 500)).of_chunk(0) == Schedule.from_steps((1000, 500)).of_chunk(1)


@pytest.mark.parametrize("warp", [True, False])
@pytest.mark.parametrize(
    "steps",
    [(), (250, 500), (500, 500), (1000, 0), (1001, 500), (-5,), (99.5,), (float("nan"),), (float("inf"),)],
    ids=str,
)
def test_bad_steps_are_refused(steps: tuple[int, ...], warp: bool) -> None:
    with pytest.raises(SettingError):
        Schedule.from_steps(steps, warp=warp)
    if steps:
        with pytest.raises(SettingError):
            Schedule.from_steps((1000,), warp=warp, first_steps=steps)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_a_shift_that_is_not_positive_is_refused(shift: float) -> None:
    with pytest.raises(SettingError):
        Schedule.from_steps((1000,), shift)


@pytest.mark.parametrize("timestep", [-1.0, 1001.0, float("nan")])
def test_context_noise_outside_the_scale_is_refused(timestep: float) -> None:
    with pytest.raises(SettingError):
        Schedule.from_steps((1000,), context_noise=timestep)


def test_the_table_falls_from_1_and_never_reaches_0() -> None:
    table = sigma_table(5.0)
    assert table[0] == 1 and len(table) == 1000
    assert (table.diff() < 0).all() and table[-1] > 0 and table.dtype == torch.float32
