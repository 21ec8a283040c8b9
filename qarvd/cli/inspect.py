"""`inspect F`: what a checkpoint is."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from ..ops.linear import QuantizedLinear
from ..report.tables import size_text, text_table
from .common import add_model, load_model

HELP = "say what a checkpoint is: family, dimensions, what is quantized and how"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model")


def run(args: argparse.Namespace) -> None:
    model = load_model(args.model, args.preset)
    print(f"family      {model.preset_name}: {model.preset}")
    print(f"dimensions  {asdict(model.config)}")
    path = Path(args.model)
    if path.is_file():
        print(f"size        {size_text(path.stat().st_size)}; the checksum, where there is one, is right")
    quantized = {n: m.weight for n, m in model.tree.named_modules() if isinstance(m, QuantizedLinear)}
    floats = Counter(str(dtype).removeprefix("torch.") for dtype in model.dtypes.values())
    print(f"tensors     {len(quantized)} quantized linears; others: {dict(floats)}")
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
