"""Choose every linear's bits so that the file meets the recipe's target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from math import ceil

from ..calibrate.rollout import Rollout, Setting
from ..checkpoint.model import Model, written_dtype
from ..errors import SettingError
from ..ops.codecs import codec_of
from ..quantize.budget import Allocation, Option, allocate, parse_target
from ..quantize.model import WIDE, LayerReport, codec_at, linear_groups, reason_to_keep
from ..quantize.sensitivity import option_errors
from ..recipe import Recipe
from .calibrate import identity

HEADER = 16_000
HEADER_PER_LINEAR = 2_000
"""Bytes of the file's header: names, shapes, and what the metadata says of each linear."""

Names = tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The bits of each group of linears that share an input, and what each option would cost in error."""

    allocation: Allocation[Names]
    effects: dict[Names, dict[str, float]]

    @property
    def bits(self) -> dict[str, str]:
        """By name of linear."""
        return {name: bits for names, bits in self.allocation.bits.items() for name in names}

    def explain(self, report: LayerReport) -> LayerReport:
        """The report of a linear with what each number of bits would have done."""
        found = next((effect for names, effect in self.effects.items() if report.name in names), None)
        return replace(report, effects=found)


def choose_bits(
    model: Model,
    setting: Setting,
    rollouts: Sequence[Rollout],
    weights: Sequence[Sequence[float]],
    recipe: Recipe,
    on_call: Callable[[], object] = lambda: None,
) -> Choice:
    """Measure what each option does to every group, and choose. Raises SettingError for a size that cannot be met."""
    effects = option_errors(model.tree, setting, rollouts, weights, recipe, on_call=on_call)
    return Choice(allocate(*_options(model, recipe, effects)), effects)


def check_target(model: Model, recipe: Recipe) -> None:
    """Raise SettingError, before anything is measured, where the recipe has a target that cannot be met.

    And CheckpointError for a model that is quantized already.
    """
    if recipe.target is None:
        return
    identity(model)
    kinds = {names: model.tree.get_parameter(f"{names[0]}.weight") for names in linear_groups(model.config.num_layers)}
    effects = {
        names: {
            codec.label: 0.0
            for codec in starmap(codec_of, recipe.options)
            if not reason_to_keep(names, weight.shape[1], recipe, codec)
        }
        for names, weight in kinds.items()
    }
    allocate(*_options(model, recipe, effects))


def _options(
    model: Model, recipe: Recipe, effects: Mapping[Names, Mapping[str, float]]
) -> tuple[dict[Names, dict[str, Option]], float]:
    """What every group of linears could be, and the bytes there are for all of them."""
    assert recipe.target is not None
    target = parse_target(recipe.target)
    groups = {names: _Group.of(model, names) for names in linear_groups(model.config.num_layers)}
    numel, others = sum(group.numel for group in groups.values()), 0
    if target.bits is not None:
        capacity = target.bits / 8 * numel
    else:
        stored = sum(p.numel() * written_dtype(model, key, p).itemsize for key, p in model.tree.named_parameters())
        others = stored - sum(group.wide for group in groups.values())
        others += HEADER + HEADER_PER_LINEAR * sum(map(len, groups))
        assert target.bytes is not None
        capacity = target.bytes - others
    options = {
        names: {
            WIDE: Option(group.wide, 0.0),
            **{bits: Option(group.nbytes(bits, recipe), error) for bits, error in effects.get(names, {}).items()},
        }
        for names, group in groups.items()
    }
    least, most = (sum(pick(o.nbytes for o in each.values()) for each in options.values()) for pick in (min, max))

    def said(nbytes: int) -> str:
        """A size of the linears as the target counts it, rounded up to two decimals."""
        value, unit = (nbytes * 8 / numel, "bits") if target.bits is not None else ((nbytes + others) / 1e6, "MB")
        return f"{ceil(value * 100) / 100:.2f} {unit}"

    if capacity < least:
        raise SettingError(
            f"{recipe.target} is too small: the fewest bits everywhere take up to {said(least)}, lists of outlier "
            "channels included. Ask for a larger size."
        )
    if capacity >= most:
        raise SettingError(
            f"{recipe.target} leaves every linear in 16 bits, which take {said(most)}. Ask for a smaller size."
        )
    return options, capacity


@dataclass(frozen=True)
class _Group:
    """Sizes of the weights that share an input."""

    linears: int
    rows: int
    channels: int
    wide: int
    """Bytes in a file where they are not quantized."""

    @classmethod
    def of(cls, model: Model, names: Names) -> _Group:
        weights = {f"{name}.weight": model.tree.get_parameter(f"{name}.weight") for name in names}
        wide = sum(w.numel() * written_dtype(model, key, w).itemsize for key, w in weights.items())
        return cls(len(names), sum(map(len, weights.values())), next(iter(weights.values())).shape[1], wide)

    @property
    def numel(self) -> int:
        return self.rows * self.channels

    def nbytes(self, bits: str, recipe: Recipe) -> int:
        """At most: two scales and two zero points a row, half of the channels listed as outliers, groups' scales."""
        codec = codec_at(bits)
        assert codec is not None
        if codec.group:
            rows, groups = self.rows * 2 * 2, self.numel // codec.group + self.linears * 4 * len(codec.table)
        else:
            rows, groups = self.rows * 2 * (4 + (not recipe.symmetric)), 0
        listed = 0 if recipe.outliers == "none" else self.linears * (self.channels // 2) * 4
        return self.numel * codec.bits // 8 + rows + listed + groups
