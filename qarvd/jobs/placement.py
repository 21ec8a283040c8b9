"""Where a model computes: on which device, in which dtype, with which kernels."""

from __future__ import annotations

import torch

from ..checkpoint.model import Model
from ..errors import SettingError
from ..log import LOGGER
from ..ops.cuda.device import load as load_kernels
from ..ops.linear import QuantizedLinear


def devices() -> list[torch.device]:
    """All that models can compute on: NVIDIA or AMD cards, or what else torch was built for (mps, xpu), and the CPU."""
    kind, count = "cuda", torch.cuda.device_count()
    other = torch.accelerator.current_accelerator(check_available=True)
    if other is not None and other.type != "cuda":
        kind, count = other.type, torch.accelerator.device_count()
    return [*(torch.device(kind, index) for index in range(count)), torch.device("cpu")]


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA card, else the CPU. Raises SettingError for a device that is not there."""
    here = devices()
    known = {"cpu": here[-1], "auto": here[0] if here[0].type == "cuda" else here[-1]}
    known |= {str(device): device for device in here[:-1]}
    known.setdefault(here[0].type, here[0])
    if name not in known:
        raise SettingError(f"There is no device {name!r} here; choose from {', '.join(known)}.")
    return known[name]


def place(model: Model, device: torch.device) -> None:
    """Move to `device` in the dtype it computes in (float32 on a CPU, else bfloat16), and load its kernels."""
    if device.type == "cuda":
        loaded = load_kernels(device)
        if isinstance(loaded, str) and torch.version.cuda:
            said = "The CUDA kernels can't be used: %s. Other code runs instead; `python -m qarvd doctor` says which."
            LOGGER.warning(said, loaded)
    model.tree.to(device, torch.float32 if device.type == "cpu" else torch.bfloat16)


def prepare(model: Model) -> None:
    """Lay quantized weights out for the backends that run them, where they lie."""
    for module in model.tree.modules():
        if isinstance(module, QuantizedLinear):
            module.prepare()
