"""Markdown tables of what benchmarks/quality.py measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figures import compare

MODELS = ("natural", "twin")
PARTS = {
    "compensation for earlier blocks": ("ours", "without_compensation"),
    "scales of groups of 16": ("ours", "without_groups"),
    "a rotation of each range": ("ours", "without_rotation"),
    "32 roundings of each row, not one": ("ours", "one_rounding_kept"),
    "a second scale": ("ours", "ours_stock"),
    "... on the channels that are found, not on random ones": ("ours", "random_outliers"),
    "... on those of the search, not of the published detector": ("ours", "detected_outliers"),
    "weights of chunks and calls": ("ours", "without_weights"),
    "corrected biases": ("ours", "without_bias_correction"),
}
"""Methods with a part and without it, or with another in its place."""
BASELINES = (
    "nearest",
    "stock",
    "rotation",
    "smoothquant",
    "published",
    "published_dynamic",
    "gptq",
    "smoothquant_gptq",
    "rotation_gptq",
)
"""What ours is compared with, as a user would have it."""


def markdown(summary: dict[str, Any], label: str = "") -> str:
    """A table of every section and model, headed by `label`, too; those without a row are left out."""
    tables: dict[str, list[str]] = {}
    for section, rows in summary.items():
        for model in MODELS:
            its = [row for row in rows if row["model"] == model] if isinstance(rows, list) else []
            tables[f"{section}, {label}{model} model"] = table(its)
    return headed(tables)


def comparisons(summary: dict[str, Any]) -> str:
    """Tables of ours against baselines, and of what parts of ours are worth."""
    return headed(
        {
            "ours against baselines, ratio of the mean errors": against(summary, "ratio"),
            "ours against baselines, typical ratio": against(summary, "typical"),
            "parts of ours, w4a8": worth(summary["runs"]),
        }
    )


def headed(tables: Mapping[str, Sequence[str]]) -> str:
    """Tables that have rows, each below its title."""
    return "\n".join(
        line for title, lines in tables.items() if len(lines) > 2 for line in (f"### {title}", "", *lines, "")
    )


def against(summary: Mapping[str, Any], kind: str) -> list[str]:
    """The error of ours over that of each baseline, in Markdown; `kind` is ratio (of means) or typical."""
    columns = [(section, model) for section in ("w4a8", "w8a8") for model in MODELS]
    heads = [f"{section.upper()}, {model}" for section, model in columns]
    lines = [f"| baseline | {' | '.join(heads)} |", f"|---{'|---' * len(columns)}|"]
    found = {
        (section, row["model"], row["method"]): row["ours_against_it"]
        for section, _ in columns
        for row in summary[section]
        if "ours_against_it" in row
    }
    for method in BASELINES:
        ratios = [found.get((section, model, method)) for section, model in columns]
        if any(ratios):
            cells = [ratio_text(ratio, kind) if ratio else "" for ratio in ratios]
            lines.append(f"| {shown(method)} | {' | '.join(cells)} |")
    return lines


def worth(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What each part does to the typical error, in Markdown, and the number of calibration seeds that say so."""
    lines = ["| part | natural: error with it over without it, typically | n | twin | n |", "|---|---|---|---|---|"]

    def errors(model: str, method: str) -> dict[int, Sequence[float]]:
        prefix = f"w4a8/{model}/{method}/"
        return {int(key[len(prefix) :]): run["mse"] for key, run in runs.items() if key.startswith(prefix)}

    for part, methods in PARTS.items():
        cells = []
        for model in MODELS:
            having, lacking = (errors(model, method) for method in methods)
            if seeds := len(having.keys() & lacking.keys()):
                found = compare(having, lacking)
                typical = f"{found['typical']:.2f}x [{found['typical_low']:.2f}, {found['typical_high']:.2f}]"
                cells += [typical, str(seeds)]
            else:
                cells += ["", ""]
        if any(cells):
            lines.append(f"| {part} | {' | '.join(cells)} |")
    return lines


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows in Markdown, least error first."""
    lines = [
        "| method | MSE x 1000 [95 %] | PSNR, dB | last chunk, dB | ours is, typically | digits lost, points "
        "| motions lost | kB | s | n |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["mse"]):
        mse = f"{1e3 * row['mse']:.3g} [{1e3 * row['mse_low']:.3g}, {1e3 * row['mse_high']:.3g}]"
        losses = [
            f"{row[f'{what}_loss_points']:.2f} [{row[f'{what}_loss_low']:.2f}, {row[f'{what}_loss_high']:.2f}]"
            for what in ("digit", "motion")
        ]
        its = row.get("ours_against_it")
        cells = [
            shown(row["method"]),
            mse,
            f"{row['psnr_db']:.1f}",
            f"{row['psnr_last_chunk_db']:.1f}",
            ratio_text(its, "typical") if its else "",
            *losses,
            f"{row['bytes'] / 1e3:.0f}",
            f"{row['seconds']:.0f}",
            str(row["calibration_seeds"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def shown(method: str) -> str:
    """A method's name as people read it."""
    return method.replace("_", " ").replace("published", "Q-ARVD").replace("w4a4", "W4A4")


def ratio_text(ratio: Mapping[str, float], kind: str) -> str:
    """A ratio of figures.compare with its interval."""
    return f"{times(ratio[kind])}x [{times(ratio[f'{kind}_low'])}, {times(ratio[f'{kind}_high'])}]"


def times(ratio: float) -> str:
    """A ratio with two decimals, or two digits where it is small."""
    return f"{ratio:.2f}" if ratio >= 0.0995 else f"{ratio:#.2g}"
