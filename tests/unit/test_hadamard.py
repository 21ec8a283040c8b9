"""The rotation of 4-bit keys: what products do not see, and loud channels do."""

import pytest
import torch

from qarvd.ops.hadamard import TOKENS, hadamard, rotate


@pytest.mark.parametrize("channels", [32, 64, 96, 128])
def test_it_is_its_own_inverse_and_keeps_products(channels: int) -> None:
    rotation = hadamard(channels, torch.device("cpu"))
    assert channels % len(rotation) == 0
    torch.testing.assert_close(rotation @ rotation, torch.eye(len(rotation)))
    a, b = torch.randn(2, 1, 3, TOKENS + 5, channels)
    torch.testing.assert_close(
        (rotate(a, rotation) * rotate(b, rotation)).sum(-1), (a * b).sum(-1), rtol=1e-4, atol=1e-4
    )
    assert rotate(a.bfloat16(), rotation).dtype == torch.bfloat16


def test_a_loud_channel_is_spread() -> None:
    x = torch.randn(1, 1, 50, 128)
    x[..., 7] *= 50
    rotated = rotate(x, hadamard(128, torch.device("cpu")))
    assert rotated.abs().amax(-1).mean() < 0.2 * x.abs().amax(-1).mean()


def test_wide_channels_take_a_small_matrix() -> None:
    """8,960 channels are 35 groups of 256; a whole matrix would take 321 MB."""
    assert hadamard(8960, torch.device("cpu")).shape == (256, 256)
