"""Quantize a model block by block against recorded roll-outs, so that each layer makes up for the errors before it.

Every call's input stays on the full-precision trajectory. Two states of each call walk through the blocks: that of the
full model and that of the quantized one. Within a block, linears are quantized in the order in which they run; each is
fitted to put out, on the quantized state, what the full layer puts out on the full state. So the whole costs two
roll-outs' worth of forward passes, one for either state, beside the fitting itself. Of the blocks, only the one that is
quantized lies on the device meanwhile.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..calibrate.collect import Collector
from ..calibrate.offload import OffloadAllocator
from ..calibrate.rollout import Call, Rollout, Setting
from ..ops.linear import QuantizedLinear
from ..recipe import Recipe
from ..stream.sampler import frame_tokens
from ..wan.forward import (
    Branch,
    Embedded,
    apply_linears,
    branches,
    embed,
    pad_text,
    text_pair,
    times_and_positions,
)
from .model import LayerReport, check_recipe, linear_groups, linear_of, quantize_group

Results = list[tuple[QuantizedLinear | None, LayerReport]]
"""What became of linears that share an input."""
TextPair = tuple[Tensor, Tensor]
"""Keys and values of a text in one block's cross-attention."""


@dataclass(frozen=True)
class Memory:
    """What an interrupted run had finished: `recall` gives a group's results or None, `keep` stores them."""

    recall: Callable[[tuple[str, ...]], Results | None] = lambda names: None
    keep: Callable[[tuple[str, ...], Results], object] = lambda names, results: None


@dataclass
class _Track:
    """One roll-out's states on their way through the blocks; pairs are (full, quantized)."""

    rollout: Rollout
    text: tuple[Tensor, Tensor]
    """[batch, text_len, dim], on the CPU, as it stays for all blocks."""
    x: list[tuple[Tensor, Tensor]]
    """For each call, residual streams [batch, frames, tokens, dim], on the CPU or on disk."""
    mixed: list[Tensor]
    """For each call, room for what enters an attention's last linear in the quantized model, of the same shape."""


@torch.no_grad()
def quantize_blockwise(
    tree: nn.Module,
    setting: Setting,
    rollouts: Sequence[Rollout],
    weights: Sequence[Sequence[float]],
    recipe: Recipe,
    bits: Mapping[str, int] | None = None,
    offload: OffloadAllocator | None = None,
    memory: Memory | None = None,
    on_layer: Callable[[str], object] = lambda name: None,
    on_call: Callable[[], object] = lambda: None,
) -> list[LayerReport]:
    """Replace the tree's linears by quantized ones, in place.

    `on_layer` hears of every linear, `on_call` of every call that goes through a block; both may raise to stop.
    `weights` [chunks][calls] weigh the errors of each model call; `bits` (4, 8 or 16) by name of linear stand in for
    the recipe's. Raises SettingError and CheckpointError as `quantize_tree` does, and CheckpointError, naming the
    layer, where inputs are NaN or infinite.
    """
    config = setting.config
    check_recipe(recipe, config.num_layers)
    clips = sum(len(rollout.embeddings) for rollout in rollouts)
    walk = _Walk(tree, setting, weights, clips, recipe, bits or {}, memory or Memory(), on_layer, on_call)
    offload = offload or OffloadAllocator(None)
    order = list(linear_groups(config.num_layers))
    for group in order:
        for name in group:
            linear_of(tree, name)  # refuses early what is damaged or already quantized

    tree.blocks.to("cpu")
    tracks = walk.texts(rollouts)
    walk.start(tracks, offload)
    for index in range(config.num_layers):
        walk.block(index, tracks, last=index + 1 == config.num_layers)
    tree.blocks.to(walk.device)
    found = {report.name: report for report in walk.reports}
    return [found[name] for group in order for name in group]


class _Walk:
    """One run: what all steps share, and the reports as they come."""

    def __init__(
        self,
        tree: Any,
        setting: Setting,
        weights: Sequence[Sequence[float]],
        clips: int,
        recipe: Recipe,
        bits: Mapping[str, int],
        memory: Memory,
        on_layer: Callable[[str], object],
        on_call: Callable[[], object],
    ) -> None:
        self.tree, self.setting, self.weights, self.clips = tree, setting, weights, clips
        self.recipe, self.bits, self.memory = recipe, bits, memory
        self.on_layer, self.on_call = on_layer, on_call
        self.device = tree.patch_embedding.weight.device
        self.reports: list[LayerReport] = []

    def settle(
        self, names: tuple[str, ...], full: Sequence[nn.Linear], tokens: int, collect: Callable[[Collector], None]
    ) -> None:
        """Put quantized linears in the place of `full`, found again or fitted to `tokens`, which `collect` gathers."""
        results = self.memory.recall(names)
        if results is None:
            collector = Collector(names, tokens)
            collect(collector)
            bits = self.bits.get(names[0], self.recipe.weight_bits)
            stats, sample_tokens = collector.result(), collector.sample_tokens
            results = quantize_group(names, full, self.recipe, bits, stats, self.clips, sample_tokens)
            self.memory.keep(names, results)
        for linear, report in results:
            if linear is not None:
                self.tree.set_submodule(report.name, linear.to(self.device))
            self.reports.append(report)
            self.on_layer(report.name)

    def add(self, collector: Collector, full: Tensor, quantized: Tensor, weight: float) -> None:
        """Count one call's inputs."""
        if self.recipe.compensate:
            collector.add(quantized, full, weight)
        else:
            collector.add(full, None, weight)

    def texts(self, rollouts: Sequence[Rollout]) -> list[_Track]:
        """Quantize the text embedding; tracks with both versions of the text."""
        tokens = sum(len(r.embeddings) for r in rollouts) * self.setting.config.text_len
        first, activation, second = self.tree.text_embedding
        padded = [pad_text(self.setting.config, r.embeddings.to(self.device)) for r in rollouts]

        def collect(pairs: Sequence[tuple[Tensor, Tensor]]) -> Callable[[Collector], None]:
            def gather(collector: Collector) -> None:
                for pair in pairs:
                    self.add(collector, *pair, 1.0)

            return gather

        self.settle(("text_embedding.0",), [first], tokens, collect([(x, x) for x in padded]))
        hidden = [(activation(first(x)), activation(self.tree.text_embedding[0](x))) for x in padded]
        self.settle(("text_embedding.2",), [second], tokens, collect(hidden))
        return [
            _Track(rollout, (second(full).cpu(), self.tree.text_embedding[2](quantized).cpu()), [], [])
            for rollout, (full, quantized) in zip(rollouts, hidden, strict=True)
        ]

    def start(self, tracks: Sequence[_Track], offload: OffloadAllocator) -> None:
        """Embed every call's latents, and make room for all states."""
        for track in tracks:
            for call in track.rollout.calls:
                tokens = self.embedded(call).tokens
                *pair, mixed = (offload.empty(tokens.shape, tokens.dtype) for _ in range(3))
                track.x.append((pair[0], pair[1]))
                track.mixed.append(mixed)
                for x in pair:
                    x.copy_(tokens)

    def embedded(self, call: Call) -> Embedded:
        """A call's input as the blocks take it."""
        self.on_call()
        latents = call.latents.to(self.device)
        times, positions = times_and_positions(latents, call.timestep, call.start)
        return embed(self.tree, self.setting.config, latents, times, positions)

    def block(self, index: int, tracks: Sequence[_Track], last: bool) -> None:
        """Quantize one block and walk both states through it."""
        full = self.tree.blocks[index].to(self.device)
        quantized = copy.deepcopy(full)
        self.tree.blocks[index] = quantized
        sides = (full, quantized)

        def gather_text(collector: Collector) -> None:
            for track in tracks:
                full_text, text = (text.to(self.device) for text in track.text)
                self.add(collector, full_text, text, 1.0)

        names = tuple(f"blocks.{index}.cross_attn.{x}" for x in "kv")
        tokens = sum(track.text[0].shape[:-1].numel() for track in tracks)
        self.settle(names, [full.cross_attn.k, full.cross_attn.v], tokens, gather_text)
        for which in range(3):
            self.branch(index, which, sides, tracks, follows=not (last and which == 2))
        quantized.to("cpu")

    def branch(
        self,
        index: int,
        which: int,
        sides: tuple[Any, Any],
        tracks: Sequence[_Track],
        follows: bool,
    ) -> None:
        """Quantize one residual branch and, if anything `follows`, add it to both states."""
        config = self.setting.config

        def texts(track: _Track) -> list[TextPair]:
            """The text as either side's cross-attention reads it: of one roll-out at a time, as there may be many."""
            return [text_pair(s, config, text.to(self.device)) for s, text in zip(sides, track.text, strict=True)]

        def at(side: int, text: Sequence[TextPair], call: Call, attend: Any = None) -> Branch:
            return list(branches(sides[side], config, self.embedded(call), text[side], attend))[which]

        def weight(call: Call) -> float:
            return self.weights[call.chunk][call.step]

        def gather(collector: Collector) -> None:
            for track in tracks:
                text = texts(track)
                for call, pair in zip(track.rollout.calls, track.x, strict=True):
                    entered = [at(side, text, call).norm(x.to(self.device)) for side, x in enumerate(pair)]
                    self.add(collector, entered[0], entered[1], weight(call))

        def linears(side: int, names: Sequence[str]) -> list[Any]:
            return [sides[side].get_submodule(name) for name in names]

        tokens = sum(x[0].shape[:-1].numel() for track in tracks for x in track.x)
        shape = at(0, texts(tracks[0]), tracks[0].rollout.calls[0])
        # A feed-forward's inside is several times as wide, and cheaper to compute again than to keep.
        kept = linears(0, [shape.out])[0].in_features == config.dim
        prefix = f"blocks.{index}."
        self.settle(tuple(prefix + name for name in shape.ins), linears(0, shape.ins), tokens, gather)

        def mixed(side: int, branch: Branch, x: Tensor) -> Tensor:
            return branch.mix(*apply_linears(branch.norm(x), *linears(side, branch.ins)))

        def mix(collector: Collector | None) -> None:
            """Bring both states to the branch's last linear; the full one goes on through it."""
            for track in tracks:
                text = texts(track)
                caches = [self.setting.cache() for _ in sides]
                for call, pair, room in zip(track.rollout.calls, track.x, track.mixed, strict=True):
                    frames, height, columns = call.latents.shape[2:]
                    found = []
                    for side, x in enumerate(pair):
                        caches[side].begin(call.start, frames, frame_tokens(config, height, columns))
                        branch = at(side, text, call, lambda q, k, v, cache=caches[side]: cache.attend(0, q, k, v))
                        x = x.to(self.device)
                        found.append(mixed(side, branch, x))
                        if side == 0 and follows:
                            pair[0].copy_(branch.add_to(x, linears(0, [branch.out])[0](found[0])))
                    if kept:
                        room.copy_(found[1])
                    if collector:
                        self.add(collector, found[0], found[1], weight(call))

        done = False

        def gather_mixed(collector: Collector) -> None:
            nonlocal done
            mix(collector)
            done = True

        self.settle((prefix + shape.out,), linears(0, [shape.out]), tokens, gather_mixed)
        if not done:
            mix(None)
        if not follows:
            return
        for track in tracks:
            text = texts(track)
            for call, (_, x), room in zip(track.rollout.calls, track.x, track.mixed, strict=True):
                branch, state = at(1, text, call), x.to(self.device)
                inner = room.to(self.device) if kept else mixed(1, branch, state)
                x.copy_(branch.add_to(state, linears(1, [shape.out])[0](inner)))
