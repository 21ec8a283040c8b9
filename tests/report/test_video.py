"""What VideoWriter leaves on the disk, whatever happens while it writes."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Colorspace

from qarvd import log
from qarvd.errors import SettingError, ShapeError
from qarvd.report.video import H264, MPEG4, VideoWriter, pick_codec

needs_h264 = pytest.mark.skipif(H264 not in av.codecs_available, reason="this PyAV was built without libx264")


def moving_square(frames: int, side: int = 16) -> torch.Tensor:
    clip = torch.zeros(frames, side, side)
    for frame in range(frames):
        x = frame % (side - 4)
        clip[frame, 4:8, x : x + 4] = 1
    return clip


def decode(path: Path) -> np.ndarray:
    """Frames [n, height, width, 3], uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@needs_h264
def test_a_video_holds_each_frame_enlarged_at_the_asked_rate_and_plays_in_browsers(tmp_path: Path) -> None:
    clip = moving_square(10)
    with VideoWriter(tmp_path / "a.mp4", fps=12, scale=4) as writer:
        writer.write(clip[:3])
        writer.write(clip[3:])
    expected = clip.repeat_interleave(4, 1).repeat_interleave(4, 2)[..., None].numpy() * 255.0
    assert np.abs(decode(tmp_path / "a.mp4") - expected).mean() < 3
    with av.open(str(tmp_path / "a.mp4")) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.pix_fmt, video.average_rate) == ("h264", "yuv420p", 12)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # a browser can start before it has the whole file


@needs_h264
@pytest.mark.parametrize("colour", [(1.0, 0.0, 0.0), (0.1, 0.7, 0.2), (0.2, 0.2, 0.9), (1.0, 1.0, 1.0)])
def test_colours_survive(tmp_path: Path, colour: tuple[float, float, float]) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=8, scale=2) as writer:
        writer.write(torch.tensor(colour).expand(2, 16, 16, 3))
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        assert frame.colorspace == Colorspace.ITU709
        seen = frame.reformat(format="rgb24", src_colorspace="itu709").to_ndarray()
    assert np.abs(seen - np.array(colour) * 255).max() <= 6


@pytest.mark.parametrize("stop", [KeyboardInterrupt, GeneratorExit])
def test_a_stopped_video_keeps_the_frames_written_so_far(tmp_path: Path, stop: type[BaseException]) -> None:
    with pytest.raises(stop), VideoWriter(tmp_path / "a.mp4", fps=8) as writer:
        writer.write(moving_square(7))
        raise stop
    assert len(decode(tmp_path / "a.mp4")) == 7
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """A function: a KeyboardInterrupt after so many seconds, and every ten from then on, so that nothing hangs."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("this system has no interval timer")

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds, 10) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("delay", [0.003, 0.011, 0.023, 0.037, 0.05])
def test_a_signal_in_the_middle_of_writing_loses_no_frame_that_was_encoded(
    tmp_path: Path, alarm: Callable[[float], None], delay: float
) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", fps=8, scale=4) as writer:
        writer.write(moving_square(2))
        alarm(delay)
        while True:
            writer.write(moving_square(5))
    alarm(0)
    assert len(decode(tmp_path / "a.mp4")) == writer.frames >= 2


def test_at_whatever_step_of_handing_a_frame_over_a_signal_comes_the_video_ends(
    tmp_path: Path, alarm: Callable[[float], None]
) -> None:
    def interrupt_at(step: int) -> Callable[[FrameType, str, object], Any]:
        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal step
            frame.f_trace_opcodes = True
            step -= event == "opcode"
            if step < 0:
                raise KeyboardInterrupt
            return trace

        return trace

    step, interrupted = -1, True
    while interrupted:
        step += 1
        alarm(30)
        with suppress(KeyboardInterrupt), VideoWriter(tmp_path / f"{step}.mp4", fps=8, scale=1) as writer:
            writer.write(moving_square(1))
            sys.settrace(interrupt_at(step))
            try:
                writer.write(moving_square(1))
                interrupted = False
            finally:
                sys.settrace(None)
        assert len(decode(writer.path)) == writer.frames >= 1
    assert step > 100  # Python's steps, not the frames


@pytest.mark.parametrize("written", [0, 5])
def test_an_error_leaves_an_old_file_untouched_and_no_litter(tmp_path: Path, written: int) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), VideoWriter(path, fps=8) as writer:
        writer.write(moving_square(written))
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_leaves_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=8):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("height", "width"), [(5, 3), (4, 7), (1, 1), (6, 8)])
def test_odd_sizes_are_padded_to_even_ones(tmp_path: Path, height: int, width: int) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=8, scale=1) as writer:
        writer.write(torch.ones(2, height, width))
    assert decode(tmp_path / "a.mp4").shape == (2, height + height % 2, width + width % 2, 3)


def test_frames_of_another_size_or_kind_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="16x16, but frame 1 is 24x16"), VideoWriter(tmp_path / "a.mp4", 8, 1) as w:
        w.write(torch.zeros(1, 16, 16))
        w.write(torch.zeros(1, 16, 24))
    with pytest.raises(ShapeError, match=r"\(2, 3\)"), VideoWriter(tmp_path / "a.mp4", 8) as w:
        w.write(torch.zeros(2, 3))
    with pytest.raises(SettingError, match="uint8"), VideoWriter(tmp_path / "a.mp4", 8) as w:
        w.write(torch.zeros(1, 16, 16, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_refused_on_entry(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="does not exist"), VideoWriter(tmp_path / "no" / "a.mp4", 8):
        pytest.fail("the block ran")


@pytest.mark.parametrize(("fps", "scale"), [(0, 1), (-3, 1), (float("nan"), 1), (float("inf"), 1), (8, 0)])
def test_a_senseless_rate_or_scale_is_refused(fps: float, scale: int) -> None:
    with pytest.raises(SettingError, match="frames a second"):
        VideoWriter("a.mp4", fps, scale)


def test_without_libx264_videos_are_mpeg4_and_a_warning_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log, "_said", set())
    assert pick_codec({H264, MPEG4}) == H264
    assert not caplog.records
    assert pick_codec({MPEG4}) == pick_codec({MPEG4}) == MPEG4
    (record,) = caplog.records
    assert record.name == "qarvd" and "lacks libx264" in record.getMessage()
    writer = VideoWriter(tmp_path / "a.mp4", fps=8)
    writer.codec = MPEG4
    with writer:
        writer.write(moving_square(6))
    assert len(decode(tmp_path / "a.mp4")) == 6
