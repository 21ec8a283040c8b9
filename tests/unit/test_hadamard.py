"""The rotation of 4-bit keys: what products do not see, and loud channels do."""

import pytest
import torch

from qarvd.ops.hadamard import TOKENS, hadamard, turn


@pytest.mark.parametrize("channels", [32, 64, 96, 128])
def test_it_is_its_own_inverse_and_keeps_products(channels: int) -> None:
    rotation = hadamard(channels, torch.device("cpu"))
    torch.testing.assert_close(rotation @ rotation, torch.eye(channels))
    a, b = torch.randn(2, 1, 3, TOKENS + 5, channels)
    torch.testing.assert_close((turn(a, rotation) * turn(b, rotation)).sum(-1), (a * b).sum(-1), rtol=1e-4, atol=1e-4)
    assert turn(a.bfloat16(), rotation).dtype == torch.bfloat16


def test_a_loud_channel_is_spread() -> None:
    x = torch.randn(1, 1, 50, 128)
    x[..., 7] *= 50
    turned = turn(x, hadamard(128, torch.device("cpu")))
    assert turned.abs().amax(-1).mean() < 0.2 * x.abs().amax(-1).mean()
