"""What calibration knows of a linear's inputs: sums over tokens that merge, and a few tokens kept as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ShapeError
from ..float64 import float64_device

SAMPLES = 512
"""Tokens kept of each layer."""
WIDE = 4096
"""Channels from which on second moments are not worked with in float64."""


@dataclass(frozen=True)
class LayerStats:
    """Frame-weighted sums over the tokens that enter one linear, or linears that share an input; `a + b` merges.

    Of each token calibration sees x, which the quantized model feeds the layer, and x_full, which the full-precision
    model would; w is the weight of the token's chunk.
    """

    weight: float
    """Sum of w."""
    gram: Tensor
    """Sum of w x x^T, float32 [in, in]."""
    cross: Tensor
    """Sum of w (x_full - x) x^T, float32 [in, in]."""
    total: Tensor
    """Sum of w x, float64 [in]; where there is float64, as `drift`."""
    drift: Tensor
    """Sum of w (x_full - x), float64 [in]."""
    samples: Tensor
    """A random sample of tokens x, float32 [at most SAMPLES, in]."""
    sample_weight: Tensor
    """w of each, float32."""
    sample_key: Tensor
    """The random number in whose order the sample is kept, float64; smallest first, so that merging is a union."""

    def __post_init__(self) -> None:
        channels = len(self.total)
        if self.gram.shape != (channels, channels) or self.cross.shape != self.gram.shape:
            raise ShapeError(f"Sums of {tuple(self.gram.shape)} and {tuple(self.cross.shape)} for {channels} channels.")

    @classmethod
    def of(cls, x: Tensor, full: Tensor | None, weight: Tensor, generator: torch.Generator) -> LayerStats:
        """Statistics of tokens `x` [n, in] of weight `weight` [n], and `full` [n, in] (None: the same).

        `generator`, on the CPU, picks the sample; parts that are going to be merged need one, or seeds of their own.
        """
        x = x.float()
        weighted = x * weight.float()[:, None]  # [n, in]
        drift = torch.zeros_like(x) if full is None else full.float() - x
        key = torch.rand(len(x), dtype=torch.float64, generator=generator)
        kept = key.argsort(stable=True)[:SAMPLES]
        at, precise = kept.to(x.device), float64_device(x.device)
        return cls(
            weight=float(weight.to(precise).double().sum()),
            gram=weighted.T @ x,
            cross=torch.zeros(x.shape[1], x.shape[1], device=x.device) if full is None else drift.T @ weighted,
            total=weighted.to(precise).sum(0, dtype=torch.float64),
            drift=(drift * weight.float()[:, None]).to(precise).sum(0, dtype=torch.float64),
            samples=x[at],
            sample_weight=weight.float()[at],
            sample_key=key[kept],
        )

    def __add__(self, other: LayerStats) -> LayerStats:
        return self._merged(other, self.gram + other.gram, self.cross + other.cross)

    def __iadd__(self, other: LayerStats) -> LayerStats:
        """The same in the room of `self`, which is not to be used any more: large sums are not held twice."""
        return self._merged(other, self.gram.add_(other.gram), self.cross.add_(other.cross))

    def _merged(self, other: LayerStats, gram: Tensor, cross: Tensor) -> LayerStats:
        keys = torch.cat([self.sample_key, other.sample_key])
        kept = keys.argsort(stable=True)[:SAMPLES]
        at = kept.to(self.samples.device)
        return LayerStats(
            weight=self.weight + other.weight,
            gram=gram,
            cross=cross,
            total=self.total + other.total,
            drift=self.drift + other.drift,
            samples=torch.cat([self.samples, other.samples])[at],
            sample_weight=torch.cat([self.sample_weight, other.sample_weight])[at],
            sample_key=keys[kept],
        )

    def to(self, device: torch.device) -> LayerStats:
        """The same, all on `device`."""
        names = ("gram", "cross", "total", "drift", "samples", "sample_weight", "sample_key")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def moments(self, centred: bool) -> tuple[Tensor, Tensor]:
        """`gram` and `cross` per unit of weight, [in, in]; `centred` takes the means off, for a free bias.

        In float64, or in float32 for layers so wide that it would take gigabytes.
        """
        dtype = torch.float64 if len(self.total) <= WIDE else torch.float32
        gram, cross = (sums.to(dtype) / self.weight for sums in (self.gram, self.cross))
        if centred:
            mean, drift = ((sums / self.weight).to(dtype) for sums in (self.total, self.drift))
            gram.addr_(mean, mean, alpha=-1)
            cross.addr_(drift, mean, alpha=-1)
        return gram, cross
