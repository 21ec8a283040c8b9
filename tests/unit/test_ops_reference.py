"""The reference means what its docstrings say: to the bit, against plain numpy."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.weights import KINDS, weight_with
from torch import Tensor

from qarvd.ops import library
from qarvd.ops.codecs import CODECS, Codec
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.reference import TINY
from qarvd.ops.split import ChannelSplit, Columns
from qarvd.ops.values import Tokens
from qarvd.ops.weight import QuantizedWeight

laws = settings(max_examples=40, deadline=None)
every_codec = pytest.mark.parametrize("codec", KINDS.values(), ids=KINDS)
ROUNDING = 8 * 2.0**-23
"""Room for the float32 roundings of an epilogue, relative to its largest term."""


@dataclass(frozen=True)
class Problem:
    """Tokens, and a weight whose codes, scales and zero points are anything the format allows."""

    x: Tensor  # [M, K]
    weight: QuantizedWeight
    bias: Tensor | None

    @property
    def quantized(self) -> Tokens:
        weight = self.weight
        return library.quantize_activation(self.x, weight.columns, weight.guard)

    def run(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return library.dual_scale_linear(self.quantized, self.weight.decoded, self.bias, dtype)


def make(
    codec: Codec, seed: int, rows: int = 5, out: int = 7, groups: int = 3, heads: int = 1, zero: bool = True
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    channels = 32 * groups
    split = ChannelSplit.of(channels, torch.randperm(channels, generator=generator)[: 32 * heads].tolist())
    normal = torch.rand(out, generator=generator) + 0.01
    scale = torch.stack([normal * 256 ** torch.rand(out, generator=generator), normal], dim=1)
    zeros = torch.randint(codec.low, codec.high + 1, (out, 2), dtype=torch.int8, generator=generator)
    weight = weight_with(codec, split, scale, zeros if zero else None, generator)
    x = torch.randn(rows, channels, generator=generator)
    x[:, list(split.outliers)] *= 1 + 100 * torch.rand(rows, 1, generator=generator)
    return Problem(x, weight, torch.randn(out, generator=generator) if zero else None)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    groups = draw(st.integers(1, 5))
    return make(
        draw(st.sampled_from(list(KINDS.values()))),
        draw(st.integers(0, 2**32)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 9)),
        groups,
        draw(st.integers(0, groups // 2)),
        draw(st.booleans()),
    )


def accumulate(problem: Problem) -> np.ndarray:
    """The accumulator after the last column, int64 [M, N]."""
    w, n = problem.weight, problem.weight.split.n_outlier
    codes, scale = (t.numpy() for t in problem.quantized[:2])
    weight_codes, weight_scale = w.decoded.codes.numpy().astype(np.int64), w.scale.numpy()
    wide = codes.astype(np.int64)
    total = np.zeros((len(codes), len(weight_codes)), np.int64)
    if n:
        total = wide[:, :n] @ weight_codes[:, :n].T
        ratio = (scale[:, 0] / scale[:, 1])[:, None] * (weight_scale[:, 0] / weight_scale[:, 1])[None]
        total = np.rint(total.astype(np.float32) * ratio).astype(np.int64)
    return total + wide[:, n:] @ weight_codes[:, n:].T


def expected(problem: Problem) -> np.ndarray:
    """The linear as its docstring tells it, float32 [M, N]."""
    w, n = problem.weight, problem.weight.split.n_outlier
    _, scale, sums = (t.numpy() for t in problem.quantized)
    weight_scale = w.scale.numpy()
    step = scale[:, 1:] * weight_scale[:, 1]
    out = accumulate(problem).astype(np.float32) * step
    if w.zero is not None:
        shifts = [
            (scale[:, i] * sums[:, i].astype(np.float32))[:, None]
            * (weight_scale[:, i] * w.zero.numpy()[:, i].astype(np.float32))
            for i in ((0, 1) if n else (1,))
        ]
        out = out - sum(shifts[1:], shifts[0])
    return out if problem.bias is None else out + problem.bias.numpy()


@laws
@given(problems())
def test_the_linear_equals_its_docstring_bit_for_bit(problem: Problem) -> None:
    np.testing.assert_array_equal(problem.run().numpy(), expected(problem))


@laws
@given(problems())
def test_the_linear_is_the_exact_product_up_to_half_a_unit_of_the_normal_range(problem: Problem) -> None:
    w, n = problem.weight, problem.weight.split.n_outlier
    codes, scale, _ = (t.double() for t in problem.quantized)
    zero = torch.zeros_like(w.scale) if w.zero is None else w.zero
    weight = w.decoded.codes.double()
    ranges = [(codes[:, :n], weight[:, :n]), (codes[:, n:], weight[:, n:])]
    terms = [] if problem.bias is None else [problem.bias.double().expand(len(codes), -1)]
    for i, (a, b) in enumerate(ranges):
        step = scale[:, i : i + 1] * w.scale[:, i].double()
        terms += [step * (a @ b.T), -step * a.sum(1, keepdim=True) * zero[:, i]]
    fold = 0.5 * scale[:, 1:] * w.scale[:, 1].double() if n else 0.0
    room = fold + ROUNDING * torch.stack([t.abs() for t in terms]).sum(0)
    assert ((problem.run().double() - torch.stack(terms).sum(0)).abs() <= room).all()


@laws
@given(
    groups=st.integers(2, 280),
    share=st.floats(0.01, 1),
    ratio=st.sampled_from([1.0, 16.0, 256.0]),
    hush=st.floats(0, 1e-3),
    codec=st.sampled_from([CODECS["int8"], CODECS["int4"]]),
)
def test_the_guard_keeps_the_accumulator_within_31_bits(
    groups: int, share: float, ratio: float, hush: float, codec: Codec
) -> None:
    channels, n = 32 * groups, 32 * max(1, int(share * groups / 2))
    codes = torch.full((2, channels), codec.high, dtype=torch.int8)
    codes[1] = codec.low
    scale = torch.tensor([[ratio, 1.0], [1.0, 1.0]])
    weight = QuantizedWeight(codec, ChannelSplit(channels, tuple(range(n))), codec.pack(codes), scale)
    x = torch.full((2, channels), 3e4)
    x[:, n:] *= hush
    x[1] *= -1
    problem = Problem(x, weight, None)
    assert np.abs(accumulate(problem)).max() < 2**31
    np.testing.assert_array_equal(problem.run().numpy(), expected(problem))


@laws
@given(
    seed=st.integers(0, 2**32),
    exponent=st.floats(-16, 30),
    heads=st.integers(0, 2),
    guard=st.sampled_from([0.0, 1e-3, 0.5, 4.0]),
)
def test_activations_are_rounded_to_the_nearest_step(seed: int, exponent: float, heads: int, guard: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 128, generator=generator) * 10**exponent
    order, n = torch.randperm(128, generator=generator), 32 * heads
    codes, scale, sums = library.quantize_activation(x, Columns(order, n, 0), guard)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float32 and sums.dtype == torch.int32
    assert codes.int().abs().max() <= 127

    columns = x[:, order]
    step = torch.cat([scale[:, :1].expand(-1, n), scale[:, 1:].expand(-1, 128 - n)], dim=1)
    assert ((columns.double() - codes.double() * step).abs() <= step * (0.5 + 2e-5)).all()
    assert torch.equal(sums[:, 0], codes[:, :n].sum(1).int())
    assert torch.equal(sums[:, 1], codes[:, n:].sum(1).int())

    _, alone, _ = library.quantize_activation(x, Columns(order, n, 0), 0.0)
    assert torch.equal(scale[:, 0], alone[:, 0])
    assert torch.equal(scale[:, 1], torch.maximum(alone[:, 1], guard * scale[:, 0]))
    torch.testing.assert_close(alone[:, 1], (columns[:, n:].abs().amax(1) / 127).clamp_min(TINY))
    assert n or (scale[:, 0] == 0).all()


def test_no_order_means_columns_as_they_are() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    for a, b in zip(
        library.quantize_activation(x, Columns(None, 32, 0), 0.1),
        library.quantize_activation(x, Columns(torch.arange(64), 32, 0), 0.1),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_row_of_zeros_has_codes_0_and_adds_nothing() -> None:
    problem = make(CODECS["int8"], 0)
    problem.x[2] = 0
    codes, scale, sums = problem.quantized
    assert not codes[2].any() and not sums[2].any()
    assert (scale > 0).all()
    assert problem.bias is not None and torch.equal(problem.run()[2], problem.bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes_are_those_of_the_ends_only(dtype: torch.dtype) -> None:
    problem = make(CODECS["int8"], 0)
    narrow = Problem(problem.x.to(dtype), problem.weight, problem.bias)
    wide = Problem(narrow.x.float(), problem.weight, problem.bias)
    for a, b in zip(narrow.quantized, wide.quantized, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(narrow.run(dtype), wide.run().to(dtype))


def test_any_layout_and_leading_axes_give_the_same_codes() -> None:
    problem = make(CODECS["int8"], 0, rows=6)
    x, split = problem.x, problem.weight.split
    shapes = {
        "leading axes": x.view(2, 3, -1),
        "transposed": x.T.contiguous().T,
        "strided": x.repeat_interleave(2, dim=1)[:, ::2],
        "swapped": x.view(2, 3, -1).transpose(0, 1).contiguous().transpose(0, 1),
    }
    for name, view in shapes.items():
        for n, order in ((split.n_outlier, problem.weight.order), (0, None)):
            actual = library.quantize_activation(view, Columns(order, n, 0), 0.1)
            expected = library.quantize_activation(x, Columns(order, n, 0), 0.1)
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)), name


@every_codec
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_no_tokens_give_no_outputs(codec: Codec, shape: tuple[int, ...]) -> None:
    problem = make(codec, 0)
    assert QuantizedLinear(problem.weight, problem.bias)(torch.randn(*shape, 96)).shape == (*shape, 7)
    assert Problem(problem.x[:0], problem.weight, problem.bias).run().shape == (0, 7)


@pytest.mark.parametrize("heads", [0, 1])
@pytest.mark.parametrize("layout", ["rows", "columns", "leading"])
def test_torch_accepts_quantize_activation(heads: int, layout: str) -> None:
    x = torch.randn(6, 96)
    x = {"rows": x, "columns": x.T.contiguous().T, "leading": x.view(2, 3, 96)}[layout]
    order = torch.randperm(96) if heads else None
    for rotation in (0, 32):
        torch.library.opcheck(torch.ops.qarvd.quantize_activation.default, (x, order, 32 * heads, 0.1, rotation))


@every_codec
@pytest.mark.parametrize("heads", [0, 1])
@pytest.mark.parametrize("zero", [False, True])
def test_torch_accepts_dual_scale_linear(codec: Codec, heads: int, zero: bool) -> None:
    problem = make(codec, 0, heads=heads, zero=zero)
    w = problem.weight
    if codec.bits < 8:
        groups = None if w.group_scale is None else w.group_scale.float()  # opcheck knows no 8-bit floats
        torch.library.opcheck(torch.ops.qarvd.decode_weight.default, (w.codes, groups, w.table, codec.bits))
    args = (*problem.quantized, w.decoded.codes, w.scale, w.zero, problem.bias, 32 * heads, torch.bfloat16)
    torch.library.opcheck(torch.ops.qarvd.dual_scale_linear.default, args)
