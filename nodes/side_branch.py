"""A LoRA beside a linear: its weight stays as it is, and a changed strength changes one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Branch:
    """What stands in for a linear's `forward`: what that gives, plus strength * up(down(x)).

    All that differs between two strengths is a tensor of no axes, so that compiled models need not be compiled again.
    """

    def __init__(self, inner: Callable[..., Tensor], down: Tensor, up: Tensor, strength: float) -> None:
        """`down` [rank, in] and `up` [out, rank]; `inner` is the linear's own forward, or another branch."""
        self.inner = inner
        self._home = down, up, torch.tensor(strength)
        self.down, self.up, self.strength = self._home

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = self.inner(x, *args, **kwargs)
        down, up = (t.to(x.device, x.dtype) for t in (self.down, self.up))  # as they are, once they are in place
        return out + F.linear(F.linear(x, down) * self.strength.to(x.device), up)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Copy the matrices to where they will be used."""
        down, up, strength = self._home
        self.down, self.up, self.strength = down.to(device, dtype), up.to(device, dtype), strength.to(device)

    def release(self) -> None:
        """Drop the copies."""
        self.down, self.up, self.strength = self._home


def place_all(branches: Sequence[Branch], patcher: Any) -> None:
    """Bring branches to the device and dtype in which a loaded MODEL computes."""
    dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
    for branch in branches:
        branch.place(patcher.load_device, dtype)


def release_all(branches: Sequence[Branch]) -> None:
    for branch in branches:
        branch.release()


def is_patched(linear: nn.Module) -> bool:
    """Whether something stands in for the linear's own `forward`; ComfyUI puts that back as a bound method."""
    stands = vars(linear).get("forward")
    return stands is not None and getattr(stands, "__func__", None) is not type(linear).forward
