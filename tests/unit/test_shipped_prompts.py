"""The shipped calibration prompts are many and different, also the first few of them."""

from qarvd.calibrate.prompts import shipped_prompts


def test_there_are_64_that_begin_differently() -> None:
    prompts = shipped_prompts()
    assert len(prompts) == 64
    assert len({prompt.split()[0].lower() for prompt in prompts}) == 64
    assert all(prompt == prompt.strip() and prompt.isascii() for prompt in prompts)


def test_every_four_hold_short_and_long_ones() -> None:
    prompts = shipped_prompts()
    for first in range(0, 64, 4):
        lengths = [len(prompt.split()) for prompt in prompts[first : first + 4]]
        assert min(lengths) <= 12 and max(lengths) >= 60
