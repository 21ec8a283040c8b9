"""How fast one stream is and how much memory its process takes, measured with nothing else in the process."""

from __future__ import annotations

import itertools
import signal
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from ..checkpoint.model import load
from ..log import LOGGER
from .experiment import clip, samples


@dataclass(frozen=True)
class Performance:
    """Figures of a single stream, batch 1."""

    first_frame_seconds: float
    seconds_per_chunk: float
    """Median over the chunks, the first included."""
    peak_memory_bytes: int | None
    """Largest resident size of the process, Python and torch included; None where the system does not tell."""


def measure(path: Path, chunks: int) -> Performance:
    """Stream the demo checkpoint at `path` in a new process, after one chunk to warm up."""
    with ProcessPoolExecutor(1, get_context("spawn"), _keep_quiet) as process:
        return process.submit(_measure, path, chunks, torch.get_num_threads()).result()


def _measure(path: Path, chunks: int, threads: int) -> Performance:
    torch.set_num_threads(threads)
    model = load(path)
    model.tree.float()
    case = samples(1)
    for _ in clip(model, case, 1):
        pass
    arrivals = [time.perf_counter()]
    for _ in clip(model, case, chunks):
        arrivals.append(time.perf_counter())
    steps = [b - a for a, b in itertools.pairwise(arrivals)]
    return Performance(steps[0], statistics.median(steps), peak_memory())


def _keep_quiet() -> None:
    """What is to be said, the parent has said; and Ctrl-C is for it: it then drops this process."""
    LOGGER.disabled = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None where the system does not tell (Linux does)."""
    return _status("VmHWM")


def resident_memory() -> int | None:
    """Resident bytes of this process now; None where the system does not tell."""
    return _status("VmRSS")


def _status(key: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(key))
