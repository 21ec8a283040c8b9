"""Nodes that say how to quantize."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..qarvd.quantize.budget import parse_target
from ..qarvd.quantize.rounding import ROUNDING
from ..qarvd.recipe import GROUPS, OURS, OUTLIERS, RECIPES, ROTATIONS
from ..qarvd.recipe import Recipe as Choices
from .models import CATEGORY
from .sockets import Recipe

BEGINNINGS = {
    "W4A8: 4-bit weights": RECIPES["w4a8"],
    "W8A8: 8-bit weights": RECIPES["w8a8"],
    "W6A8: 6-bit weights": RECIPES["w6a8"],
    "W3A8: 3-bit weights": RECIPES["w3a8"],
    "stock W4A8: asym_w4a8_int8, for ComfyUI without this pack": RECIPES["w4a8"].in_format("asym_w4a8_int8"),
    "stock W6A8: asym_w4a8_int8 of 6 bits, for comfy-kitchen 0.2.40": RECIPES["w6a8"].in_format("asym_w4a8_int8"),
    "stock int8 ConvRot: rotated, for ComfyUI without this pack": RECIPES["w8a8"].in_format("int8_tensorwise"),
    "stock int8: one scale a row, for ComfyUI without this pack": replace(
        RECIPES["w8a8"].in_format("int8_tensorwise"), rotation=0
    ),
}
"""Where a recipe begins, by what the widget calls it."""
AS_FORMAT, NONE = "as the format has it", "none"


class MakeRecipe(io.ComfyNode):
    """Every choice of a quantization."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdRecipe",
            display_name="Recipe",
            category=CATEGORY,
            description=(
                "The choices of a quantization. The defaults have the least measured error. Activations always have 8 "
                "bits."
            ),
            inputs=[
                io.Combo.Input(
                    "format",
                    options=list(BEGINNINGS),
                    default=next(iter(BEGINNINGS)),
                    tooltip=(
                        "Fewer bits make a smaller file of lower quality. The stock formats have no second scale: "
                        "Save Quantized Model writes files that ComfyUI loads without this pack."
                    ),
                ),
                io.Combo.Input(
                    "outliers",
                    options=sorted(OUTLIERS, key=lambda name: name != "search"),
                    default="search",
                    tooltip=(
                        "How outlier channels are chosen. search: the number with the least measured error, for each "
                        "layer. published: the detector of Q-ARVD, by column norms. none: one scale for all channels."
                    ),
                ),
                io.Combo.Input(
                    "rounding",
                    options=sorted(ROUNDING, key=lambda name: name != "gptq"),
                    default="gptq",
                    tooltip=(
                        "How weights are rounded. gptq: the least error for the time. adaround: as published, and "
                        "slow; it needs group none. nearest: without data, and much worse."
                    ),
                ),
                io.Boolean.Input(
                    "frame_weights",
                    default=True,
                    tooltip="Weight the errors of each chunk by its measured effect on the final video.",
                ),
                io.Boolean.Input(
                    "compensate",
                    default=True,
                    tooltip="Fit block by block, so that each block compensates the errors of the blocks before it.",
                ),
                io.Int.Input(
                    "stream_chunks",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="The length in chunks of the streams you will make. 0: as long as the clips of Calibrate.",
                ),
                io.String.Input(
                    "keep",
                    default="",
                    tooltip="Names of layers to leave in 16 bits, separated by commas, such as blocks.0.self_attn.q.",
                ),
                io.Combo.Input(
                    "group",
                    options=[AS_FORMAT, NONE, *map(str, filter(None, GROUPS[4]))],
                    default=AS_FORMAT,
                    optional=True,
                    tooltip=(
                        "How many weights of a row share a scale. Smaller groups make a larger file of higher quality. "
                        "none: the whole row shares one, as 8-bit weights always do."
                    ),
                ),
                io.Combo.Input(
                    "rotation",
                    options=[AS_FORMAT, NONE, *map(str, filter(None, ROTATIONS))],
                    default=AS_FORMAT,
                    optional=True,
                    tooltip="The width of the matrices that mix the inputs of each layer, so that none stands out.",
                ),
            ],
            outputs=[
                Recipe.Output(
                    display_name="recipe", tooltip="Connect to Dual-Scale Quantize, Bit Budget and Calibrate."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        format: str,
        outliers: str,
        rounding: str,
        frame_weights: bool,
        compensate: bool,
        stream_chunks: int,
        keep: str,
        group: str = AS_FORMAT,
        rotation: str = AS_FORMAT,
    ) -> io.NodeOutput:
        begun = BEGINNINGS[format]
        chosen = {"group": group, "rotation": rotation}
        widths = {name: int(width) if width != NONE else 0 for name, width in chosen.items() if width != AS_FORMAT}
        recipe = replace(
            begun,
            outliers=outliers if begun.format == OURS else begun.outliers,
            rounding=rounding,
            compensate=compensate,
            frame_weights=frame_weights,
            call_weights=frame_weights,
            stream_chunks=stream_chunks or None,
            keep=tuple(name.strip() for name in keep.split(",") if name.strip()),
            **widths,
        )
        return io.NodeOutput(recipe)


class BitBudget(io.ComfyNode):
    """A size to meet, which chooses bits for each layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdBitBudget",
            display_name="Bit Budget",
            category=CATEGORY,
            description=(
                "Sets a target size. Each layer then gets 3 to 16 bits, by the measured effect of its errors."
            ),
            inputs=[
                Recipe.Input("recipe", tooltip="The recipe to change. Its own bits no longer count."),
                io.Float.Input(
                    "size",
                    default=900.0,
                    min=0.1,
                    max=1_000_000.0,
                    step=0.1,
                    tooltip="The target: the size of the file in MB, or the mean number of bits of a quantized weight.",
                ),
                io.Combo.Input("unit", options=["MB", "bits"], default="MB", tooltip="The unit of size."),
            ],
            outputs=[
                Recipe.Output(
                    display_name="recipe", tooltip="Connect to Dual-Scale Quantize. It needs statistics for it."
                )
            ],
        )

    @classmethod
    def execute(cls, recipe: Choices, size: float, unit: str) -> io.NodeOutput:
        number = f"{size:.4f}".rstrip("0").rstrip(".")
        target = f"{number}MB" if unit == "MB" else f"{number} bits"
        parse_target(target)
        return io.NodeOutput(replace(recipe, target=target))
