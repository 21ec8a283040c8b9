"""Every choice of a quantization run; it travels in the metadata of the file it made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace

from .errors import SettingError


@dataclass(frozen=True)
class Recipe:
    """How to quantize a model; activations are always 8-bit, dynamic, per token and range."""

    weight_bits: int = 8
    group: int = 0
    """Columns that share a scale beside the row's, whose codes then point into a table: 16, 32 or 64; 0: none do."""
    rotation: int = 0
    """Rotate each range by Hadamard matrices so wide, 16 to 256, or as wide as divides the range; 0: not."""
    outliers: str = "search"
    """`published`: the detector of Q-ARVD; `search`: the number of least output error; `none`: a single scale."""
    rounding: str = "gptq"
    symmetric: bool = False
    """Weights without zero points."""
    compensate: bool = True
    """Quantize block by block, each against the inputs that the quantized blocks before it give."""
    frame_weights: bool = True
    """Weight each chunk's errors by its measured effect on the final video; else all alike."""
    call_weights: bool = True
    """Weight the model calls of a chunk by their measured effects, too."""
    stream_chunks: int | None = None
    """Chunks of the streams that the model is for, whose weights follow from the measured ones; None: as recorded."""
    correct_bias: bool = True
    """Move biases so that the mean output stays."""
    target: str | None = None
    """A size to meet by choosing 4, 8 or 16 bits for each layer, such as "900MB" or "4.5 bits"."""
    keep: tuple[str, ...] = ()
    """Names of linears that stay in full precision, and with them those that read the same input."""

    def __post_init__(self) -> None:
        if type(self.weight_bits) is not int or self.weight_bits not in GROUPS:
            supported = ", ".join(map(str, GROUPS))
            raise SettingError(f"The recipe asks for {self.weight_bits}-bit weights; {supported} are supported.")
        if type(self.group) is not int or self.group not in GROUPS[self.weight_bits]:
            supported = ", ".join(map(str, GROUPS[self.weight_bits]))
            raise SettingError(
                f"The recipe asks for groups of {self.group}; with {self.weight_bits} bits, {supported} are supported "
                "(0 is none)."
            )
        if type(self.rotation) is not int or self.rotation not in ROTATIONS:
            supported = ", ".join(map(str, ROTATIONS))
            raise SettingError(
                f"The recipe rotates by {self.rotation}; widths of {supported} are supported (0 is none)."
            )
        if self.outliers not in OUTLIERS:
            raise SettingError(f"The recipe's outliers are {self.outliers!r}; choose one of {', '.join(OUTLIERS)}.")
        chunks = 1 if self.stream_chunks is None else self.stream_chunks
        if type(chunks) is not int or not 1 <= chunks <= MOST_CHUNKS:
            raise SettingError(
                f"The recipe is for streams (--stream-chunks) of {chunks!r} chunks; choose 1 to {MOST_CHUNKS:,}."
            )

    def group_at(self, bits: int) -> int:
        """Groups of linears to which a bit budget gives so many bits: the recipe's, where there are such."""
        possible = GROUPS.get(bits, (0,))
        return self.group if self.group in possible else possible[0]

    def without_data(self) -> Recipe:
        """The nearest recipe that needs no calibration."""
        outliers = "none" if self.outliers == "none" else "published"
        off = dict.fromkeys(("compensate", "frame_weights", "call_weights", "correct_bias"), False)
        return replace(self, rounding="nearest", outliers=outliers, target=None, stream_chunks=None, **off)

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
        texts = isinstance(values.get("rounding", ""), str) and isinstance(values.get("target") or "", str)
        if not (texts and named and all(isinstance(values.get(key, True), bool) for key in FLAGS)):
            raise SettingError(
                f"The recipe is {text}; its rounding must be a name, its target a text, keep a list of names, and "
                f"{', '.join(FLAGS)} true or false."
            )
        if "keep" in values:
            values["keep"] = tuple(values["keep"])
        return cls(**values)


GROUPS = {3: (16, 32, 64), 4: (0, 16, 32, 64), 6: (0, 16, 32, 64), 8: (0,)}
"""Bits of weights, and the groups of columns that may share a scale with them."""
ROTATIONS = (0, 16, 32, 64, 128, 256)
MOST_CHUNKS = 100_000
FLAGS = ("symmetric", "compensate", "frame_weights", "call_weights", "correct_bias")
OUTLIERS = ("published", "search", "none")

RECIPES = {"w8a8": Recipe(weight_bits=8), "w4a8": Recipe(weight_bits=4)}
"""Ready-made recipes by name."""
