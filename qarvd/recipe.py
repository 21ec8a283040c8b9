"""Every choice of a quantization run; it travels in the metadata of the file it made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import gcd

from .errors import SettingError

OURS = "qarvd"
POWERS_OF_4 = (16, 64, 256)


@dataclass(frozen=True)
class StockFormat:
    """What one of ComfyUI's own formats can hold, beside what all lack: a second range and zero points."""

    groups: Mapping[int, tuple[int, ...]]
    """By bits of weights, the groups of columns that may share a scale; the finest first."""
    rotations: tuple[int, ...]


STOCK = {
    "asym_w4a8_int8": StockFormat({4: (16, 32, 64), 6: (16, 32, 64)}, POWERS_OF_4),
    "int8_tensorwise": StockFormat({8: (0,)}, (0, *POWERS_OF_4)),
}
"""ComfyUI's own formats by name."""
FORMATS = (OURS, *STOCK)


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
    """A size to meet by choosing the bits of each layer among `options` and 16, such as "900MB" or "4.5 bits"."""
    keep: tuple[str, ...] = ()
    """Names of linears that stay in full precision, and with them those that read the same input."""
    format: str = OURS
    """The file format whose grid weights are fitted to: `qarvd`, or one of ComfyUI's own (`STOCK`)."""

    def __post_init__(self) -> None:
        if type(self.weight_bits) is not int or self.weight_bits not in GROUPS:
            supported = ", ".join(map(str, GROUPS))
            raise SettingError(f"The recipe asks for {self.weight_bits}-bit weights; {supported} are supported.")
        if type(self.group) is not int or self.group not in GROUPS[self.weight_bits]:
            possible = ", ".join(str(group) if group else "0 (none)" for group in GROUPS[self.weight_bits])
            raise SettingError(
                f"The recipe asks for groups of {self.group}; with {self.weight_bits}-bit weights, it can be "
                f"{possible}."
            )
        if type(self.rotation) is not int or self.rotation not in ROTATIONS:
            possible = ", ".join(str(width) if width else "0 (none)" for width in ROTATIONS)
            raise SettingError(f"The recipe asks for a rotation by {self.rotation}; it can be {possible}.")
        if self.rounding == WHOLE and self.group:
            raise SettingError(
                f"{WHOLE} chooses between whole numbers, which codes of groups are not. Take gptq, or no groups "
                "(--group 0; on the node Recipe, group: none)."
            )
        if self.format not in FORMATS:
            raise SettingError(f"The recipe's format is {self.format!r}; choose one of {', '.join(FORMATS)}.")
        if self.format != OURS:
            self._check_stock(STOCK[self.format])
        if self.outliers not in OUTLIERS:
            raise SettingError(f"The recipe's outliers are {self.outliers!r}; choose one of {', '.join(OUTLIERS)}.")
        chunks = 1 if self.stream_chunks is None else self.stream_chunks
        if type(chunks) is not int or not 1 <= chunks <= MOST_CHUNKS:
            raise SettingError(
                f"The recipe is for streams (--stream-chunks) of {chunks!r} chunks; choose 1 to {MOST_CHUNKS:,}."
            )

    def _check_stock(self, holds: StockFormat) -> None:
        """Raise SettingError for what the recipe's format, one of ComfyUI's own, can't hold."""
        groups = holds.groups.get(self.weight_bits)
        wrong = {
            f"{self.weight_bits}-bit weights": groups is None,
            f"groups of {self.group}" if self.group else "no groups": groups is not None and self.group not in groups,
            f"a rotation by {self.rotation}" if self.rotation else "no rotation": self.rotation not in holds.rotations,
            "outliers": self.outliers != "none",
            "zero points": not self.symmetric,
        }
        if asked := [what for what, is_wrong in wrong.items() if is_wrong]:
            bits, grouped = " or ".join(map(str, holds.groups)), next(iter(holds.groups.values()))
            groups = f" in groups of {_either(grouped)}" if any(grouped) else ""
            raise SettingError(
                f"{self.format} holds symmetric weights of {bits} bits{groups}, rotated by {_either(holds.rotations)}, "
                f"without outliers; the recipe asks for {', '.join(asked)}."
            )

    @property
    def options(self) -> tuple[tuple[int, int], ...]:
        """Bits and group of the weights that a bit budget chooses among, those of 16 bits apart.

        In ComfyUI's own formats, those that any version of them has: 4 bits, which are always rotated, and 8.
        """
        options = tuple(option for option in OPTIONS if not (self.rounding == WHOLE and option[1]))
        if self.format == OURS:
            return options
        return tuple((b, g) for b, g in options if b == 8 or (b == 4 and g and self.rotation))

    def rotation_of(self, channels: int) -> int:
        """By what a single range of so many channels is rotated: in ComfyUI's formats, a power of 4 that divides it."""
        if self.format == OURS or not self.rotation:
            return self.rotation
        return max((width for width in POWERS_OF_4 if gcd(channels, self.rotation) % width == 0), default=0)

    def in_format(self, format: str) -> Recipe:
        """The nearest recipe whose weights a file of that format can hold. Raises SettingError for an unknown one."""
        if format not in STOCK:
            return replace(self, format=format)
        holds = STOCK[format]
        bits = self.weight_bits if self.weight_bits in holds.groups else next(iter(holds.groups))
        group = self.group if self.group in holds.groups[bits] else holds.groups[bits][0]
        rotation = max((width for width in holds.rotations if width <= self.rotation), default=holds.rotations[-1])
        single = {"outliers": "none", "symmetric": True, "format": format}
        return replace(self, weight_bits=bits, group=group, rotation=rotation, **single)

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


def _either(numbers: Sequence[int]) -> str:
    """As a choice; 0 is none."""
    return " or ".join(str(number) if number else "nothing" for number in numbers)


WHOLE = "adaround"
"""The rounding method that knows whole numbers only."""
GROUPS = {3: (16, 32, 64), 4: (0, 16, 32, 64), 6: (0, 16, 32, 64), 8: (0,)}
"""Bits of weights, and the groups of columns that may share a scale with them."""
OPTIONS = ((3, 64), (3, 16), (4, 0), (4, 64), (4, 16), (6, 64), (8, 0))
"""Bits and group of weights among which a bit budget chooses."""
ROTATIONS = (0, 16, 32, 64, 128, 256)
MOST_CHUNKS = 100_000
FLAGS = ("symmetric", "compensate", "frame_weights", "call_weights", "correct_bias")
OUTLIERS = ("published", "search", "none")

RECIPES = {
    "w8a8": Recipe(8, rotation=256),
    "w6a8": Recipe(6, group=16, rotation=256),
    "w4a8": Recipe(4, group=16, rotation=256),
    "w3a8": Recipe(3, group=16, rotation=256),
}
"""Ready-made recipes by name."""
