"""`quantize MODEL --recipe w4a8 --out F`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from ..checkpoint.model import Model, save
from ..quantize.model import LayerReport, linear_groups, quantize_tree
from ..recipe import RECIPES, Recipe
from .common import add_model, check_out, load_model, size_text, text_table

HELP = "quantize a checkpoint to int8 or int4 weights with two scales, and write it as safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model")
    parser.add_argument("--recipe", choices=RECIPES, default="w8a8")
    parser.add_argument("--single-scale", action="store_true", help="no scale of their own for outlier channels")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


def run(args: argparse.Namespace) -> None:
    recipe = RECIPES[args.recipe]
    if args.single_scale:
        recipe = replace(recipe, outliers="none")
    check_out(args.out, ".safetensors")
    model, reports = quantize(load_model(args.model, args.preset), recipe)
    save(model, args.out)
    print(text_table(by_kind(reports)))
    print(f"wrote {args.out}: {size_text(args.out.stat().st_size)}")


def quantize(model: Model, recipe: Recipe) -> tuple[Model, list[LayerReport]]:
    """Quantize the model's tree in place and note in the model what each layer got."""
    count = sum(map(len, linear_groups(model.config.num_layers)))
    with tqdm(total=count, unit="linear", desc="quantizing", leave=False) as bar:
        reports = quantize_tree(model.tree, model.config.num_layers, recipe, lambda name: bar.update())
    layers = {report.name: {k: v for k, v in asdict(report).items() if k != "name"} for report in reports}
    return replace(model, recipe=recipe, notes={**model.notes, "layers": layers}), reports


def by_kind(reports: list[LayerReport]) -> list[dict[str, object]]:
    """Sum up the linears of all blocks by their kind, such as cross_attn.k."""
    kinds: dict[str, list[LayerReport]] = {}
    for report in reports:
        parts = report.name.split(".")
        kinds.setdefault(".".join(parts[2:] if parts[0] == "blocks" else parts), []).append(report)
    return [
        {
            "linears": kind,
            "number": len(group),
            "in": group[0].shape[1],
            "out": group[0].shape[0],
            "outliers (mean)": sum(r.n_outlier for r in group) / len(group),
            "outliers (most)": max(r.n_outlier for r in group),
            "weight error": sum(r.relative_error for r in group) / len(group),
            "size": size_text(sum(r.nbytes for r in group)),
            "kept": group[0].kept,
        }
        for kind, group in kinds.items()
    ]
