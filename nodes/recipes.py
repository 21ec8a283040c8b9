"""Nodes that say how to quantize."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..qarvd.errors import SettingError
from ..qarvd.quantize.budget import parse_target
from ..qarvd.quantize.rounding import ROUNDING
from ..qarvd.recipe import OUTLIERS
from ..qarvd.recipe import Recipe as Choices
from .models import CATEGORY
from .sockets import Recipe

W4A8, W8A8 = "W4A8: 4-bit weights", "W8A8: 8-bit weights"
STOCK = "stock int8: one scale a row, for ComfyUI without this pack"
BITS = {W4A8: 4, W8A8: 8, STOCK: 8}


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
                    options=list(BITS),
                    default=W4A8,
                    tooltip=(
                        "4-bit weights have half the size of 8-bit weights and lose some quality. The stock format has "
                        "8 bits and no second scale; Save Quantized Model exports it for ComfyUI's own loader."
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
                        "slow. nearest: without data, and much worse."
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
    ) -> io.NodeOutput:
        recipe = Choices(
            weight_bits=BITS[format],
            outliers="none" if format == STOCK else outliers,
            rounding=rounding,
            symmetric=format == STOCK,
            compensate=compensate,
            frame_weights=frame_weights,
            call_weights=frame_weights,
            stream_chunks=stream_chunks or None,
            keep=tuple(name.strip() for name in keep.split(",") if name.strip()),
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
                "Sets a target size. Each layer then gets 4, 8 or 16 bits, by the measured effect of its errors."
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
        if recipe.symmetric and recipe.outliers == "none":
            raise SettingError(
                "The stock int8 format has 8 bits everywhere. A bit budget needs the format W4A8 or W8A8."
            )
        number = f"{size:.4f}".rstrip("0").rstrip(".")
        target = f"{number}MB" if unit == "MB" else f"{number} bits"
        parse_target(target)
        return io.NodeOutput(replace(recipe, target=target))
