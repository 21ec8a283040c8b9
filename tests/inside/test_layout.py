"""Our formats held by ComfyUI's own linears: what they compute is what the library computes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from inside.linears import tokens
from torch import Tensor, nn

pytestmark = pytest.mark.newer_comfyui

KINDS = [(8, 32, True), (8, 0, True), (8, 0, False), (4, 64, False), (4, 32, True), (4, 0, True)]
"""Bits, outliers, whether without zero points."""
kinds = pytest.mark.parametrize(("bits", "n_outlier", "symmetric"), KINDS)
Part = Callable[[str], ModuleType]


@pytest.fixture(autouse=True)
def registered(part: Part) -> None:
    assert part("nodes.layout").register() is None


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_loaded_linear_computes_to_the_bit_what_the_library_computes(
    make_weight: Callable[..., Any],
    load: Any,
    part: Part,
    bits: int,
    n_outlier: int,
    symmetric: bool,
    dtype: Any,
    mode: Any,
) -> None:
    weight = make_weight(bits, 48, 160, n_outlier, symmetric)
    bias = torch.linspace(-3, 3, 48).to(dtype)
    linear, ours = load(weight, bias, dtype), part("qarvd.ops.linear").QuantizedLinear(weight, bias)
    for x in (tokens(7, 160), tokens(2, 9, 160), tokens(1, 2, 3, 160)):
        with mode():
            assert torch.equal(linear(x.to(dtype)), ours(x.to(dtype)))


@kinds
def test_without_a_bias_too(
    make_weight: Callable[..., Any], load: Any, part: Part, bits: int, n_outlier: int, symmetric: bool
) -> None:
    weight = make_weight(bits, 32, 96, n_outlier and 32, symmetric)
    with torch.inference_mode():
        assert torch.equal(
            load(weight)(tokens(5, 96)), part("qarvd.ops.linear").QuantizedLinear(weight, None)(tokens(5, 96))
        )


@kinds
def test_dequantizing_gives_logical_columns_also_of_a_transposed_weight(
    make_weight: Callable[..., Any], load: Any, bits: int, n_outlier: int, symmetric: bool
) -> None:
    weight = make_weight(bits, 48, 160, n_outlier, symmetric)
    held = load(weight).weight
    assert held.shape == (48, 160)
    assert torch.equal(held.dequantize(), weight.dequantize())
    assert torch.equal(held.t().dequantize(), weight.dequantize().t())
    assert torch.equal(held.t().t().dequantize(), weight.dequantize())
    assert torch.equal(held + 1, weight.dequantize() + 1)  # an op that nobody has written for these tensors


@kinds
def test_the_state_dict_is_the_file_again(
    make_weight: Callable[..., Any], load: Any, stored: Any, bits: int, n_outlier: int, symmetric: bool
) -> None:
    weight, bias = make_weight(bits, 48, 160, n_outlier, symmetric), torch.ones(48)
    written, file = load(weight, bias).state_dict(), stored(weight, bias)
    assert list(written) != [] and set(written) == set(file)
    for key, tensor in file.items():
        assert written[key].dtype == tensor.dtype and torch.equal(written[key], tensor), key


def test_a_weight_overwritten_in_place_is_what_is_multiplied_from_then_on(
    make_weight: Callable[..., Any], load: Any
) -> None:
    a, b = (load(make_weight(8, 32, 64, 32, seed=seed)) for seed in (1, 2))
    x = tokens(4, 64)
    with torch.no_grad():
        assert not torch.equal(a(x), b(x))
        a.weight.copy_(b.weight)
        assert torch.equal(a(x), b(x))
        a.weight._qdata[0] = 1  # not through the tensor that holds it
        assert torch.allclose(a(x)[:, 0], x @ a.weight.dequantize()[0], rtol=0.02, atol=0.1)


def test_a_weight_made_and_overwritten_in_inference_mode_is_not_stale_either(
    make_weight: Callable[..., Any], load: Any
) -> None:
    with torch.inference_mode():
        a, b = (load(make_weight(4, 32, 64, 32, seed=seed)) for seed in (1, 2))
        assert a.weight._qdata.is_inference()
        assert not torch.equal(a(tokens(4, 64)), b(tokens(4, 64)))
        a.weight.copy_(b.weight)
        assert torch.equal(a(tokens(4, 64)), b(tokens(4, 64)))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_laid_out_for_a_weight_goes_with_it(
    make_weight: Callable[..., Any], load: Any, part: Part, backend: str
) -> None:
    kept = part("qarvd.ops.linear")._REMEMBERED
    gc.collect()
    before = len(kept)
    for bits in (8, 4):
        linear = load(make_weight(bits, 32, 64, 32))
        with torch.no_grad(), part("qarvd.ops.backends.registry").forced(backend):
            for dtype in (torch.float32, torch.float32, torch.bfloat16):
                linear(tokens(4, 64).to(dtype))
        assert len(kept) == before + 1, "a weight is laid out once, whatever the dtype of the tokens"
        del linear
        gc.collect()
        assert len(kept) == before


@kinds
@pytest.mark.parametrize("backend", ["cpu", "reference", "weight-only", "comfy-kitchen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_weight_gives_the_same_bits_through_the_library_the_hosted_linear_and_the_layout(
    make_weight: Callable[..., Any],
    load: Any,
    stored: Any,
    part: Part,
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    n_outlier: int,
    symmetric: bool,
    backend: str,
    dtype: torch.dtype,
) -> None:
    """By every backend that can compute here; those for cards are let in (comfy-kitchen then runs its eager code)."""
    registry = part("qarvd.ops.backends.registry")
    (found,) = (each for each in registry.BACKENDS if each.name == backend)
    ran: list[str] = []

    def prepare(weight: Any) -> Any:
        ran.append(backend)
        return found.prepare(weight)

    monkeypatch.setattr(registry, "BACKENDS", (replace(found, refuses=lambda weight: None, prepare=prepare),))
    weight, bias = make_weight(bits, 48, 160, n_outlier, symmetric), torch.linspace(-3, 3, 48).to(dtype)
    hosted = part("nodes.linears").operations().Linear(160, 48, dtype=dtype, device="cpu")
    nn.ModuleDict({"linear": hosted}).load_state_dict(stored(weight, bias, "linear"))
    library = part("qarvd.ops.linear").QuantizedLinear(weight, bias)
    with torch.inference_mode():
        for x in (tokens(40, 160).to(dtype), tokens(2, 1, 160).to(dtype)):
            expected = library(x)
            assert torch.equal(hosted(x), expected)
            assert torch.equal(load(weight, bias, dtype)(x), expected)
            exact = torch.nn.functional.linear(x.float(), weight.dequantize(), bias.float())
            assert (expected.float() - exact).norm() < 0.03 * exact.norm()
    assert len(ran) >= 3, "each of them asked the registry"


def test_moving_a_linear_takes_its_outliers_along(make_weight: Callable[..., Any], load: Any) -> None:
    linear = load(make_weight(4, 32, 64, 32, symmetric=False))
    moved = linear.weight.to("meta")
    params = moved._params
    assert all(
        t.device.type == "meta" for t in (moved._qdata, params.scale, params.outlier_idx, params.order, params.zero)
    )
    assert params.split.n_outlier == 32


def test_gathering_into_one_buffer_and_back_loses_nothing(make_weight: Callable[..., Any], load: Any) -> None:
    from comfy.memory_management import interpret_gathered_like, vram_aligned_size

    for n_outlier in (32, 0):
        weight = load(make_weight(4, 32, 64, n_outlier, symmetric=False)).weight.data
        buffer = torch.zeros(vram_aligned_size([weight]), dtype=torch.uint8)
        (view,) = interpret_gathered_like([weight], buffer)
        view.copy_(weight)
        assert torch.equal(view.dequantize(), weight.dequantize())
        with torch.no_grad():
            linear = torch.nn.functional.linear
            assert torch.equal(linear(tokens(3, 64), view), linear(tokens(3, 64), weight))


class Block(nn.Module):
    """Two quantized linears with something between."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.nn.functional.gelu(self.first(x), approximate="tanh"))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_block_compiles_without_a_break_in_the_graph(
    make_weight: Callable[..., Any], load: Any, bits: int, backend: str
) -> None:
    torch._dynamo.reset()
    pair = (make_weight(bits, 96, 64, 32), make_weight(bits, 64, 96, 0, symmetric=False))
    block = Block(*(load(weight, torch.ones(weight.shape[0])) for weight in pair)).eval()
    x = tokens(2, 5, 64)
    with torch.no_grad():
        expected = block(x)
        actual = torch.compile(block, fullgraph=True, backend=backend)(x)
    # On a CPU, compiled code runs the reference, which the faster backend matches to half a step of the normal range.
    assert (actual - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("device", ["mps", "cpu"])
def test_scales_of_groups_can_be_moved_to_a_card_without_8_bit_floats(
    part: Part, stored: Any, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """In ComfyUI's own linears and in ours; what is saved again is as it was."""
    import comfy.model_management as management
    import comfy.ops

    assert part("nodes.layout").register() is None
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device(device))
    weight = part("qarvd.ops.weight").sample_weight(part("qarvd.ops.codecs").CODECS["int4g16"])
    native = comfy.ops.mixed_precision_ops({}, torch.float32).Linear(192, 32, bias=False, device="cpu")
    native.load_state_dict(stored(weight))
    hosted = part("nodes.linears").operations().Linear(192, 32, bias=False, device="cpu", dtype=torch.float32)
    nn.ModuleDict({"q": hosted}).load_state_dict({f"q.{k}": t for k, t in stored(weight).items()}, strict=False)
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(0))
    held = native.weight._params.group_scale, hosted.weight_group_scale
    assert {tensor.dtype for tensor in held} == {torch.float32 if device == "mps" else torch.float8_e4m3fn}
    expected = part("qarvd.ops.linear").run_linear(x, weight, None)
    assert torch.equal(native(x), expected) and torch.equal(hosted(x), expected)
    saved = native.state_dict()["weight_group_scale"]
    assert saved.dtype == torch.float8_e4m3fn and torch.equal(saved.float(), weight.group_scale.float())
