"""Let ComfyUI's own loaders read our formats, where they can hold quantized weights of others (0.27 and later)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..qarvd.checkpoint.quantized import FORMATS, MARKER, TENSORS, declared, read_linear, write_linear
from ..qarvd.errors import CheckpointError, QarvdError, first_line
from ..qarvd.ops.linear import prepare, run_linear
from ..qarvd.ops.weight import QuantizedWeight, sample_weight

TROUBLE = (QarvdError, ImportError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, AssertionError)
"""What a ComfyUI raises whose internals are other than we know."""

Load = Callable[..., None]
"""`comfy.ops._load_quantized_module`."""


def register() -> str | None:
    """Make ComfyUI's loaders read our formats: None, or why they can't. Calling it again changes nothing.

    It is tried on one small linear of each format; where that fails, ComfyUI is left as it was found.
    """
    try:
        import comfy.ops
        from comfy.quant_ops import QUANT_ALGOS

        original: Load = comfy.ops._load_quantized_module
    except (ImportError, AttributeError) as error:
        return f"that takes ComfyUI 0.27 or later ({first_line(error)})"
    try:
        from . import tensors
    except ImportError as error:
        return f"comfy-kitchen, which comes with ComfyUI, cannot be imported ({first_line(error)})"
    except TROUBLE as error:
        return f"this comfy-kitchen is another than we know ({first_line(error)})"

    before = {name: QUANT_ALGOS.get(name) for name in FORMATS}
    tensors.register_layouts()
    for name, codec in FORMATS.items():
        QUANT_ALGOS[name] = {
            "storage_t": codec.stored,
            "parameters": {"weight_scale"},
            "comfy_tensor_layout": tensors.LAYOUTS[name].__name__,
            "quantize_input": False,
        }
    if _trouble(comfy.ops) is None:
        return None  # an earlier call, or another copy of this pack, is at work already
    comfy.ops._load_quantized_module = serving(original)
    reason = _trouble(comfy.ops)
    if reason is not None:
        comfy.ops._load_quantized_module = original
        for name, entry in before.items():
            QUANT_ALGOS.pop(name)
            if entry is not None:
                QUANT_ALGOS[name] = entry
        return f"a small quantized linear could not be loaded through ComfyUI ({reason})"
    return None


def serving(inner: Load) -> Load:
    """A loader that takes linears in our formats and hands all else to `inner`."""

    def load(
        module: Any,
        super_load: Callable[..., None],
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
        **kwargs: Any,
    ) -> None:
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        told = declared(state_dict.get(f"{prefix}{MARKER}"))
        if told.get("format") not in FORMATS:
            return inner(module, super_load, state_dict, prefix, *rest, **kwargs)
        held = _take(module, state_dict, prefix)
        module.weight = torch.nn.Parameter(held, requires_grad=False)
        module.quant_format, module.layout_type = told["format"], held._layout_cls
        module._full_precision_mm_config = bool(told.get("full_precision_matrix_mult", False))
        module._full_precision_mm = module._full_precision_mm or module._full_precision_mm_config
        super_load(state_dict, prefix, *rest)
        if f"{prefix}weight" in missing_keys:
            missing_keys.remove(f"{prefix}weight")

    return load


def _take(module: Any, state_dict: dict[str, Tensor], prefix: str) -> Any:
    """Take the tensors of the linear `module` out of `state_dict`, as a QuantizedTensor.

    Raises CheckpointError where they are not as docs/format.md says, or of another shape than the model's.
    """
    import comfy.model_management as management

    from . import tensors

    name = prefix.rstrip(".") or "the linear"
    taken = {f"{name}.{part}": state_dict.pop(prefix + part) for part in TENSORS if prefix + part in state_dict}
    weight = read_linear(name, taken)
    if weight.shape != tuple(module._orig_shape):
        raise CheckpointError(
            f"{name} is a linear of {weight.shape}, outputs and inputs, in the file; the model has "
            f"{tuple(module._orig_shape)} there. The file was written for another model."
        )
    weight = weight.ready_for(management.get_torch_device())
    layout = tensors.LAYOUTS[weight.codec.format]
    where, dtype = module.factory_kwargs["device"], module.factory_kwargs["dtype"]
    params = layout.params_of(weight, dtype, where)
    return tensors.QuantizedTensor(weight.codes.to(where), layout.__name__, params)


def _trouble(ops: Any) -> str | None:
    """Why a linear of some format is not loaded, run and stored again by ComfyUI's operations `ops`, or None."""
    from . import tensors

    for name, codec in FORMATS.items():
        weight = sample_weight(codec)
        bias = torch.linspace(-1, 1, weight.shape[0])
        stored = {key.removeprefix("."): tensor for key, tensor in write_linear("", weight)} | {"bias": bias}
        x = torch.linspace(-2, 3, weight.shape[1])[None]
        try:
            linear = ops.mixed_precision_ops({}, torch.float32).Linear(*weight.shape[::-1], device="cpu")
            linear.load_state_dict(dict(stored))
            held = tensors.weight_of(linear.weight)
            prepare(held, plainly=True)  # to set oneDNN up would take most of the time
            with torch.inference_mode():
                actual = linear(x)
            written = linear.state_dict()
        except TROUBLE as error:
            return f"{name}: {first_line(error)}"
        if not torch.equal(actual, _product(x, weight, bias)):
            return f"{name}: its output is wrong"
        if any(key not in written or not torch.equal(written[key], tensor) for key, tensor in stored.items()):
            return f"{name}: it is stored again as {', '.join(written)}"
    return None


def _product(x: Tensor, weight: QuantizedWeight, bias: Tensor) -> Tensor:
    """What the library makes of the linear."""
    prepare(weight, plainly=True)
    return run_linear(x, weight, bias)
