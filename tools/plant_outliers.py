"""Make a hostile twin of a model: the same function, with outlier input channels planted in its weights.

Where a linear map follows another, channel j of what passes between them may be divided by a in the first and
multiplied by a in the second. With a power of two that rounds nothing but numbers next to the smallest that 16 bits
hold and the modulation's scales, which are stored less 1. The second map's column j then stands out, as the outlier
columns of autoregressive video models do (Q-ARVD, section 3.3), and what passes there is as much smaller.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qarvd.checkpoint.model import save
from qarvd.cli.common import check_out, load_model, model_path
from qarvd.errors import QarvdError, SettingError

FACTOR = 4.0


@torch.no_grad()
def plant(tree: Any, factor: float = FACTOR, seed: int = 0) -> dict[str, list[int]]:
    """Plant outliers in place; returns the channels by name of linear.

    Counts differ by kind of layer and, where the maps belong to one block alone, by depth. The modulated inputs (q, k,
    v and ffn.0) pass through the time projection, which all blocks share, so that their channels are the same in each;
    so are those of cross-attention's keys and values, which read one text. Raises SettingError for a factor that is
    not a power of two above 1.
    """
    if not (factor > 1 and math.frexp(factor)[0] == 0.5):
        raise SettingError(f"The factor is {factor:g}; it must be a power of two above 1, such as 4.")
    generator = torch.Generator().manual_seed(seed)
    dim, blocks = tree.config.dim, len(tree.blocks)
    planted: dict[str, list[int]] = {}

    def choose(share: float, *names: str) -> list[int]:
        channels = torch.randperm(dim, generator=generator)[: max(1, round(share * dim))].sort().values.tolist()
        planted.update(dict.fromkeys(names, channels))
        return channels

    every = range(blocks)
    for share, row, kinds in ((0.11, 0, [f"self_attn.{x}" for x in "qkv"]), (0.06, 3, ["ffn.0"])):
        names = [f"blocks.{i}.{kind}" for i in every for kind in kinds]
        channels = choose(share, *names)
        _divide_modulation(tree, channels, row, factor)
        _multiply_columns(tree, names, channels, factor)
    names = [f"blocks.{i}.cross_attn.{x}" for i in every for x in "kv"]
    channels = choose(0.12, *names)
    _divide_rows(tree.text_embedding[2], channels, factor)
    _multiply_columns(tree, names, channels, factor)
    for i, block in enumerate(tree.blocks):
        depth = (i + 1) / blocks
        for share, kind, source in (
            (0.20 * depth, "self_attn.o", block.self_attn.v),
            (0.22 * (1 - depth) + 0.01, "cross_attn.o", block.cross_attn.v),
            (0.12 * depth, "cross_attn.q", block.norm3),
        ):
            name = f"blocks.{i}.{kind}"
            channels = choose(share, name)
            _divide_rows(source, channels, factor)
            _multiply_columns(tree, [name], channels, factor)
    return planted


def _divide_rows(module: Any, channels: Sequence[int], factor: float) -> None:
    """Divide output `channels` of a linear or of an affine norm."""
    for parameter in (module.weight, module.bias):
        parameter[channels] /= factor


def _multiply_columns(tree: Any, names: Sequence[str], channels: Sequence[int], factor: float) -> None:
    for name in names:
        tree.get_parameter(f"{name}.weight")[:, channels] *= factor


def _divide_modulation(tree: Any, channels: Sequence[int], row: int, factor: float) -> None:
    """Divide `channels` of norm(x) * (1 + m[row + 1]) + m[row], where m = modulation + time projection."""
    dim = tree.config.dim
    projection = tree.time_projection[1]
    for r in (row, row + 1):
        _divide_rows(projection, [r * dim + c for c in channels], factor)
    for block in tree.blocks:
        shift, scale = block.modulation[0, row], block.modulation[0, row + 1]
        shift[channels] /= factor
        scale[channels] = (1 + scale[channels]) / factor - 1


def column_peak(weight: Tensor) -> float:
    """Largest column norm over the median one."""
    norms = weight.float().norm(dim=0)
    return float(norms.max() / norms.median())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a full-precision checkpoint of qarvd's, or `demo`")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--factor", type=float, default=FACTOR, help="a power of two (4)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        run(args)
    except QarvdError as error:
        print(f"plant_outliers: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Load, plant, write and tell what was planted."""
    check_out(args.out, ".safetensors", model_path(args.model))
    model = load_model(args.model)
    for name, channels in plant(model.tree, args.factor, args.seed).items():
        weight = model.tree.get_parameter(f"{name}.weight")
        print(f"{name}: {len(channels)} channels, the largest column {column_peak(weight):.1f} times the median one")
    save(model, args.out)


if __name__ == "__main__":
    sys.exit(main())
