"""A LoRA beside a linear: the weight stays as it is, and a changed strength changes one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Branch:
    """The matrices of one LoRA for one linear, wherever they are; strength is a tensor of no axes."""

    def __init__(self, down: Tensor, up: Tensor, strength: float) -> None:
        """`down` [rank, in] and `up` [out, rank]."""
        self._home = down, up, torch.tensor(strength)
        self.down, self.up, self.strength = self._home

    def __call__(self, x: Tensor) -> Tensor:
        """What it adds to the linear's output on `x` [..., in]."""
        down, up = (t.to(x.device, x.dtype) for t in (self.down, self.up))  # as they are, once they are in place
        return F.linear(F.linear(x, down) * self.strength.to(x.device), up)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Copy the matrices to where they will be used."""
        down, up, strength = self._home
        self.down, self.up, self.strength = down.to(device, dtype), up.to(device, dtype), strength.to(device)

    def release(self) -> None:
        """Drop the copies."""
        self.down, self.up, self.strength = self._home


def beside(inner: Callable[..., Tensor], branch: Branch) -> Callable[..., Tensor]:
    """What stands in for a linear's `forward`: `inner`, that forward itself or another branch's, and the branch.

    It is a function, not an object, because torch.compile compiles again wherever another object stands there; of a
    function it looks at the code, and of the tensors only at their shapes.
    """

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return inner(x, *args, **kwargs) + branch(x)

    return forward


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
