"""Every bit-width found in the folder of codecs keeps the same laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import SettingError, ShapeError
from qarvd.ops.codecs import CODECS, Codec, codec_of

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
laws = settings(max_examples=40, deadline=None)


def random_codes(codec: Codec, rows: int, groups: int, seed: int) -> torch.Tensor:
    """All that fits in the codec's bits, the lowest value too, which quantizers never write."""
    low, high = -(2 ** (codec.bits - 1)), 2 ** (codec.bits - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (rows, 32 * groups), dtype=torch.int8, generator=generator)


@every_codec
@laws
@given(rows=st.integers(0, 5), groups=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_unpack_undoes_pack_in_exactly_its_bits(codec: Codec, rows: int, groups: int, seed: int) -> None:
    codes = random_codes(codec, rows, groups, seed)
    stored = codec.pack(codes)
    assert stored.dtype == codec.stored
    assert stored.nbytes == codes.numel() * codec.bits // 8
    assert torch.equal(codec.unpack(stored), codes)


@every_codec
def test_pack_takes_columns_in_any_layout(codec: Codec) -> None:
    codes = random_codes(codec, 3, 2, seed=1)
    scattered = codes.T.contiguous().T
    assert torch.equal(codec.pack(scattered), codec.pack(codes))


@every_codec
def test_the_range_is_symmetric_and_fits_the_bits(codec: Codec) -> None:
    assert -codec.low == codec.high == 2 ** (codec.bits - 1) - 1
    assert codec.unit * codec.high <= 127
    assert codec_of(codec.bits) is codec


def test_a_bit_width_without_a_codec_is_refused() -> None:
    with pytest.raises(SettingError, match=r"There are no 3-bit weights; \[4, 8\] are supported"):
        codec_of(3)


@laws
@given(groups=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_int4_byte_j_of_a_group_holds_columns_j_and_16_plus_j(groups: int, seed: int) -> None:
    codes = random_codes(CODECS["int4"], 3, groups, seed)
    expected = [
        [row[g + j] % 16 | row[g + 16 + j] % 16 << 4 for g in range(0, 32 * groups, 32) for j in range(16)]
        for row in codes.tolist()
    ]
    packed = CODECS["int4"].pack(codes)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == expected


@pytest.mark.parametrize("columns", [1, 16, 33, 48])
def test_int4_refuses_columns_that_do_not_fill_groups(columns: int) -> None:
    with pytest.raises(ShapeError, match=f"groups of 32 columns, not {columns} columns"):
        CODECS["int4"].pack(torch.zeros(2, columns, dtype=torch.int8))
