"""How an effect decays from chunk to chunk: an exponential that may end on a floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RATES = np.geomspace(0.02, 8, 200)
"""Decay rates per chunk that are tried; then as many between the neighbours of the best."""


@dataclass(frozen=True)
class Decay:
    """floor + height * exp(-rate k) at chunk k."""

    floor: float
    height: float
    rate: float
    """Per chunk; 0 where nothing decays."""

    def at(self, chunk: int) -> float:
        return self.floor + self.height * float(np.exp(-self.rate * chunk))


def fit_decay(values: Sequence[float]) -> Decay:
    """The decay of least squared relative error to `values` [chunks], none of them negative; two at least to decay."""
    y = np.array(values, dtype=np.float64)
    k = np.flatnonzero(y > 0)
    if not len(k):
        return Decay(0.0, 0.0, 0.0)
    level = float((1 / y[k]).sum() / np.square(1 / y[k]).sum())
    best, least = Decay(level, 0.0, 0.0), float(np.square(level / y[k] - 1).sum())
    if len(k) < 2:
        return best
    rates = RATES
    for _ in range(2):
        found, error = _fit(rates, k, y[k])
        if error < least * (1 - 1e-9):
            best, least = found, error
        at = int(np.searchsorted(rates, best.rate))
        rates = np.geomspace(rates[max(0, at - 1)], rates[min(at + 1, len(rates) - 1)], len(RATES))
    return best


def _fit(rates: np.ndarray, k: np.ndarray, y: np.ndarray) -> tuple[Decay, float]:
    """The best decay to positive `y` at chunks `k` among `rates`, and its error."""
    curve = np.exp(-rates[:, None] * k) / y  # [rates, chunks], as is the constant, in units of y
    one = np.broadcast_to(1 / y, curve.shape)
    a, b, c = (curve * curve).sum(1), (curve * one).sum(1), (one * one).sum(1)
    p, q = curve.sum(1), one.sum(1)
    size = np.maximum(a * c - b * b, 1e-300)
    floor = np.clip((q * a - p * b) / size, 0, None)
    height = np.clip((p - floor * b) / a, 0, None)
    error = np.square(height[:, None] * curve + floor[:, None] * one - 1).sum(1)
    i = int(error.argmin())
    return Decay(float(floor[i]), float(height[i]), float(rates[i])), float(error[i])
