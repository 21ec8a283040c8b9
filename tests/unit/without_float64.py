"""A device without float64 and 8-bit floats, such as Apple's: as strict as the real one, and it computes on the CPU.

Torch can learn of a device only once in a process, so what is tried there runs in one of its own: `python
without_float64.py FILE` writes the results of CASES.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny.model import CONFIG, tiny_model
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from qarvd.calibrate.stats import LayerStats
from qarvd.checkpoint.model import Model, state_tensors
from qarvd.jobs.calibrate import CalibrationPlan, calibrate
from qarvd.jobs.quantize import quantize
from qarvd.ops.codecs import CODECS
from qarvd.ops.weight import sample_weight
from qarvd.quantize.grid import assemble
from qarvd.quantize.merge import grid_of, requantize
from qarvd.quantize.model import linear_groups
from qarvd.recipe import RECIPES
from qarvd.stream.cache import KVCache
from qarvd.stream.presets import PRESETS
from qarvd.stream.rollout import roll_out
from qarvd.wan.rope import grid_rotation, time_shift

NAME = "apple"
MISSING = (torch.float64, torch.complex128, torch.float8_e4m3fn)
COPIES = ("aten::_to_copy", "aten::copy_")
"""What may have tensors on both devices."""


class There(Tensor):
    """A tensor that lies there, as far as torch can tell; `here` holds its numbers."""

    here: Tensor

    @staticmethod
    def of(here: Tensor) -> There:
        _refuse(here.dtype)
        there = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            There, here.size(), here.stride(), here.storage_offset(), dtype=here.dtype, device=torch.device(NAME, 0)
        )
        there.here = here
        return there

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.scaled_dot_product_attention:  # torch would ask the device's own code which one to take
                return torch.ops.aten._scaled_dot_product_attention_math(*args, **(kwargs or {}))[0]
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Also makes tensors there, and moves them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Backend(backend_registration._DummyBackendModule):
    def get_rng_state(self, device: object) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object) -> None:
        pass


def _refuse(dtype: torch.dtype | None) -> None:
    if dtype in MISSING:
        raise TypeError(f"Cannot make a tensor of {dtype}: {NAME} has no such numbers.")


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = list(_tensors((*args, *kwargs.values())))
    device = kwargs.get("device")
    involved = any(isinstance(x, There) for x in tensors)
    lands = involved if device is None else torch.device(device).type == NAME
    if not (involved or lands):
        return func(*args, **kwargs)
    _refuse(kwargs.get("dtype"))
    name = func._schema.name
    if name not in COPIES and any(x.dim() and not isinstance(x, There) for x in tensors):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device.")
    if name.startswith("qarvd::"):  # what torch runs on devices that have no kernels of ours
        return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
    if name == "aten::copy_":
        lands = isinstance(args[0], There)
    if lands and device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    owners = {id(x.here): x for x in tensors if isinstance(x, There)}  # an op that works in place gives its own back
    result = func(*_each(_here, args), **{key: _each(_here, value) for key, value in kwargs.items()})
    return _each(lambda x: owners.get(id(x)) if id(x) in owners else There.of(x), result) if lands else result


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _each(change: Callable[[Tensor], Any], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_each(change, x) for x in value) if isinstance(value, (list, tuple)) else value


def _here(x: Tensor) -> Tensor:
    return x.here if isinstance(x, There) else x


PRESET = replace(PRESETS["self-forcing"], window=6, sink=1, sink_follows=True, chunk_frames=2)
SIZE, FRAMES = (4, 4), 8
TEXTS = torch.randn(2, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(6))
FITTED = ("text_embedding.2", "blocks.0.self_attn.q", "blocks.1.ffn.2")
"""Linears that are quantized, with those that share an input; all would take a minute."""
KEPT = tuple(names[0] for names in linear_groups(CONFIG.num_layers) if names[0] not in FITTED)
RECIPE = replace(RECIPES["w4a8"], target="14 bits", keep=KEPT)


def positions(device: torch.device) -> dict[str, Tensor]:
    """Far into a stream, where float32 would not do."""
    frames = torch.arange(1_000_000, 1_000_003).to(device)
    return {"grid": grid_rotation(frames, 3, 5, 64), "shift": time_shift(frames, 64)}


def statistics(device: torch.device) -> dict[str, Tensor]:
    x, full = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0)).to(device).unbind()
    made = LayerStats.of(x, full, torch.full((50,), 0.7, device=device), torch.Generator().manual_seed(0))
    made += LayerStats.of(full, x, torch.full((50,), 0.1, device=device), torch.Generator().manual_seed(1))
    gram, cross = made.to(torch.device("cpu")).moments(centred=True)
    return {"gram": gram, "cross": cross, "total": made.total, "samples": made.samples}


def stream(model: Model, device: torch.device, cache: KVCache | None = None) -> Tensor:
    chunks = roll_out(model.tree.to(device), CONFIG, PRESET, TEXTS.to(device), SIZE, FRAMES, range(2), cache)
    return torch.cat([chunk.latents.cpu() for chunk in chunks], dim=2)


def streams(device: torch.device) -> dict[str, Tensor]:
    found = {"16 bits": stream(tiny_model(), device)}
    for bits in (8, 4):
        found[f"{bits} bits"] = stream(tiny_model(), device, PRESET.cache(None, f"int{bits}"))
    return found


def without_data(device: torch.device) -> dict[str, Tensor]:
    model = tiny_model()
    model.tree.to(device)
    model, _ = quantize(model, RECIPE.without_data())
    return {**state_tensors(model), "latents": stream(model, device)}


def merged(device: torch.device) -> dict[str, Tensor]:
    """A weight with groups that something small was added to, as ComfyUI merges a LoRA."""
    old = sample_weight(CODECS["int4g16"]).to(device)
    columns = old.split.to_columns(old.dequantize() + 0.01)
    codes, grid = requantize(columns, old.split.n_outlier, old.codec, grid_of(old), None)
    return {"weight": assemble(codes, grid, old.split, old.codec).dequantize().cpu()}


def calibrated(device: torch.device) -> dict[str, Tensor]:
    """With a budget, which takes gradients."""
    model = tiny_model()
    model.tree.to(device)
    made = calibrate(model, TEXTS, CalibrationPlan(SIZE, 4, RECIPE))
    model, reports = quantize(model, RECIPE, made)
    errors = [float(report.output_error or 0) for report in reports]
    return {
        "effects": made.errors,
        "call effects": made.call_errors,
        "bits": torch.tensor([list(report.bits.ljust(4).encode()) for report in reports]),
        "errors": torch.tensor(errors),
        "latents": stream(model, device),
    }


CASES: dict[str, Callable[[torch.device], dict[str, Tensor]]] = {
    run.__name__: run for run in (positions, statistics, streams, without_data, merged, calibrated)
}


def main(file: Path) -> None:
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # else modules give their tensors away in `.to`
    device = torch.device(NAME, 0)
    found = {}
    with _Factories():
        for case, run in CASES.items():
            found |= {f"{case}/{key}": x.cpu() for key, x in run(device).items()}
    save_file(found, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
