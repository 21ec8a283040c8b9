"""The CUDA driver through ctypes: load a module where torch works, and launch kernels that take one struct."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Sequence
from ctypes import POINTER, addressof, byref, c_char_p, c_int, c_uint, c_void_p

from ...errors import DeviceError

_HANDLE = POINTER(c_void_p)
_SIGNATURES: dict[str, Sequence[type]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (_HANDLE, c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (_HANDLE,),
    "cuModuleLoadData": (_HANDLE, c_char_p),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (_HANDLE, c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p),
}
_MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"""
_ONE_POINTER = c_void_p * 1

OUT_OF_MEMORY = 2
_PASSING = frozenset(
    (
        OUT_OF_MEMORY,
        46,  # another process has the card to itself
        802,  # the system is still starting
        *range(805, 810),  # the service that shares the card among processes can't be reached, or is full
        *(900, 901, 906),  # a CUDA graph is being captured
    )
)
"""Errors that a later try may not meet."""
_LOST = frozenset((214, 220, 700, 702, 710, *range(714, 720), 721))
"""Errors of work that was queued before; CUDA gives them for whatever is asked next, until the process ends."""


class DriverError(DeviceError):
    """The driver refused; `code` is CUDA's number, `reason` what it could not do and why, without a full stop."""

    def __init__(self, code: int, reason: str) -> None:
        if code in _LOST:
            reason += "; earlier work on the card failed, and only a new process can use the card again"
        super().__init__(f"The CUDA driver could not {reason}.")
        self.code, self.reason = code, reason

    @property
    def passes(self) -> bool:
        """Whether a later try may succeed."""
        return self.code in _PASSING

    @property
    def lost(self) -> bool:
        """Whether this process can do nothing more with the card."""
        return self.code in _LOST


def library_name(platform: str) -> str:
    """What the driver's library is called; `platform` as in `sys.platform`."""
    return "nvcuda.dll" if platform == "win32" else "libcuda.so.1"


class Driver:
    """The loaded driver. Raises DeviceError where there is none or it can't start."""

    def __init__(self, library: str | None = None) -> None:
        name = library or library_name(sys.platform)
        try:
            self.library = ctypes.CDLL(name)
            for function, arguments in _SIGNATURES.items():
                getattr(self.library, function).argtypes = arguments
        except OSError as error:
            raise DeviceError(f"The NVIDIA driver's {name} can't be loaded ({error}); install the driver.") from error
        except AttributeError as error:
            raise DeviceError(f"The NVIDIA driver's {name} is too old ({error}); update the driver.") from error
        self.check(self.library.cuInit(0), "start")

    @property
    def version(self) -> tuple[int, int]:
        """The newest CUDA that the driver supports."""
        number = c_int()
        self.check(self.library.cuDriverGetVersion(byref(number)), "tell its version")
        return number.value // 1000, number.value % 1000 // 10

    def check(self, code: int, doing: str) -> None:
        """Turn an error code into DriverError: "The CUDA driver could not `doing`: ..."."""
        if code:
            name, said = c_char_p(), c_char_p()
            self.library.cuGetErrorName(code, byref(name))
            self.library.cuGetErrorString(code, byref(said))
            words = f"{(said.value or b'unknown error').decode()} ({(name.value or b'code').decode()}, {code})"
            raise DriverError(code, f"{doing}: {words}")


class Launcher:
    """The kernels of one module on one device, in the context that torch uses there."""

    def __init__(self, driver: Driver, device: int, image: bytes) -> None:
        """`device` counts as torch does. Raises DriverError if the driver refuses the module."""
        self._driver, library = driver, driver.library
        self._push, self._pop, self._launch = (
            library.cuCtxPushCurrent_v2,
            library.cuCtxPopCurrent_v2,
            library.cuLaunchKernel,
        )
        self._functions: dict[str, c_void_p] = {}
        self._limits: dict[str, int] = {}
        self._lock = threading.Lock()
        self._popped = byref(c_void_p())  # written at each pop, never read
        number, self._context, self._module = c_int(), c_void_p(), c_void_p()
        driver.check(library.cuDeviceGet(byref(number), device), f"find device {device}")
        driver.check(
            library.cuDevicePrimaryCtxRetain(byref(self._context), number), f"open torch's context on device {device}"
        )
        self._image = image
        with _Pushed(self):
            driver.check(library.cuModuleLoadData(byref(self._module), image), f"load the kernels on device {device}")

    def unload(self) -> None:
        """Give the module's memory back. Nothing may have been launched; nothing can be from now on."""
        with _Pushed(self):
            self._driver.library.cuModuleUnload(self._module)
        self._functions, self._limits = {}, {}

    def prepare(self, kernel: str, shared: int) -> None:
        """All that may allocate: find `kernel`, let it have `shared` bytes of dynamic shared memory, load its code.

        Must have run before `launch`, and outside of the capture of a CUDA graph. Raises DriverError for an unknown
        kernel and for more shared memory than the card has.
        """
        if kernel in self._functions and shared <= self._limits[kernel]:
            return
        library, check = self._driver.library, self._driver.check
        with self._lock, _Pushed(self):
            function = c_void_p()
            check(
                library.cuModuleGetFunction(byref(function), self._module, kernel.encode()),
                f"find the kernel {kernel}",
            )
            limit = max(shared, self._limits.get(kernel, 0))
            check(
                library.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, limit),
                f"give the kernel {kernel} {limit} bytes of shared memory",
            )
            if hasattr(library, "cuFuncLoad"):  # since CUDA 12.4; earlier the attribute's change loads it
                check(library.cuFuncLoad(function), f"load the kernel {kernel}")
            self._limits[kernel] = limit
            self._functions[kernel] = function

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        shared: int,
        arguments: ctypes.Structure,
        stream: int,
    ) -> None:
        """Queue a prepared `kernel` on `stream` (torch's `cuda_stream`); `arguments` are copied before this returns.

        `block` is in threads, `shared` in bytes. Raises DriverError with the driver's reason.
        """
        function = self._functions[kernel]
        pointers = _ONE_POINTER(addressof(arguments))
        code = self._push(self._context)
        if not code:
            code = self._launch(function, *grid, block, 1, 1, shared, stream, pointers, None)
            self._pop(self._popped)
        if code:
            self._driver.check(code, f"launch {kernel} (grid {grid}, {block} threads, {shared} bytes shared)")


class _Pushed:
    """Make a launcher's context the current one, and the former one again afterwards."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def __enter__(self) -> None:
        self._launcher._driver.check(self._launcher._push(self._launcher._context), "enter torch's context")

    def __exit__(self, *_: object) -> None:
        self._launcher._pop(self._launcher._popped)
