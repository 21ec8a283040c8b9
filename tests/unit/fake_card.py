"""Cards, prebuilt kernels and a compiler, none of them real, for tests of how kernels reach a card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from qarvd.errors import DeviceError
from qarvd.ops.cuda import device
from qarvd.ops.cuda.cubins import Cubin
from qarvd.ops.cuda.driver import Driver
from qarvd.ops.cuda.nvrtc import Nvrtc
from qarvd.ops.cuda.offers import Offer, offers
from qarvd.ops.cuda.source import Source

from .fake_driver import FakeDriver, opened

SOURCE = Source({"kernels.cu": "the kernels"})
PREBUILT = Cubin("sm_86", SOURCE.hash, "NVRTC 12.9", b"prebuilt")


class FakeNvrtc(Nvrtc):
    """Knows Ampere, and counts how often it compiles; with `trouble` it can't."""

    def __init__(self, version: tuple[int, int] = (12, 9), known: str = "sm_87 sm_86", trouble: str = "") -> None:
        self.version, self.path, self.architectures = version, f"libnvrtc.so.{version[0]}", frozenset(known.split())
        self.compiled, self.trouble = 0, trouble

    def compile(self, source: Source, architecture: str) -> Cubin:
        self.compiled += 1
        if self.trouble:
            raise DeviceError(f"{self.name} can't compile the kernels for {architecture}: {self.trouble}")
        return Cubin(architecture, source.hash, self.name, b"compiled by %d.%d" % self.version)


@pytest.fixture
def prebuilt(tmp_path: Path) -> Path:
    folder = tmp_path / "cubins"
    folder.mkdir()
    (folder / "sm_86.xz").write_bytes(PREBUILT.pack())
    return folder


CARD = torch.device("cuda", 0)


@dataclass
class Machine:
    """Torch with two cards, a driver and a clock, none of them real."""

    driver: FakeDriver
    compilers: tuple[Nvrtc | str, ...] = ("there is no NVRTC",)
    capability: tuple[int, int] = (8, 6)
    now: float = 100.0
    emptied: int = 0
    """How often torch was told to give back the memory that it holds for later."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, fake_libcuda: Path, prebuilt: Path) -> Machine:
    """Cards of compute capability 8.6, with prebuilt kernels and without a compiler."""
    here = Machine(opened(str(fake_libcuda)))
    here.driver.library.fake_argument_bytes(0)

    def of_here(capability: tuple[int, int], folder: Path | None, say: device.Say) -> Iterator[Offer | str]:
        return offers(capability, folder, say, SOURCE, prebuilt, lambda: iter(here.compilers))

    def empty_cache() -> None:
        here.emptied += 1

    monkeypatch.setattr(device, "_cards", {})
    monkeypatch.setattr(device, "_folder", [])
    monkeypatch.setattr(device, "offers", of_here)
    monkeypatch.setattr(device, "monotonic", lambda: here.now)
    monkeypatch.setattr(device, "Driver", lambda: Driver(here.driver.path))
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: here.capability)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return here


def origin(loaded: device.Loaded | str) -> str:
    assert isinstance(loaded, device.Loaded), loaded
    return loaded.origin
