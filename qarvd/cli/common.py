"""What several verbs need: finding a model, a device, and saying things once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from ..checkpoint.model import Model, load
from ..errors import SettingError
from ..ops.linear import QuantizedLinear
from ..stream.presets import PRESETS


def add_model(parser: argparse.ArgumentParser, *names: str) -> None:
    """Positional model files and the choice of their family."""
    for name in names:
        parser.add_argument(name, help="a checkpoint file, or 'demo' for the bundled model")
    parser.add_argument("--preset", choices=PRESETS, help="the family of a file that does not say so itself")


def load_model(name: str, preset: str | None = None) -> Model:
    """Load a checkpoint file, or the bundled demo model."""
    from ..demo.bundle import MODEL

    return load(MODEL if name == "demo" else Path(name), preset)


def ready(model: Model, device: str) -> None:
    """Move to `device` in the dtype it computes in (float32 on a CPU), prepare the linears, and voice caveats."""
    target = pick_device(device)
    model.tree.to(target)
    if target.type == "cpu":
        model.tree.float()
    caveats = {}
    for module in model.tree.modules():
        if isinstance(module, QuantizedLinear):
            module.prepare()
            caveats[module.backend.caveat(module.weight)] = None
    for caveat in filter(None, caveats):
        say(caveat)


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU. Raises SettingError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"The device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def advance(bar: tqdm) -> None:
    """Count one more on a progress bar."""
    bar.update()


def say(text: str) -> None:
    """Tell the user something that is not the result."""
    print(text, file=sys.stderr)


def size_text(count: int) -> str:
    """Bytes as MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def text_table(rows: list[dict[str, object]]) -> str:
    """Rows with the same keys as aligned columns."""
    heads = list(rows[0])
    cells = [heads, *([_cell(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
