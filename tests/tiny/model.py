"""A tiny random Wan model, in memory and as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qarvd.checkpoint.model import Model, save
from qarvd.wan.config import WanConfig
from qarvd.wan.tree import WanTree

CONFIG = WanConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=2, text_dim=16, text_len=4, freq_dim=32)


def tiny_model() -> Model:
    """Seeded, the same at each call; a few loud input channels give the quantizer outliers to find."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tree = WanTree(CONFIG)
    tree.requires_grad_(False).eval()
    for name, weight in tree.named_parameters():
        if name.endswith(("self_attn.q.weight", "self_attn.k.weight", "self_attn.v.weight", "ffn.2.weight")):
            weight[:, 5:8] *= 6
    matrices = {k: torch.float16 for k, t in tree.state_dict().items() if k.endswith(".weight") and t.ndim > 1}
    return Model(tree, CONFIG, "self-forcing", {k: matrices.get(k, torch.float32) for k in tree.state_dict()})


@pytest.fixture
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="session")
def shared_model() -> Model:
    """Not to be changed: it serves all tests."""
    return tiny_model()


@pytest.fixture
def model_file(model: Model, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save(model, path)
    return path


@pytest.fixture(scope="session")
def embeddings() -> torch.Tensor:
    """One prompt of three tokens, [1, 3, 16]."""
    return torch.randn(1, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors this small lose more to threads that wait for each other than they gain."""
    torch.set_num_threads(1)
