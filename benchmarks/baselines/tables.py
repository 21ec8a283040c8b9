"""Markdown tables of what benchmarks/quality.py measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MODELS = ("natural", "twin")
PARTS = {
    "without_compensation": "making up for the blocks before",
    "without_dual_scale": "a second scale",
    "random_outliers": "... for the channels that are found, not any",
    "detected_outliers": "... as the search finds them, not the published detector",
    "without_zero_points": "zero points",
    "without_weights": "weights of chunks and calls",
    "without_frame_weights": "... those of chunks",
    "without_call_weights": "... those of calls",
    "without_descent": "descent after GPTQ",
    "without_bias_correction": "corrected biases",
}
"""What a method leaves out or does otherwise."""


def markdown(summary: dict[str, Any]) -> str:
    """A table of what parts of ours are worth, and tables of every section and model."""
    parts = ["### parts of ours, w4a8", "", *worth(summary["w4a8"]), ""]
    for section, rows in summary.items():
        for model in MODELS:
            its = [row for row in rows if row["model"] == model] if isinstance(rows, list) else []
            if its:
                parts += [f"### {section}, {model} model", "", *table(its), ""]
    return "\n".join(parts)


def worth(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What each part of ours does to the typical error, in Markdown."""
    lines = ["| part | natural: with it, typically | twin |", "|---|---|---|"]
    found = {(row["method"], row["model"]): row.get("ours_against_it") for row in rows}
    for method, part in PARTS.items():
        ratios = [found.get((method, model)) for model in MODELS]
        cells = [f"{r['typical']:.2f}x [{r['typical_low']:.2f}, {r['typical_high']:.2f}]" if r else "" for r in ratios]
        if any(cells):
            lines.append(f"| {part} | {' | '.join(cells)} |")
    return lines


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows in Markdown, least error first."""
    lines = [
        "| method | MSE x 1000 [95 %] | PSNR, dB | last chunk, dB | ours is | typically | digits lost, points "
        "| motions lost | kB | s | n |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["mse"]):
        mse = f"{1e3 * row['mse']:.3g} [{1e3 * row['mse_low']:.3g}, {1e3 * row['mse_high']:.3g}]"
        losses = [
            f"{row[f'{what}_loss_points']:.2f} [{row[f'{what}_loss_low']:.2f}, {row[f'{what}_loss_high']:.2f}]"
            for what in ("digit", "motion")
        ]
        against = row.get("ours_against_it")
        ratios = [
            f"{against[kind]:.2g}x [{against[f'{kind}_low']:.2g}, {against[f'{kind}_high']:.2g}]" if against else ""
            for kind in ("ratio", "typical")
        ]
        cells = [
            row["method"].replace("_", " "),
            mse,
            f"{row['psnr_db']:.1f}",
            f"{row['psnr_last_chunk_db']:.1f}",
            *ratios,
            *losses,
            f"{row['bytes'] / 1e3:.0f}",
            f"{row['seconds']:.0f}",
            str(row["calibration_seeds"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
