"""The rotation: what products do not see, and loud channels do."""

import pytest
import torch

from qarvd.ops import hadamard as module
from qarvd.ops.hadamard import butterflies, hadamard, rotate

CPU = torch.device("cpu")
every_width = pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32, 64, 128, 256])


@every_width
def test_it_is_symmetric_its_own_inverse_and_keeps_products(width: int) -> None:
    matrix = hadamard(width, CPU, torch.float64)
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, torch.eye(width, dtype=torch.float64))
    a, b = torch.randn(2, 3, 4, 2 * width, dtype=torch.float64)
    torch.testing.assert_close((rotate(a, width) * rotate(b, width)).sum(-1), (a * b).sum(-1))


@every_width
@pytest.mark.parametrize("rotated", [rotate, butterflies])
def test_blocks_are_multiplied_by_the_matrix(width: int, rotated: object) -> None:
    x = torch.randn(5, 3 * width)
    expected = (x.double().view(5, 3, width) @ hadamard(width, CPU, torch.float64)).view(5, -1)
    torch.testing.assert_close(rotated(x, width).double(), expected, rtol=0, atol=2e-6)  # type: ignore[operator]


@pytest.mark.parametrize("width", [4, 16, 64, 256])
def test_it_is_the_matrix_of_comfyuis_stock_formats(width: int) -> None:
    stock = pytest.importorskip("comfy_kitchen.tensor.int8_utils", reason="comfy-kitchen is not installed")
    torch.testing.assert_close(stock._build_hadamard(width, "cpu", torch.float32), hadamard(width, CPU))


def test_no_column_gathers_the_mean_of_the_channels() -> None:
    """As one of Sylvester's matrix does."""
    torch.testing.assert_close(hadamard(256, CPU).sum(0), torch.ones(256))


def test_a_loud_channel_is_spread() -> None:
    x = torch.randn(50, 128)
    x[:, 7] *= 50
    assert rotate(x, 128).abs().amax(-1).mean() < 0.2 * x.abs().amax(-1).mean()


def test_narrow_dtypes_are_rotated_in_float32_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 9, 64).bfloat16()
    expected = rotate(x.float(), 64).bfloat16()
    monkeypatch.setattr(module, "NUMBERS", 130)
    assert torch.equal(rotate(x, 64), expected)


def test_what_one_caller_made_in_inference_mode_another_can_train_with() -> None:
    with torch.inference_mode():
        rotate(torch.randn(2, 32), 32)
    x = torch.randn(2, 32, requires_grad=True)
    rotate(x, 32).sum().backward()
    assert x.grad is not None
