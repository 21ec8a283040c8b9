"""What each layer of a quantized model got, as maps by layer type and depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .charts import bar_chart
from .chunks import Sensitivity
from .heat import Cell, heat_map
from .norms import Norms, norm_charts
from .numerals import drawable, number_text, power_text
from .page import DASH, Figure

KEPT = "kept in 16 bits"


@dataclass(frozen=True)
class Inputs:
    """Linears that read the same input, and so share its outlier channels."""

    layers: Sequence[str]
    norms: Norms
    """Of the full-precision weights."""


@dataclass(frozen=True)
class Layer:
    """What one linear got."""

    outliers: int
    error: float
    """Relative squared error, of what its `Variant` says."""
    kept: bool = False
    """Whether it stayed in 16 bits."""
    bits: str = "16"
    """Of its codes, such as "4g16" for 4 bits in groups of 16."""


@dataclass(frozen=True)
class Variant:
    """One quantized model."""

    name: str
    layers: Mapping[str, Layer]
    measure: str
    """What the layers' errors are of: `output` or `weight`."""
    sensitivity: Sensitivity | None = None
    """None: its chunks were not measured."""


def outlier_figure(inputs: Sequence[Inputs], variant: Variant) -> Figure:
    """How many outlier channels each group of layers has."""
    cells = []
    for group in inputs:
        layer = variant.layers[group.layers[0]]
        kinds, depths = zip(*map(place, group.layers), strict=True)
        chosen = KEPT if layer.kept else f"{layer.outliers:,} of {len(group.norms.norms):,} channels"
        limit = f"{group.norms.above:,} above the threshold {number_text(group.norms.threshold)}"
        detected = limit if group.norms.threshold > 0 else "no threshold, as all columns are alike"
        hover = f"{shared_name(group.layers)}: {chosen}; {detected}"
        cells.append(Cell(shared_name(kinds), depths[0], None if layer.kept else layer.outliers, hover))
    return Figure(
        f"Outlier channels, {variant.name}",
        "The number that was chosen. Point at a cell for its layer, the threshold of the detector and the columns "
        "above it.",
        heat_map(cells, "block", "outlier channels", "{:.0f}".format, KEPT),
    )


def norms_figure(inputs: Sequence[Inputs], variants: Sequence[Variant]) -> Figure:
    """Sorted column norms of the layers that stand out."""
    loudest = _loudest(inputs)
    return Figure(
        "Column norms",
        "For each layer type, the layer with the most columns above the threshold, loudest channel first.",
        norm_charts(
            [group.norms for group in loudest],
            {v.name: [v.layers[group.layers[0]].outliers for group in loudest] for v in variants},
        ),
    )


def error_figures(variants: Sequence[Variant]) -> list[Figure]:
    """The variants' errors: maps, then means by type, those of one measure in one unit and on one scale.

    The unit is the power of ten that leaves the least error with one digit.
    """
    maps, bars = [], []
    for variant in variants:
        alike = [v for v in variants if v.measure == variant.measure]
        errors = [layer.error for v in alike for layer in v.layers.values() if not layer.kept]
        least = min((error for error in errors if drawable(error, log=True)), default=1.0)
        exponent = math.floor(math.log10(least))
        scale = 10.0**exponent
        unit = f"relative squared error of the {variant.measure}, in {power_text(exponent)}"
        cells = []
        for name, layer in variant.layers.items():
            hover = f"{name}: {KEPT}" if layer.kept else f"{name}: relative squared error {number_text(layer.error)}"
            cells.append(Cell(*place(name), None if layer.kept else layer.error / scale, hover))
        heat = heat_map(cells, "block", unit, _short, KEPT, beside=[error / scale for error in errors])
        means = {kind: mean / scale for kind, mean in _means(variant).items()}
        most = [mean / scale for v in alike for mean in _means(v).values()]
        maps.append(Figure(f"Error of each layer, {variant.name}", "Point at a cell to see its layer.", heat))
        bars.append(
            Figure(
                f"Mean error by layer type, {variant.name}", "The mean over the blocks.", bar_chart(means, unit, most)
            )
        )
    return [*maps, *bars]


def _means(variant: Variant) -> dict[str, float]:
    """Mean error of each layer type over the blocks."""
    kinds: dict[str, list[float]] = {}
    for name, layer in variant.layers.items():
        kind, depth = place(name)
        if depth != DASH and not layer.kept:
            kinds.setdefault(kind, []).append(layer.error)
    return {kind: sum(errors) / len(errors) for kind, errors in kinds.items()}


def layer_rows(inputs: Sequence[Inputs], variants: Sequence[Variant]) -> list[dict[str, object]]:
    """The numbers of the maps as rows of a table."""
    return [
        {
            "layer": name,
            "channels": len(group.norms.norms),
            "threshold": group.norms.threshold or None,
            "above it": group.norms.above,
            **{f"bits, {v.name}": v.layers[name].bits for v in variants},
            **{f"outliers, {v.name}": None if v.layers[name].kept else v.layers[name].outliers for v in variants},
            **{f"{v.measure} error, {v.name}": None if v.layers[name].kept else v.layers[name].error for v in variants},
        }
        for group in inputs
        for name in group.layers
    ]


def place(layer: str) -> tuple[str, str]:
    """`blocks.3.ffn.0` -> (`ffn.0`, `3`), its type and depth; a layer outside the blocks has a dash for its depth."""
    words = layer.split(".")
    number = next((i for i, word in enumerate(words[:-1]) if word.isdecimal()), None)
    return (layer, DASH) if number is None else (".".join(words[number + 1 :]), words[number])


def shared_name(layers: Sequence[str]) -> str:
    """`self_attn.q`, `self_attn.k` -> `self_attn.q, k`."""
    return ", ".join([layers[0], *(layer.rpartition(".")[2] for layer in layers[1:])])


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def _loudest(inputs: Sequence[Inputs]) -> list[Inputs]:
    """Of each layer type, the group with most columns above the threshold; of several, that with the largest norm."""
    kinds: dict[str, list[Inputs]] = {}
    for group in inputs:
        kinds.setdefault(shared_name([place(layer)[0] for layer in group.layers]), []).append(group)
    return [max(groups, key=lambda group: (group.norms.above, max(group.norms.norms))) for groups in kinds.values()]
