"""A card gets the first kernels that its driver takes, else every reason; what may pass is tried again."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from qarvd.errors import DeviceError
from qarvd.ops.backends import registry
from qarvd.ops.cuda import cache, device
from qarvd.ops.cuda.cubins import Cubin
from qarvd.ops.cuda.driver import Driver
from qarvd.ops.cuda.nvrtc import Nvrtc
from qarvd.ops.cuda.offers import Offer, keep, offers
from qarvd.ops.cuda.source import Source, read

from .fake_driver import FakeDriver, opened

SOURCE = Source({"kernels.cu": "the kernels"})
PREBUILT = Cubin("sm_86", SOURCE.hash, "NVRTC 12.9", b"prebuilt")
NO_IMAGE = "no kernel image is available for execution on the device (CUDA_ERROR_NO_BINARY_FOR_GPU, 209)"
FULL = "The CUDA driver could not load the kernels on device 0: out of memory (CUDA_ERROR_OUT_OF_MEMORY, 2)"


@pytest.fixture(autouse=True)
def kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an earlier run of the command line said."""
    monkeypatch.setattr(device, "_folder", [])


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


def offered(
    capability: tuple[int, int],
    prebuilt: Path,
    *found: Nvrtc | str,
    folder: Path | None = None,
    said: list[str] | None = None,
) -> list[Offer | str]:
    """Everything, where each is refused."""
    said = [] if said is None else said
    return list(offers(capability, folder, said.append, SOURCE, prebuilt, lambda: iter(found)))


def test_prebuilt_kernels_come_first_and_nothing_looks_for_a_compiler_before_they_are_refused(prebuilt: Path) -> None:
    found = offers((8, 6), None, pytest.fail, SOURCE, prebuilt, lambda: pytest.fail("looked for NVRTC"))
    assert next(found) == Offer(PREBUILT, "prebuilt for sm_86 with NVRTC 12.9")
    with pytest.raises(pytest.fail.Exception, match="looked for NVRTC"):
        next(found)


def test_what_is_not_prebuilt_is_compiled_and_that_is_said_before(prebuilt: Path) -> None:
    said: list[str] = []
    assert offered((8, 7), prebuilt, FakeNvrtc(), said=said) == [
        "no kernels are prebuilt for compute capability 8.7",
        Offer(
            Cubin("sm_87", SOURCE.hash, "NVRTC 12.9", b"compiled by 12.9"), "compiled for sm_87 with NVRTC 12.9", True
        ),
    ]
    assert said == ["Compiling the CUDA kernels for sm_87, which takes up to a minute and is done once."]


def test_what_was_kept_comes_before_the_compiler_is_asked_again(prebuilt: Path, tmp_path: Path) -> None:
    compiler, folder = FakeNvrtc(), tmp_path / "cache"
    made = offered((8, 7), prebuilt, compiler)[-1]
    assert isinstance(made, Offer) and keep(folder, made.cubin) == f"kept in {folder}"
    found = offers((8, 7), folder, pytest.fail, SOURCE, prebuilt, lambda: iter([compiler]))
    assert list(islice(found, 2))[1] == Offer(made.cubin, "compiled earlier for sm_87 with NVRTC 12.9")
    assert compiler.compiled == 1


@pytest.mark.parametrize("of_now", [b"compiled by 12.9", b"compiled by another 12.9"])
def test_kept_kernels_that_are_refused_are_compiled_again_and_offered_if_they_differ(
    prebuilt: Path, tmp_path: Path, of_now: bytes
) -> None:
    kept = Cubin("sm_87", SOURCE.hash, "NVRTC 12.9", of_now)
    cache.put(tmp_path / "cache", kept)
    compiler = FakeNvrtc()
    found = [x for x in offered((8, 7), prebuilt, compiler, folder=tmp_path / "cache") if isinstance(x, Offer)]
    assert found[0].cubin == kept and compiler.compiled == 1
    assert [(x.cubin.image, x.new) for x in found[1:]] == (
        [] if of_now == b"compiled by 12.9" else [(b"compiled by 12.9", True)]
    )


def test_a_damaged_cache_entry_and_another_version_of_the_compiler_compile_again(
    prebuilt: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    cache.put(folder, FakeNvrtc().compile(SOURCE, "sm_87"))
    _, newer = offered((8, 7), prebuilt, FakeNvrtc((13, 0)), folder=folder)
    assert isinstance(newer, Offer) and newer.new and newer.cubin.compiler == "NVRTC 13.0"
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    _, again = offered((8, 7), prebuilt, FakeNvrtc(), folder=folder)
    assert isinstance(again, Offer) and again.new


def test_stale_prebuilt_kernels_are_compiled_for_the_very_card(prebuilt: Path) -> None:
    (prebuilt / "sm_86.xz").write_bytes(replace(PREBUILT, source="0" * 64).pack())
    why, made = offered((8, 6), prebuilt, FakeNvrtc())
    assert why == "the prebuilt sm_86.xz was made from another source"
    assert isinstance(made, Offer) and made.cubin.architecture == "sm_86"


def test_a_compiler_that_cannot_serve_the_card_gives_way_to_the_next(prebuilt: Path) -> None:
    broken = FakeNvrtc((12, 4), trouble="NVRTC_ERROR_BUILTIN_OPERATION_FAILURE.")
    same = FakeNvrtc((12, 9))
    *why, made = offered((8, 7), prebuilt, "a.so can't be used", FakeNvrtc((11, 2), "sm_80"), broken, FakeNvrtc(), same)
    assert why[1:] == [
        "a.so can't be used",
        "NVRTC 11.2 of libnvrtc.so.11 does not know sm_87",
        "NVRTC 12.4 can't compile the kernels for sm_87: NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
    ]
    assert isinstance(made, Offer) and made.origin == "compiled for sm_87 with NVRTC 12.9"
    assert same.compiled == 0, "the same version would make the same kernels"


def test_a_card_that_is_too_old_is_told_so(prebuilt: Path) -> None:
    with pytest.raises(DeviceError, match=r"compute capability 7\.0 are too old; the kernels need 7\.5"):
        offered((7, 0), prebuilt, FakeNvrtc())


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
    assert len(expected) == (10 if turing else 14)


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
    monkeypatch.setattr(device, "_folder", [])
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


@pytest.mark.parametrize("full", ["cuDevicePrimaryCtxRetain", "cuModuleLoadData", "cuFuncLoad"])
def test_memory_that_torch_holds_for_later_is_given_back_before_a_card_counts_as_full(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    machine.driver.fail(full, 2)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: machine.driver.fail(full, 0))
    assert device.refuses(CARD) is None
    modules = machine.driver.asked("cuModuleLoad", "cuModuleUnload")
    assert len(modules) == {"cuDevicePrimaryCtxRetain": 1, "cuModuleLoadData": 2, "cuFuncLoad": 3}[full]


def test_a_full_card_refuses_for_now_and_is_asked_again_after_a_pause(machine: Machine) -> None:
    machine.driver.fail("cuModuleLoadData", 2)
    machine.compilers = (FakeNvrtc(trouble="not to be asked"),)
    reason = device.refuses(CARD)
    assert reason == FULL and isinstance(reason, device.ForNow) and machine.emptied == 1
    machine.driver.lines()
    machine.driver.fail("cuModuleLoadData", 0)
    for _ in range(1000):  # a stream's calls, in less than the pause
        assert device.refuses(CARD) is reason
    assert machine.driver.lines() == [] and machine.emptied == 1
    machine.now += device.PAUSE
    assert origin(device.load(CARD)) == "prebuilt for sm_86 with NVRTC 12.9"


def test_a_card_that_stays_full_is_asked_once_a_pause(machine: Machine) -> None:
    machine.driver.fail("cuModuleLoadData", 2)
    for tried in range(1, 4):
        for _ in range(2):
            assert isinstance(device.refuses(CARD), device.ForNow)
        assert machine.emptied == tried
        machine.now += device.PAUSE


def test_what_was_compiled_for_a_full_card_is_not_compiled_again(machine: Machine) -> None:
    compiler = FakeNvrtc()
    machine.capability, machine.compilers = (8, 7), (compiler,)
    machine.driver.fail("cuFuncLoad", 2)
    assert isinstance(device.refuses(CARD), device.ForNow)
    machine.driver.fail("cuFuncLoad", 0)
    machine.now += device.PAUSE
    assert origin(device.load(CARD)) == (
        "compiled for sm_87 with NVRTC 12.9, not kept (no kernels are prebuilt for compute capability 8.7)"
    )
    assert compiler.compiled == 1


def test_a_full_card_keeps_nothing_of_what_was_loaded(machine: Machine) -> None:
    machine.driver.fail("cuFuncLoad", 2)
    assert isinstance(device.refuses(CARD), device.ForNow)
    modules = machine.driver.asked("cuModuleLoad", "cuModuleUnload")
    assert [line.split()[0] for line in modules] == ["cuModuleLoadData", "cuModuleUnload"] * 2
    assert machine.driver.library.fake_depth() == 0


@pytest.mark.parametrize(("function", "code"), [("cuInit", 802), ("cuModuleLoadData", 900), ("cuCtxPushCurrent", 46)])
def test_other_errors_that_may_pass_are_not_kept_either(machine: Machine, function: str, code: int) -> None:
    machine.driver.fail(function, code)
    assert isinstance(device.refuses(CARD), device.ForNow) and machine.emptied == 0
    machine.driver.fail(function, 0)
    machine.now += device.PAUSE
    assert device.refuses(CARD) is None


def test_nothing_is_loaded_while_a_graph_is_captured(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    reason = device.refuses(CARD)
    assert isinstance(reason, device.ForNow) and reason.startswith("a CUDA graph is being captured")
    assert machine.driver.lines() == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    loaded = device.load(CARD)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert device.load(CARD) is loaded


def test_a_card_that_is_lost_to_the_process_is_offered_nothing_more(machine: Machine) -> None:
    machine.driver.fail("cuModuleLoadData", 716)
    machine.compilers = (compiler := FakeNvrtc(),)
    assert device.refuses(CARD) == (
        "The CUDA driver could not load the kernels on device 0: misaligned address (CUDA_ERROR_MISALIGNED_ADDRESS, "
        "716); earlier work on the card failed, and only a new process can use the card again"
    )
    assert compiler.compiled == 0


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


def test_the_table_says_for_every_op_what_torch_will_run() -> None:
    table = registry.who_runs(torch.device("cpu"))
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
    for op, standings in registry.who_runs(torch.device("meta")).items():
        willing = [standing.backend for standing in standings if standing.refusal is None]
        assert willing == (["weight-only", "reference"] if op.startswith("dual") else ["reference"])
