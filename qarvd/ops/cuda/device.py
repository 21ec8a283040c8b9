"""The kernels of each card: prebuilt, compiled earlier or now, whichever its driver takes first; once per process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import torch

from ...errors import DeviceError
from ...log import LOGGER
from ..codecs import CACHE_CODECS
from . import kernels, ring_kernels
from .driver import OUT_OF_MEMORY, Driver, DriverError, Launcher
from .launcher import Launcher as AnyLauncher
from .offers import Offer, Say, keep, offers

PAUSE = 5.0
"""Seconds until a card that failed for now is tried again: ops come here at every call, and a try may make torch give
back the memory that it holds for later."""


class Loaded(NamedTuple):
    """A card's kernels, ready to launch."""

    launcher: Launcher
    origin: str
    """Where they come from, and why not from where it would be simpler, for people."""


class ForNow(str):
    """Why a card has no kernels at this moment, such as full memory: keep nothing that was chosen for this reason."""


@dataclass
class _Search:
    """What is left to offer to a card's driver, and why what came before did not do."""

    left: Iterator[Offer | str]
    reasons: list[str] = field(default_factory=list)


class _Pause(NamedTuple):
    """A search that failed for now, and when it goes on, in seconds of `monotonic`."""

    search: _Search
    reason: ForNow
    until: float


_cards: dict[int, Loaded | str | _Pause] = {}  # modules can't be unloaded while torch may still launch from them
_lock = threading.Lock()
_folder: list[Path] = []


def keep_in(folder: Path | None) -> None:
    """Where kernels that are compiled from now on are kept (None: nowhere), unless `load` names a folder.

    Such as `files.kernel_folder`: a program says so once, where it starts, since any op may be the first to load them.
    """
    _folder[:] = [] if folder is None else [folder]


def load(device: torch.device, folder: Path | None = None, say: Say = LOGGER.warning) -> Loaded | str:
    """The kernels for `device`, or why there are none; the first call for a card decides, unless that is `ForNow`.

    If NVRTC has to compile, that takes up to a minute, which `say` is told; the result is kept in `folder` (None: as
    `keep_in` said).
    """
    known = _known(device.index) if device.type == "cuda" else None
    if known is not None:  # ops come here at every call
        return known
    reason = _unfit(device)
    if reason:
        return reason
    index = torch.cuda.current_device() if device.index is None else device.index
    with _lock:
        known = _known(index)
        if known is None and torch.cuda.is_current_stream_capturing():  # loading would spoil the graph
            return ForNow("a CUDA graph is being captured; prepare the layer, or run the op once, before that")
        return _decide(index, folder or next(iter(_folder), None), say) if known is None else known


def refuses(device: torch.device) -> str | None:
    """Why this device can't run our kernels, or None; `ForNow` if the reason may pass. Loads them."""
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


def _known(index: int | None) -> Loaded | str | None:
    """What was decided for a card, or None if it is to be tried now."""
    found = None if index is None else _cards.get(index)
    if isinstance(found, _Pause):
        return found.reason if monotonic() < found.until else None
    return found


def _decide(index: int, folder: Path | None, say: Say) -> Loaded | str:
    """Load what the driver takes; after a pause, go on with what it was offered last."""
    pause = _cards.get(index)
    capability = torch.cuda.get_device_capability(index)
    search = pause.search if isinstance(pause, _Pause) else _Search(offers(capability, folder, say))
    try:
        found = _load(index, capability, folder, search)
    except DriverError as error:
        if error.passes:
            reason = ForNow(str(error).rstrip("."))
            _cards[index] = _Pause(search, reason, monotonic() + PAUSE)
            return reason
        found = str(error).rstrip(".")
    except DeviceError as error:
        found = str(error).rstrip(".")
    _cards[index] = found
    return found


def _load(index: int, capability: tuple[int, int], folder: Path | None, search: _Search) -> Loaded:
    """Raises DeviceError with all reasons, and DriverError as soon as other kernels would fare no better."""
    driver = Driver()
    for offer in search.left:
        if isinstance(offer, str):
            search.reasons.append(offer)
            continue
        try:
            launcher = _ready(driver, index, offer.cubin.image, turing=capability < (8, 0))
        except DriverError as error:
            if error.passes or error.lost:
                search.left = chain([offer], search.left)
                raise
            search.reasons.append(f"{offer.origin}, but the driver could not {error.reason}")
            continue
        kept = f", {keep(folder, offer.cubin)}" if offer.new else ""
        return Loaded(launcher, offer.origin + kept + (f" ({'; '.join(search.reasons)})" if search.reasons else ""))
    raise DeviceError("; ".join(search.reasons))


def _ready(driver: Driver, index: int, image: bytes, turing: bool) -> Launcher:
    """A launcher with everything prepared, if need be in memory that torch holds for later and gives back."""
    try:
        return _prepared(driver, index, image, turing)
    except DriverError as error:
        if error.code != OUT_OF_MEMORY:
            raise
    torch.cuda.empty_cache()
    return _prepared(driver, index, image, turing)


def _prepared(driver: Driver, index: int, image: bytes, turing: bool) -> Launcher:
    launcher = Launcher(driver, index, image)
    try:
        prepare(launcher, turing)
    except DriverError:
        launcher.unload()
        raise
    return launcher


def prepare(launcher: AnyLauncher, turing: bool) -> None:
    """Load every kernel with the shared memory that its launches take, so that a CUDA graph can capture any op.

    Turing has no kernels for bfloat16 attention.
    """
    kernels.prepare_activation(launcher)
    kernels.prepare_decode(launcher)
    kernels.prepare_linear(launcher)
    ring_kernels.prepare_append(launcher)
    for bits in (codec.bits for codec in CACHE_CODECS.values()):
        for head_dim in ring_kernels.HEAD_DIMS:
            for dtype in (torch.float16,) if turing else (torch.float16, torch.bfloat16):
                launcher.prepare(*ring_kernels.attention_kernel(torch.empty(0, head_dim, dtype=dtype), bits))
