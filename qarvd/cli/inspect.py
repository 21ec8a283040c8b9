"""`inspect F`: what a checkpoint is."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from ..calibrate.calibration import Calibration
from ..checkpoint.calibration import is_calibration, load_calibration
from ..ops.linear import QuantizedLinear
from ..quantize.model import weight_bits
from ..report.tables import size_text, text_table
from .calibrate import print_weights
from .common import add_model, counted, load_model

HELP = "say what a checkpoint, or a file of statistics, is: family, dimensions, what is quantized and how"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model")


def run(args: argparse.Namespace) -> None:
    if is_calibration(Path(args.model)):
        describe(load_calibration(Path(args.model)))
        return
    model = load_model(args.model, args.preset)
    print(f"family      {model.preset_name}: {model.preset}")
    print(f"dimensions  {asdict(model.config)}")
    path = Path(args.model)
    if path.is_file():
        print(f"size        {size_text(path.stat().st_size)}; the checksum, where there is one, is right")
    quantized = {n: m.weight for n, m in model.tree.named_modules() if isinstance(m, QuantizedLinear)}
    floats = Counter(str(dtype).removeprefix("torch.") for dtype in model.dtypes.values())
    bits = f" of {weight_bits(model.tree):.2f} bits a weight" if quantized else ""
    print(f"tensors     {len(quantized)} quantized linears{bits}; others: {dict(floats)}")
    if model.recipe:
        print(f"recipe      {model.recipe.to_json()}")
    if quantized:
        rows: list[dict[str, object]] = [
            {
                "linear": name,
                "format": weight.codec.format,
                "in": weight.shape[1],
                "out": weight.shape[0],
                "outliers": weight.split.n_outlier,
                "size": size_text(weight.nbytes),
            }
            for name, weight in quantized.items()
        ]
        print(text_table(rows))


def describe(found: Calibration) -> None:
    """Print what a file of statistics is of."""
    height, width = found.size
    print(f"statistics  of a model of the family {found.preset_name}, checksum {found.model}")
    print(f"clips       {counted(found.prompts, 'prompt')}, {found.frames} latent frames of {height}x{width}")
    if not len(found.errors):
        print("measured    nothing: chunks weigh alike")
        return
    if found.measured_as is not None:
        print(f"measured    with {found.measured_as.weight_bits}-bit weights")
    print_weights(found)
