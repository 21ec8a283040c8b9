"""Kernels compiled for the emulator, once for each variant, and kept between runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from emulator import probes
from emulator.build import CSRC, Library, build, refuses


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outside of this run's folder, so that the next one finds it; skips where nothing can be compiled."""
    reason = refuses()
    if reason:
        pytest.skip(reason)
    return tmp_path_factory.getbasetemp().parent / "emulator"


@pytest.fixture(scope="session")
def compiled_probes(cache: Path) -> Callable[..., Library]:
    """probes.cuh by the name of a variant, and macros."""
    return lambda variant, *defines: build([probes.SOURCE], variant, cache, defines)


@pytest.fixture(scope="session")
def compiled_kernels(cache: Path) -> Callable[..., Library]:
    """The library's kernels by the name of a variant."""
    return lambda variant: build([CSRC / "kernels.cu"], variant, cache)
