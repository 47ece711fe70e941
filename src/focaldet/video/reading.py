"""Frames of a video file, a camera or a folder of images, one after the other.

Axes: H W pixels.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
from jaxtyping import UInt8

from focaldet.data.images import MEGAPIXELS_VARIABLE, SUFFIXES, largest_pixels, read_image
from focaldet.errors import ConfigError, DataError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv"}
    | {".3gp", ".mjpeg", ".mjpg"}
)
CAMERA = re.compile(r"camera:(\d+)")
DEFAULT_FPS = 25.0
REORDERED_FRAMES = 16  # that a decoder may hold back: so much later those that a damaged packet cost are missing
# Containers that hold their own data. Playlists, which name other files and addresses, are not among them.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,mjpeg,h264,hevc"
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("vfwcap", "{}")}


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame: its number in the source, from 0, its time in seconds from the start, and its RGB pixels."""

    index: int
    seconds: float
    pixels: UInt8[numpy.ndarray, "H W 3"]


class FrameSource:
    """A folder of images as frames, in the order of the numbers in their names.

    Args:
        path: the folder.
        fps: frames a second.

    Raises:
        DataError: there are no images in it.
    """

    is_live = False

    def __init__(self, path: Path, *, fps: float | None = None) -> None:
        self.name, self.fps = path.absolute().name, fps or DEFAULT_FPS
        self.num_damaged = 0
        files = (file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
        self._paths = sorted(files, key=_natural_order)
        if not self._paths:
            raise DataError("no images in it", file=path)

    @property
    def num_frames(self) -> int | None:
        """The number of frames, as far as it is known before they are read."""
        return len(self._paths)

    def frames(self, *, every: int = 1) -> Iterator[Frame]:
        """Every `every`-th frame from the first one on; those that cannot be read are counted in `num_damaged`."""
        for index in range(0, len(self._paths), every):
            try:
                pixels = read_image(self._paths[index]).permute(1, 2, 0).numpy()
            except DataError:
                self.num_damaged += 1
                continue
            yield Frame(index, index / self.fps, pixels)


class _FrameCounter:
    """Numbers the frames of a video, of which damaged packets may have cost some.

    How many these are is known from the times of the frames behind them; where these have none, it is one a packet.
    A video whose rate varies has gaps without any damage: so a damaged packet explains one gap, and none that comes
    more than `REORDERED_FRAMES` later.
    """

    def __init__(self, fps: float) -> None:
        self.fps, self._index, self._last = fps, -1, 0.0
        self._num_damaged = self._unexplained = self._patience = 0

    def count(self, seconds: float | None, *, num_damaged: int) -> int:
        """The number of the next frame, by its time and by how many packets were damaged so far."""
        if num_damaged > self._num_damaged:
            self._unexplained += num_damaged - self._num_damaged
            self._num_damaged, self._patience = num_damaged, REORDERED_FRAMES
        lost = 0
        if seconds is None:
            lost = self._unexplained
        elif self._index >= 0 and self._unexplained:
            lost = max(0, round((seconds - self._last) * self.fps) - 1)
        self._patience -= 1
        self._unexplained = max(0, self._unexplained - lost) if self._patience > 0 else 0
        self._index += 1 + lost
        self._last = self._index / self.fps if seconds is None else seconds
        return self._index


class VideoSource(FrameSource):
    """A video file, read by FFmpeg through PyAV; other files or addresses that it names are not opened.

    Raises:
        DataError: the file is missing, not a video, or without a stream of images.
        ConfigError: the package `av` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.num_damaged = path.stem, 0
        if not path.is_file():
            raise DataError("no such file", file=path)
        options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
        self._open(f"file:{path}", None, options, file=str(path))

    def _open(self, file_name: str, kind: str | None, options: dict[str, str], *, file: str) -> None:
        """Open the container and choose its first stream of images."""
        av = import_av()
        try:
            container = av.open(file_name, format=kind, options=options)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"cannot be read as a video: {reason}", file=file) from None
        streams = [stream for stream in container.streams.video if stream.codec_context is not None]
        if not streams:
            container.close()
            raise DataError("has no stream of images that can be decoded", file=file)
        self._container, self._stream, self._file = container, streams[0], file
        self._stream.thread_type = "AUTO"
        self.fps = float(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_FPS)

    @property
    def num_frames(self) -> int | None:
        """The number that the file states, or what follows from its duration; None where it says neither."""
        stream = self._stream
        if stream.frames:
            return int(stream.frames)
        if stream.duration is None or stream.time_base is None:
            return None
        return max(1, round(float(stream.duration * stream.time_base) * self.fps))

    def frames(self, *, every: int = 1) -> Iterator[Frame]:
        """Every `every`-th frame from the first one on; damaged packets are counted in `num_damaged`."""
        first: float | None = None
        counter = _FrameCounter(self.fps)
        self._require_pixels(self._stream.width * self._stream.height)
        with closing(self._container):
            for frame in self._decode():
                index = counter.count(frame.time, num_damaged=self.num_damaged)
                seconds = index / self.fps if frame.time is None else float(frame.time)
                first = seconds if first is None else first
                self._require_pixels(frame.width * frame.height)
                if index % every == 0:
                    yield Frame(index, seconds - first, turn_upright(frame.to_ndarray(format="rgb24"), frame.rotation))

    def _require_pixels(self, pixels: int) -> None:
        """Refuse a frame that is larger than an image may be."""
        if pixels > largest_pixels(None):
            raise DataError(
                f"a frame has {pixels / 1e6:.3g} megapixels, allowed are {largest_pixels(None) / 1e6:.3g}; "
                f"{MEGAPIXELS_VARIABLE} sets another limit",
                file=self._file,
            )

    def _decode(self) -> Iterator[Any]:
        av = import_av()
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                yield from packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.num_damaged += 1
                if self.num_damaged > 1000:  # nothing but damage is left
                    return


class CameraSource(VideoSource):
    """A camera of this machine, by its number.

    Raises:
        DataError: it cannot be opened.
    """

    is_live = True

    def __init__(self, number: int) -> None:
        self.name, self.num_damaged = f"camera_{number}", 0
        kind, pattern = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
        self._open(pattern.format(number), kind, {}, file=f"camera:{number}")

    @property
    def num_frames(self) -> int | None:
        """None: a camera runs until it is stopped."""
        return None


def import_av() -> Any:
    """The package PyAV.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import av
        import av.error
    except ImportError:
        raise ConfigError("videos need the package av: pip install 'focaldet[video]'") from None
    return av


def is_video(source: str) -> bool:
    """Whether an input of `focaldet predict` names a camera or, by its suffix, a video."""
    return bool(CAMERA.fullmatch(source)) or Path(source).suffix.lower() in VIDEO_SUFFIXES


def open_source(source: str, *, fps: float | None = None) -> FrameSource:
    """The frames of a video file, of `camera:0`, or of a folder of images, which are `fps` a second.

    Raises:
        DataError: it cannot be read; names it.
        ConfigError: `fps` is not above 0, or the package `av` is missing.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise ConfigError(f"fps: must be above 0 and at most 1000, got {fps:g}")
    if camera := CAMERA.fullmatch(source):
        return CameraSource(int(camera[1]))
    if Path(source).is_dir():
        return FrameSource(Path(source), fps=fps)
    return VideoSource(Path(source))


def turn_upright(pixels: UInt8[numpy.ndarray, "H1 W1 3"], degrees: int) -> UInt8[numpy.ndarray, "H W 3"]:
    """The pixels as a player shows them: turned counterclockwise by what the file says, in quarter turns."""
    quarters = round(degrees / 90) % 4
    return numpy.ascontiguousarray(numpy.rot90(pixels, quarters)) if quarters else pixels


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """A key by which frame_9 stands before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.casefold())]


def to_rate(fps: float) -> Fraction:
    """The rate of a video as a fraction, such as 30000/1001, and never 0."""
    return max(Fraction(1, 1001), Fraction(fps).limit_denominator(1001))
