"""Figures from the results of runs: means, 95 % bootstrap intervals over prompts and calibration seeds, ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 4000


def resample(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bootstrap means [RESAMPLES] of `values` [calibration seeds, prompts], both drawn again.

    The same seed draws the same prompts for every method, so that differences of two methods are paired. Seeds drawn
    again have (n - 1) / n of the variance they should, so their effects are multiplied by sqrt(n / (n - 1)) (Rao and
    Wu, 1988). What is peculiar to one seed and one prompt counts twice in that: intervals are rather too wide.
    """
    seeds, prompts = values.shape
    columns = np.random.default_rng(seed).integers(prompts, size=(RESAMPLES, prompts))
    rows = np.random.default_rng(seed + 1).integers(seeds, size=(RESAMPLES, seeds))
    effects = (values.mean(1) - values.mean()) * math.sqrt(seeds / max(1, seeds - 1))
    return values.mean(0)[columns].mean(1) + effects[rows].mean(1)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """95 % interval of bootstrap samples."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def entry(name: str, model: str, runs: Sequence[Mapping[str, object]], full: Mapping[str, object], peak: float) -> dict:
    """One method's row from its runs, one for each calibration seed; `full` is the unquantized model's."""

    def stack(key: str) -> np.ndarray:
        return np.array([run[key] for run in runs], dtype=np.float64)

    mse, last = stack("mse"), stack("mse_last")
    low, high = interval(resample(mse))

    def loss(key: str) -> dict[str, float]:
        points = 100 * (np.array(full[key], dtype=np.float64)[None] - stack(key))
        lost, ends = rounded(points.mean()), interval(resample(points))
        return {f"{key}_loss_points": lost, f"{key}_loss_low": rounded(ends[0]), f"{key}_loss_high": rounded(ends[1])}

    return {
        "method": name,
        "model": model,
        "mse": rounded(mse.mean()),
        "mse_low": rounded(low),
        "mse_high": rounded(high),
        "psnr_db": rounded(10 * math.log10(peak**2 / mse.mean())),
        "mse_last_chunk": rounded(last.mean()),
        "psnr_last_chunk_db": rounded(10 * math.log10(peak**2 / last.mean())),
        **loss("digit"),
        **loss("motion"),
        "motion_accuracy": rounded(stack("motion").mean()),
        "bytes": int(np.mean([run["bytes"] for run in runs])),  # type: ignore[arg-type]
        "seconds": rounded(min(float(run["seconds"]) for run in runs)),  # type: ignore[arg-type]
        "calibration_seeds": len(runs),
    }


def compare(ours: Mapping[int, Sequence[float]], others: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """Ratio of two methods' errors, [prompts] by calibration seed, and the interval of their paired difference.

    They are compared on the seeds that both have. `typical` is the geometric mean of the prompts' ratios, which a few
    clips that take another course do not decide.
    """
    seeds = sorted(ours.keys() & others.keys())
    mine, other = (np.array([errors[seed] for seed in seeds]) for errors in (ours, others))
    a, b = resample(mine), resample(other)
    low, high = interval(a / b)
    difference_low, difference_high = interval(a - b)
    typical = np.log(mine / other)
    typical_low, typical_high = np.exp(interval(resample(typical)))
    return {
        "ratio": rounded(mine.mean() / other.mean()),
        "ratio_low": rounded(low),
        "ratio_high": rounded(high),
        "typical": rounded(np.exp(typical.mean())),
        "typical_low": rounded(typical_low),
        "typical_high": rounded(typical_high),
        "difference_low": rounded(difference_low),
        "difference_high": rounded(difference_high),
    }
