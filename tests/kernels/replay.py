"""Launches, recorded here and repeated in a process without torch, which sanitizers slow down by minutes."""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emulator.launcher import Emulator


@dataclass
class Launch:
    """One launch: what it was given, and what lay in the memory that it reads and writes, before and after."""

    kernel: str
    grid: tuple[int, int, int]
    block: int
    shared: int
    arguments: bytes
    addresses: list[int]
    before: list[bytes]
    after: list[bytes] = field(default_factory=list)


def record(library: Any, case: Callable[..., None], path: Path) -> Path:
    """Run `case` with the emulator of `library`, and write all its launches to `path`."""
    from unittest import mock

    import torch

    from qarvd.ops.cuda import kernels, ring_kernels

    seen: dict[int, torch.Tensor] = {}
    launches: list[Launch] = []

    def pointer(x: torch.Tensor | None) -> int | None:
        if x is None:
            return None
        extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
        seen[x.data_ptr()] = x.detach().as_strided((extent,), (1,))
        return x.data_ptr()

    def contents() -> list[bytes]:
        return [x.view(torch.uint8).numpy().tobytes() for x in seen.values()]

    class Recorder(Emulator):
        def launch(
            self,
            kernel: str,
            grid: tuple[int, int, int],
            block: int,
            shared: int,
            arguments: ctypes.Structure,
            stream: int = 0,
        ) -> None:
            launch = Launch(kernel, grid, block, shared, bytes(arguments), list(seen), contents())
            super().launch(kernel, grid, block, shared, arguments, stream)
            launch.after = contents()
            launches.append(launch)
            seen.clear()

    with mock.patch.object(kernels, "pointer", pointer), mock.patch.object(ring_kernels, "pointer", pointer):
        case(Recorder(library))
    path.write_bytes(pickle.dumps(launches))
    return path


def words(size: int) -> type[ctypes.Structure]:
    """A struct of `size` bytes of which nothing is known."""
    return type("Words", (ctypes.Structure,), {"_fields_": (("words", ctypes.c_uint64 * (size // 8)),)})


def replay(emulator: Emulator, path: str) -> None:
    """Repeat the launches in memory that ends where the tensors end, and expect the same bytes."""
    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    for launch in pickle.loads(Path(path).read_bytes()):
        places = [malloc(len(content)) for content in launch.before]
        moved = dict(zip(launch.addresses, places, strict=True))
        arguments = words(len(launch.arguments)).from_buffer_copy(launch.arguments)
        for i, word in enumerate(arguments.words):
            arguments.words[i] = moved.get(word, word)
        for place, content in zip(places, launch.before, strict=True):
            ctypes.memmove(place, content, len(content))
        emulator.launch(launch.kernel, launch.grid, launch.block, launch.shared, arguments)
        for place, content in zip(places, launch.after, strict=True):
            assert ctypes.string_at(place, len(content)) == content, f"{launch.kernel} wrote something else"
