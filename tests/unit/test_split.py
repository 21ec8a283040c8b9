"""A split is a permutation with an aligned, ascending head of at most half the channels."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import ShapeError
from qarvd.ops.split import ChannelSplit


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.data())
def test_the_order_is_a_permutation_with_ascending_outliers_first(groups: int, data: st.DataObject) -> None:
    channels, n_outlier = 32 * groups, 32 * data.draw(st.integers(0, groups // 2))
    outliers = data.draw(st.permutations(range(channels)))[:n_outlier]
    split = ChannelSplit.of(channels, outliers)
    order = split.to_columns(torch.arange(split.channels)).tolist()
    assert split.n_outlier == n_outlier
    assert sorted(order) == list(range(channels))
    assert order[:n_outlier] == sorted(outliers)
    assert order[n_outlier:] == sorted(order[n_outlier:])
    assert split.to_columns(torch.arange(split.channels)).dtype == torch.int64


@pytest.mark.parametrize("rotation", [16, 64, 256])
@pytest.mark.parametrize("n_outlier", [0, 32, 96])
def test_a_rotation_stays_within_its_range_and_can_be_undone(n_outlier: int, rotation: int) -> None:
    split = ChannelSplit.of(288, range(1, 1 + 2 * n_outlier, 2), rotation)
    x = torch.randn(5, 288, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    columns = split.to_columns(x)
    torch.testing.assert_close(split.to_logical(columns), x)
    for part, plain in zip(split.ranges(columns), split.ranges(replace(split, rotation=0).to_columns(x)), strict=True):
        torch.testing.assert_close(part.norm(dim=1), plain.norm(dim=1))
        assert not part.numel() or not torch.allclose(part, plain)


@pytest.mark.parametrize(
    ("channels", "outliers", "says"),
    [
        (100, (), "0 outliers of 100 input channels: both must be multiples of 32"),
        (96, range(31), "31 outliers of 96 input channels"),
        (96, range(64), "at most half of the channels"),
        (96, (1, 0, *range(2, 32)), "must ascend"),
        (96, (0, 0, *range(2, 32)), "must ascend"),
        (96, range(-1, 31), "lie within 0 to 95"),
        (96, range(65, 97), "lie within 0 to 95"),
    ],
    ids=["unaligned channels", "unaligned", "more than half", "descending", "repeated", "negative", "beyond"],
)
def test_a_bad_split_is_refused_in_a_sentence(channels: int, outliers: range, says: str) -> None:
    with pytest.raises(ShapeError, match=says) as error:
        ChannelSplit(channels, tuple(outliers))
    assert str(error.value).endswith(".")
