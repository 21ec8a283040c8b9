"""What torch calls for CUDA tensors, with the emulator in the place of a card."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import cases
import pytest
import torch
from emulator.build import Library
from emulator.launcher import Emulator
from tiny.weights import KINDS
from torch import Tensor

from qarvd import log
from qarvd.ops import library, reference
from qarvd.ops.backends import registry
from qarvd.ops.backends.cuda import CUDA
from qarvd.ops.codecs import Codec
from qarvd.ops.cuda import device, kernels, ops
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.split import Columns
from qarvd.ops.values import DecodedWeight, KeyValue, PackedWeight, Tokens
from qarvd.stream.quantized_cache import QuantizedCache

NAMES = ("quantize_activation", "decode_weight", "dual_scale_linear", "kv_append", "kv_attention")


class Prepared(Emulator):
    """As strict as the driver: a kernel must have been prepared with enough shared memory."""

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        self.limits: dict[str, int] = {}

    def prepare(self, kernel: str, shared: int) -> None:
        self.limits[kernel] = max(shared, self.limits.get(kernel, 0))

    def launch(self, kernel: str, grid, block, shared, arguments, stream=0) -> None:
        assert shared <= self.limits[kernel]
        super().launch(kernel, grid, block, shared, arguments, stream)


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said in other tests is said again."""
    monkeypatch.setattr(log, "_said", set())


@pytest.fixture
def emulated(compiled_kernels: Callable[..., Library], monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """CPU tensors are run by the emulator, through the code that serves cards."""
    emulator = Prepared(compiled_kernels("plain"))
    monkeypatch.setattr(device, "refuses", lambda where: None)
    monkeypatch.setattr(device, "launcher", lambda where: emulator)
    monkeypatch.setattr(ops, "card", lambda where: ops.Card(multiprocessors=4, turing=False))
    monkeypatch.setattr(ops, "stream", lambda where: 0)
    return emulator


@pytest.fixture
def dispatched(emulated: Prepared, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """And the library's ops go there."""
    for name in NAMES:
        monkeypatch.setattr(library, name, getattr(ops, name))
    monkeypatch.setattr(registry, "BACKENDS", (CUDA,))
    return emulated


def test_torch_has_a_kernel_of_ours_for_every_op() -> None:
    for name in NAMES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"qarvd::{name}", "CUDA")


@pytest.mark.parametrize("codec", KINDS.values(), ids=KINDS)
def test_a_linear_launches_what_it_prepared(dispatched: Prepared, codec: Codec) -> None:
    weight = cases.weight_of(codec, 150, 96, 32, True, 0, rotation=32)
    layer = QuantizedLinear(weight, torch.randn(150, generator=cases.draw(1)))
    x = cases.tokens_of(70, weight, "float32", 2)
    layer.prepare()
    before = dict(dispatched.limits)
    y = layer(x)
    assert dispatched.limits == before, "something was prepared at the first call"
    tokens = reference.quantize_activation(x, weight.columns, weight.guard)
    expected = reference.dual_scale_linear(tokens, weight.decoded, layer.bias, torch.float32)
    assert torch.equal(y, expected)


def test_tiles_are_small_where_large_ones_would_leave_multiprocessors_idle() -> None:
    assert kernels.choose_tile(1560, 1536, 82).size == "large"
    assert kernels.choose_tile(512, 1536, 82).size == "small"


def streamed(bits: int, dtype: torch.dtype) -> Tensor:
    """Three chunks of two frames of 40 tokens over a window of four frames with a sink of one."""
    cache, outs = QuantizedCache(4, sink=1, chunk_frames=2, bits=bits), []
    for chunk in range(3):
        cache.begin(2 * chunk, 2, 40)
        q, k, v = (cases.chunk(1, 2, 80, 64, "float16", 10 * chunk + i).to(dtype) for i in range(3))
        outs.append(cache.attend(0, q, k, v))
    return torch.cat(outs, dim=2).float()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_cache_streams_through_the_kernels(request: pytest.FixtureRequest, bits: int) -> None:
    expected = streamed(bits, torch.float32)
    request.getfixturevalue("dispatched")
    actual = streamed(bits, torch.float16)
    limit = {8: 2e-3, 4: 5e-3}[bits]  # a rounded rotation flips some 4-bit codes
    assert (actual - expected).norm() < limit * expected.norm()


@pytest.mark.parametrize(
    ("head_dim", "dtype", "reason"),
    [(32, torch.float16, "heads of 32 channels"), (64, torch.float32, "must all be torch.float16")],
)
def test_what_no_kernel_takes_is_computed_all_the_same_and_said(
    emulated: Prepared, caplog: pytest.LogCaptureFixture, head_dim: int, dtype: torch.dtype, reason: str
) -> None:
    ring = cases.empty_ring(8, 1, 2, 9, head_dim)
    given = (ring, 9, None, None, None)
    query = cases.chunk(1, 2, 5, head_dim, "float16", 0).to(dtype)
    actual = ops.kv_attention(query, *given)
    assert torch.equal(actual, reference.kv_attention(query, *given))
    assert reason in caplog.text


@pytest.mark.parametrize(("channels", "n_outlier"), [(6, 0), (33, 0), (64, 6)])
def test_odd_widths_fall_back(
    emulated: Prepared, caplog: pytest.LogCaptureFixture, channels: int, n_outlier: int
) -> None:
    x = torch.randn(3, channels)
    columns = Columns(None, n_outlier, 0)
    actual = ops.quantize_activation(x, columns, 0.1)
    assert f"{n_outlier} outliers of {channels} channels" in caplog.text
    for a, b in zip(actual, reference.quantize_activation(x, columns, 0.1), strict=True):
        assert torch.equal(a, b)


def test_a_range_that_ends_within_a_group_of_channels_falls_back(
    emulated: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    codes = torch.randint(-127, 128, (3, 64), dtype=torch.int8)
    weight = torch.randint(-127, 128, (5, 64), dtype=torch.int8)
    sums = torch.zeros(3, 2, dtype=torch.int32)
    decoded = DecodedWeight(weight, torch.ones(5, 2), None, 16)
    given = (Tokens(codes, torch.ones(3, 2), sums), decoded, None, torch.float32)
    actual = ops.dual_scale_linear(*given)
    assert "16 outliers of 64 channels" in caplog.text
    assert torch.equal(actual, reference.dual_scale_linear(*given))


def misaligned(x: Tensor) -> Tensor:
    """The same numbers, contiguous, at an address that is one element off every multiple of 16 bytes."""
    room = torch.empty(x.numel() + 16, dtype=x.dtype)
    start = (-room.data_ptr() % 16) // x.element_size() + 1
    view = room[start : start + x.numel()].view(x.shape)
    assert view.is_contiguous() and view.data_ptr() % 16
    return view.copy_(x)


class Aligned(Prepared):
    """As strict as a card: every pointer that a launch gets is a multiple of 16 bytes."""

    def launch(self, kernel: str, grid, block, shared, arguments, stream=0) -> None:
        assert not [name for name, address in pointers(arguments) if address % 16]
        super().launch(kernel, grid, block, shared, arguments, stream)


def pointers(struct: ctypes.Structure) -> Iterator[tuple[str, int]]:
    for name, kind, *_ in struct._fields_:
        held = [getattr(struct, name)]
        while any(isinstance(x, ctypes.Array) for x in held):
            held = [inner for x in held for inner in x]
        if "c_void_p" in kind.__name__:
            yield from ((name, x) for x in held if x)


@pytest.fixture
def strict(compiled_kernels: Callable[..., Library], emulated: Prepared, monkeypatch: pytest.MonkeyPatch) -> Aligned:
    emulator = Aligned(compiled_kernels("plain"))
    monkeypatch.setattr(device, "launcher", lambda where: emulator)
    return emulator


@pytest.mark.parametrize("codec", KINDS.values(), ids=KINDS)
def test_a_linear_takes_tensors_at_any_address(strict: Aligned, codec: Codec) -> None:
    weight = cases.weight_of(codec, 24, 96, 32, True, 0, rotation=32)
    x, bias = cases.tokens_of(70, weight, "float16", 2), torch.randn(24, generator=cases.draw(1))
    assert weight.order is not None
    rows = ops.quantize_activation(misaligned(x), weight.columns._replace(order=misaligned(weight.order)), weight.guard)
    tokens = reference.quantize_activation(x, weight.columns, weight.guard)
    assert all(torch.equal(a, b) for a, b in zip(rows, tokens, strict=True))
    groups, table = (None if part is None else misaligned(part) for part in (weight.group_scale, weight.table))
    codes = ops.decode_weight(PackedWeight(misaligned(weight.codes), groups, table, codec.bits))
    assert torch.equal(codes, weight.decoded.codes)
    zero = None if weight.zero is None else misaligned(weight.zero)
    decoded = DecodedWeight(misaligned(codes), misaligned(weight.scale), zero, 32)
    actual = ops.dual_scale_linear(Tokens(*map(misaligned, tokens)), decoded, misaligned(bias), torch.float32)
    assert torch.equal(actual, reference.dual_scale_linear(tokens, weight.decoded, bias, torch.float32))


@pytest.mark.parametrize("bits", [8, 4])
def test_attention_takes_tensors_at_any_address(strict: Aligned, bits: int) -> None:
    query, key, value, new_key, new_value = (cases.chunk(1, 2, 5, 64, "float16", i) for i in range(5))
    ring, new, offset = cases.empty_ring(bits, 1, 2, 5, 64), KeyValue(new_key, new_value), torch.randn(1, 2, 64)
    expected = cases.empty_ring(bits, 1, 2, 5, 64)
    ops.kv_append(misaligned(key), misaligned(value), misaligned(offset), ring, 0)
    reference.kv_append(key, value, offset, expected, 0)
    assert all(torch.equal(a, b) for a, b in zip(ring.tensors, expected.tensors, strict=True))
    held = KeyValue(*map(misaligned, new))
    actual = ops.kv_attention(misaligned(query), ring, 5, misaligned(offset), held, None)
    assert torch.equal(actual, ops.kv_attention(query, ring, 5, offset, new, None))


@pytest.mark.parametrize("which", range(4))
def test_a_ring_at_an_odd_address_is_left_to_plain_torch(
    strict: Aligned, caplog: pytest.LogCaptureFixture, which: int
) -> None:
    """It is written in place, so a copy would not do."""
    ring = cases.empty_ring(8, 1, 2, 5, 64)
    name = ring._fields[which]
    ring = ring._replace(**{name: misaligned(getattr(ring, name))})
    pair = KeyValue(*(cases.chunk(1, 2, 5, 64, "float16", i) for i in range(2)))
    ops.kv_append(*pair, None, ring, 0)
    assert "multiples of 16 bytes" in caplog.text
    expected = cases.empty_ring(8, 1, 2, 5, 64)
    reference.kv_append(*pair, None, expected, 0)
    assert all(torch.equal(a, b) for a, b in zip(ring.tensors, expected.tensors, strict=True))
