"""Where NVRTC, CUDA's run-time compiler, may lie: with torch, in the `nvidia` packages, or where the system looks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGED = ("cuda_nvrtc/lib", "cuda_nvrtc/bin", "cu[0-9]*/lib", "cu[0-9]*/bin/x86_64", "cu[0-9]*/bin")
"""Folders of the `nvidia` packages of CUDA 12 and of later versions, on Linux and Windows."""


class Candidate(NamedTuple):
    """A library to try. NVRTC looks for its built-ins by name only, so by path they must be loaded before it."""

    library: str
    """A path, or a bare name for the system's loader."""
    builtins: str | None
    major: int | None
    """Version of CUDA, where the name tells."""


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
