"""What all steps of a walk through the blocks share: the two states of every recorded call, and how linears settle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..calibrate.collect import Collector
from ..calibrate.rollout import Call, Rollout, Setting
from ..ops.linear import QuantizedLinear
from ..recipe import Recipe
from ..wan.forward import Embedded, embed, times_and_positions
from .model import LayerReport, codec_at, quantize_group, recipe_codec

Results = list[tuple[QuantizedLinear | None, LayerReport]]
"""What became of linears that share an input."""


@dataclass(frozen=True)
class Memory:
    """What an interrupted run had finished: `recall` gives a group's results or None, `keep` stores them."""

    recall: Callable[[tuple[str, ...]], Results | None] = lambda names: None
    keep: Callable[[tuple[str, ...], Results], object] = lambda names, results: None


@dataclass
class Track:
    """One roll-out's states on their way through the blocks; pairs are (full, quantized)."""

    rollout: Rollout
    text: tuple[Tensor, Tensor]
    """[batch, text_len, dim], on the CPU, as it stays for all blocks."""
    x: list[tuple[Tensor, Tensor]]
    """For each call, residual streams [batch, frames, tokens, dim], on the CPU or on disk."""
    mixed: list[Tensor]
    """For each call, room for what enters an attention's last linear in the quantized model, of the same shape."""


@dataclass
class Walk:
    """One run: what all steps share, and the reports as they come."""

    tree: Any
    setting: Setting
    weights: Sequence[Sequence[float]]
    """Of each call's errors, [chunks][calls]."""
    clips: int
    recipe: Recipe
    bits: Mapping[str, str]
    """By name of linear (`LayerReport.bits`), if not the recipe's."""
    memory: Memory
    on_layer: Callable[[str], object]
    on_call: Callable[[], object]
    reports: list[LayerReport] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the tree computes; its blocks lie there one at a time."""
        return self.tree.patch_embedding.weight.device

    def weight(self, call: Call) -> float:
        """How much the errors of a call count."""
        return self.weights[call.chunk][call.step]

    def settle(
        self, names: tuple[str, ...], full: Sequence[nn.Linear], tokens: int, collect: Callable[[Collector], None]
    ) -> bool:
        """Put quantized linears in the place of `full`, found again or fitted to `tokens`, which `collect` gathers.

        Whether they were fitted, and so `collect` was called.
        """
        recalled = self.memory.recall(names)
        if recalled is None:
            collector = Collector(names, tokens)
            collect(collector)
            codec = codec_at(self.bits[names[0]]) if self.bits else recipe_codec(self.recipe)
            stats, sample_tokens = collector.result(), collector.sample_tokens
            results = quantize_group(names, full, self.recipe, codec, stats, self.clips, sample_tokens)
            self.memory.keep(names, results)
        else:
            results = recalled
        for linear, report in results:
            if linear is not None:
                self.tree.set_submodule(report.name, linear.to(self.device))
            self.reports.append(report)
            self.on_layer(report.name)
        return recalled is None

    def add(self, collector: Collector, full: Tensor, quantized: Tensor, weight: float) -> None:
        """Count one call's inputs."""
        if self.recipe.compensate:
            collector.add(quantized, full, weight)
        else:
            collector.add(full, None, weight)

    def embedded(self, call: Call) -> Embedded:
        """A call's input as the blocks take it."""
        self.on_call()
        latents = call.latents.to(self.device)
        times, positions = times_and_positions(latents, call.timestep, call.start)
        return embed(self.tree, self.setting.config, latents, times, positions)
