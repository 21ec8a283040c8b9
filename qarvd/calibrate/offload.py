"""Room for what is too big to hold at once: on the card, in memory, or in files that the system pages in and out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SettingError


class OffloadAllocator:
    """Hands out tensors whose content need not fit memory."""

    def __init__(self, folder: Path | None, device: torch.device | str = "cpu") -> None:
        """`folder`, which must exist, takes the files; None keeps all in memory, on `device`.

        Whoever made the folder removes it.
        """
        self.folder, self.device, self.count = folder, device, 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor. Raises SettingError, and takes no room, where the disk has none for it."""
        if self.folder is None:
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)
        path = self.folder / f"{self.count}.offload"
        self.count += 1
        size = prod(shape)
        try:
            with open(path, "wb") as file:
                if hasattr(os, "posix_fallocate"):  # a sparse file on a full disk would kill the process later
                    os.posix_fallocate(file.fileno(), 0, max(1, size * dtype.itemsize))
                else:
                    file.truncate(size * dtype.itemsize)
            return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(tuple(shape))
        except (OSError, RuntimeError) as error:
            path.unlink(missing_ok=True)
            why = error.strerror if isinstance(error, OSError) else error
            raise SettingError(
                f"{path} has no room for {size * dtype.itemsize / 1e9:.2f} GB ({why}). Free some space, or calibrate "
                "on fewer prompts."
            ) from error
