"""H.264 videos that grow chunk by chunk and stay playable when the run is stopped."""

from __future__ import annotations

from collections.abc import Callable, Container
from fractions import Fraction
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType

import av
import torch.nn.functional as F
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from torch import Tensor

from ..errors import SettingError, ShapeError
from ..files import part_beside, put_in_place
from ..log import warn_once
from .pixels import enlarge, to_bytes, to_rgb

H264, MPEG4 = "libx264", "mpeg4"
OPTIONS = {H264: {"crf": "18"}, MPEG4: {"qmin": "2", "qmax": "4"}}
STOPPED = (KeyboardInterrupt, GeneratorExit)
"""Someone had seen enough: what was written so far is kept."""


class _Worker:
    """Runs jobs in a thread of its own, where Ctrl-C never falls: that reaches the main thread only.

    The queues are the interpreter's, in C. What concurrent.futures locks in Python stays locked when Ctrl-C falls just
    after the locking, and the next job waits for ever.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], None], SimpleQueue[BaseException | None]] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="qarvd-video", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        for job, answer in iter(self._jobs.get, None):
            try:
                job()
                answer.put(None)
            except BaseException as error:
                answer.put(error)

    def do(self, job: Callable[[], None]) -> None:
        """Returns when `job` has run, or raises what it raised. An interrupted wait leaves it running."""
        answer: SimpleQueue[BaseException | None] = SimpleQueue()
        self._jobs.put((job, answer))
        if error := answer.get():
            raise error

    def end(self) -> None:
        """Returns when all jobs have run."""
        self._jobs.put(None)
        self._thread.join()


def pick_codec(available: Container[str] = av.codecs_available) -> str:
    """H.264 where PyAV was built with it, else MPEG-4, and a warning says so."""
    if H264 in available:
        return H264
    warn_once("This PyAV lacks libx264; videos are written as MPEG-4, which browsers do not play.")
    return MPEG4


class VideoWriter:
    """A context manager that writes frames to an mp4 file as they come.

    Leaving it normally or by a KeyboardInterrupt or GeneratorExit keeps the frames written so far as a playable
    file; any other exception, or writing nothing, leaves the folder as it was.
    """

    def __init__(self, path: Path | str, fps: float, scale: int = 8) -> None:
        """`scale` is how many screen pixels wide a pixel becomes. Raises SettingError for a senseless rate or scale."""
        if not 0.1 <= fps <= 1000 or scale < 1:
            raise SettingError(
                f"A video of {fps} frames a second at scale {scale} can't be written; "
                "choose 0.1 to 1000 frames a second and a whole scale from 1."
            )
        self.path, self.scale = Path(path), scale
        self.rate = Fraction(fps).limit_denominator(1001)  # 30000/1001 is the finest that is in use
        self.codec = pick_codec()
        self.frames = 0
        self._stream: VideoStream | None = None

    def __enter__(self) -> VideoWriter:
        """Raises SettingError when the folder does not exist or cannot be written to."""
        self._part = part_beside(self.path)
        self._mode = self._part.stat().st_mode
        self._encoder = _Worker()  # so Ctrl-C never falls between a frame and its packet
        return self

    def write(self, frames: Tensor) -> None:
        """Append `frames`, grey [n, height, width] or RGB [n, height, width, 3], floats in 0..1."""
        if not (frames.ndim == 3 or (frames.ndim == 4 and frames.shape[3] == 3)) or 0 in frames.shape[1:]:
            raise ShapeError(
                f"Frames are [n, height, width] or [n, height, width, 3], but these are {tuple(frames.shape)}."
            )
        for frame in to_bytes(frames):
            self._encoder.do(partial(self._encode, frame if frames.ndim == 4 else to_rgb(frame)))

    def _encode(self, pixels: Tensor) -> None:
        """Append one frame, uint8 [height, width, 3]."""
        pixels = enlarge(pixels, self.scale)
        height, width = pixels.shape[:2]
        even = F.pad(pixels.permute(2, 0, 1), (0, width % 2, 0, height % 2)).permute(1, 2, 0)  # yuv420p halves colour
        stream = self._stream or self._open(*even.shape[:2])
        if even.shape[:2] != (stream.height, stream.width):
            size = f"{even.shape[1]}x{even.shape[0]}"
            raise ShapeError(f"The video is {stream.width}x{stream.height}, but frame {self.frames} is {size}.")
        frame = av.VideoFrame.from_ndarray(even.contiguous().numpy(), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = self.frames, 1 / self.rate
        self._container.mux(stream.encode(frame))
        self.frames += 1

    def _open(self, height: int, width: int) -> VideoStream:
        self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "faststart"})
        stream = self._container.add_stream(self.codec, rate=self.rate, options=OPTIONS[self.codec])
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.color_range = ColorRange.MPEG.value
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709.value
        self._stream = stream
        return stream

    def _close(self, keep: bool) -> None:
        if self._stream and keep:
            self._container.mux(self._stream.encode(None))  # the frames that the encoder still holds
        if self._stream:
            self._container.close()
        if keep:
            put_in_place(self._part, self.path, self._mode)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            wanted = kind is None or issubclass(kind, STOPPED)
            self._encoder.do(lambda: self._close(keep=wanted and self.frames > 0))
        finally:
            self._encoder.end()
            self._part.unlink(missing_ok=True)
