"""What the linear's two ops take: on a CPU in pieces, of any layout, and what they refuse in a sentence."""

from collections.abc import Callable
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import QarvdError
from qarvd.ops import library, reference
from qarvd.ops.cpu import ops as cpu
from qarvd.ops.cuda import ops as cuda
from qarvd.ops.split import ChannelSplit, Columns

laws = settings(max_examples=60, deadline=None)


@laws
@given(
    leading=st.lists(st.integers(0, 5), max_size=2),
    groups=st.integers(1, 4),
    heads=st.integers(0, 2),
    piece=st.sampled_from([1, 100, 500, cpu.PIECE]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    index=st.sampled_from([torch.int64, torch.int32]),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_cpu_quantizes_in_pieces_what_the_reference_does_at_once(
    leading: list[int],
    groups: int,
    heads: int,
    piece: int,
    dtype: torch.dtype,
    index: torch.dtype,
    strided: bool,
    seed: int,
) -> None:
    generator, channels = torch.Generator().manual_seed(seed), 32 * groups
    heads = min(heads, groups // 2)
    split = ChannelSplit.of(channels, torch.randperm(channels, generator=generator)[: 32 * heads].tolist())
    x = torch.randn(*leading, channels * (1 + strided), generator=generator).to(dtype)[..., :: 1 + strided]
    order = split.order(x.device)
    given = (x, Columns(None if order is None else order.to(index), split.n_outlier, 0), 0.01)
    with patch.object(cpu, "PIECE", piece):
        actual = library.quantize_activation(*given)
    for a, b in zip(actual, reference.quantize_activation(*given), strict=True):
        assert a.shape == b.shape and torch.equal(a, b)


def activation_misfits() -> dict[str, tuple[str, list[object]]]:
    """Calls of quantize_activation that nobody can run, with what is said of each."""
    good: list[object] = [torch.zeros(3, 64), torch.arange(64), 32, 0.1]
    but = _but(good)
    return {
        "integers": ("Tokens are torch.int32", but(0, torch.zeros(3, 64, dtype=torch.int32))),
        "doubles": ("Tokens are torch.float64; expected torch.float32 or", but(0, torch.zeros(3, 64).double())),
        "no axis": (r"Tokens of shape \(\) have no channels", but(0, torch.zeros(()))),
        "no channels": (r"shape \(3, 0\) have no channels", but(0, torch.zeros(3, 0))),
        "order": (r"order have shape \(32,\); expected \(64\)", but(1, torch.arange(32))),
        "real order": ("order are torch.float32", but(1, torch.zeros(64))),
        "order elsewhere": ("order are on meta; expected cpu", but(1, torch.arange(64, device="meta"))),
        "negative": ("-1 of 64 channels can't be outliers", but(2, -1)),
        "all": ("64 of 64 channels can't be outliers", but(2, 64)),
        "rotation": ("Tokens can't be rotated in blocks of 48 channels", [*good, 48]),
    }


def linear_misfits() -> dict[str, tuple[str, list[object]]]:
    """Calls of dual_scale_linear that nobody can run, with what is said of each."""
    codes, scale, sums = torch.zeros(3, 64, dtype=torch.int8), torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int32)
    weight, zero = torch.zeros(5, 64, dtype=torch.int8), torch.zeros(5, 2, dtype=torch.int8)
    good = [codes, scale, sums, weight, torch.ones(5, 2), zero, torch.zeros(5), 32, torch.float32]
    but = _but(good)
    return {
        "axes": ("tokens' codes have shape", but(0, torch.zeros(1, 3, 64, dtype=torch.int8))),
        "floats": ("tokens' codes are torch.float32", but(0, torch.zeros(3, 64))),
        "scales": (r"tokens' scales have shape \(3,\); expected \(3, 2\)", but(1, torch.ones(3))),
        "sums": ("tokens' sums are torch.int64", but(2, sums.long())),
        "channels": (r"weight's codes have shape \(5, 32\); expected \(any, 64\)", but(3, weight[:, :32])),
        "storage": ("weight's codes are torch.uint8", but(3, weight.view(torch.uint8))),
        "outputs": (r"weight's scales have shape \(4, 2\); expected \(5, 2\)", but(4, torch.ones(4, 2))),
        "zero points": ("weight's zero points are torch.int32", but(5, zero.int())),
        "bias": (r"Biases have shape \(3,\); expected \(5\)", but(6, torch.zeros(3))),
        "elsewhere": ("Biases are on meta", but(6, torch.zeros(5, device="meta"))),
        "outliers": ("96 of 64 channels can't be outliers", but(7, 96)),
        "result": ("Results were asked for as torch.float64", but(8, torch.float64)),
    }


def decode_misfits() -> dict[str, tuple[str, list[object]]]:
    """Calls of decode_weight that nobody can run, with what is said of each."""
    codes, scale = torch.zeros(5, 32, dtype=torch.int8), torch.ones(5, 4).to(torch.float8_e4m3fn)
    table = torch.arange(16.0)
    but = _but([codes, scale, table, 4])
    return {
        "axes": ("weight's codes have shape", but(0, torch.zeros(32, dtype=torch.int8))),
        "storage": ("weight's codes are torch.uint8; expected torch.int8", but(0, codes.view(torch.uint8))),
        "plain storage": ("weight's codes are torch.int8; expected torch.uint8", [codes, None, None, 4]),
        "channels": ("multiple of 32 channels, not 24 bytes", but(0, codes[:, :24].contiguous())),
        "bits": ("There are no 5-bit weights", [torch.zeros(5, 40, dtype=torch.int8), None, None, 5]),
        "groups": ("There are no 4-bit weights in groups of 8;", but(1, torch.ones(5, 8).to(torch.float8_e4m3fn))),
        "uneven groups": ("3 groups can't share 64 channels alike", but(1, torch.ones(5, 3))),
        "rows": (r"Scales of groups have shape \(4, 4\); expected \(5, any\)", but(1, scale[:4])),
        "scales": ("Scales of groups are torch.float16", but(1, torch.ones(5, 4).half())),
        "8 bits": ("8-bit codes need no decoding", [codes, None, None, 8]),
        "no table": ("stored as int4g16 need a table", but(2, None)),
        "table": ("Weights stored as int6g16 have no table", [torch.zeros(5, 48, dtype=torch.int8), scale, table, 6]),
        "short table": (r"Tables have shape \(8,\); expected \(16\)", but(2, table[:8])),
    }


def _but(good: list[object]) -> Callable[[int, object], list[object]]:
    return lambda index, value: [*good[:index], value, *good[index + 1 :]]


@pytest.mark.parametrize("twin", [reference, cpu, cuda], ids=["reference", "cpu", "cuda"])
@pytest.mark.parametrize("what", list(activation_misfits()))
def test_tokens_that_do_not_fit_are_refused_in_a_sentence(what: str, twin: ModuleType) -> None:
    message, arguments = activation_misfits()[what]
    with pytest.raises(QarvdError, match=message):
        library._OPS["quantize_activation"].flat(twin.quantize_activation)(*arguments)


@pytest.mark.parametrize("twin", [reference, cuda], ids=["reference", "cuda"])
@pytest.mark.parametrize("what", list(decode_misfits()))
def test_weights_that_do_not_fit_are_refused_in_a_sentence(what: str, twin: ModuleType) -> None:
    message, arguments = decode_misfits()[what]
    with pytest.raises(QarvdError, match=message):
        library._OPS["decode_weight"].flat(twin.decode_weight)(*arguments)


@pytest.mark.parametrize("twin", [reference, cuda], ids=["reference", "cuda"])
@pytest.mark.parametrize("what", list(linear_misfits()))
def test_products_that_do_not_fit_are_refused_in_a_sentence(what: str, twin: ModuleType) -> None:
    message, arguments = linear_misfits()[what]
    with pytest.raises(QarvdError, match=message):
        library._OPS["dual_scale_linear"].flat(twin.dual_scale_linear)(*arguments)
