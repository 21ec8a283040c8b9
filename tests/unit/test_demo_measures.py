"""The demo's pixels, paths and verdicts mean what they say."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qarvd.demo.experiment import chunk_errors, paired_loss, psnr, samples
from qarvd.demo.judge import centres, motion_correct
from qarvd.demo.motion import FRAME, GLYPH, path
from qarvd.demo.performance import resident_memory
from qarvd.demo.pixels import decode, encode
from qarvd.demo.prompts import DIRECTIONS, SPEEDS, Prompt, split_prompts

PROMPTS = [p for half in split_prompts() for p in half if p.digit == 0]
"""Every motion there is."""


def render(prompts: list[Prompt], frames: int) -> Tensor:
    """White squares on the prompted paths: [batch, frames, height, width]."""
    pixels = torch.zeros(len(prompts), frames, FRAME, FRAME)
    for clip, corners in zip(pixels, path(prompts, frames).tolist(), strict=True):
        for frame, (x, y) in zip(clip, corners, strict=True):
            frame[y : y + GLYPH, x : x + GLYPH] = 1
    return pixels


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_pixels_survive_the_codec(batch: int, frames: int, rows: int, columns: int, seed: int) -> None:
    pixels = torch.rand(batch, frames, 4 * rows, 4 * columns, generator=torch.Generator().manual_seed(seed))
    latents = encode(pixels)
    assert latents.shape == (batch, 16, frames, rows, columns)
    torch.testing.assert_close(decode(latents), pixels, rtol=0, atol=1e-6)


def test_decoding_stays_within_0_and_1() -> None:
    pixels = decode(torch.tensor([-99.0, 99.0]).expand(1, 16, 1, 1, 2))
    assert pixels.min() == 0 and pixels.max() == 1


def test_paths_stay_in_the_frame_and_move_by_the_speed() -> None:
    corners = path(PROMPTS, 40)
    assert corners.min() >= 0 and corners.max() <= FRAME - GLYPH
    for prompt, steps in zip(PROMPTS, corners.diff(dim=1), strict=True):
        for axis, direction in enumerate(DIRECTIONS[prompt.direction]):
            assert steps[:, axis].abs().max() <= SPEEDS[prompt.speed] * abs(direction)
            if direction:
                assert (steps[:, axis] > 0).any() and (steps[:, axis] < 0).any()  # it bounces
                assert (steps[:, axis].abs() == SPEEDS[prompt.speed]).float().mean() > 0.7


def test_paths_begin_in_the_prompted_direction() -> None:
    prompts = [p for p in PROMPTS if p.start == "middle"]
    first = path(prompts, 2).diff(dim=1)[:, 0]
    assert torch.equal(first.sign(), torch.tensor([DIRECTIONS[p.direction] for p in prompts]))


def test_the_centre_of_a_square_is_its_middle() -> None:
    pixels = torch.zeros(1, 32, 32)
    pixels[0, 4:8, 10:12] = 0.5
    torch.testing.assert_close(centres(pixels), torch.tensor([[10.5, 5.5]]))


def test_the_prompted_motion_is_right_and_the_opposite_one_mostly_wrong() -> None:
    pixels = render(PROMPTS, 24)
    assert motion_correct(pixels, PROMPTS).all()
    names = {step: name for name, step in DIRECTIONS.items()}
    back = [Prompt(0, names[(-x, -y)], p.speed, p.start) for p in PROMPTS for x, y in [DIRECTIONS[p.direction]]]
    assert motion_correct(pixels, back).float().mean() < 0.5
    still = pixels[:, :1].expand(-1, 24, -1, -1)
    assert motion_correct(still, PROMPTS).float().mean() < 0.1


def test_no_loss_is_zero_without_doubt() -> None:
    accuracy = torch.rand(128, generator=torch.Generator().manual_seed(0))
    assert paired_loss(accuracy, accuracy, 64) == (0, 0, 0)


def test_the_interval_holds_the_mean_and_takes_prompts_as_independent() -> None:
    full = torch.rand(64, generator=torch.Generator().manual_seed(0))
    other = full - 0.01 * torch.rand(64, generator=torch.Generator().manual_seed(1))
    mean, low, high = paired_loss(full, other, 64)
    assert low < mean < high and mean == pytest.approx(100 * (full - other).mean().item(), rel=1e-4)
    assert paired_loss(full.repeat(4), other.repeat(4), 64) == pytest.approx((mean, low, high), rel=1e-3)
    assert math.isnan(paired_loss(full[:1], other[:1], 64)[1])


def test_squared_error_is_zero_only_without_error() -> None:
    a = torch.zeros(2, 16, 6, 2, 2)
    b = a.clone()
    b[:, :, 3:] = 0.5  # a tenth of the range
    assert psnr(a, a) is None
    assert psnr(a[:, :, 3:], b[:, :, 3:]) == pytest.approx(20)
    assert chunk_errors(a, b, 3) == pytest.approx([0, 0.25])


def test_samples_are_held_out_prompts_with_seeds_of_their_own() -> None:
    cases = samples(130)
    assert len({seed for _, seed in cases}) == 130
    assert [p for p, _ in cases[:64]] == [p for p, _ in cases[64:128]]
    assert {p for p, _ in cases} <= set(split_prompts()[1])


@pytest.mark.skipif(resident_memory() is None, reason="this system does not tell how much memory a process holds")
def test_peak_memory_remembers_what_is_freed() -> None:
    script = """
from qarvd.demo.performance import peak_memory, resident_memory
before = resident_memory()
held = bytearray(2**26)
full = resident_memory()
del held
print(before, full, resident_memory(), peak_memory())
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, full, after, peak = map(int, told.split())
    assert full - before > 2**25 and full - after > 2**25 and peak > 0.99 * full


def test_drift_below_half_the_speed_counts_as_none() -> None:
    prompt = Prompt(0, "right", "fast", "top left")
    straight = render([prompt], 4)
    for drift, right in ((1, True), (3, False)):
        pixels = torch.stack([frame.roll(drift * i, dims=0) for i, frame in enumerate(straight[0])])[None]
        assert motion_correct(pixels, [prompt]).all() == right
