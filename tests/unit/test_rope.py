"""Rotary embedding: rotations that depend on distance only, at any length of stream."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.wan.rope import axis_pairs, grid_rotation, rotate, time_shift

HEAD_DIM = 24
FRAMES = st.integers(0, 1_000_000)


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def at(frame: int, height: int = 1, width: int = 1) -> torch.Tensor:
    return grid_rotation(torch.tensor([frame]), height, width, HEAD_DIM)


def test_pairs_are_split_as_published() -> None:
    assert axis_pairs(128) == (22, 21, 21)
    assert all(sum(axis_pairs(d)) == d // 2 for d in range(2, 130, 2))


@settings(deadline=None)
@given(FRAMES)
def test_rotating_keeps_norms(frame: int) -> None:
    x = vectors(12, HEAD_DIM)
    torch.testing.assert_close(rotate(x, at(frame, 3, 4)).norm(dim=-1), x.norm(dim=-1))


@settings(deadline=None)
@given(FRAMES, FRAMES, FRAMES)
def test_products_depend_on_the_distance_in_time_only(query: int, key: int, later: int) -> None:
    q, k = vectors(2, HEAD_DIM)
    here = rotate(q, at(query)) @ rotate(k, at(key)).T
    there = rotate(q, at(query + later)) @ rotate(k, at(key + later)).T
    torch.testing.assert_close(here, there, rtol=0, atol=1e-4)


def test_products_depend_on_the_distance_on_the_screen_only() -> None:
    q, k = vectors(2, HEAD_DIM)
    turns = at(5, 6, 7).view(6, 7, -1, 2)
    here = rotate(q, turns[1, 2]) @ rotate(k, turns[3, 1])
    there = rotate(q, turns[3, 5]) @ rotate(k, turns[5, 4])
    torch.testing.assert_close(here, there, rtol=0, atol=1e-5)


@settings(deadline=None)
@given(FRAMES, FRAMES)
def test_shifting_keys_in_time_equals_rotating_them_at_a_later_frame(frame: int, later: int) -> None:
    x = vectors(6, HEAD_DIM)
    shifted = rotate(rotate(x, at(frame, 2, 3)), time_shift(torch.tensor([later]), HEAD_DIM))
    torch.testing.assert_close(shifted, rotate(x, at(frame + later, 2, 3)), rtol=0, atol=1e-4)


def test_tokens_run_over_frames_then_rows_then_columns() -> None:
    whole = grid_rotation(torch.tensor([4, 9]), 2, 3, HEAD_DIM)
    assert whole.shape == (12, HEAD_DIM // 2, 2)
    assert torch.equal(whole[6:], at(9, 2, 3))
    time, rows, _ = axis_pairs(HEAD_DIM)
    grid = whole.view(2, 2, 3, -1, 2)
    assert torch.equal(grid[0, 0, 0, time:], grid[1, 0, 0, time:])
    assert torch.equal(grid[0, 0, :, : time + rows], grid[0, 0, :1, : time + rows].expand(3, -1, -1))


def test_neighbouring_frames_are_told_apart_in_bfloat16() -> None:
    x = torch.ones(1, HEAD_DIM, dtype=torch.bfloat16)
    assert rotate(x, at(257)).dtype == torch.bfloat16
    assert not torch.equal(rotate(x, at(256)), rotate(x, at(257)))
