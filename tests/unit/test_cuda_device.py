"""A card gets prebuilt kernels, else NVRTC's, else a reason; whatever happens is decided once and said."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qarvd.errors import DeviceError
from qarvd.ops import backend
from qarvd.ops.cuda import device
from qarvd.ops.cuda.cubins import Cubin
from qarvd.ops.cuda.driver import Driver
from qarvd.ops.cuda.nvrtc import Nvrtc
from qarvd.ops.cuda.source import Source, read

SOURCE = Source({"kernels.cu": "the kernels"})
PREBUILT = Cubin("sm_86", SOURCE.hash, "NVRTC 12.9", b"prebuilt")


class FakeNvrtc(Nvrtc):
    """Knows sm_87, and counts how often it compiles."""

    def __init__(self, version: tuple[int, int] = (12, 9)) -> None:
        self.version, self.path, self.architectures = version, "libnvrtc.so", frozenset({"sm_87", "sm_86"})
        self.compiled = 0

    def compile(self, source: Source, architecture: str) -> Cubin:
        self.compiled += 1
        return Cubin(architecture, source.hash, self.name, b"compiled")


@pytest.fixture
def prebuilt(tmp_path: Path) -> Path:
    folder = tmp_path / "cubins"
    folder.mkdir()
    (folder / "sm_86.xz").write_bytes(PREBUILT.pack())
    return folder


def obtain(
    capability: tuple[int, int],
    prebuilt: Path,
    found: Nvrtc | str,
    folder: Path | None = None,
    said: list[str] | None = None,
) -> tuple[Cubin, str]:
    said = [] if said is None else said
    return device.obtain(capability, folder, said.append, SOURCE, prebuilt, lambda: found)


def test_prebuilt_kernels_are_taken_without_looking_for_a_compiler(prebuilt: Path) -> None:
    cubin, origin = device.obtain((8, 6), None, pytest.fail, SOURCE, prebuilt, lambda: pytest.fail("looked for NVRTC"))
    assert cubin == PREBUILT and origin == "prebuilt for sm_86 with NVRTC 12.9"


def test_what_is_not_prebuilt_is_compiled_once_and_said(prebuilt: Path, tmp_path: Path) -> None:
    compiler, folder, said = FakeNvrtc(), tmp_path / "cache", []
    first, origin = obtain((8, 7), prebuilt, compiler, folder, said)
    assert origin == (
        f"compiled for sm_87 with NVRTC 12.9 (no kernels are prebuilt for compute capability 8.7); kept in {folder}"
    )
    assert said == ["Compiling the CUDA kernels for sm_87, which takes up to a minute and is done once."]
    second, origin = obtain((8, 7), prebuilt, compiler, folder, said)
    assert origin.startswith("compiled earlier for sm_87") and len(said) == compiler.compiled == 1
    assert first == second == Cubin("sm_87", SOURCE.hash, "NVRTC 12.9", b"compiled")


def test_a_damaged_cache_entry_and_another_version_of_the_compiler_compile_again(
    prebuilt: Path, tmp_path: Path
) -> None:
    compiler = FakeNvrtc()
    obtain((8, 7), prebuilt, compiler, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    obtain((8, 7), prebuilt, compiler, tmp_path / "cache")
    assert compiler.compiled == 2
    newer = FakeNvrtc((13, 0))
    assert obtain((8, 7), prebuilt, newer, tmp_path / "cache")[0].compiler == "NVRTC 13.0"
    assert newer.compiled == 1


def test_stale_prebuilt_kernels_are_compiled_for_the_very_card(prebuilt: Path) -> None:
    (prebuilt / "sm_86.xz").write_bytes(replace(PREBUILT, source="0" * 64).pack())
    cubin, origin = obtain((8, 6), prebuilt, FakeNvrtc())
    assert cubin.architecture == "sm_86"
    assert "the prebuilt sm_86.xz was made from another source" in origin and origin.endswith("; not kept")


def test_kernels_that_cannot_be_kept_run_all_the_same(prebuilt: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cubin, origin = obtain((8, 7), prebuilt, FakeNvrtc(), tmp_path / "file" / "cache")
    assert cubin.image == b"compiled" and "not kept: The folder" in origin


@pytest.mark.parametrize(
    ("capability", "found", "reasons"),
    [
        ((7, 0), FakeNvrtc(), ["compute capability 7.0 are too old", "need 7.5"]),
        ((8, 7), "there is no NVRTC", ["no kernels are prebuilt for compute capability 8.7", "there is no NVRTC"]),
        ((13, 0), FakeNvrtc(), ["compute capability 13.0", "does not know sm_130"]),
    ],
)
def test_where_no_kernels_can_be_had_every_reason_is_said(
    prebuilt: Path, capability: tuple[int, int], found: Nvrtc | str, reasons: list[str]
) -> None:
    with pytest.raises(DeviceError) as error:
        obtain(capability, prebuilt, found)
    assert all(reason in str(error.value) for reason in reasons)


CARD = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, fake_libcuda: Path) -> pytest.MonkeyPatch:
    """Torch with two cards of compute capability 8.6, and a driver, none of them real."""
    monkeypatch.setattr(device, "_loaded", {})
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
    monkeypatch.setattr(device, "Driver", lambda: Driver(str(fake_libcuda)))
    monkeypatch.setattr(device, "obtain", lambda capability, *_: (PREBUILT, f"for {capability}"))
    return monkeypatch


def test_each_card_is_loaded_once_for_the_process(card: pytest.MonkeyPatch) -> None:
    assert device.refuses(CARD) is None
    loaded = device.load(CARD)
    assert isinstance(loaded, device.Loaded) and loaded.origin == "for (8, 6)"
    assert device.launcher(CARD) is loaded.launcher
    other = device.launcher(torch.device("cuda"))
    assert other is device.launcher(torch.device("cuda", 1)) and other is not loaded.launcher
    card.setattr(device, "obtain", lambda *_: pytest.fail("loaded again"))
    assert device.load(CARD) == loaded


@pytest.mark.parametrize("turing", [False, True])
def test_a_loaded_card_has_every_kernel_ready(card: pytest.MonkeyPatch, turing: bool) -> None:
    """What an op would load at its first call could not be captured in a CUDA graph."""
    card.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5) if turing else (8, 6))
    names = set(re.findall(r"qarvd_\w+", read().files["kernels.cu"]))
    due = {name for name in names if not (turing and "bf16" in name)}
    assert set(device.launcher(CARD)._limits) == due
    assert len(due) == (10 if turing else 14)


def test_a_card_that_refuses_does_so_with_a_reason_and_is_not_asked_again(card: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DeviceError("The driver is out to lunch.")

    card.setattr(device, "Driver", fail)
    assert device.refuses(CARD) == "The driver is out to lunch"
    card.setattr(device, "Driver", lambda: pytest.fail("asked again"))
    assert device.refuses(CARD) == "The driver is out to lunch"
    with pytest.raises(DeviceError, match="can't run on cuda:0: The driver is out to lunch"):
        device.launcher(CARD)


def test_other_devices_and_a_torch_without_cuda_are_refused_without_asking_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "Driver", lambda: pytest.fail("asked"))
    assert device.refuses(torch.device("cpu")) == "the tensors are on cpu"
    assert device.refuses(torch.device("meta")) == "the tensors are on meta"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in str(device.refuses(CARD))
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.refuses(CARD) == "torch finds no CUDA device"


def test_importing_loads_no_library_and_asks_no_card() -> None:
    code = (
        "import ctypes, torch\n"
        "def no(*_): raise SystemExit('imported with a side effect')\n"
        "ctypes.CDLL.__init__ = torch.cuda.is_available = torch.cuda.device_count = no\n"
        "import qarvd.ops.cuda.device, qarvd.ops.backend, qarvd.cli.doctor\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_table_says_for_every_op_what_torch_will_run() -> None:
    table = backend.who_runs(torch.device("cpu"))
    assert set(table) == {
        "quantize_activation", "dual_scale_linear w4a8", "dual_scale_linear w8a8", "kv_append", "kv_attention"
    }  # fmt: skip
    for op, standings in table.items():
        chosen = next(standing for standing in standings if standing.refusal is None)
        assert standings[-1] == ("reference", None)
        if not op.startswith("dual"):
            own = torch._C._dispatch_has_kernel_for_dispatch_key(f"qarvd::{op}", "CPU")
            assert chosen.backend == ("cpu" if own else "reference")
            assert standings[0] == ("cuda", "the tensors are on cpu")
    for op, standings in backend.who_runs(torch.device("meta")).items():
        willing = [standing.backend for standing in standings if standing.refusal is None]
        assert willing == (["weight-only", "reference"] if op.startswith("dual") else ["reference"])
