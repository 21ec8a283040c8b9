"""What torch calls for CUDA tensors, with the emulator in the place of a card."""

from __future__ import annotations

from collections.abc import Callable

import cases
import pytest
import torch
from emulator.build import Library
from emulator.launcher import Emulator
from torch import Tensor

from qarvd.errors import ShapeError
from qarvd.ops import reference
from qarvd.ops.cuda import device, kernels, linear, ops
from qarvd.ops.linear import QuantizedLinear
from qarvd.stream.quantized_cache import QuantizedCache

NAMES = ("quantize_activation", "dual_scale_linear", "kv_append", "kv_attention")


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
    from qarvd.ops import library

    for name in NAMES:
        monkeypatch.setattr(library, name, getattr(ops, name))
    return emulated


def test_torch_has_a_kernel_of_ours_for_every_op() -> None:
    for name in NAMES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"qarvd::{name}", "CUDA")


@pytest.mark.parametrize("bits", [8, 4])
def test_a_linear_launches_what_it_prepared(dispatched: Prepared, bits: int) -> None:
    weight = cases.weight_of(bits, 150, 96, 32, True, 0)
    layer = QuantizedLinear(weight, torch.randn(150, generator=cases.draw(1)))
    x = cases.tokens_of(70, weight, "float32", 2)
    layer._of_codes = linear.prepare(weight, layer.bias)
    before = dict(dispatched.limits)
    y = layer(x)
    assert dispatched.limits == before, "something was prepared at the first call"
    codes = reference.quantize_activation(x, weight.split.order, 32, weight.guard)
    assert layer.bias is not None
    due = reference.dual_scale_linear(
        *codes, weight.codes, weight.scale, weight.zero, layer.bias, 32, bits, torch.float32
    )
    assert torch.equal(y, due)


def test_tiles_are_small_where_large_ones_would_leave_multiprocessors_idle() -> None:
    assert kernels.choose_tile(8, 1560, 1536, 82).size == "large"
    assert kernels.choose_tile(8, 512, 1536, 82).size == "small"


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
    due = streamed(bits, torch.float32)
    request.getfixturevalue("dispatched")
    came = streamed(bits, torch.float16)
    assert (came - due).norm() < {8: 2e-3, 4: 5e-3}[bits] * due.norm()  # a rounded rotation flips some 4-bit codes


@pytest.mark.parametrize(
    ("head_dim", "dtype", "reason"),
    [(32, torch.float16, "heads of 32 channels"), (64, torch.float32, "must all be torch.float16")],
)
def test_what_no_kernel_takes_is_computed_all_the_same_and_said(
    emulated: Prepared, head_dim: int, dtype: torch.dtype, reason: str
) -> None:
    ring = cases.empty_ring(8, 1, 2, 9, head_dim)
    given = (*ring, 9, None, None, None, None, None)
    query = cases.chunk(1, 2, 5, head_dim, "float16", 0).to(dtype)
    with pytest.warns(UserWarning, match=reason):
        came = ops.kv_attention(query, *given)
    assert torch.equal(came, reference.kv_attention(query, *given))


def test_bad_shapes_are_refused_in_a_sentence(emulated: Prepared) -> None:
    ring = cases.empty_ring(8, 1, 2, 9, 64)
    with pytest.raises(ShapeError, match="ring of 9"):
        ops.kv_attention(cases.chunk(1, 2, 5, 64, "float16", 0), *ring, 10, None, None, None, None, None)


@pytest.mark.parametrize(("channels", "n_outlier"), [(6, 0), (33, 0), (64, 6)])
def test_odd_widths_fall_back(emulated: Prepared, channels: int, n_outlier: int) -> None:
    x = torch.randn(3, channels)
    with pytest.warns(UserWarning, match=f"{n_outlier} outliers of {channels} channels"):
        came = ops.quantize_activation(x, None, n_outlier, 0.1)
    for a, b in zip(came, reference.quantize_activation(x, None, n_outlier, 0.1), strict=True):
        assert torch.equal(a, b)


def test_a_range_that_ends_within_a_group_of_channels_falls_back(emulated: Prepared) -> None:
    codes = torch.randint(-127, 128, (3, 64), dtype=torch.int8)
    weight = torch.randint(-127, 128, (5, 64), dtype=torch.int8)
    sums = torch.zeros(3, 2, dtype=torch.int32)
    given = (codes, torch.ones(3, 2), sums, weight, torch.ones(5, 2), None, None, 16, 8, torch.float32)
    with pytest.warns(UserWarning, match="16 outliers of 64 channels"):
        came = ops.dual_scale_linear(*given)
    assert torch.equal(came, reference.dual_scale_linear(*given))
