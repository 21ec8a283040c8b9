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

import torch
from torch import Tensor, nn

from ..calibrate.collect import Collector
from ..calibrate.offload import OffloadAllocator
from ..calibrate.rollout import Rollout, Setting
from ..recipe import Recipe
from ..wan.forward import pad_text
from .branch import BranchWalk
from .model import LayerReport, check_recipe, linear_groups, linear_of
from .walk import Memory, Track, Walk


@torch.no_grad()
def quantize_blockwise(
    tree: nn.Module,
    setting: Setting,
    rollouts: Sequence[Rollout],
    weights: Sequence[Sequence[float]],
    recipe: Recipe,
    bits: Mapping[str, str] | None = None,
    offload: OffloadAllocator | None = None,
    memory: Memory | None = None,
    on_layer: Callable[[str], object] = lambda name: None,
    on_call: Callable[[], object] = lambda: None,
) -> list[LayerReport]:
    """Replace the tree's linears by quantized ones, in place.

    `on_layer` hears of every linear, `on_call` of every call that goes through a block; both may raise to stop.
    `weights` [chunks][calls] weigh the errors of each model call; `bits` (`LayerReport.bits`), of every linear by
    name, stand in for the recipe's. Raises SettingError and CheckpointError as `quantize_tree` does, and
    CheckpointError, naming the layer, if inputs are NaN or infinite.
    """
    config = setting.config
    check_recipe(recipe, config.num_layers)
    clips = sum(len(rollout.embeddings) for rollout in rollouts)
    walk = Walk(tree, setting, weights, clips, recipe, bits or {}, memory or Memory(), on_layer, on_call)
    order = list(linear_groups(config.num_layers))
    for group in order:
        for name in group:
            linear_of(tree, name)  # refuses early what is damaged or already quantized

    tree.blocks.to("cpu")
    tracks = quantize_text_embedding(walk, rollouts)
    embed_all(walk, tracks, offload or OffloadAllocator(None))
    for index in range(config.num_layers):
        quantize_block(walk, index, tracks, last=index + 1 == config.num_layers)
    tree.blocks.to(walk.device)
    found = {report.name: report for report in walk.reports}
    return [found[name] for group in order for name in group]


def quantize_text_embedding(walk: Walk, rollouts: Sequence[Rollout]) -> list[Track]:
    """Quantize the text embedding; tracks with both versions of the text."""
    config, device = walk.setting.config, walk.device
    tokens = sum(len(rollout.embeddings) for rollout in rollouts) * config.text_len
    first, activation, second = walk.tree.text_embedding
    padded = [pad_text(config, rollout.embeddings.to(device)) for rollout in rollouts]

    def collect(pairs: Sequence[tuple[Tensor, Tensor]]) -> Callable[[Collector], None]:
        def gather(collector: Collector) -> None:
            for pair in pairs:
                walk.add(collector, *pair, 1.0)

        return gather

    walk.settle(("text_embedding.0",), [first], tokens, collect([(x, x) for x in padded]))
    hidden = [(activation(first(x)), activation(walk.tree.text_embedding[0](x))) for x in padded]
    walk.settle(("text_embedding.2",), [second], tokens, collect(hidden))
    return [
        Track(rollout, (second(full).cpu(), walk.tree.text_embedding[2](quantized).cpu()), [], [])
        for rollout, (full, quantized) in zip(rollouts, hidden, strict=True)
    ]


def embed_all(walk: Walk, tracks: Sequence[Track], offload: OffloadAllocator) -> None:
    """Embed every call's latents, and make room for all states."""
    for track in tracks:
        for call in track.rollout.calls:
            tokens = walk.embedded(call).tokens
            full, quantized, mixed = (offload.empty(tokens.shape, tokens.dtype) for _ in range(3))
            track.x.append((full.copy_(tokens), quantized.copy_(tokens)))
            track.mixed.append(mixed)


def quantize_block(walk: Walk, index: int, tracks: Sequence[Track], last: bool) -> None:
    """Quantize one block and walk both states through it."""
    full = walk.tree.blocks[index].to(walk.device)
    quantized = copy.deepcopy(full)
    walk.tree.blocks[index] = quantized

    def gather_text(collector: Collector) -> None:
        for track in tracks:
            full_text, text = (text.to(walk.device) for text in track.text)
            walk.add(collector, full_text, text, 1.0)

    names = tuple(f"blocks.{index}.cross_attn.{x}" for x in "kv")
    tokens = sum(track.text[0].shape[:-1].numel() for track in tracks)
    walk.settle(names, [full.cross_attn.k, full.cross_attn.v], tokens, gather_text)
    for which in range(3):
        BranchWalk(walk, index, which, (full, quantized), tracks, follows=not (last and which == 2)).run()
    quantized.to("cpu")
