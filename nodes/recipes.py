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
            description="How to quantize. The defaults are what measures best; activations are always 8-bit.",
            inputs=[
                io.Combo.Input(
                    "format",
                    options=list(BITS),
                    default=W4A8,
                    tooltip=(
                        "4-bit weights are half the size of 8-bit ones and cost some quality. The stock format is "
                        "8-bit without outlier scales; Save Quantized Model exports it for ComfyUI's own loader."
                    ),
                ),
                io.Combo.Input(
                    "outliers",
                    options=sorted(OUTLIERS, key=lambda name: name != "search"),
                    default="search",
                    tooltip=(
                        "search: each layer gets the number of outlier channels of least measured error. published: "
                        "the detector of Q-ARVD, by column norms. none: one scale."
                    ),
                ),
                io.Combo.Input(
                    "rounding",
                    options=sorted(ROUNDING, key=lambda name: name != "gptq"),
                    default="gptq",
                    tooltip="gptq: best per second. adaround: as published. nearest: no data, much worse.",
                ),
                io.Boolean.Input(
                    "frame_weights",
                    default=True,
                    tooltip="Weigh every chunk's errors by its measured effect on the final video.",
                ),
                io.Boolean.Input(
                    "compensate",
                    default=True,
                    tooltip="Fit block by block, each making up for the errors of those before it.",
                ),
                io.Int.Input(
                    "stream_chunks",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Chunks of the streams this model is for; 0: as long as the calibration's clips.",
                ),
                io.String.Input(
                    "keep",
                    default="",
                    tooltip="Linears to leave in 16 bits, by name, with commas, such as blocks.0.self_attn.q.",
                ),
            ],
            outputs=[Recipe.Output(display_name="recipe", tooltip="For Dual-Scale Quantize.")],
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
            description=("Gives a recipe a size to meet: each layer then gets 4, 8 or 16 bits by its measured effect."),
            inputs=[
                Recipe.Input("recipe", tooltip="The recipe to change; its bits are then chosen for each layer."),
                io.Float.Input(
                    "size",
                    default=900.0,
                    min=0.1,
                    max=1_000_000.0,
                    step=0.1,
                    tooltip="Of the file in MB, or bits per quantized weight.",
                ),
                io.Combo.Input("unit", options=["MB", "bits"], default="MB", tooltip="What the size is counted in."),
            ],
            outputs=[Recipe.Output(display_name="recipe", tooltip="For Dual-Scale Quantize, with statistics.")],
        )

    @classmethod
    def execute(cls, recipe: Choices, size: float, unit: str) -> io.NodeOutput:
        if recipe.symmetric and recipe.outliers == "none":
            raise SettingError("The stock int8 format has 8 bits everywhere; a bit budget needs W4A8 or W8A8.")
        number = f"{size:.4f}".rstrip("0").rstrip(".")
        target = f"{number}MB" if unit == "MB" else f"{number} bits"
        parse_target(target)
        return io.NodeOutput(replace(recipe, target=target))
