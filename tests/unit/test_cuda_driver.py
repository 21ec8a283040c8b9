"""Kernels are loaded and launched through the driver as CUDA wants it, and its errors become sentences."""

from __future__ import annotations

import ctypes
import threading
import time
from ctypes import Structure, c_float, c_int, c_void_p
from pathlib import Path

import pytest

from qarvd.errors import DeviceError
from qarvd.ops.cuda.driver import Driver, DriverError, Launcher, library_name

from .fake_driver import FakeDriver, opened

IMAGE = b"\x7fELF image\0 of kernels"
MICROSECONDS = 20
"""What a launch may cost on a busy machine; on an idle one it is a tenth."""


class Arguments(Structure):
    _fields_ = [("pointer", c_void_p), ("count", c_int), ("scale", c_float)]


@pytest.fixture
def fake(fake_libcuda: Path) -> FakeDriver:
    fake = opened(str(fake_libcuda))
    fake.library.fake_argument_bytes(ctypes.sizeof(Arguments))
    return fake


@pytest.fixture
def driver(fake: FakeDriver) -> Driver:
    return Driver(fake.path)


def test_a_module_is_loaded_in_the_context_that_torch_uses_and_the_former_one_comes_back(
    fake: FakeDriver, driver: Driver
) -> None:
    assert driver.version == (12, 9)
    fake.lines()
    Launcher(driver, 3, IMAGE)
    assert fake.lines() == [
        "cuDeviceGet 3",
        "cuDevicePrimaryCtxRetain 3",
        "cuCtxPushCurrent 0x103",
        "cuModuleLoadData in 0x103: \x7fELF imag",
        "cuCtxPopCurrent",
    ]
    assert fake.library.fake_depth() == 0


def test_preparing_does_all_that_may_allocate_and_only_once(fake: FakeDriver, driver: Driver) -> None:
    launcher = Launcher(driver, 0, IMAGE)
    fake.lines()
    launcher.prepare("linear", 65536)
    assert fake.lines() == [
        "cuCtxPushCurrent 0x100",
        "cuModuleGetFunction in 0x100: 0x200 linear",
        "cuFuncSetAttribute in 0x100: 0x306 8 65536",
        "cuFuncLoad in 0x100: 0x306",
        "cuCtxPopCurrent",
    ]
    launcher.prepare("linear", 65536)
    launcher.prepare("linear", 1024)
    assert fake.lines() == []
    launcher.prepare("linear", 98304)
    assert "cuFuncSetAttribute in 0x100: 0x306 8 98304" in fake.lines()


def test_a_launch_passes_one_struct_by_value_on_the_stream_and_allocates_nothing(
    fake: FakeDriver, driver: Driver
) -> None:
    launcher = Launcher(driver, 1, IMAGE)
    launcher.prepare("append", 0)
    fake.lines()
    arguments = Arguments(0x1122334455667788, 7, 1.0)
    launcher.launch("append", (5, 4, 3), 128, 2048, arguments, 0x7FFF12345678)
    assert fake.lines() == [
        "cuCtxPushCurrent 0x101",
        "cuLaunchKernel in 0x101: 0x306 grid 5 4 3 block 128 1 1 shared 2048 stream 0x7fff12345678 extra (nil) "
        "bytes 8877665544332211070000000000803f",
        "cuCtxPopCurrent",
    ]


def test_each_device_has_its_module_and_any_thread_may_launch(fake: FakeDriver, driver: Driver) -> None:
    launchers = [Launcher(driver, device, IMAGE) for device in (0, 1)]
    for launcher in launchers:
        launcher.prepare("k", 0)
    fake.lines()

    def launch() -> None:
        for launcher in launchers:
            launcher.launch("k", (1, 1, 1), 32, 0, Arguments(), 0)

    threads = [threading.Thread(target=launch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    launched = [line.split(":")[0] for line in fake.lines() if line.startswith("cuLaunchKernel")]
    assert sorted(launched) == ["cuLaunchKernel in 0x100"] * 4 + ["cuLaunchKernel in 0x101"] * 4


@pytest.mark.parametrize(
    ("function", "doing"),
    [
        ("cuDeviceGet", "find device 0"),
        ("cuDevicePrimaryCtxRetain", "open torch's context on device 0"),
        ("cuCtxPushCurrent", "enter torch's context"),
        ("cuModuleLoadData", "load the kernels on device 0"),
    ],
)
def test_an_error_while_loading_is_a_sentence_and_leaves_the_context_as_it_was(
    fake: FakeDriver, driver: Driver, function: str, doing: str
) -> None:
    fake.fail(function, 209)
    with pytest.raises(DeviceError) as error:
        Launcher(driver, 0, IMAGE)
    assert str(error.value) == (
        f"The CUDA driver could not {doing}: no kernel image is available for execution on the device "
        "(CUDA_ERROR_NO_BINARY_FOR_GPU, 209)."
    )
    assert fake.library.fake_depth() == 0


@pytest.mark.parametrize("function", ["cuModuleGetFunction", "cuFuncSetAttribute", "cuFuncLoad"])
def test_a_kernel_that_could_not_be_prepared_is_not_there(fake: FakeDriver, driver: Driver, function: str) -> None:
    launcher = Launcher(driver, 0, IMAGE)
    fake.fail(function, 1)
    with pytest.raises(DeviceError, match=r"kernel linear.*invalid argument \(CUDA_ERROR_INVALID_VALUE, 1\)"):
        launcher.prepare("linear", 1 << 20)
    assert fake.library.fake_depth() == 0
    with pytest.raises(KeyError):
        launcher.launch("linear", (1, 1, 1), 32, 0, Arguments(), 0)
    fake.fail(function, 0)
    fake.lines()
    launcher.prepare("linear", 0)
    assert fake.lines()


def test_an_error_at_launch_names_the_kernel_and_leaves_the_context_as_it_was(fake: FakeDriver, driver: Driver) -> None:
    launcher = Launcher(driver, 0, IMAGE)
    launcher.prepare("linear", 0)
    for function in ("cuLaunchKernel", "cuCtxPushCurrent"):
        fake.library.fake_reset(0)
        fake.fail(function, 1)
        with pytest.raises(DeviceError, match=r"launch linear \(grid \(1, 2, 3\), 32 threads, 64 bytes shared\)"):
            launcher.launch("linear", (1, 2, 3), 32, 64, Arguments(), 0)
        assert fake.library.fake_depth() == 0


def test_a_module_that_is_not_going_to_be_used_is_unloaded_where_it_lies(fake: FakeDriver, driver: Driver) -> None:
    launcher = Launcher(driver, 2, IMAGE)
    launcher.prepare("linear", 0)
    fake.lines()
    launcher.unload()
    assert fake.lines() == ["cuCtxPushCurrent 0x102", "cuModuleUnload in 0x102: 0x200", "cuCtxPopCurrent"]
    with pytest.raises(KeyError):
        launcher.launch("linear", (1, 1, 1), 32, 0, Arguments(), 0)


@pytest.mark.parametrize(
    ("code", "passes", "lost"),
    [
        (2, True, False),
        (46, True, False),
        (802, True, False),
        (209, False, False),
        (1, False, False),
        (716, False, True),
    ],
)
def test_an_error_tells_whether_it_may_pass_and_whether_the_card_is_lost(
    driver: Driver, code: int, passes: bool, lost: bool
) -> None:
    with pytest.raises(DriverError) as error:
        driver.check(code, "do it")
    assert (error.value.code, error.value.passes, error.value.lost) == (code, passes, lost)
    assert str(error.value) == f"The CUDA driver could not {error.value.reason}."
    assert str(error.value).endswith(" only a new process can use the card again.") == lost


def test_an_error_that_the_driver_cannot_name_keeps_its_number(driver: Driver) -> None:
    with pytest.raises(DeviceError, match=r"unknown error \(code, 999\)"):
        driver.check(999, "do it")


def test_a_missing_an_old_and_a_failing_driver_are_said(fake: FakeDriver, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="install the driver"):
        Driver(str(tmp_path / "libcuda.so.1"))
    with pytest.raises(DeviceError, match="update the driver"):
        Driver("libm.so.6")
    fake.fail("cuInit", 1)
    with pytest.raises(DeviceError, match="could not start: invalid argument"):
        Driver(fake.path)


def test_the_driver_has_another_name_on_windows() -> None:
    assert (library_name("linux"), library_name("win32")) == ("libcuda.so.1", "nvcuda.dll")


def test_a_launch_costs_the_cpu_little(fake: FakeDriver, driver: Driver) -> None:
    launcher = Launcher(driver, 0, IMAGE)
    launcher.prepare("linear", 0)
    fake.library.fake_reset(1)
    arguments, count, best = Arguments(1, 2, 3), 2000, float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            launcher.launch("linear", (12, 8, 1), 256, 49152, arguments, 94_000_000_000)
        best = min(best, (time.perf_counter() - start) / count)
    print(f"{best * 1e6:.2f} microseconds a launch")
    assert best < MICROSECONDS * 1e-6
