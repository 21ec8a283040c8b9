"""How ComfyUI's loader is taught our formats: beside other packs, once, and with sentences for broken files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from inside.linears import tokens
from torch import Tensor, nn

pytestmark = pytest.mark.newer_comfyui

Part = Callable[[str], ModuleType]


@pytest.fixture(autouse=True)
def registered(part: Part) -> None:
    assert part("nodes.layout").register() is None


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
        expected = before(tokens(4, 64))
    nodes = ModuleSpec("a_second_copy.nodes", None, is_package=True)  # without its nodes, which are registered once
    nodes.submodule_search_locations = [f"{path}/nodes" for path in pack.__path__]
    sys.modules["a_second_copy.nodes"] = module_from_spec(nodes)
    hook = ops._load_quantized_module
    second = importlib.import_module("a_second_copy.nodes.layout")
    assert second.FORMATS is not part("nodes.layout").FORMATS
    assert second.register() is None and ops._load_quantized_module is hook
    with torch.inference_mode():
        assert torch.equal(before(tokens(4, 64)), expected), "loaded before the second copy came"
        assert torch.equal(load(weight)(tokens(4, 64)), expected), "loaded afterwards"
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
