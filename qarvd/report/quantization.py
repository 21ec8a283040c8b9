"""The chapters of a report on quantized models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .charts import line_chart
from .chunks import sensitivity_figures
from .layers import Inputs, Variant, error_figures, layer_rows, norms_figure, outlier_figure
from .page import DASH, Chapter, Figure, Picture, Table

OUTSIDE = f"The column {DASH} holds layers outside the blocks."


def chunks_chapter(variants: Sequence[Variant]) -> Chapter:
    """How much each chunk matters to the final video, for each calibration, whatever variants it made."""
    measured = [v for v in variants if v.sensitivity]
    parts: list[Figure] = []
    for variant in measured:
        alike = [v.name for v in measured if v.sensitivity == variant.sensitivity]
        if variant.sensitivity and variant.name == alike[0]:
            parts += sensitivity_figures(", ".join(alike), variant.sensitivity)
    without = [v.name for v in variants if not v.sensitivity]
    text = "Each chunk in turn is quantized alone while the others run in full precision."
    if without:
        text = f"{text if parts else ''}\n\nChunks were not measured for {', '.join(without)}."
    return Chapter("Which chunks matter", text, parts)


def outliers_chapter(inputs: Sequence[Inputs], variants: Sequence[Variant]) -> Chapter:
    """How many outlier channels each layer has, and the column norms that tell them."""
    text = (
        "Outlier channels have a scale of their own. Linears that read the same input share them, and share a row "
        f"here. The detector compares the column norms of the input channels. {OUTSIDE}"
    )
    maps = [outlier_figure(inputs, variant) for variant in variants]
    return Chapter("Outlier channels", text, [*maps, norms_figure(inputs, variants)])


def errors_chapter(variants: Sequence[Variant]) -> Chapter:
    """The error of each layer by type and depth, and its mean by type."""
    text = (
        "Output errors are measured on calibration data: the error beyond that of the best float weight, with each "
        "chunk weighted by its effect. Weight errors compare the weights alone. The two cannot be compared with each "
        f"other. {OUTSIDE}"
    )
    return Chapter("Error of each layer", text, error_figures(variants))


def drift_chapter(errors: Mapping[str, Sequence[float]], clips: int, strips: Picture) -> Chapter:
    """How far each variant's chunks are from full precision's, and the videos."""
    figure = Figure(
        "Error per chunk",
        f"Mean squared error of the latents over {clips} {'clip' if clips == 1 else 'clips'}.",
        line_chart(errors, "chunk", "squared error", log_y=True, first=1),
    )
    text = "All variants start from the same noise, so the difference is what quantizing changed."
    return Chapter("Drift from full precision", text, [figure, strips])


def layers_chapter(inputs: Sequence[Inputs], variants: Sequence[Variant]) -> Chapter:
    """The numbers of the maps as a table."""
    rows = layer_rows(inputs, variants)
    return Chapter("All layers", "", [Table(f"{len(rows)} layers", rows, folded=True)])
