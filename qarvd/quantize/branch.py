"""Quantize one residual branch of a block, and walk both states of every recorded call through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..calibrate.collect import Collector
from ..calibrate.rollout import Call
from ..stream.cache import KVCache
from ..stream.sampler import begin_chunk
from ..wan.forward import Branch, apply_linears, branches, text_pair
from .walk import Track, Walk

TextPair = tuple[Tensor, Tensor]
"""Keys and values of a text in one block's cross-attention."""
FULL, QUANTIZED = 0, 1
"""The two sides, as indices."""


class BranchWalk:
    """One residual branch of a block: its linears are fitted in the order in which they run."""

    def __init__(
        self, walk: Walk, index: int, which: int, sides: tuple[Any, Any], tracks: Sequence[Track], follows: bool
    ) -> None:
        """Branch `which` of block `index`, of which `sides` are the full and the quantized version.

        `follows`: whether anything reads what the branch adds to the states.
        """
        self.walk, self.which, self.sides, self.tracks, self.follows = walk, which, sides, tracks, follows
        self.config, self.device = walk.setting.config, walk.device
        self.prefix = f"blocks.{index}."
        self.tokens = sum(x[FULL].shape[:-1].numel() for track in tracks for x in track.x)
        shape = self.at(FULL, self.texts(tracks[0]), tracks[0].rollout.calls[0])
        self.ins, self.out = shape.ins, shape.out
        # A feed-forward's inside is several times as wide, and cheaper to compute again than to keep.
        self.keeps_mixed = self.last(FULL).in_features == self.config.dim

    def run(self) -> None:
        """Quantize the branch and, if anything follows, add it to both states."""
        names = tuple(self.prefix + name for name in self.ins)
        self.walk.settle(names, self.linears(FULL, self.ins), self.tokens, self.gather_inputs)
        fitted = self.walk.settle((self.prefix + self.out,), [self.last(FULL)], self.tokens, self.mix_all)
        if not fitted:
            self.mix_all(None)
        if self.follows:
            self.add_quantized()

    def linears(self, side: int, names: Sequence[str]) -> list[Any]:
        """Linears of a side's block."""
        return [self.sides[side].get_submodule(name) for name in names]

    def last(self, side: int) -> Any:
        """The linear whose output is added to the state."""
        return self.sides[side].get_submodule(self.out)

    def texts(self, track: Track) -> list[TextPair]:
        """The text as either side's cross-attention reads it: of one roll-out at a time, as there may be many."""
        pairs = zip(self.sides, track.text, strict=True)
        return [text_pair(side, self.config, text.to(self.device)) for side, text in pairs]

    def at(self, side: int, text: Sequence[TextPair], call: Call, attend: Any = None) -> Branch:
        """The branch as it runs in a call."""
        inputs = self.walk.embedded(call)
        return list(branches(self.sides[side], self.config, inputs, text[side], attend))[self.which]

    def gather_inputs(self, collector: Collector) -> None:
        """Count what enters the branch."""
        for track in self.tracks:
            text = self.texts(track)
            for call, pair in zip(track.rollout.calls, track.x, strict=True):
                full, quantized = (self.at(side, text, call).norm(x.to(self.device)) for side, x in enumerate(pair))
                self.walk.add(collector, full, quantized, self.walk.weight(call))

    def mixed(self, side: int, branch: Branch, x: Tensor) -> Tensor:
        """What enters the branch's last linear."""
        return branch.mix(*apply_linears(branch.norm(x), *self.linears(side, self.ins)))

    def mix_all(self, collector: Collector | None) -> None:
        """Bring both states to the branch's last linear, and count them; the full one goes on through it."""
        for track in self.tracks:
            text = self.texts(track)
            caches = [self.walk.setting.cache() for _ in self.sides]
            for call, pair, room in zip(track.rollout.calls, track.x, track.mixed, strict=True):
                full, quantized = (self.mix(side, text, call, pair[side], caches[side]) for side in (FULL, QUANTIZED))
                if self.keeps_mixed:
                    room.copy_(quantized)
                if collector:
                    self.walk.add(collector, full, quantized, self.walk.weight(call))

    def mix(self, side: int, text: Sequence[TextPair], call: Call, state: Tensor, cache: KVCache) -> Tensor:
        """Bring the state of one call to the branch's last linear."""
        begin_chunk(cache, self.config, call.latents, call.start)
        attend: Callable[..., Tensor] = partial(cache.attend, 0)  # each branch has a cache of its own
        branch, x = self.at(side, text, call, attend), state.to(self.device)
        mixed = self.mixed(side, branch, x)
        if side == FULL and self.follows:
            state.copy_(branch.add_to(x, self.last(FULL)(mixed)))
        return mixed

    def add_quantized(self) -> None:
        """Add the branch to the quantized states."""
        for track in self.tracks:
            text = self.texts(track)
            for call, (_, state), room in zip(track.rollout.calls, track.x, track.mixed, strict=True):
                branch, x = self.at(QUANTIZED, text, call), state.to(self.device)
                inner = room.to(self.device) if self.keeps_mixed else self.mixed(QUANTIZED, branch, x)
                state.copy_(branch.add_to(x, self.last(QUANTIZED)(inner)))
