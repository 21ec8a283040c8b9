"""The node that runs a LoRA beside a model's linears instead of merging it into their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import folder_paths
from comfy.patcher_extension import PatcherInjection
from comfy_api.latest import io

from ..qarvd.errors import SettingError
from .lora_file import Lora, read_lora
from .side_branch import Branch, beside, place_all, release_all

FOLDER = "loras"
NO_FILE = "(no file)"


class SideBranch(io.ComfyNode):
    """A LoRA, un-merged."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdLora",
            display_name="LoRA Side Branch",
            category="qarvd",
            description=(
                "Runs a LoRA beside the linear layers instead of merging it into their weights. Quantized weights stay "
                "as they were calibrated, and the LoRA keeps its full precision. A new strength quantizes and compiles "
                "nothing again. Chain several nodes for several LoRAs."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was trained for, quantized or not."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list(FOLDER) or [NO_FILE],
                    tooltip="A file in models/loras. It must be for this model: Wan 2.1 of the same size.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip=(
                        "How much of the LoRA is added. 0 leaves the model as it is, and negative values subtract it."
                    ),
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The model with the LoRA beside it.")],
        )

    @classmethod
    def execute(cls, model: Any, lora_name: str, strength: float) -> io.NodeOutput:
        path = folder_paths.get_full_path(FOLDER, lora_name)
        if lora_name == NO_FILE or path is None:
            raise SettingError(
                f"There is no LoRA {lora_name!r} in models/{FOLDER}. Put it there, press R and choose it."
            )
        if strength == 0:
            return io.NodeOutput(model)
        return io.NodeOutput(with_branches(model, read_lora(Path(path), model), strength))

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: Any) -> str:
        """A file that was written again is another one; a name that comes through a link is not known here."""
        path = folder_paths.get_full_path(FOLDER, lora_name) if lora_name else None
        return "" if path is None else f"{Path(path).stat().st_mtime_ns}"


def with_branches(patcher: Any, lora: Lora, strength: float) -> Any:
    """A clone of a MODEL with a LoRA at `strength` beside its linears, on top of what is there already."""
    clone = patcher.clone()
    if lora.patches:
        clone.add_patches(dict(lora.patches), strength)
    branches = []
    for name, part in lora.beside.items():
        key = f"{name}.forward"
        branch = Branch(part.down, part.up, strength * part.scale)
        clone.add_object_patch(key, beside(clone.get_model_object(key), branch))
        branches.append(branch)
    # The branches' matrices are no weights of the model, so ComfyUI does not bring them to the device.
    placed = PatcherInjection(lambda loaded: place_all(branches, loaded), lambda loaded: release_all(branches))
    clone.set_injections(f"qarvd_lora_{uuid4()}", [placed])
    return clone
