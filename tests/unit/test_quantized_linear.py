"""A quantized linear is `F.linear` on its dequantized weight, up to its tokens' rounding, and stores codes only."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.weights import KINDS, weight_with
from torch import Tensor

from qarvd.errors import ShapeError
from qarvd.ops import library
from qarvd.ops.backends import registry
from qarvd.ops.backends.base import quantize
from qarvd.ops.backends.reference import REFERENCE
from qarvd.ops.backends.weight_only import WEIGHT_ONLY
from qarvd.ops.codecs import CODECS, Codec
from qarvd.ops.cuda.device import ForNow
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.split import ChannelSplit
from qarvd.ops.weight import QuantizedWeight
from qarvd.quantize.rounding import ROUNDING, Task

laws = settings(max_examples=40, deadline=None)
every_codec = pytest.mark.parametrize("codec", KINDS.values(), ids=KINDS)
OUTLIERS = tuple(range(3, 67, 2))


def linear_of(codec: Codec, seed: int = 0, outliers: tuple[int, ...] = OUTLIERS, bias: bool = True) -> QuantizedLinear:
    """96 -> 24 with large outlier channels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, 96, generator=generator)
    weight[:, list(outliers)] *= 10
    quantized = ROUNDING["nearest"](Task(weight, ChannelSplit(96, outliers), codec))
    return QuantizedLinear(quantized, torch.randn(24, generator=generator) if bias else None)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 96, generator=torch.Generator().manual_seed(seed))


def held(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that `value` reaches through attributes and containers."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from held(each, seen)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from held(each, seen)
    elif hasattr(value, "__dict__"):
        yield from held(vars(value), seen)


@laws
@given(
    codec=st.sampled_from(list(KINDS.values())),
    outliers=st.sampled_from([(), OUTLIERS]),
    bias=st.booleans(),
    rows=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_it_equals_the_dequantized_product_up_to_half_a_step_of_its_tokens(
    codec: Codec, outliers: tuple[int, ...], bias: bool, rows: int, seed: int
) -> None:
    linear, x = linear_of(codec, seed, outliers, bias), tokens(rows, seed=seed)
    weight = linear.weight.dequantize()
    columns, n = linear.weight.split.to_columns(weight).abs(), len(outliers)
    scale = quantize(x, linear.weight, linear.weight.guard).tokens.scale
    normal = columns[:, n:].sum(1) + linear.weight.scale[:, 1]  # half a unit more for the fold
    room = 0.5 * (scale[:, :1] * columns[:, :n].sum(1) + scale[:, 1:] * normal)
    error = (linear(x) - F.linear(x, weight, linear.bias)).abs()
    assert (error <= room * (1 + 1e-3)).all()


@every_codec
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 1, 5)])
def test_leading_axes_are_kept(codec: Codec, shape: tuple[int, ...]) -> None:
    linear, x = linear_of(codec), tokens(*shape)
    assert torch.equal(linear(x), linear(x.reshape(-1, 96)).reshape(*shape, 24))


@pytest.mark.parametrize("channels", [32, 95, 97, 128])
@pytest.mark.parametrize("outliers", [(), OUTLIERS])
def test_tokens_of_another_width_are_refused(outliers: tuple[int, ...], channels: int) -> None:
    with pytest.raises(ShapeError, match="linear of 96 input channels can't take tokens"):
        linear_of(CODECS["int8"], outliers=outliers)(torch.zeros(2, channels))


@every_codec
def test_it_holds_packed_codes_only(codec: Codec) -> None:
    linear = linear_of(codec)
    tensors = list(held(linear, set()))
    groups = sum(t.nbytes for t in (linear.weight.group_scale, linear.weight.table) if t is not None)
    assert groups == (24 * 6 + 4 * 16 if codec.group else 0)
    assert linear.weight.codes.nbytes == 24 * 96 * codec.bits // 8
    assert any(t is linear.weight.codes for t in tensors)
    assert sum(t.nbytes for t in tensors) == linear.weight.codes.nbytes + 24 * 2 * 4 + 24 * 4 + 96 * 8 + groups
    assert [name for name, _ in linear.named_parameters()] == ["bias"]
    assert not list(linear.named_buffers())


@every_codec
@pytest.mark.parametrize("shape", [(1536, 1536), (8960, 1536), (1536, 8960)])
def test_linears_of_wan_take_half_and_a_quarter_of_bf16(codec: Codec, shape: tuple[int, int]) -> None:
    out, channels = shape
    split = ChannelSplit(channels, tuple(range(64)))
    weight = weight_with(codec, split, torch.ones(out, 2), None, torch.Generator().manual_seed(0))
    assert weight.nbytes <= {"int8": 0.51, "int4": 0.27, "int4g16": 0.29}[codec.name] * 2 * out * channels


@every_codec
def test_linears_with_one_split_share_one_quantization(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    linears, x = [linear_of(codec, seed) for seed in range(3)], tokens(2, 5)
    steepest = max((linear.weight for linear in linears), key=lambda w: w.guard)
    alone = [linear(x) for linear in linears]
    calls: list[None] = []
    call = library.quantize_activation
    monkeypatch.setattr(library, "quantize_activation", lambda *args: calls.append(None) or call(*args))
    shared = linears[0].share_input(x, linears)
    together = [linear(shared) for linear in linears]
    assert len(calls) == 1
    assert not isinstance(shared, Tensor)
    assert torch.equal(shared.tokens.scale, quantize(x, steepest, steepest.guard).tokens.scale)
    for linear, a, b in zip(linears, alone, together, strict=True):
        assert torch.equal(a, b)  # no guard was needed
        assert torch.equal(b, linear(quantize(x, linear.weight, steepest.guard)))


def test_linears_with_other_splits_or_in_full_precision_share_nothing() -> None:
    linear, x = linear_of(CODECS["int8"]), tokens(2)
    assert linear.share_input(x, [linear, linear_of(CODECS["int8"], outliers=())]) is x
    assert linear.share_input(x, [linear, torch.nn.Linear(96, 24)]) is x


@every_codec
def test_copies_and_casts_keep_the_codes(codec: Codec) -> None:
    linear, x = linear_of(codec), tokens(3)
    expected = linear(x)  # prepared: a copy must not depend on that
    codes, scale = linear.weight.codes.clone(), linear.weight.scale.clone()
    changed = {
        "deep copy": copy.deepcopy(linear),
        ".to('cpu')": copy.deepcopy(linear).to("cpu"),
        ".float()": copy.deepcopy(linear).float(),
        ".half()": copy.deepcopy(linear).half(),
    }
    for name, other in changed.items():
        assert torch.equal(other.weight.codes, codes) and other.weight.codes.dtype == codes.dtype, name
        assert torch.equal(other.weight.scale, scale) and other.weight.scale.dtype == torch.float32, name
        torch.testing.assert_close(other(x), expected, rtol=0, atol=2e-3 if "half" in name else 0, msg=name)


def test_a_copy_is_independent() -> None:
    linear, x = linear_of(CODECS["int8"]), tokens(3)
    expected, other = linear(x), copy.deepcopy(linear)
    other.weight.codes.zero_()
    assert torch.equal(linear(x), expected)


def test_preparing_first_changes_nothing() -> None:
    linear, x = linear_of(CODECS["int4"]), tokens(3)
    prepared = copy.deepcopy(linear)
    prepared.prepare()
    assert torch.equal(prepared(x), linear(x))
    assert repr(linear) == "QuantizedLinear(96 -> 24, 4 bits, 32 outlier channels)"


def test_codes_and_scales_that_do_not_fit_are_refused() -> None:
    weight = linear_of(CODECS["int4"]).weight
    with pytest.raises(ShapeError, match=r"do not fit 64 input channels at 4 bits; expected \(24, 32\) and \(24, 2\)"):
        QuantizedWeight(weight.codec, ChannelSplit(64), weight.codes, weight.scale)
    with pytest.raises(ShapeError, match="do not fit"):
        QuantizedWeight(weight.codec, weight.split, weight.codes, weight.scale[:, :1])


def test_a_backend_that_refuses_for_now_gets_the_layer_once_it_is_willing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A card whose memory was full at the first call, say."""
    reasons: list[str | None] = [ForNow("its memory is full"), None]
    card = replace(REFERENCE, name="card", refuses=lambda weight: reasons[0])
    monkeypatch.setattr(registry, "BACKENDS", (card, WEIGHT_ONLY, REFERENCE))
    layer, twin, x = linear_of(CODECS["int4"]), linear_of(CODECS["int4"]), tokens(20)
    with caplog.at_level(logging.WARNING, "qarvd"):
        few = layer(x)
    assert torch.allclose(few, F.linear(x, layer.weight.dequantize(), layer.bias), atol=1e-4)
    assert layer.weight.prepared is None and layer.share_input(x, [layer, twin]) is x
    assert [r.message for r in caplog.records] == [
        "Quantized linears are dequantized at every call, which is slow, until this has passed: its memory is full."
    ]
    reasons.pop(0)
    expected = REFERENCE.prepare(twin.weight).run(x, twin.bias)
    assert torch.equal(layer(x), expected) and layer.weight.prepared is not None
    assert not torch.equal(few, expected)
