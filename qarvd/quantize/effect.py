"""What quantizing each layer alone does to the model's prediction, for all layers at once.

To first order, an error d in a linear's output moves the prediction by J d, J being the Jacobian from that output. For
random signs r of the prediction's shape, E (r^T J d)^2 = |J d|^2, and r^T J is one backward pass (Hutchinson). So one
forward and one backward pass of the full-precision model measure every layer at every bit-width; quantizing layers one
by one would take a roll-out each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..calibrate.rollout import Rollout, Setting
from ..ops.linear import QuantizedLinear
from ..recipe import Recipe
from ..stream.sampler import Denoiser, frame_tokens
from ..wan.forward import encode_text, predict
from .model import linear_groups, linear_of, quantize_group, reason_to_keep

CALLS = 56
"""Denoising calls that are measured at most, spread evenly over the roll-outs."""


def option_errors(
    tree: Any,
    setting: Setting,
    rollouts: Sequence[Rollout],
    chunk_weights: Sequence[float],
    recipe: Recipe,
    options: Sequence[int] = (4, 8),
    on_call: Callable[[], object] = lambda: None,
) -> dict[tuple[str, ...], dict[int, float]]:
    """Frame-weighted squared error of the predicted clean latents with one group of linears quantized: by group, bits.

    Linears are rounded to nearest, activations are quantized as at run time. Groups that the recipe keeps are left out.
    """
    groups = {names: [linear_of(tree, name) for name in names] for names in linear_groups(setting.config.num_layers)}
    groups = {n: ls for n, ls in groups.items() if not reason_to_keep(n, ls[0].in_features, recipe)}
    quantized = {names: {b: _nearest(names, linears, recipe, b) for b in options} for names, linears in groups.items()}
    sums = {names: dict.fromkeys(options, 0.0) for names in groups}
    dots: dict[tuple[tuple[str, ...], int], Tensor] = {}

    def watch(names: tuple[str, ...], index: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if not output.requires_grad:
                return
            x, y = inputs[0].detach(), output.detach()

            def arrived(gradient: Tensor) -> None:
                for b in options:
                    error = quantized[names][b][index](x) - y
                    dot = (gradient.float() * error.float()).flatten(1).sum(1)  # [batch]
                    dots[names, b] = dots.get((names, b), torch.zeros_like(dot)) + dot

            output.register_hook(arrived)

        return after

    hooks = [
        linear.register_forward_hook(watch(names, i))
        for names, linears in groups.items()
        for i, linear in enumerate(linears)
    ]
    try:
        total = sum(len(r.calls) for r in rollouts)
        stride, seen = max(1, total // CALLS), 0
        for rollout in rollouts:
            for call, weight in _calls(tree, setting, rollout, chunk_weights):
                seen += 1
                if seen % stride == 0 and weight:
                    dots.clear()
                    call()
                    for (names, b), dot in dots.items():
                        sums[names][b] += weight * float(dot.double().square().mean())
                    on_call()
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _nearest(names: tuple[str, ...], linears: Sequence[nn.Linear], recipe: Recipe, bits: int) -> list[QuantizedLinear]:
    with torch.no_grad():
        results = quantize_group(names, linears, recipe.without_data(), bits)
    return [linear for linear, _ in results if linear is not None]


def _calls(tree: Any, setting: Setting, rollout: Rollout, chunk_weights: Sequence[float]) -> Any:
    """Each call of the roll-out as a function that backpropagates random signs, and its weight."""
    weight = tree.patch_embedding.weight
    embeddings = rollout.embeddings.to(weight)
    with torch.no_grad():
        main = Denoiser(tree, setting.config, encode_text(tree, setting.config, embeddings), setting.cache())
    generator = torch.Generator().manual_seed(0)
    last = {call.chunk: call for call in rollout.calls}
    for call in rollout.calls:
        latents = call.latents.to(weight)
        if call is last[call.chunk] and call.chunk + 1 < len(setting.spans):  # the call that fills the cache
            with torch.no_grad():
                main.velocity(latents, call.timestep, call.start)
            yield (lambda: None), 0.0
            continue

        def backward(call: Any = call, latents: Tensor = latents) -> None:
            cache = copy.deepcopy(main.cache)
            batch, _, frames, height, width = latents.shape
            cache.begin(call.start, frames, frame_tokens(setting.config, height, width))
            times = torch.full((batch, frames), call.timestep, dtype=torch.float64, device=latents.device)
            positions = torch.arange(call.start, call.start + frames, device=latents.device)
            with torch.enable_grad():
                text = encode_text(tree, setting.config, embeddings.clone().requires_grad_())
                x = latents.clone().requires_grad_()
                velocity = predict(tree, setting.config, x, times, text, cache.attend, positions)
                signs = torch.randint(0, 2, velocity.shape, generator=generator).to(velocity) * 2 - 1
                (velocity * signs).sum().backward()

        yield backward, chunk_weights[call.chunk] * setting.preset.schedule.sigma(call.timestep) ** 2
