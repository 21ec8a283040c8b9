"""Numbers as tables of text: sizes, aligned columns, what a quantization gave each layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..quantize.model import LayerReport


def size_text(count: int) -> str:
    """Bytes as MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def text_table(rows: list[dict[str, object]]) -> str:
    """Rows with the same keys as aligned columns."""
    heads = list(rows[0])
    cells = [heads, *([_cell(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def by_kind(reports: Sequence[LayerReport]) -> list[dict[str, object]]:
    """Sum up the linears of all blocks by their kind, such as cross_attn.k."""
    kinds: dict[str, list[LayerReport]] = {}
    for report in reports:
        parts = report.name.split(".")
        kinds.setdefault(".".join(parts[2:] if parts[0] == "blocks" else parts), []).append(report)
    return [
        {
            "linears": kind,
            "number": len(group),
            "in": group[0].shape[1],
            "out": group[0].shape[0],
            "bits a weight": 8 * sum(r.nbytes for r in group) / sum(prod(r.shape) for r in group),
            "outliers (mean)": sum(r.n_outlier for r in group) / len(group),
            "outliers (most)": max(r.n_outlier for r in group),
            "weight error": sum(r.relative_error for r in group) / len(group),
            "output error": _mean([r.output_error for r in group]),
            "size": size_text(sum(r.nbytes for r in group)),
            "kept": group[0].kept,
        }
        for kind, group in kinds.items()
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """None where there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def by_choice(reports: Sequence[LayerReport]) -> list[dict[str, object]]:
    """What a bit budget gave each group of linears that share an input, and what other choices would have cost."""
    options = list(dict.fromkeys(bits for report in reports for bits in report.effects or {}))
    groups: dict[tuple[object, ...], list[LayerReport]] = {}
    for report in reports:
        groups.setdefault((report.name.rsplit(".", 1)[0], *(report.effects or {}).values()), []).append(report)
    return [
        {
            "linears": ", ".join([group[0].name, *(r.name.rsplit(".", 1)[1] for r in group[1:])]),
            "bits": group[0].bits,
            **{f"error at {bits}": (group[0].effects or {}).get(bits) for bits in options},
            "size": size_text(sum(r.nbytes for r in group)),
            "kept": group[0].kept,
        }
        for group in groups.values()
    ]
