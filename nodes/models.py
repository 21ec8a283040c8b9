"""Nodes that give a MODEL: a checkpoint's, or the bundled demo's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..qarvd.checkpoint.model import load
from ..qarvd.checkpoint.read import PICKLED
from ..qarvd.demo import bundle
from ..qarvd.demo.prompts import DIGITS, DIRECTIONS, SPEEDS, STARTS, Prompt
from ..qarvd.errors import SettingError
from ..qarvd.files import has_suffix
from ..qarvd.stream.presets import PRESETS
from . import demo, host

CATEGORY = "qarvd"
NO_FILE = "(no file)"
FOLDER = "diffusion_models"
FAMILIES = [host.AUTOMATIC, *PRESETS]
FAMILY_TIP = (
    "The family of the checkpoint. It decides how the model is streamed: frames per chunk, steps, window. automatic "
    "works for files that qarvd wrote. Other files do not record it, so choose one."
)


def checkpoint_files() -> list[str]:
    """Files that may hold a diffusion model, or a placeholder where there are none."""
    names = folder_paths.get_filename_list(FOLDER)
    known = [name for name in names if has_suffix(Path(name), ".safetensors", *PICKLED)]
    return known or [NO_FILE]


class LoadModel(io.ComfyNode):
    """A causal Wan checkpoint, plain or quantized."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdLoadModel",
            display_name="Load AR Model",
            category=CATEGORY,
            description=(
                "Loads an autoregressive video model (Self-Forcing, Causal-Forcing, CausVid, LongLive, ...), as "
                "published, quantized by qarvd, or in ComfyUI's own int8 and W4A8 formats."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=checkpoint_files(),
                    tooltip="A .safetensors or .pt file in models/diffusion_models. No code in a .pt file is ever run.",
                ),
                io.Combo.Input("family", options=FAMILIES, default=host.AUTOMATIC, tooltip=FAMILY_TIP),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "A MODEL from another loader, such as Load Diffusion Model. If it is connected, no file is "
                        "read, and this node only gives it the family."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The model, for the nodes of qarvd and of ComfyUI.")
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str, family: str, **_: Any) -> bool | str:
        """Names of files are checked when the node runs, when it is known whether one is needed."""
        return True if family in FAMILIES else f"There is no family {family!r}. Choose one of {', '.join(FAMILIES)}."

    @classmethod
    def execute(cls, file: str, family: str, model: Any | None = None) -> io.NodeOutput:
        if model is not None:
            return io.NodeOutput(host.with_family(model, host.family_of(model, family)))
        path = folder_paths.get_full_path(FOLDER, file)
        if file == NO_FILE or path is None:
            raise SettingError(
                f"There is no checkpoint {file!r} in models/{FOLDER}. Put a .safetensors or .pt file there, press R "
                "and choose it."
            )
        found = load(Path(path), None if family == host.AUTOMATIC else family)
        return io.NodeOutput(host.patcher_of(found))

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: Any) -> str:
        """A file that was written again is another one; a name that comes through a link is not known here."""
        path = folder_paths.get_full_path(FOLDER, file) if file else None
        return "" if path is None else f"{Path(path).stat().st_mtime_ns}"


class DemoModel(io.ComfyNode):
    """The bundled model of moving digits with all that a first run needs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def words(key: str, options: list[str], default: str, tip: str) -> io.Combo.Input:
            return io.Combo.Input(key, options=options, default=default, tooltip=tip)

        return io.Schema(
            node_id="QarvdDemoModel",
            display_name="Demo Model",
            category=CATEGORY,
            description=(
                "The bundled autoregressive model. It draws digits that move and bounce, 32 x 32 pixels. Nothing to "
                "download, and it runs on any CPU."
            ),
            inputs=[
                words("digit", list(DIGITS), "7", "The digit to show."),
                words(
                    "direction", list(DIRECTIONS), "left", "Where the digit moves at first. It bounces off the edges."
                ),
                words("speed", list(SPEEDS), "fast", "How far the digit moves from frame to frame."),
                words("start", list(STARTS), "middle", "Where the digit is in the first frame."),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The demo model in full precision."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt, encoded."),
                io.Vae.Output(
                    display_name="VAE", tooltip="The decoder of the demo model, for VAE Decode and for start images."
                ),
                io.Clip.Output(
                    display_name="CLIP",
                    tooltip=(
                        "The text encoder of the demo model, for CLIP Text Encode and Encode Prompt List. It "
                        "understands prompts such as 'a 7 moving left fast'."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(cls, digit: str, direction: str, speed: str, start: str) -> io.NodeOutput:
        prompt = Prompt(int(digit), direction, speed, start)
        model = host.patcher_of(load(bundle.MODEL))
        return io.NodeOutput(model, demo.conditioning(prompt), demo.Decoder(), demo.Language())
