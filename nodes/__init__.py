"""ComfyUI nodes over the library: the only folder that knows ComfyUI. One file per family of nodes."""

from __future__ import annotations

import os

from comfy_api.latest import ComfyExtension, io

from ..qarvd.errors import QarvdError, SettingError
from ..qarvd.log import warn_once
from ..qarvd.ops.linear import configure
from . import (
    calibration,
    compare,
    layout,
    lora,
    models,
    outliers,
    prompt_changes,
    prompts,
    quantizing,
    recipes,
    sampler,
    schedules,
    streaming,
)
from .log import name_messages

NODES: list[type[io.ComfyNode]] = [
    models.LoadModel,
    models.DemoModel,
    prompts.EncodePrompts,
    calibration.Calibrate,
    calibration.FrameSensitivity,
    outliers.DetectOutliers,
    recipes.MakeRecipe,
    recipes.BitBudget,
    quantizing.Quantize,
    quantizing.SaveModel,
    lora.SideBranch,
    schedules.ARSchedule,
    prompt_changes.ChangePrompt,
    sampler.StreamingSampler,
    streaming.StreamVideo,
    compare.CompareVideos,
]


name_messages()

for kind in (QarvdError, *QarvdError.__subclasses__()):
    kind.__module__ = "qarvd"  # ComfyUI shows it before the message; the true one begins with the path of the pack


class Extension(ComfyExtension):
    """All nodes of the pack."""

    async def on_load(self) -> None:
        """Teach ComfyUI's own loaders our formats; a ComfyUI that has nothing to be taught does not call this."""
        reason = layout.register()
        if reason is not None:
            warn_once(f"Load Diffusion Model cannot open files of qarvd ({reason}). Use Load AR Model instead.")

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Called once, when ComfyUI has loaded the pack: here the environment is read."""
        try:
            configure(os.environ)
        except SettingError as error:
            warn_once(str(error))
        return NODES
