"""Noise belongs to a sample, not to its batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import SettingError, ShapeError
from qarvd.stream.noise import from_seeds, from_tensors

SEEDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4)


@settings(deadline=None)
@given(SEEDS, st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_a_sample_has_the_same_noise_in_any_batch(seeds: list[int], frames: list[int]) -> None:
    together = from_seeds(seeds)
    alone = [from_seeds([seed]) for seed in seeds]
    for n in frames:  # draw after draw
        batch = together((len(seeds), 2, n, 3, 3))
        assert torch.equal(batch, torch.cat([draw((1, 2, n, 3, 3)) for draw in alone]))


def test_noise_comes_in_the_dtype_asked_for() -> None:
    assert from_seeds([1], dtype=torch.bfloat16)((1, 2, 1, 2, 2)).dtype == torch.bfloat16


def test_draws_differ() -> None:
    draw = from_seeds([1, 2])
    first, second = draw((2, 1, 1, 4, 4)), draw((2, 1, 1, 4, 4))
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])


def test_a_batch_needs_as_many_seeds() -> None:
    with pytest.raises(ShapeError, match="2 seeds for a batch of 3"):
        from_seeds([1, 2])((3, 1, 1, 2, 2))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_beyond_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(SettingError, match=str(seed)):
        from_seeds([seed])


def test_tensors_are_handed_out_in_order() -> None:
    tensors = [torch.full((1, 2), float(i)) for i in range(3)]
    draw = from_tensors(tensors)
    assert [draw((1, 2)) is t for t in tensors] == [True] * 3


def test_a_tensor_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 2\)"):
        from_tensors([torch.zeros(1, 3)])((1, 2))


def test_asking_for_more_tensors_than_there_are_is_refused() -> None:
    with pytest.raises(ShapeError, match="none is left"):
        from_tensors([])((1, 2))
