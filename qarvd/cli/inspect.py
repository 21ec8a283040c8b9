"""`inspect F`: what a checkpoint is."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from math import prod

from ..calibrate.calibration import Calibration
from ..checkpoint.calibration import is_calibration, load_calibration
from ..checkpoint.model import Model, read_metadata
from ..ops.linear import QuantizedLinear
from ..ops.weight import QuantizedWeight
from ..quantize.model import weight_bits
from ..report.tables import size_text, text_table
from ..stream.presets import PRESETS, find_preset
from ..wan.config import WanConfig
from .calibrate import print_weights
from .common import UNTOLD, add_model, alike, counted, load_any_family, load_model, model_path

HELP = "say what a checkpoint, or a file of statistics, is: family, dimensions, what is quantized and how"
UNKNOWN = "not named in the file; if it is autoregressive (a bidirectional model looks the same), it is of one of these"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model", also="; or a file of statistics")


def run(args: argparse.Namespace) -> None:
    path = model_path(args.model)
    if is_calibration(path):
        describe(load_calibration(path))
        return
    model, known = load_any_family(args.model, args.preset)
    print(f"family      {f'{model.preset_name}: {model.preset}' if known else UNKNOWN}")
    print(f"dimensions  {dimensions(model.config, known)}")
    checked = "the checksum is right" if "checksum" in read_metadata(path) else "it has no checksum"
    print(f"size        {size_text(path.stat().st_size)}; {checked}")
    quantized = {n: m.weight for n, m in model.tree.named_modules() if isinstance(m, QuantizedLinear)}
    print(f"parameters  {parameters(model):,}")
    print(f"tensors     {tensors_text(model, quantized)}")
    if model.recipe:
        print(f"recipe      {model.recipe.to_json()}")
    if quantized:
        print(text_table([linear_row(name, model.formats[name], weight) for name, weight in quantized.items()]))
    if not known:
        print(text_table([preset_row(name) for name in fitting_presets(model.config)]))


def dimensions(config: WanConfig, known: bool) -> dict[str, object]:
    """A model's dimensions; without those that tensors do not tell, if its family is not known."""
    found = asdict(config)
    return found if known else {name: found[name] for name in found if name not in UNTOLD}


def fitting_presets(config: WanConfig) -> list[str]:
    """Families whose checkpoints can have these dimensions: only one is tied to its own, the demo."""
    return ["demo"] if alike(config, load_model("demo").config) else [name for name in PRESETS if name != "demo"]


def preset_row(name: str) -> dict[str, object]:
    """How a family is streamed, as a row of the table."""
    preset = PRESETS[name]
    first = f"first {', '.join(map(str, preset.first_steps))}; then " if preset.first_steps else ""
    return {
        "preset": name,
        "frames a chunk": preset.chunk_frames,
        "steps": f"{first}{', '.join(map(str, preset.steps))}",
        "shift": preset.shift,
        "window": preset.window or "the whole clip",
        "sink": preset.sink,
    }


def parameters(model: Model) -> int:
    """Weights and biases, each counted once however few bits it has."""
    linears = [module.weight for module in model.tree.modules() if isinstance(module, QuantizedLinear)]
    return sum(prod(weight.shape) for weight in linears) + sum(p.numel() for p in model.tree.parameters())


def tensors_text(model: Model, quantized: Mapping[str, QuantizedWeight]) -> str:
    """How many tensors there are of each kind."""
    kinds = Counter(str(dtype).removeprefix("torch.") for dtype in model.dtypes.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    if not quantized:
        return f"{counts}; none is quantized"
    return f"{len(quantized)} quantized linears of {weight_bits(model.tree):.2f} bits a weight; others: {counts}"


def linear_row(name: str, format: str, weight: QuantizedWeight) -> dict[str, object]:
    """A quantized linear as a row of the table."""
    return {
        "linear": name,
        "format": format,
        "in": weight.shape[1],
        "out": weight.shape[0],
        "outliers": weight.split.n_outlier,
        "size": size_text(weight.nbytes),
    }


def describe(found: Calibration) -> None:
    """Print what a file of statistics is of."""
    side = find_preset(found.preset_name).scale.side
    height, width = (side * length for length in found.size)
    print(f"statistics  of a model of the family {found.preset_name}, checksum {found.model}")
    print(f"clips       {counted(found.prompts, 'prompt')}, {found.frames} latent frames of {width}x{height} pixels")
    if not len(found.errors):
        print("measured    nothing, so all chunks have the same weight")
        return
    if found.measured_as is not None:
        print(f"measured    with {found.measured_as.weight_bits}-bit weights")
    print_weights(found)
