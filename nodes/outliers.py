"""The node that shows which input channels are outliers."""

from __future__ import annotations

import json
from typing import Any

import torch
from comfy_api.latest import io

from ..qarvd.jobs.calibrate import identity
from ..qarvd.ops.split import ALIGNMENT
from ..qarvd.quantize.model import linear_groups, linear_of
from ..qarvd.quantize.outliers import column_norms, detect
from ..qarvd.report.layers import place, shared_name
from . import host
from .models import CATEGORY, FAMILIES, FAMILY_TIP
from .progress import Progress


class DetectOutliers(io.ComfyNode):
    """Which input channels have weights far above the others'."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdDetectOutliers",
            display_name="Detect Outliers",
            category=CATEGORY,
            description=(
                "Runs the detector of Q-ARVD on the weights of each layer, and shows how many outlier channels each "
                "has, by layer type and depth. This node is for looking: Dual-Scale Quantize does not need it."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A model in full precision."),
                io.Combo.Input("family", options=FAMILIES, default=host.AUTOMATIC, tooltip=FAMILY_TIP),
            ],
            outputs=[
                io.String.Output(display_name="splits", tooltip="The outlier channels of each layer, as JSON."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, family: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            found = host.library_model(model, family)
            identity(found)  # refuses a quantized one
            splits, layers = {}, []
            groups = list(linear_groups(found.config.num_layers))
            bar = Progress(len(groups))
            for names in groups:
                norms = column_norms(*(linear_of(found.tree, name).weight for name in names))
                channels = detect(norms, most=len(norms) // (2 * ALIGNMENT) * ALIGNMENT).channels
                splits[shared_name(names)] = list(channels)
                layers.append(layer_data(names, len(norms), len(channels)))
                bar.advance()
        return io.NodeOutput(json.dumps(splits), ui={"qarvd_outliers": [{"layers": layers}]})


def layer_data(names: tuple[str, ...], channels: int, count: int) -> dict[str, Any]:
    """A cell of the outlier map: linears `names`, which share an input."""
    kinds, depths = zip(*map(place, names), strict=True)
    depth = int(depths[0]) if depths[0].isdecimal() else None
    return {
        "name": shared_name(names),
        "type": shared_name(kinds),
        "depth": depth,
        "channels": channels,
        "count": count,
    }
