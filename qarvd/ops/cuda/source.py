"""The CUDA source as data: the files of `csrc`, how they are compiled, and a hash of both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...errors import DeviceError

FOLDER = Path(__file__).parents[2] / "csrc"
MAIN = "kernels.cu"
"""The file that includes all others and defines the kernels."""
OPTIONS = ("--std=c++17", "--fmad=false")
"""No fused multiply-add and no fast math: kernels equal the reference bit for bit."""


@dataclass(frozen=True)
class Source:
    """Texts of all files by name; every name in them is found among them, no header comes from elsewhere."""

    files: Mapping[str, str]
    main: str = MAIN

    @property
    def headers(self) -> dict[str, str]:
        """All files but the main one, in a fixed order."""
        return {name: self.files[name] for name in sorted(self.files) if name != self.main}

    @cached_property
    def hash(self) -> str:
        """Changes with any file, its name, and any option."""
        parts = [*OPTIONS, self.main, *(part for name in sorted(self.files) for part in (name, self.files[name]))]
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def read(folder: Path = FOLDER) -> Source:
    """Read `folder`; line ends of any system count as the same. Raises DeviceError where the main file is missing."""
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.cu*") if path.is_file()}
    if MAIN not in files:
        raise DeviceError(f"{folder} holds no {MAIN}: the CUDA source is not part of this installation.")
    return Source(files)
