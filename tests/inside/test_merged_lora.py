"""LoRAs that ComfyUI merges into weights of ours: as close as rounding allows, and undone to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.newer_comfyui

WIDTH, OUTLIERS, RANK = 1536, 64, 16
Part = Callable[[str], ModuleType]
each_kind = pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (8, False), (4, True), (4, False)])


@pytest.fixture
def patcher_of(part: Part, stored: Any) -> Callable[[Any], Any]:
    """A ModelPatcher of one linear."""
    assert part("nodes.layout").register() is None

    def make(weight: Any) -> Any:
        import comfy.model_patcher
        import comfy.ops

        out, channels = weight.shape
        model = nn.ModuleDict(
            {"q": comfy.ops.mixed_precision_ops({}, torch.float32).Linear(channels, out, device="cpu")}
        )
        bias = torch.linspace(-1, 1, out)
        model.load_state_dict({f"q.{key}": tensor for key, tensor in stored(weight, bias).items()})
        where = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=where, offload_device=where)

    return make


def lora(weight: Tensor, size: float) -> tuple[Any, Tensor]:
    """A LoRA for `weight`, `size` times as large as its ordinary columns, as ComfyUI's adapter and as a matrix."""
    from comfy.weight_adapter import LoRAAdapter

    generator = torch.Generator().manual_seed(3)
    out, channels = weight.shape
    up, down = torch.randn(out, RANK, generator=generator), torch.randn(RANK, channels, generator=generator)
    up *= size * weight.std(0).median() / (up @ down).std()
    return LoRAAdapter(set(), (up, down, None, None, None, None)), up @ down


def ratio(target: Tensor, actual: Tensor) -> float:
    """Signal to noise, in dB."""
    return 10 * math.log10(target.square().sum() / (actual - target).square().sum())


def base(make_weight: Any, bits: int, symmetric: bool) -> tuple[Any, float]:
    """A quantized weight, and how close it is to the floats that it was made from."""
    weight = make_weight(bits, WIDTH, WIDTH, OUTLIERS, symmetric)
    floats = make_weight.floats(WIDTH, WIDTH, OUTLIERS)
    return weight, ratio(floats, weight.dequantize())


def merge(patcher: Any, adapter: Any, strength: float = 1.0) -> Any:
    patched = patcher.clone()
    patched.add_patches({"q.weight": adapter}, strength)
    patched.patch_model(torch.device("cpu"))
    return patched


@each_kind
def test_a_merged_lora_is_as_close_as_the_base_was_before_it(
    make_weight: Any, patcher_of: Any, bits: int, symmetric: bool
) -> None:
    weight, before = base(make_weight, bits, symmetric)
    patcher = patcher_of(weight)
    start = weight.dequantize()
    for size in (0.01, 0.03, 0.1, 0.3, 0.6):
        adapter, product = lora(start, size)
        patched = merge(patcher, adapter)
        merged = patcher.model["q"].weight
        actual = merged.dequantize()
        kept = ((actual - start) * product).sum() / product.square().sum()
        off = ratio(start + product, actual) - before
        print(f"{bits} bits, symmetric {symmetric}, LoRA of {size}: {off:+.2f} dB, {kept:.2f} of it")
        assert off > -0.5
        assert 0.7 < kept < 1.1
        assert torch.equal(merged._params.outlier_idx, torch.tensor(weight.split.outliers))
        assert (merged._params.zero is None) == symmetric
        scale = merged._params.scale
        steepest = (scale[:, 0] / scale[:, 1]).max().item()
        assert merged._params.guard == OUTLIERS * 127 * 128 * steepest / 2**30
        assert (scale[:, 1] >= scale[:, 0] / 256).all() and (scale > 0).all()
        patched.unpatch_model(torch.device("cpu"))


@each_kind
@torch.inference_mode()  # as ComfyUI runs its nodes
def test_while_on_it_is_multiplied_and_taken_off_it_leaves_no_bit_changed(
    make_weight: Any, patcher_of: Any, bits: int, symmetric: bool
) -> None:
    weight = make_weight(bits, 96, 128, 32, symmetric)
    patcher = patcher_of(weight)
    linear, x = patcher.model["q"], torch.randn(40, 128, generator=torch.Generator().manual_seed(5))
    before = {key: tensor.clone() for key, tensor in linear.state_dict().items()}
    adapter, product = lora(weight.dequantize(), 1)
    plain = linear(x)
    patched = merge(patcher, adapter)
    expected = x @ (weight.dequantize() + product).T + linear.bias
    assert ratio(expected, linear(x)) > (35 if bits == 8 else 12) > ratio(expected, plain)
    patched.unpatch_model(torch.device("cpu"))
    assert torch.equal(linear(x), plain)
    assert all(torch.equal(before[key], tensor) for key, tensor in linear.state_dict().items())


@each_kind
def test_rows_that_a_lora_does_not_touch_stay_as_they_were(
    make_weight: Any, patcher_of: Any, bits: int, symmetric: bool
) -> None:
    weight = make_weight(bits, 64, 128, 32, symmetric)
    adapter, _ = lora(weight.dequantize(), 0.3)
    adapter.weights[0][::2] = 0
    patcher = patcher_of(weight)
    merge(patcher, adapter)
    merged = patcher.model["q"].weight
    same = (merged._qdata == weight.codes).all(1) & (merged._params.scale == weight.scale).all(1)
    assert same[::2].all() and not same[1::2].any()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_lora_that_is_added_while_running_for_want_of_memory_is_added_exactly(
    make_weight: Any, patcher_of: Any, bits: int
) -> None:
    weight = make_weight(bits, 96, 128, 32)
    patcher = patcher_of(weight)
    adapter, product = lora(weight.dequantize(), 0.2)
    patched = patcher.clone()
    patched.add_patches({"q.weight": adapter})
    patched.patch_model(torch.device("cpu"), lowvram_model_memory=1)
    linear = patched.model["q"]
    assert linear.weight_function, "nothing was loaded partially"
    x = torch.randn(40, 128, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        actual = linear(x)
    assert torch.allclose(actual, x @ (weight.dequantize() + product).T + linear.bias, atol=1e-4)
    assert torch.equal(linear.weight._qdata, weight.codes)
    patched.unpatch_model(torch.device("cpu"))


def test_quantizing_floats_that_were_never_ours_finds_outliers_of_its_own(part: Part, make_weight: Any) -> None:
    from comfy.quant_ops import QuantizedTensor

    assert part("nodes.layout").register() is None
    floats = make_weight.floats(256, 256, 32)
    for bits, layout in ((8, "QarvdW8A8Layout"), (4, "QarvdW4A8Layout")):
        held = QuantizedTensor.from_float(floats, layout)
        assert held._params.split.n_outlier == 32
        assert ratio(floats, held.dequantize()) > (38 if bits == 8 else 15)
