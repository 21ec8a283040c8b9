"""Where a card's kernels may come from: prebuilt with the package, compiled earlier, or compiled now by any NVRTC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ...errors import DeviceError, SettingError
from . import cache, cubins, nvrtc, source
from .cubins import Cubin
from .nvrtc import Nvrtc
from .source import Source

LEAST = (7, 5)
"""Compute capability of the oldest cards that the kernels are written for (Turing)."""

Say = Callable[[str], object]


class Offer(NamedTuple):
    """Kernels for a driver to take or refuse."""

    cubin: Cubin
    origin: str
    new: bool = False
    """Whether they were compiled just now."""


def offers(
    capability: tuple[int, int],
    folder: Path | None,
    say: Say,
    wanted: Source | None = None,
    prebuilt: Path = cubins.SHIPPED,
    find: Callable[[], Iterator[Nvrtc | str]] = lambda: nvrtc.open_each(nvrtc.installed()),
) -> Iterator[Offer | str]:
    """Kernels for cards of `capability`, those without work first, and why there are none where there could be.

    Each is read or compiled when it is asked for. `wanted` is the source they must be of (None: the package's),
    `prebuilt` the folder of prebuilt ones, `folder` that of earlier results of NVRTC. Raises DeviceError for cards that
    can't have any.
    """
    number = f"{capability[0]}.{capability[1]}"
    if capability < LEAST:
        raise DeviceError(f"cards of compute capability {number} are too old; the kernels need {LEAST[0]}.{LEAST[1]}")
    wanted = source.read() if wanted is None else wanted
    cubin = cubins.shipped(capability, wanted.hash, prebuilt)
    if isinstance(cubin, str):
        yield cubin
    else:
        yield Offer(cubin, f"prebuilt for {cubin.architecture} with {cubin.compiler}")
    architecture, compiled = f"sm_{capability[0]}{capability[1]}", set[str]()
    for compiler in find():
        if isinstance(compiler, str):
            yield compiler
        elif architecture not in compiler.architectures:
            yield f"{compiler.name} of {compiler.path} does not know {architecture}"
        elif compiler.name not in compiled:
            kept = None if folder is None else cache.get(folder, wanted.hash, architecture, compiler.name)
            if kept is not None:
                yield Offer(kept, f"compiled earlier for {architecture} with {compiler.name}")
            say(f"Compiling the CUDA kernels for {architecture}, which takes up to a minute and is done once.")
            try:
                made = compiler.compile(wanted, architecture)
            except DeviceError as error:
                yield str(error).rstrip(".")
                continue
            compiled.add(compiler.name)
            if made != kept:
                yield Offer(made, f"compiled for {architecture} with {compiler.name}", new=True)


def keep(folder: Path | None, cubin: Cubin) -> str:
    """Keep what was compiled for the next process, and say whether that worked."""
    if folder is None:
        return "not kept"
    try:
        cache.put(folder, cubin)
    except SettingError as error:
        return f"not kept: {str(error).rstrip('.')}"
    return f"kept in {folder}"
