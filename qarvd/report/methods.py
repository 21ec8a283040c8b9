"""Tables of quantization methods, read from measurements such as `docs/quality.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SettingError
from .page import Chapter, Table

NUMBERS = ("mse", "mse_low", "mse_high", "bytes")


@dataclass(frozen=True)
class Method:
    """What one way of quantizing cost on one model."""

    method: str
    model: str
    mse: float
    mse_low: float
    mse_high: float
    """95 % interval of the squared error against full precision."""
    bytes: int


def read_methods(content: str) -> dict[str, list[Method]]:
    """The lists of a JSON object, by recipe; whatever else it holds is ignored.

    Raises SettingError for anything but JSON, and for an entry that lacks a key or holds another type.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"The measurements are not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise SettingError("The measurements must be a JSON object with a list of entries for each recipe.")
    return {
        recipe: [_method(f"{recipe}, entry {index + 1}", entry) for index, entry in enumerate(entries)]
        for recipe, entries in found.items()
        if isinstance(entries, list) and entries
    }


def _method(where: str, entry: Any) -> Method:
    if not isinstance(entry, dict):
        raise SettingError(f"Of the measurements, {where} is not a JSON object.")
    named = all(isinstance(entry.get(key), str) for key in ("method", "model"))
    numbers: list[Any] = [entry.get(key) for key in NUMBERS]
    if not named or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise SettingError(
            f"Of the measurements, {where} must hold the texts method and model and the finite numbers "
            f"{', '.join(NUMBERS)}."
        )
    mse, low, high, size = map(float, numbers)
    return Method(entry["method"], entry["model"], mse, low, high, int(size))


def methods_chapter(methods: dict[str, list[Method]]) -> Chapter:
    """A table for each recipe, the methods of a model together and the least error first."""
    text = (
        "Squared error of the latents against full precision, with its 95 % interval. It was measured elsewhere, on "
        "many clips, and not with the files of this page."
    )
    return Chapter("Methods", text, [Table(recipe, _rows(entries)) for recipe, entries in methods.items()])


def _rows(entries: Sequence[Method]) -> list[dict[str, object]]:
    return [
        {
            "method": entry.method.replace("_", " "),
            "model": entry.model,
            "squared error": entry.mse,
            "95 % interval": f"{entry.mse_low:.4g} to {entry.mse_high:.4g}",
            "MB": entry.bytes / 1e6,
        }
        for entry in sorted(entries, key=lambda entry: (entry.model, entry.mse))
    ]
