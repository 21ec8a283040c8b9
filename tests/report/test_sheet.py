"""Contact sheets show every frame that was asked for, under text that can be read."""

import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import ShapeError
from qarvd.report.font import GLYPHS, HEIGHT, draw_text, fit, text_width
from qarvd.report.sheet import contact_sheet

PRINTABLE = string.ascii_letters + string.digits + string.punctuation


def test_every_chosen_frame_appears_once_enlarged_and_no_other() -> None:
    samples, frames = 2, 6
    levels = torch.arange(2 * samples * frames).view(2, samples, frames) / 1000 + 0.3
    clips = levels[..., None, None].expand(2, samples, frames, 8, 8)
    chosen = [0, 3, 5]
    sheet = contact_sheet({"full": clips[0], "w4a8": clips[1]}, chosen, ["first", "second"], scale=3)
    for place in range(levels.numel()):
        level, frame = levels.flatten()[place], place % frames
        assert int((sheet == level).all(-1).sum()) == (24 * 24 if frame in chosen else 0)


def test_a_sheet_is_a_picture_in_0_to_1_even_if_the_clips_are_not() -> None:
    clip = torch.randn(2, 4, 8, 8) * 9
    clip[0, 0] = torch.nan
    sheet = contact_sheet({"full": clip, "w8a8": clip}, [0, 3], ["a 7 moving left", "caf\u00e9 " * 99])
    assert sheet.ndim == 3 and sheet.shape[2] == 3
    assert 0 <= float(sheet.min()) <= float(sheet.max()) <= 1


def test_colour_clips_keep_their_colour() -> None:
    clip = torch.tensor([0.9, 0.1, 0.4]).expand(1, 2, 8, 8, 3)
    sheet = contact_sheet({"full": clip}, [1], ["red"], scale=2)
    assert int((sheet == clip[0, 0, 0, 0]).all(-1).sum()) == 16 * 16


@pytest.mark.parametrize(
    ("shape", "frames", "labels", "says"),
    [
        ((2, 4, 8, 8), [0], ["one"], "1 labels"),
        ((1, 4, 8, 8), [4], ["one"], "frames 0 to 3"),
        ((1, 4, 8, 8), [-1], ["one"], "frames 0 to 3"),
        ((1, 4, 8, 8), [], ["one"], "0 frames"),
        ((4, 8, 8), [0], ["one"], r"\(4, 8, 8\)"),
    ],
)
def test_clips_that_do_not_fit_are_refused(
    shape: tuple[int, ...], frames: list[int], labels: list[str], says: str
) -> None:
    with pytest.raises(ShapeError, match=says):
        contact_sheet({"full": torch.zeros(shape)}, frames, labels)


def test_variants_of_different_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match="one size"):
        contact_sheet({"a": torch.zeros(1, 2, 8, 8), "b": torch.zeros(1, 2, 8, 16)}, [0], ["one"])


def test_every_printable_character_has_a_shape_of_its_own() -> None:
    assert set(PRINTABLE) == set(GLYPHS)
    assert len(set(GLYPHS.values())) == len(GLYPHS)
    assert all(1 <= len(columns) <= 5 for columns in GLYPHS.values())


@settings(deadline=None)
@given(st.text(PRINTABLE + " \u00e9", max_size=12), st.integers(-40, 40), st.integers(-20, 30), st.integers(1, 3))
def test_text_is_the_same_wherever_it_is_drawn_and_is_cut_at_the_edges(
    content: str, x: int, y: int, scale: int
) -> None:
    image = torch.zeros(24, 36, 3)
    draw_text(image, content, x, y, scale, (0.2, 0.4, 0.6))
    room = torch.zeros(24 + 40 + 40, 36 + 80 + text_width(content, scale), 3)
    draw_text(room, content, x + 40, y + 20, scale, (0.2, 0.4, 0.6))
    assert torch.equal(image, room[20:44, 40:76])
    drawn = room.sum(2).nonzero()
    if len(drawn):
        top, left = drawn.min(0).values.tolist()
        bottom, right = drawn.max(0).values.tolist()
        assert y + 20 <= top <= bottom < y + 20 + HEIGHT * scale
        assert x + 40 <= left <= right < x + 40 + text_width(content, scale)


@settings(deadline=None)
@given(st.text(PRINTABLE + " ", max_size=40), st.integers(20, 200))
def test_fitted_text_is_never_wider_than_its_place_and_whole_where_it_fits(content: str, width: int) -> None:
    fitted = fit(content, width)
    assert text_width(fitted) <= width
    assert (fitted == content) == (text_width(content) <= width)
