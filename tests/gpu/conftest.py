"""A card that the kernels run on, or a visible skip."""

from __future__ import annotations

import pytest
import torch

from qarvd.ops.cuda import device


@pytest.fixture(scope="session")
def card() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA card")
    found = torch.device("cuda", torch.cuda.current_device())
    reason = device.refuses(found)
    if reason:
        pytest.fail(f"the kernels refuse this card: {reason}")
    return found


@pytest.fixture(autouse=True)
def poisoned(card: torch.device) -> None:
    """Memory that torch hands out next holds NaN: an output that is not written shows."""
    for size in (2**12, 2**16, 2**20, 2**24):
        torch.full((size,), float("nan"), device=card)
