"""What quantizing each layer alone does to the model's prediction, for all layers at once.

To first order, an error d in a linear's output moves the prediction by J d, J being the Jacobian from that output. For
random signs r of the prediction's shape, E (r^T J d)^2 = |J d|^2, and r^T J is one backward pass (Hutchinson). So one
forward and one backward pass of the full-precision model measure every layer at every bit-width; quantizing layers one
by one would take a roll-out each. The backward pass goes block by block, each computed again from its input. What a
layer does to the keys and values that later chunks read is left out; and since the weight of a call is its measured
effect, calls whose errors are large have more of a say than their share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import starmap
from typing import Any

import torch
from torch import Tensor, nn

from ..calibrate.collect import refusing_overflow
from ..calibrate.rollout import Call, Rollout, Setting
from ..errors import CheckpointError
from ..float64 import to_float64
from ..ops.codecs import Codec, codec_of
from ..ops.linear import run_linear
from ..ops.weight import QuantizedWeight
from ..recipe import Recipe
from ..stream.cache import FloatCache
from ..stream.sampler import begin_chunk
from ..wan.forward import Embedded, embed, pad_text, run_block, run_head, text_pair, times_and_positions
from .model import linear_groups, linear_of, quantize_group, reason_to_keep

CALLS = 56
"""Denoising calls that are measured at most; of more, as many are drawn."""

Names = tuple[str, ...]
Variants = dict[Names, dict[str, list[QuantizedWeight]]]
"""By linears that share an input and bits, their weights, in the host's memory."""


def option_errors(
    tree: Any,
    setting: Setting,
    rollouts: Sequence[Rollout],
    weights: Sequence[Sequence[float]],
    recipe: Recipe,
    codecs: Sequence[Codec] | None = None,
    on_call: Callable[[], object] = lambda: None,
) -> dict[Names, dict[str, float]]:
    """Frame-weighted squared error of the predicted clean latents with one group of linears quantized: by group, bits.

    `codecs` are the recipe's options. Linears are rounded to nearest, activations are quantized as at run time. What
    the recipe keeps, or no codec can store, is left out.
    `on_call` is called before each model call. Raises CheckpointError, naming the layer, where an effect becomes NaN or
    infinite.
    """
    groups = {names: [linear_of(tree, name) for name in names] for names in linear_groups(setting.config.num_layers)}
    options = list(starmap(codec_of, recipe.options)) if codecs is None else codecs
    variants: Variants = {
        names: {
            codec.label: _nearest(names, linears, recipe, codec)
            for codec in options
            if not reason_to_keep(names, linears[0].in_features, recipe, codec)
        }
        for names, linears in groups.items()
    }
    sums = {names: dict.fromkeys(its, 0.0) for names, its in variants.items() if its}
    generator = torch.Generator().manual_seed(0)
    denoising = [call for rollout in rollouts for call in _measurable(rollout, setting)]
    effects = [weights[call.chunk][call.step] * setting.preset.schedule.sigma(call.timestep) ** 2 for call in denoising]
    counted = {
        id(call): weight for call, weight in zip(denoising, draw_calls(effects, generator), strict=True) if weight
    }
    with _watched({names: groups[names] for names in sums}, variants) as dots:
        for rollout in rollouts:
            replay = _Replay(tree, setting, rollout)
            for call in rollout.calls:
                on_call()
                states = replay.forward(call)
                if weight := counted.get(id(call)):
                    replay.backward(call, states, generator)
                    _check(dots, replay, call)
                    for (names, bits), dot in dots.items():
                        sums[names][bits] += weight * float(to_float64(dot).square().mean())
                    dots.clear()
    return sums


def draw_calls(weights: Sequence[float], generator: torch.Generator, most: int = CALLS) -> list[float]:
    """What each call counts: its own weight where there are at most `most` of them, else 0 for all but a few.

    Then `most` are drawn in proportion to their weights, again and again from all, so that sums over calls keep their
    expectation (importance sampling).
    """
    own = torch.tensor(weights, dtype=torch.float64)
    if len(own) <= most or not own.any():
        return own.tolist()
    drawn = own.multinomial(most, replacement=True, generator=generator)
    return (drawn.bincount(minlength=len(own)) * (own.sum() / most)).tolist()


def _measurable(rollout: Rollout, setting: Setting) -> list[Call]:
    """All calls but those that write a chunk into the cache, whose predictions nobody keeps."""
    last = {call.chunk: call for call in rollout.calls if call.chunk + 1 < len(setting.spans)}
    return [call for call in rollout.calls if last.get(call.chunk) is not call]


def _check(dots: dict[tuple[Names, str], Tensor], replay: _Replay, call: Call) -> None:
    """Raise CheckpointError, naming the layer where it began, where `call` had effects that are not finite."""
    bad = next((names for (names, _), dot in dots.items() if not torch.isfinite(dot).all()), None)
    if bad is None:
        return
    with refusing_overflow(replay.tree):  # once more, since looking at every layer takes time
        replay.forward(call)
    raise CheckpointError(
        f"The effect of quantizing {', '.join(bad)} became NaN or infinite, though no layer's output did: gradients "
        "overflow there. Leave the target out, or compute on a CPU, in float32."
    )


@contextmanager
def _watched(groups: dict[Names, list[nn.Linear]], variants: Variants) -> Iterator[dict[tuple[Names, str], Tensor]]:
    """A table that fills, while gradients flow, with r^T J d [batch] by group and bits."""
    dots: dict[tuple[Names, str], Tensor] = {}

    def watch(names: Names, index: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if not output.requires_grad:
                return
            x, y = inputs[0].detach(), output.detach()

            def arrived(gradient: Tensor) -> None:
                for bits, weights in variants[names].items():
                    # Moved weights are new ones: what a backend lays out for them is dropped with them.
                    error = run_linear(x, weights[index].to(x.device), groups[names][index].bias) - y
                    dot = (gradient.float() * error.float()).flatten(1).sum(1)
                    dots[names, bits] = dots.get((names, bits), torch.zeros_like(dot)) + dot

            output.register_hook(arrived)

        return after

    hooks = [
        linear.register_forward_hook(watch(names, i))
        for names, linears in groups.items()
        for i, linear in enumerate(linears)
    ]
    try:
        yield dots
    finally:
        for hook in hooks:
            hook.remove()


def _nearest(names: Names, linears: Sequence[nn.Linear], recipe: Recipe, codec: Codec) -> list[QuantizedWeight]:
    with torch.no_grad():
        results = quantize_group(names, linears, recipe.without_data(), codec)
    return [linear.weight.to("cpu") for linear, _ in results if linear is not None]


class _Replay:
    """A roll-out's calls, made again with the full-precision tree, one block in memory at a time."""

    def __init__(self, tree: Any, setting: Setting, rollout: Rollout) -> None:
        self.tree, self.config = tree, setting.config
        self.weight = tree.patch_embedding.weight
        self.padded = pad_text(setting.config, rollout.embeddings.to(self.weight))
        with torch.no_grad():
            self.text = tree.text_embedding(self.padded)
        cache = setting.cache()
        assert isinstance(cache, FloatCache)
        self.cache = cache

    def embedded(self, call: Call) -> Embedded:
        """The call's input as the blocks take it."""
        latents = call.latents.to(self.weight)
        return embed(self.tree, self.config, latents, *times_and_positions(latents, call.timestep, call.start))

    def block(self, index: int, inputs: Embedded, text: Tensor, x: Tensor) -> Tensor:
        block = self.tree.blocks[index]
        pair = text_pair(block, self.config, text)
        return run_block(block, self.config, inputs, pair, partial(self.cache.attend, index), x)

    @torch.no_grad()
    def forward(self, call: Call) -> list[Tensor]:
        """Make the call; the input of every block, and what leaves the last."""
        begin_chunk(self.cache, self.config, call.latents, call.start)
        inputs = self.embedded(call)
        states = [inputs.tokens]
        for index in range(len(self.tree.blocks)):
            states.append(self.block(index, inputs, self.text, states[-1]))
        return states

    @torch.enable_grad()
    def backward(self, call: Call, states: list[Tensor], generator: torch.Generator) -> None:
        """Send random signs back from the prediction of a call that was made, through every linear."""
        inputs, text = self.embedded(call), self.text.detach().requires_grad_()
        x = states[-1].detach().requires_grad_()
        velocity = run_head(self.tree, self.config, inputs, x)
        signs = torch.randint(0, 2, velocity.shape, generator=generator).to(velocity) * 2 - 1
        (gradient,) = torch.autograd.grad(velocity, x, signs)
        for index in reversed(range(len(self.tree.blocks))):
            x = states[index].detach().requires_grad_()
            self.block(index, inputs, text, x).backward(gradient)
            self.cache.detach()
            assert x.grad is not None
            gradient = x.grad
        assert text.grad is not None
        self.tree.text_embedding(self.padded.detach().clone().requires_grad_()).backward(text.grad)
