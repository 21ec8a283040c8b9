"""CUDA's run-time compiler through ctypes, source in, cubin out; and where it may lie on a machine."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from ...errors import DeviceError
from .cubins import Cubin
from .source import OPTIONS, Source


class Candidate(NamedTuple):
    """A library to try. NVRTC looks for its built-ins by name only, so by path they must be loaded before it."""

    library: str
    """A path, or a bare name for the system's loader."""
    builtins: str | None
    major: int | None
    """Version of CUDA, where the name tells."""


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


PACKAGED = ("cuda_nvrtc/lib", "cuda_nvrtc/bin", "cu[0-9]*/lib", "cu[0-9]*/bin/x86_64", "cu[0-9]*/bin")
"""Folders of the `nvidia` packages of CUDA 12 and of later versions, on Linux and Windows."""


class _Names(NamedTuple):
    library: re.Pattern[str]
    builtins: re.Pattern[str]
    bare: str


_LINUX = _Names(
    re.compile(r"libnvrtc(?:-[0-9a-f]+)?\.so(?:\.(?P<major>\d+)[.\d]*)?"),
    re.compile(r"libnvrtc-builtins(?:-[0-9a-f]+)?\.so\.(?P<major>\d+)(?:\.(?P<minor>\d+))?[.\d]*"),
    "libnvrtc.so.{}",
)
_WINDOWS = _Names(
    re.compile(r"nvrtc64_(?P<major>\d+)\d_\d+\.dll"),
    re.compile(r"nvrtc-builtins64_(?P<major>\d+)(?P<minor>\d)\.dll"),
    "nvrtc64_{}0_0.dll",
)
_SYSTEM = (13, 12)


def candidates(
    platform: str, torch_lib: Path, packages: Sequence[Path] = (), cuda: str | None = None
) -> list[Candidate]:
    """All there is to try, best first.

    `platform` is that of `sys.platform`, `torch_lib` the folder of torch's own libraries, `packages` the places of the
    `nvidia` namespace, `cuda` the version torch was built for: what is of another major version comes last, since the
    driver might not load what it makes.
    """
    names = _WINDOWS if platform == "win32" else _LINUX
    folders = [torch_lib, *(folder for root in packages for where in PACKAGED for folder in _newest(root, where))]
    found = [candidate for folder in folders for candidate in _within(folder, names)]
    found += [Candidate(names.bare.format(major), None, major) for major in _SYSTEM]
    wanted = int(cuda.split(".")[0]) if cuda else None
    return sorted(found, key=lambda c: wanted is not None and c.major is not None and c.major != wanted)


def _newest(root: Path, where: str) -> list[Path]:
    return sorted(root.glob(where), reverse=True)


def _within(folder: Path, names: _Names) -> Iterator[Candidate]:
    """Candidates in one folder, newest first."""
    listed = sorted(path.name for path in folder.glob("*nvrtc*"))
    libraries = [(_number(m["major"]), m[0]) for m in map(names.library.fullmatch, listed) if m]
    builtins = [(int(m["major"]), _number(m["minor"]), m[0]) for m in map(names.builtins.fullmatch, listed) if m]
    for major, name in sorted(libraries, reverse=True):
        fitting = [b[-1] for b in sorted(builtins, reverse=True) if major < 0 or b[0] == major]
        path = str(folder / fitting[0]) if fitting else None
        yield Candidate(str(folder / name), path, None if major < 0 else major)


def _number(text: str | None) -> int:
    return -1 if text is None else int(text)


def installed() -> list[Candidate]:
    """What there is to try on this machine, for this torch."""
    spec = find_spec("nvidia")
    packages = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    return candidates(sys.platform, Path(torch.__file__).parent / "lib", packages, torch.version.cuda)


def open_each(tried: Iterable[Candidate]) -> Iterator[Nvrtc | str]:
    """Each that loads, and why the others don't; each is loaded when it is asked for."""
    nothing = True
    for candidate in tried:
        try:
            found = Nvrtc(candidate)
        except DeviceError as error:
            if not Path(candidate.library).is_absolute():
                continue  # that a bare name is unknown to the system is no news
            found = str(error).rstrip(".")
        nothing = False
        yield found
    if nothing:
        yield "NVRTC is neither with torch, nor in the nvidia packages, nor on the system's path"


def open_first(tried: Iterable[Candidate]) -> Nvrtc | str:
    """The first that loads, or why there is none."""
    why = []
    for found in open_each(tried):
        if isinstance(found, Nvrtc):
            return found
        why.append(found)
    return "; ".join(why)
