"""PNG pictures read back as they were written."""

import io
from pathlib import Path

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import SettingError, ShapeError
from qarvd.report.png import png_bytes, write_png


def decode(png: bytes, grey: bool) -> torch.Tensor:
    with av.open(io.BytesIO(png), "r", format="png_pipe") as container:
        return torch.from_numpy(next(container.decode(video=0)).to_ndarray(format="gray" if grey else "rgb24"))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 2**31))
def test_a_png_decodes_to_the_same_pixels(height: int, width: int, grey: bool, seed: int) -> None:
    shape = (height, width) if grey else (height, width, 3)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    assert torch.equal(decode(png_bytes(pixels / 255), grey), pixels)


def test_what_lies_outside_0_to_1_is_clamped_and_nan_is_black() -> None:
    image = torch.tensor([[-1.0, 2.0, float("nan"), float("inf")]])
    assert decode(png_bytes(image), grey=True).tolist() == [[0, 255, 0, 255]]


def test_any_layout_and_float_type_gives_the_same_file() -> None:
    image = torch.randint(0, 5, (8, 6, 3)) / 4
    turned = image.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert png_bytes(image) == png_bytes(turned) == png_bytes(image.double()) == png_bytes(image.half())


@pytest.mark.parametrize("shape", [(3,), (2, 2, 4), (0, 5), (1, 2, 3, 3)])
def test_a_tensor_that_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="A picture is"):
        png_bytes(torch.zeros(shape))


def test_whole_numbers_are_refused_because_their_range_is_not_known() -> None:
    with pytest.raises(SettingError, match="uint8"):
        png_bytes(torch.zeros(2, 2, dtype=torch.uint8))


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, torch.ones(4, 4))
    before = path.read_bytes()
    assert before == png_bytes(torch.ones(4, 4))
    with pytest.raises(ShapeError):
        write_png(path, torch.ones(4))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
