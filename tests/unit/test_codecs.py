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
    half = 2 ** (codec.bits - 1)
    low, high = (0, 2 * half) if codec.group else (-half, half)
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
    assert -codec.low == codec.high == (127 if codec.group else 2 ** (codec.bits - 1) - 1)
    assert codec_of(codec.bits, codec.group) is codec
    assert list(codec.table) == sorted(codec.table) and len(codec.table) == (2**codec.bits if codec.group else 0)


@pytest.mark.parametrize(
    ("bits", "group", "asked"), [(3, 0, "3-bit weights;"), (4, 8, "4-bit weights in groups of 8;")]
)
def test_a_bit_width_without_a_codec_is_refused(bits: int, group: int, asked: str) -> None:
    with pytest.raises(SettingError, match=f"There are no {asked} bits can be .* 4, 4 in groups of 16,"):
        codec_of(bits, group)


@every_codec
def test_codes_decode_to_what_the_format_says(codec: Codec) -> None:
    """docs/format.md, in plain Python."""
    codes = random_codes(codec, 3, 4, seed=2)
    if not codec.group:
        assert torch.equal(codec.decode(codec.pack(codes), None, None), codes)
        return
    scale = (torch.rand(3, 128 // codec.group, generator=torch.Generator().manual_seed(3)) + 0.1) * 140
    scale = (scale / max(codec.table)).to(torch.float8_e4m3fn)
    table = torch.tensor(codec.table) if codec.has_table else None
    found = codec.decode(codec.pack(codes), scale, table)
    wide = scale.double().tolist()
    expected = [
        [max(-127, min(127, round(codec.table[c] * wide[r][k // codec.group]))) for k, c in enumerate(row)]
        for r, row in enumerate(codes.tolist())
    ]
    assert found.dtype == torch.int8 and torch.equal(found.int(), torch.tensor(expected, dtype=torch.int32))


@pytest.mark.parametrize("name", ["int4g16", "int6g16"])
def test_groups_of_16_lie_and_decode_as_in_comfyuis_stock_format(name: str) -> None:
    stock = pytest.importorskip("comfy_kitchen.backends.eager.w4a8_int8", reason="comfy-kitchen is not installed")
    weight, codec = torch.randn(24, 256, generator=torch.Generator().manual_seed(4)), CODECS[name]
    codes, scale, _, _, table = stock.quantize_w4a8_int8_weight(weight, bits=codec.bits)
    assert table is None or torch.equal(table, torch.tensor(codec.table))
    assert torch.equal(codec.decode(codes, scale, table), stock._dequant_int4_grouped_to_int8(codes, scale, table, 16))
    assert torch.equal(codec.pack(codec.unpack(codes)), codes)


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
