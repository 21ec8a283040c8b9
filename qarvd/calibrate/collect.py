"""Add up the statistics of one layer's inputs, call by call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .stats import LayerStats

TOKENS = 131_072
"""Tokens of all calibration roll-outs together that a layer's statistics are made of; beyond that, a random share."""


class Collector:
    """The growing statistics of linears `names`, which read one input."""

    def __init__(self, names: tuple[str, ...], tokens: int) -> None:
        """`tokens`: how many are going to come."""
        self.names = names
        self.share = min(1.0, TOKENS / max(1, tokens))
        self.generator = torch.Generator().manual_seed(0)
        self.stats: LayerStats | None = None
        self.samples_seen = self.tokens_seen = 0

    def add(self, x: Tensor, full: Tensor | None, weight: float) -> None:
        """Count tokens `x` [samples, ..., in] of `weight` each, and the full-precision model's (None: the same).

        Raises CheckpointError, naming the layer, where one is NaN or infinite.
        """
        self.samples_seen += len(x)
        x = x.flatten(0, -2)
        self.tokens_seen += len(x)
        full = None if full is None else full.flatten(0, -2)
        if not (torch.isfinite(x).all() and (full is None or torch.isfinite(full).all())):
            raise self.overflow("inputs")
        if self.share < 1:
            chosen = (torch.rand(len(x), generator=self.generator) < self.share).nonzero()[:, 0].to(x.device)
            x, full = x[chosen], None if full is None else full[chosen]
        if not len(x):
            return  # a small part may have no token in the share
        stats = LayerStats.of(x, full, torch.full((len(x),), weight, device=x.device), self.generator)
        if self.stats is None:
            self.stats = stats
        else:
            self.stats += stats

    @property
    def sample_tokens(self) -> float:
        """Tokens of a sample, in the mean."""
        return self.tokens_seen / max(1, self.samples_seen)

    def result(self) -> LayerStats | None:
        """The statistics, if any token came. Raises CheckpointError, naming the layer, where sums overflowed."""
        if self.stats is not None and not (self.stats.gram.isfinite().all() and self.stats.cross.isfinite().all()):
            raise self.overflow("squared inputs")
        return self.stats

    def overflow(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"The {what} of {self.names[0]} became NaN or infinite in calibration: the checkpoint or the prompts "
            "overflow there. Stream the full-precision model with the same prompts first."
        )


@contextmanager
def refusing_overflow(*trees: nn.Module) -> Iterator[None]:
    """For as long as the block lasts, the first layer to put out NaN or infinity raises CheckpointError, named."""

    def refuse(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and not torch.isfinite(output).all():
            raise CheckpointError(
                f"The output of {name} became NaN or infinite in calibration: the checkpoint or the prompts overflow "
                "there. Stream the full-precision model with the same prompts first."
            )

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: refuse(name, output))
        for tree in trees
        for name, module in tree.named_modules()
        if not any(module.children())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
