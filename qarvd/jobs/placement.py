"""Where a model computes: on which device, in which dtype, with which kernels."""

from __future__ import annotations

import torch

from ..checkpoint.model import Model
from ..errors import SettingError
from ..log import LOGGER
from ..ops.cuda.device import load as load_kernels
from ..ops.linear import QuantizedLinear


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA card, else the CPU. Raises SettingError for a device that is not there."""
    cards = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    known = {"cpu": "cpu", "auto": (*cards, "cpu")[0], **{card: card for card in cards}}
    if cards:
        known["cuda"] = cards[0]
    if name not in known:
        raise SettingError(f"There is no device {name!r} here; choose from {', '.join(known)}.")
    return torch.device(known[name])


def place(model: Model, device: torch.device) -> None:
    """Move to `device` in the dtype it computes in (float32 on a CPU, else bfloat16), and load its kernels."""
    if device.type == "cuda":
        loaded = load_kernels(device)
        if isinstance(loaded, str):
            LOGGER.warning("The CUDA kernels can't be used: %s. Plain torch is used instead.", loaded)
    model.tree.to(device, torch.float32 if device.type == "cpu" else torch.bfloat16)


def prepare(model: Model) -> None:
    """Lay quantized weights out for the backends that run them, where they lie."""
    for module in model.tree.modules():
        if isinstance(module, QuantizedLinear):
            module.prepare()
