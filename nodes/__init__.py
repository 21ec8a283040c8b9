"""ComfyUI nodes over the library: the only folder that knows ComfyUI. One file per family of nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import calibration, compare, lora, models, prompts, quantizing, recipes, sampler, schedules, streaming

NODES: list[type[io.ComfyNode]] = [
    models.LoadModel,
    models.DemoModel,
    prompts.EncodePrompts,
    calibration.Calibrate,
    calibration.FrameSensitivity,
    calibration.DetectOutliers,
    recipes.MakeRecipe,
    recipes.BitBudget,
    quantizing.Quantize,
    quantizing.SaveModel,
    lora.SideBranch,
    schedules.ARSchedule,
    sampler.StreamingSampler,
    streaming.StreamVideo,
    compare.CompareVideos,
]


class Extension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
