"""Every choice of a quantization run; it travels in the metadata of the file it made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from .errors import SettingError


@dataclass(frozen=True)
class Recipe:
    """How to quantize a model; activations are always 8-bit, dynamic, per token and range."""

    weight_bits: int = 8
    outliers: str = "published"
    """`published`: the detector of Q-ARVD; `none`: a single scale."""
    rounding: str = "nearest"
    keep: tuple[str, ...] = ()
    """Names of linears that stay in full precision, and with them those that read the same input."""

    def __post_init__(self) -> None:
        if type(self.weight_bits) is not int or self.weight_bits not in (4, 8):
            raise SettingError(f"The recipe asks for {self.weight_bits}-bit weights; 4 and 8 are supported.")
        if self.outliers not in ("published", "none"):
            raise SettingError(f"The recipe's outliers are {self.outliers!r}; choose 'published' or 'none'.")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read a recipe. Raises SettingError for unknown keys or values of another type."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise SettingError(f"The recipe is not JSON: {error}.") from error
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict):
            raise SettingError(f"The recipe is {text}; a JSON object was expected.")
        if unknown := sorted(set(values) - known):
            raise SettingError(
                f"The recipe holds {unknown}, which this version does not know; it knows {sorted(known)}."
            )
        keep = values.get("keep", [])
        named = isinstance(keep, list) and all(isinstance(name, str) for name in keep)
        if not isinstance(values.get("rounding", ""), str) or not named:
            raise SettingError(f"The recipe is {text}; its rounding must be a name and keep a list of names.")
        if "keep" in values:
            values["keep"] = tuple(values["keep"])
        return cls(**values)


RECIPES = {"w8a8": Recipe(weight_bits=8), "w4a8": Recipe(weight_bits=4)}
"""Ready-made recipes by name."""
