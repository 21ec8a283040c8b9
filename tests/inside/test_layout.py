"""Our formats held by ComfyUI's own linears: what they compute is what the library computes."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.newer_comfyui

KINDS = [(8, 32, True), (8, 0, True), (8, 0, False), (4, 64, False), (4, 32, True), (4, 0, True)]
"""Bits, outliers, whether without zero points."""
kinds = pytest.mark.parametrize(("bits", "n_outlier", "symmetric"), KINDS)
Part = Callable[[str], ModuleType]


@pytest.fixture(autouse=True)
def registered(part: Part) -> None:
    assert part("nodes.layout").register() is None


@pytest.fixture
def load(stored: Callable[..., dict[str, Tensor]]) -> Callable[..., Any]:
    """A linear of ComfyUI's that holds a quantized weight."""

    def make(weight: Any, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Any:
        import comfy.ops

        out, channels = weight.shape
        operations = comfy.ops.mixed_precision_ops({}, dtype)
        linear = operations.Linear(channels, out, bias=bias is not None, device="cpu")
        missing, extra = linear.load_state_dict(stored(weight, bias), strict=False)
        assert not missing and not extra
        return linear

    return make


def tokens(*shape: int, seed: int = 1) -> Tensor:
    """Normal tokens, every fifth channel of which is loud."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., ::5] *= 20
    return x


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


def test_what_is_laid_out_for_a_weight_goes_with_it(make_weight: Callable[..., Any], load: Any, part: Part) -> None:
    kept = part("nodes.prepared")._PREPARED
    gc.collect()
    before = len(kept)
    for bits in (8, 4):
        linear = load(make_weight(bits, 32, 64, 32))
        with torch.no_grad():
            for dtype in (torch.float32, torch.float32, torch.bfloat16):
                linear(tokens(4, 64).to(dtype))
        assert len(kept) == before + 1, "a weight is laid out once, whatever the dtype of the tokens"
        del linear
        gc.collect()
        assert len(kept) == before


def test_moving_a_linear_takes_its_outliers_along(make_weight: Callable[..., Any], load: Any) -> None:
    linear = load(make_weight(4, 32, 64, 32, symmetric=False))
    moved = linear.weight.to("meta")
    params = moved._params
    assert all(
        t.device.type == "meta" for t in (moved._qdata, params.scale, params.outlier_idx, params.order, params.zero)
    )
    assert params.n_outlier == 32


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
        due = block(x)
        came = torch.compile(block, fullgraph=True, backend=backend)(x)
    # On a CPU, compiled code runs the reference, which the faster backend matches to half a step of the normal range.
    assert (came - due).abs().max() < 0.02 * due.abs().max()


BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no scale": (lambda file: file.pop("weight_scale"), "lacks"),
    "outliers in any order": (
        lambda file: file.update(weight_outlier_idx=file["weight_outlier_idx"].flip(0)),
        "ascend",
    ),
    "scales of another dtype": (lambda file: file.update(weight_scale=file["weight_scale"].half()), "float16"),
    "a scale of 0": (lambda file: file["weight_scale"].zero_(), "positive"),
    "another model's": (
        lambda file: file.update(
            weight=torch.cat([file["weight"]] * 2), weight_scale=torch.cat([file["weight_scale"]] * 2)
        ),
        "another model",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_linear_is_refused_in_a_sentence(
    make_weight: Callable[..., Any], stored: Any, part: Part, fault: str
) -> None:
    import comfy.ops

    spoil, word = BROKEN[fault]
    file = stored(make_weight(8, 32, 64, 32), name="blocks.0.q")
    tensors = {key.removeprefix("blocks.0.q."): tensor for key, tensor in file.items()}
    spoil(tensors)
    model = nn.ModuleDict({"q": comfy.ops.mixed_precision_ops({}, torch.float32).Linear(64, 32, bias=False)})
    with pytest.raises(part("qarvd.errors").CheckpointError, match=word) as raised:
        model.load_state_dict({f"q.{key}": tensor for key, tensor in tensors.items()})
    assert "q" in str(raised.value)


# How the hook shares ComfyUI with others.


@pytest.fixture
def ops() -> Iterator[Any]:
    """ComfyUI's operations, put back afterwards as they were found."""
    import comfy.ops

    found = comfy.ops._load_quantized_module
    yield comfy.ops
    comfy.ops._load_quantized_module = found


def marked(format: str) -> dict[str, Tensor]:
    marker = torch.tensor(list(json.dumps({"format": format}).encode()), dtype=torch.uint8)
    return {"weight": torch.ones(4, 4), "weight_scale": torch.ones(()), "comfy_quant": marker}


def test_registering_again_wraps_nothing_again(ops: Any, part: Part) -> None:
    hook = ops._load_quantized_module
    assert part("nodes.layout").register() is None
    assert ops._load_quantized_module is hook


def test_a_second_copy_of_the_pack_is_harmless(
    ops: Any, part: Part, pack: ModuleType, make_weight: Any, load: Any
) -> None:
    import importlib
    import sys
    from importlib.machinery import ModuleSpec
    from importlib.util import module_from_spec

    spec = ModuleSpec("a_second_copy", None, is_package=True)
    spec.submodule_search_locations = list(pack.__path__)
    sys.modules["a_second_copy"] = module_from_spec(spec)
    before, weight = load(make_weight(8, 32, 64, 32)), make_weight(8, 32, 64, 32)
    with torch.inference_mode():
        due = before(tokens(4, 64))
    nodes = ModuleSpec("a_second_copy.nodes", None, is_package=True)  # without its nodes, which are registered once
    nodes.submodule_search_locations = [f"{path}/nodes" for path in pack.__path__]
    sys.modules["a_second_copy.nodes"] = module_from_spec(nodes)
    hook = ops._load_quantized_module
    second = importlib.import_module("a_second_copy.nodes.layout")
    assert second.FORMATS is not part("nodes.layout").FORMATS
    assert second.register() is None and ops._load_quantized_module is hook
    with torch.inference_mode():
        assert torch.equal(before(tokens(4, 64)), due), "loaded before the second copy came"
        assert torch.equal(load(weight)(tokens(4, 64)), due), "loaded afterwards"
    assert part("nodes.layout").register() is None


def test_other_packs_may_wrap_the_loader_before_and_after_us(ops: Any, part: Part, make_weight: Any, load: Any) -> None:
    seen: list[str] = []

    def wrapping(inner: Any, name: str) -> Any:
        def other(module: Any, super_load: Any, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
            seen.append(name)
            inner(module, super_load, state_dict, prefix, *args, **kwargs)

        return other

    layout = part("nodes.layout")
    ops._load_quantized_module = layout.serving(wrapping(ops._load_quantized_module, "before"))
    ops._load_quantized_module = last = wrapping(ops._load_quantized_module, "after")
    assert layout.register() is None and ops._load_quantized_module is last
    seen.clear()
    load(make_weight(8, 32, 64, 32))
    assert seen == ["after"]
    plain = ops.mixed_precision_ops({}, torch.float32).Linear(4, 4, bias=False)
    plain.load_state_dict({"weight": torch.ones(4, 4)})
    assert seen == ["after", "after", "before"] and torch.equal(plain.weight, torch.ones(4, 4))


def test_a_loader_that_someone_put_back_is_wrapped_again(ops: Any, part: Part, make_weight: Any, load: Any) -> None:
    ops._load_quantized_module = original(ops._load_quantized_module)
    with pytest.raises(ValueError, match="Unsupported"):
        load(make_weight(8, 32, 64, 32))
    assert part("nodes.layout").register() is None
    load(make_weight(8, 32, 64, 32))


def original(hook: Any) -> Any:
    """What the outermost hook hands foreign formats to."""
    names = hook.__code__.co_freevars
    return hook.__closure__[names.index("inner")].cell_contents


def test_unknown_formats_get_comfyuis_own_errors(ops: Any) -> None:
    def error(format: str) -> Any:
        linear = ops.mixed_precision_ops({}, torch.float32).Linear(4, 4, bias=False)
        with pytest.raises((ValueError, KeyError)) as raised:
            linear.load_state_dict(marked(format))
        return type(raised.value), str(raised.value)

    with_us = [error("of another pack"), error("qarvd_w2a8")]
    ops._load_quantized_module = original(ops._load_quantized_module)
    assert [error("of another pack"), error("qarvd_w2a8")] == with_us


def test_where_loading_does_not_work_comfyui_is_left_as_it_was(ops: Any, part: Part, monkeypatch: Any) -> None:
    from comfy.quant_ops import QUANT_ALGOS

    layout = part("nodes.layout")
    ops._load_quantized_module = bare = original(ops._load_quantized_module)
    for format in layout.FORMATS:
        monkeypatch.delitem(QUANT_ALGOS, format)
    formats = dict(QUANT_ALGOS)
    monkeypatch.setattr(ops, "mixed_precision_ops", lambda *args: ops.manual_cast)
    reason = layout.register()
    assert reason is not None and "small quantized linear" in reason
    assert ops._load_quantized_module is bare and formats == QUANT_ALGOS


def test_a_comfyui_that_holds_no_quantized_weights_is_told_from_one_that_does(
    ops: Any, part: Part, monkeypatch: Any
) -> None:
    monkeypatch.delattr(ops, "_load_quantized_module")
    reason = part("nodes.layout").register()
    assert reason is not None and "_load_quantized_module" in reason
    ops._load_quantized_module = None  # the fixture puts the right one back
