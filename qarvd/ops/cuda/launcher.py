"""What launches kernels, and the tokens that they take."""

from __future__ import annotations

import ctypes
from typing import Protocol

import torch
from torch import Tensor

from .arguments import ALIGNMENT

THREADS = 128
"""Of a block of the linear, and of attention."""


class Launcher(Protocol):
    """What launches kernels: a card (`driver.Launcher`), or the emulator of the tests."""

    def prepare(self, kernel: str, shared: int) -> None:
        """Load a kernel that is going to use `shared` bytes of dynamic shared memory."""
        ...

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        shared: int,
        arguments: ctypes.Structure,
        stream: int,
    ) -> None:
        """Start a kernel that was prepared; `block` in threads, `shared` in bytes."""
        ...


def in_rows(x: Tensor) -> Tensor:
    """`x` with every token's channels in a row that begins at a multiple of 16 bytes."""
    unit = ALIGNMENT // x.element_size()
    fits = x.stride(-1) == 1 and all(stride % unit == 0 for stride in x.stride()[:-1])
    return x if fits and x.data_ptr() % ALIGNMENT == 0 else x.clone(memory_format=torch.contiguous_format)
