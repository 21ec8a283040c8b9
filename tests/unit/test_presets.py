"""Every family has a schedule and a cache that its chunks fit."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qarvd.errors import SettingError
from qarvd.stream.presets import CACHES, PRESETS, Preset, find_preset
from qarvd.stream.sampler import spans

WINDOWED = [name for name, preset in PRESETS.items() if preset.window]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_schedule(name: str) -> None:
    schedule = find_preset(name).schedule
    for index in (0, 1):
        steps = schedule.of_chunk(index)
        assert 0 < steps[-1] <= steps[0] <= 1000 and schedule.sigma(steps[0]) > schedule.sigma(0)


@given(st.sampled_from(list(PRESETS)), st.integers(1, 60), st.sampled_from(list(CACHES)))
def test_every_chunk_of_a_clip_of_any_length_fits_its_cache(name: str, frames: int, codec: str) -> None:
    preset = PRESETS[name]
    cache = preset.cache(frames, codec)
    for span in spans(frames, preset.chunk_frames):
        cache.begin(span.start, len(span), 4)
    assert cache.end == frames


@given(st.sampled_from(list(PRESETS)), st.integers(1, 60))
def test_a_cache_is_as_short_as_its_clip_and_never_longer_than_its_window(name: str, frames: int) -> None:
    preset = PRESETS[name]
    held = preset.cache(frames).frames
    if preset.window is not None and held < frames:
        assert held == preset.window
    assert held <= frames + preset.sink + preset.chunk_frames


@pytest.mark.parametrize("name", PRESETS)
def test_an_endless_stream_needs_a_window(name: str) -> None:
    preset = PRESETS[name]
    if name in WINDOWED:
        assert preset.cache(None).frames == preset.window
    else:
        with pytest.raises(SettingError, match="needs a window"):
            preset.cache(None)


@pytest.mark.parametrize(("window", "sink"), [(0, 0), (2, 0), (-3, 0), (5, 3), (12, 10), (12, 12), (12, -1)])
def test_a_window_without_room_for_sink_and_chunk_is_refused(window: int, sink: int) -> None:
    preset: Preset = replace(PRESETS["self-forcing"], window=window, sink=sink)
    for frames in (None, 60):
        with pytest.raises(SettingError, match="room"):
            preset.cache(frames)


def test_an_unknown_preset_or_codec_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingError, match=r"self-forcing.*longlive"):
        find_preset("sora")
    with pytest.raises(SettingError, match=r"16-bit, int8, int4"):
        PRESETS["demo"].cache(12, "int2")
