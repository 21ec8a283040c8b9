"""Results below ComfyUI's output folder, found again by what they were made from, whatever became of the graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import folder_paths

from ..qarvd.errors import CheckpointError

T = TypeVar("T")


def folder(kind: str) -> Path:
    """Where results of one kind lie."""
    found = Path(folder_paths.get_output_directory(), "qarvd", kind)
    found.mkdir(parents=True, exist_ok=True)
    return found


def kept_at(kind: str, about: Mapping[str, object]) -> Path:
    """The file of a result that was made from what `about` says."""
    return folder(kind) / f"{sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]}.safetensors"


def recalled(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` finds at `path`; a damaged file is as good as none."""
    if not path.is_file():
        return None
    with suppress(CheckpointError):
        return read(path)
    path.unlink(missing_ok=True)  # not above: Windows deletes no file that the error's frames still map into memory
    return None
