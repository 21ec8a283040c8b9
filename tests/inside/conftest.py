"""Quantized linears and demo files, made with the pack's own copy of the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

Part = Callable[[str], ModuleType]
"""Gives a module of the pack by its place in it."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors this small lose more to threads that wait for each other than they gain."""
    torch.set_num_threads(1)


class WeightMaker:
    """Quantized weights of random floats, some of whose columns are loud."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def floats(self, out: int, channels: int, n_outlier: int = 0, seed: int = 0) -> torch.Tensor:
        """[out, channels]."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(out, channels, generator=generator) * 0.03
        weight *= 0.5 + torch.rand(out, 1, generator=generator)
        weight[:, self.loud(channels, n_outlier, seed)] *= 6
        return weight

    def loud(self, channels: int, n_outlier: int, seed: int = 0) -> list[int]:
        """The outlier channels."""
        order = torch.randperm(channels, generator=torch.Generator().manual_seed(seed + 1))
        return sorted(order[:n_outlier].tolist())

    def __call__(
        self, bits: int, out: int, channels: int, n_outlier: int = 0, symmetric: bool = True, seed: int = 0
    ) -> Any:
        """A QuantizedWeight, rounded to nearest."""
        codec = self.part("qarvd.ops.codecs").codec_of(bits)
        split = self.part("qarvd.ops.split").ChannelSplit.of(channels, self.loud(channels, n_outlier, seed))
        rounding = self.part("qarvd.quantize.rounding")
        task = rounding.Task(self.floats(out, channels, n_outlier, seed), split, codec, symmetric)
        return rounding.ROUNDING["nearest"](task)


@pytest.fixture(scope="session")
def make_weight(part: Part) -> WeightMaker:
    return WeightMaker(part)


@pytest.fixture(scope="session")
def stored(part: Part) -> Callable[..., dict[str, torch.Tensor]]:
    """The tensors of a file that holds one quantized linear under a name."""

    def store(weight: Any, bias: torch.Tensor | None = None, name: str = "") -> dict[str, torch.Tensor]:
        tensors = dict(part("qarvd.checkpoint.quantized").write_linear(name, weight))
        if bias is not None:
            tensors[f"{name}.bias"] = bias
        return {key.removeprefix("."): tensor.clone() for key, tensor in tensors.items()}

    return store


@pytest.fixture
def load(stored: Callable[..., dict[str, torch.Tensor]]) -> Callable[..., Any]:
    """A linear of ComfyUI's that holds a quantized weight."""

    def make(weight: Any, bias: torch.Tensor | None = None, dtype: torch.dtype = torch.float32) -> Any:
        import comfy.ops

        out, channels = weight.shape
        operations = comfy.ops.mixed_precision_ops({}, dtype)
        linear = operations.Linear(channels, out, bias=bias is not None, device="cpu")
        missing, extra = linear.load_state_dict(stored(weight, bias), strict=False)
        assert not missing and not extra
        return linear

    return make


@pytest.fixture(scope="session")
def demo_files(part: Part, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The demo model quantized to so many bits, without data, as the library writes it."""
    folder, made = tmp_path_factory.mktemp("demo"), {}

    def file(bits: int) -> Path:
        if bits not in made:
            model = part("qarvd.checkpoint.model").load(part("qarvd.demo.bundle").MODEL)
            recipe = part("qarvd.recipe").Recipe(weight_bits=bits).without_data()
            made[bits] = folder / f"demo-w{bits}a8.safetensors"
            part("qarvd.checkpoint.model").save(part("qarvd.jobs.quantize").quantize(model, recipe)[0], made[bits])
        return made[bits]

    return file


@pytest.fixture
def model_of(part: Part, demo_files: Callable[[int], Path]) -> Callable[[int], Any]:
    """The demo as a MODEL: native where ComfyUI can hold our formats, else in the pack's own linears."""

    def load(bits: int) -> Any:
        path = part("qarvd.demo.bundle").MODEL if bits == 16 else demo_files(bits)
        return part("nodes.host").patcher_of(part("qarvd.checkpoint.model").load(path))

    return load


@pytest.fixture
def save_lora() -> Callable[..., str]:
    """Write a LoRA to models/loras and give its name."""
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)

    def save(tensors: dict[str, Any], name: str = "test.safetensors") -> str:
        if name.endswith(".pt"):
            torch.save(tensors, folder / name)
        else:
            save_file(tensors, folder / name)
        return name

    return save
