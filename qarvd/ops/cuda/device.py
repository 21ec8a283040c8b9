"""The kernels of each card: prebuilt ones where there are any, else compiled by NVRTC; loaded once per process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ...errors import DeviceError, SettingError
from . import cache, cubins, nvrtc, source
from .cubins import Cubin
from .driver import Driver, Launcher
from .nvrtc import Nvrtc
from .prepare import prepare
from .source import Source

LEAST = (7, 5)
"""Compute capability of the oldest cards that the kernels are written for (Turing)."""


class Loaded(NamedTuple):
    """A card's kernels, ready to launch."""

    launcher: Launcher
    origin: str
    """Where they come from, for people."""


_loaded: dict[int, Loaded | str] = {}  # modules can't be unloaded while torch may still launch from them
_lock = threading.Lock()


Say = Callable[[str], object]


def load(device: torch.device, folder: Path | None = None, say: Say = lambda text: None) -> Loaded | str:
    """The kernels for `device`, or why there are none; the first call for a card decides.

    Where NVRTC has to compile, that takes up to a minute, which `say` is told; the result is kept in `folder`
    (see `cache.user_folder`) if one is given.
    """
    known = _loaded.get(device.index) if device.type == "cuda" else None
    if known is not None:  # ops come here at every call
        return known
    reason = _unfit(device)
    if reason:
        return reason
    index = torch.cuda.current_device() if device.index is None else device.index
    with _lock:
        if index not in _loaded:
            _loaded[index] = _load(index, folder, say)
        return _loaded[index]


def refuses(device: torch.device) -> str | None:
    """Why this device can't run our kernels, or None. Loads them."""
    loaded = load(device)
    return loaded if isinstance(loaded, str) else None


def launcher(device: torch.device) -> Launcher:
    """The launcher of a device that does not refuse. Raises DeviceError for one that does."""
    loaded = load(device)
    if isinstance(loaded, str):
        raise DeviceError(f"The CUDA kernels can't run on {device}: {loaded}.")
    return loaded.launcher


def _unfit(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the tensors are on {device}"
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return None


def _load(index: int, folder: Path | None, say: Say) -> Loaded | str:
    try:
        capability = torch.cuda.get_device_capability(index)
        cubin, origin = obtain(capability, folder, say)
        launcher = Launcher(Driver(), index, cubin.image)
        prepare(launcher, turing=capability < (8, 0))
        return Loaded(launcher, origin)
    except DeviceError as error:
        return str(error).rstrip(".")


def obtain(
    capability: tuple[int, int],
    folder: Path | None,
    say: Say = lambda text: None,
    wanted: Source | None = None,
    prebuilt: Path = cubins.SHIPPED,
    find: Callable[[], Nvrtc | str] = lambda: nvrtc.open_first(nvrtc.installed()),
) -> tuple[Cubin, str]:
    """The kernels for cards of `capability`, and where they come from. Raises DeviceError with all reasons.

    `wanted` is the source they must be of (None: the package's), `prebuilt` the folder of prebuilt ones, `folder` that
    of earlier results of NVRTC.
    """
    number = f"{capability[0]}.{capability[1]}"
    if capability < LEAST:
        raise DeviceError(f"cards of compute capability {number} are too old; the kernels need {LEAST[0]}.{LEAST[1]}")
    wanted = source.read() if wanted is None else wanted
    cubin = cubins.shipped(capability, wanted.hash, prebuilt)
    if isinstance(cubin, Cubin):
        return cubin, f"prebuilt for {cubin.architecture} with {cubin.compiler}"
    compiler = find()
    if isinstance(compiler, str):
        raise DeviceError(f"{cubin}, and none can be compiled: {compiler}")
    architecture = f"sm_{capability[0]}{capability[1]}"
    if architecture not in compiler.architectures:
        raise DeviceError(f"{cubin}, and {compiler.name} of {compiler.path} does not know {architecture}")
    kept = None if folder is None else cache.get(folder, wanted.hash, architecture, compiler.name)
    if kept is not None:
        return kept, f"compiled earlier for {architecture} with {compiler.name} ({cubin})"
    say(f"Compiling the CUDA kernels for {architecture}, which takes up to a minute and is done once.")
    made = compiler.compile(wanted, architecture)
    return made, f"compiled for {architecture} with {compiler.name} ({cubin}); {_keep(folder, made)}"


def _keep(folder: Path | None, cubin: Cubin) -> str:
    if folder is None:
        return "not kept"
    try:
        cache.put(folder, cubin)
    except SettingError as error:
        return f"not kept: {str(error).rstrip('.')}"
    return f"kept in {folder}"
