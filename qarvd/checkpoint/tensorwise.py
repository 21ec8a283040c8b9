"""The export that ComfyUI loads without this pack: its `int8_tensorwise` format, one scale for each row."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import SettingError
from ..files import replacing
from ..ops.linear import QuantizedLinear
from .model import Model, common_metadata, state_tensors
from .quantized import MARKER, TENSORS, format_marker
from .write import save_file

FORMAT = "int8_tensorwise"


def save_tensorwise(model: Model, path: Path) -> None:
    """Write a model of symmetric 8-bit weights with one scale a row in ComfyUI's own format, whole or not at all.

    Raises SettingError, naming the layer, for weights that the format cannot hold.
    """
    tensors = state_tensors(model)
    quantized = {n: m.weight for n, m in model.tree.named_modules() if isinstance(m, QuantizedLinear)}
    if not quantized:
        raise SettingError("The model is in full precision; quantize it with the stock int8 recipe first.")
    for name, weight in quantized.items():
        if weight.codec.bits != 8 or weight.split.n_outlier or weight.zero is not None:
            raise SettingError(
                f"{name} has {weight.codec.bits} bits, {weight.split.n_outlier} outlier channels and "
                f"{'' if weight.zero is not None else 'no '}zero points; ComfyUI's {FORMAT} holds 8 bits and one scale "
                "a row only. Quantize with the stock int8 recipe."
            )
        for part in TENSORS[1:]:  # all but the codes
            tensors.pop(f"{name}.{part}", None)
        tensors[f"{name}.weight_scale"] = weight.scale[:, 1:].cpu().contiguous()
        tensors[f"{name}.{MARKER}"] = format_marker(FORMAT)
    with replacing(path) as temporary:
        about = {"qarvd": json.dumps({"preset": model.preset_name})}
        save_file(tensors, temporary, common_metadata(model, path) | about)
