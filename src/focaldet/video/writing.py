"""Writing a video of images, each at its time."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from focaldet.errors import ConfigError
from focaldet.video.reading import import_av, to_rate

TICKS = 90_000  # a second, the usual clock of videos
_CODECS = {"libx264": {"crf": "23", "preset": "fast"}, "mpeg4": {"qscale": "4"}}


class VideoWriter:
    """An MP4 file of H.264, or of MPEG-4 where this FFmpeg has no encoder for H.264.

    All frames have the size of the first, without its last row and column where these are odd.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path, *, fps: float) -> None:
        av = import_av()
        self.path, self._rate, self._last = path, to_rate(fps), -1
        self._codec = next(name for name in _CODECS if name in av.codecs_available)
        self._base = Fraction(1, TICKS if self._codec == "libx264" else 1000)
        try:
            self._container = av.open(f"file:{path}", "w", format="mp4")
        except (av.error.FFmpegError, OSError) as error:
            raise ConfigError(f"out: {path} cannot be written: {error.strerror}") from None
        self._stream: Any = None

    def add(self, image: Image.Image, *, seconds: float) -> None:
        """Write an image that is shown from this time on; times increase."""
        av = import_av()
        if self._stream is None:
            self._stream = self._container.add_stream(self._codec, rate=self._rate, options=_CODECS[self._codec])
            self._stream.width, self._stream.height = (max(2, side - side % 2) for side in image.size)
            self._stream.pix_fmt = "yuv420p"
            codec = self._stream.codec_context
            codec.time_base = self._base
        size = (self._stream.width, self._stream.height)
        if any(not 0 <= side - even <= 1 for side, even in zip(image.size, size, strict=True)):
            image = image.resize(size)
        frame = av.VideoFrame.from_ndarray(numpy.asarray(image.crop((0, 0, *size))), format="rgb24")
        self._last = max(self._last + 1, round(seconds / self._base))
        frame.pts, frame.time_base = self._last, self._base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds, and the index without which no player opens the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
