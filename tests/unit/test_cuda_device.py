"""A card gets the first kernels that its driver takes, else every reason, once for the process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qarvd.errors import DeviceError
from qarvd.ops.cuda import cache, device
from qarvd.ops.cuda.cubins import Cubin
from qarvd.ops.cuda.source import read

from .fake_card import CARD, SOURCE, FakeNvrtc, Machine, origin

NO_IMAGE = "no kernel image is available for execution on the device (CUDA_ERROR_NO_BINARY_FOR_GPU, 209)"


def test_each_card_is_loaded_once_for_the_process(machine: Machine) -> None:
    assert device.refuses(CARD) is None
    loaded = device.load(CARD)
    assert origin(loaded) == "prebuilt for sm_86 with NVRTC 12.9"
    assert isinstance(loaded, device.Loaded) and device.launcher(CARD) is loaded.launcher
    other = device.launcher(torch.device("cuda"))
    assert other is device.launcher(torch.device("cuda", 1)) and other is not loaded.launcher
    machine.driver.lines()
    assert device.load(CARD) is loaded and machine.driver.lines() == []


@pytest.mark.parametrize("turing", [False, True])
def test_a_loaded_card_has_every_kernel_ready(machine: Machine, turing: bool) -> None:
    """What an op would load at its first call could not be captured in a CUDA graph."""
    if turing:
        machine.capability, machine.compilers = (7, 5), (FakeNvrtc(known="sm_75"),)
    names = set(re.findall(r"qarvd_\w+", read().files["kernels.cu"]))
    expected = {name for name in names if not (turing and "bf16" in name)}
    assert set(device.launcher(CARD)._limits) == expected
    assert len(expected) == (14 if turing else 18)


def test_a_refused_prebuilt_module_leads_to_a_compiler_and_both_are_told(machine: Machine, tmp_path: Path) -> None:
    machine.driver.refuse(b"prebuilt", 209)
    machine.compilers, said = (FakeNvrtc((11, 8)),), []
    loaded = device.load(CARD, tmp_path / "kept", said.append)
    assert origin(loaded) == (
        f"compiled for sm_86 with NVRTC 11.8, kept in {tmp_path / 'kept'} (prebuilt for sm_86 with NVRTC 12.9, but the "
        f"driver could not load the kernels on device 0: {NO_IMAGE})"
    )
    assert len(said) == 1
    assert cache.get(tmp_path / "kept", SOURCE.hash, "sm_86", "NVRTC 11.8") is not None


def test_kernels_that_cannot_be_kept_run_all_the_same(machine: Machine, tmp_path: Path) -> None:
    machine.capability, machine.compilers = (8, 7), (FakeNvrtc(),)
    (tmp_path / "file").touch()
    assert "compiled for sm_87 with NVRTC 12.9, not kept: The folder" in origin(
        device.load(CARD, tmp_path / "file" / "cache")
    )
    assert "compiled for sm_87 with NVRTC 12.9, not kept (no kernels are" in origin(
        device.load(torch.device("cuda", 1))
    )


def test_an_op_that_compiles_says_so_and_keeps_the_result_where_the_program_said(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In ComfyUI it is an op that comes first; without either, every start would freeze for a minute, in silence."""
    machine.capability, machine.compilers = (8, 7), (FakeNvrtc(),)
    device.keep_in(tmp_path / "kept")
    assert device.refuses(CARD) is None
    assert [record.message for record in caplog.records] == [
        "Compiling the CUDA kernels for sm_87, which takes up to a minute and is done once."
    ]
    device.keep_in(None)
    assert "compiled earlier for sm_87" in origin(device.load(torch.device("cuda", 1), tmp_path / "kept"))
    monkeypatch.setattr(device, "_cards", {})
    assert "not kept" in origin(device.load(CARD))


def test_a_refused_kept_module_is_replaced(machine: Machine, tmp_path: Path) -> None:
    machine.capability, machine.compilers = (8, 7), (FakeNvrtc(),)
    cache.put(tmp_path, Cubin("sm_87", SOURCE.hash, "NVRTC 12.9", b"kept"))
    machine.driver.refuse(b"kept", 209)
    assert "compiled earlier for sm_87 with NVRTC 12.9, but the driver could not" in origin(device.load(CARD, tmp_path))
    now = cache.get(tmp_path, SOURCE.hash, "sm_87", "NVRTC 12.9")
    assert now is not None and now.image == b"compiled by 12.9"


def test_a_module_without_one_of_the_kernels_is_refused_too_and_unloaded(machine: Machine) -> None:
    machine.driver.fail("cuFuncSetAttribute", 1)
    reason = device.refuses(CARD)
    assert reason is not None and reason.startswith(
        "prebuilt for sm_86 with NVRTC 12.9, but the driver could not give the kernel qarvd_quantize_activation 0 bytes"
    )
    assert machine.driver.asked("cuModule")[-1] == "cuModuleUnload in 0x100: 0x200"


def test_where_no_kernels_can_be_had_every_reason_is_said_and_the_card_is_not_asked_again(machine: Machine) -> None:
    machine.driver.refuse(b"prebuilt", 209)
    machine.driver.refuse(b"compiled by 12.4", 209)
    machine.compilers = ("a.so can't be used", FakeNvrtc((12, 4)), FakeNvrtc((13, 0), "sm_90"))
    reason = device.refuses(CARD)
    assert reason == (
        f"prebuilt for sm_86 with NVRTC 12.9, but the driver could not load the kernels on device 0: {NO_IMAGE}; "
        "a.so can't be used; "
        f"compiled for sm_86 with NVRTC 12.4, but the driver could not load the kernels on device 0: {NO_IMAGE}; "
        "NVRTC 13.0 of libnvrtc.so.13 does not know sm_86"
    )
    assert not isinstance(reason, device.ForNow)
    machine.driver.library.fake_reset(0)
    machine.now += 1000
    assert device.refuses(CARD) == reason and machine.driver.lines() == []
    with pytest.raises(DeviceError, match="can't run on cuda:0: prebuilt for sm_86"):
        device.launcher(CARD)


def test_a_driver_that_cannot_be_opened_is_not_opened_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DeviceError("The driver is out to lunch.")

    monkeypatch.setattr(device, "Driver", fail)
    assert device.refuses(CARD) == "The driver is out to lunch"
    monkeypatch.setattr(device, "Driver", lambda: pytest.fail("asked again"))
    assert device.refuses(CARD) == "The driver is out to lunch"


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
        "import qarvd.ops.cuda.device, qarvd.ops.backends.registry, qarvd.cli.doctor\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
