"""CUDA's run-time compiler through ctypes: source in, cubin out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from importlib.util import find_spec
from pathlib import Path

import torch

from ...errors import DeviceError
from .cubins import Cubin
from .find import Candidate, candidates
from .source import OPTIONS, Source

_STRINGS = POINTER(c_char_p)
_SIGNATURES: dict[str, Sequence[type]] = {
    "nvrtcVersion": (POINTER(c_int), POINTER(c_int)),
    "nvrtcGetNumSupportedArchs": (POINTER(c_int),),
    "nvrtcGetSupportedArchs": (POINTER(c_int),),
    "nvrtcCreateProgram": (POINTER(c_void_p), c_char_p, c_char_p, c_int, _STRINGS, _STRINGS),
    "nvrtcCompileProgram": (c_void_p, c_int, _STRINGS),
    "nvrtcDestroyProgram": (POINTER(c_void_p),),
    "nvrtcGetProgramLogSize": (c_void_p, POINTER(c_size_t)),
    "nvrtcGetProgramLog": (c_void_p, c_char_p),
    "nvrtcGetCUBINSize": (c_void_p, POINTER(c_size_t)),
    "nvrtcGetCUBIN": (c_void_p, c_char_p),
}
_COMPILATION = 6
"""The error that means: read the log."""


class Nvrtc:
    """One loaded NVRTC. Raises DeviceError when it, or the built-ins it needs, can't be loaded."""

    def __init__(self, candidate: Candidate) -> None:
        try:
            if candidate.builtins:
                self._builtins = ctypes.CDLL(candidate.builtins)
            self._library = ctypes.CDLL(candidate.library)
            for name, arguments in _SIGNATURES.items():
                getattr(self._library, name).argtypes = arguments
        except (OSError, AttributeError) as error:
            raise DeviceError(f"{candidate.library} can't be used ({error}).") from error
        self._library.nvrtcGetErrorString.restype = c_char_p
        self.path = candidate.library
        major, minor = c_int(), c_int()
        self._call("nvrtcVersion", byref(major), byref(minor))
        self.version = (major.value, minor.value)
        count = c_int()
        self._call("nvrtcGetNumSupportedArchs", byref(count))
        known = (c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        self.architectures = frozenset(f"sm_{number}" for number in known)

    @property
    def name(self) -> str:
        return f"NVRTC {self.version[0]}.{self.version[1]}"

    def compile(self, source: Source, architecture: str) -> Cubin:
        """Compile for exactly `architecture`, such as sm_86. Raises DeviceError with the first lines of the log."""
        headers = source.headers
        program = c_void_p()
        self._call(
            "nvrtcCreateProgram",
            byref(program),
            source.files[source.main].encode(),
            source.main.encode(),
            len(headers),
            _strings(headers.values()),
            _strings(headers),
        )
        try:
            options = (f"--gpu-architecture={architecture}", *OPTIONS)
            code = self._library.nvrtcCompileProgram(program, len(options), _strings(options))
            if code:
                raise DeviceError(
                    f"{self.name} can't compile the kernels for {architecture}: {self._why(code, program)}"
                )
            image = self._bytes("nvrtcGetCUBIN", program)
        finally:
            self._call("nvrtcDestroyProgram", byref(program))
        return Cubin(architecture, source.hash, self.name, image)

    def _why(self, code: int, program: c_void_p) -> str:
        if code != _COMPILATION:
            return f"{self._error(code)}."
        log = self._bytes("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace")
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        start = next((i for i, line in enumerate(lines) if "error" in line), 0)
        return " / ".join(lines[start : start + 3])

    def _bytes(self, getter: str, program: c_void_p) -> bytes:
        size = c_size_t()
        self._call(f"{getter}Size", program, byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(getter, program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise DeviceError(f"{name} of {self.path} failed: {self._error(code)}.")

    def _error(self, code: int) -> str:
        return (self._library.nvrtcGetErrorString(code) or b"unknown error").decode()


def _strings(texts: Iterable[str]) -> ctypes.Array[c_char_p]:
    encoded = [text.encode() for text in texts]
    return (c_char_p * len(encoded))(*encoded)


def installed() -> list[Candidate]:
    """What there is to try on this machine, for this torch."""
    spec = find_spec("nvidia")
    packages = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    return candidates(sys.platform, Path(torch.__file__).parent / "lib", packages, torch.version.cuda)


def open_first(tried: Iterable[Candidate]) -> Nvrtc | str:
    """The first that loads, or why there is none."""
    why = []
    for candidate in tried:
        try:
            return Nvrtc(candidate)
        except DeviceError as error:
            if Path(candidate.library).is_absolute():  # that a bare name is unknown to the system is no news
                why.append(str(error).rstrip("."))
    return "; ".join(why) or "NVRTC is neither with torch, nor in the nvidia packages, nor on the system's path"
