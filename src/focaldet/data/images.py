"""Reading images from files and from memory, always as RGB bytes: UInt8 (3, H, W).

The rules for each kind of file:

* The EXIF orientation 1…8 is applied, so height and width are those that a viewer shows.
* 16 bits per channel keep their high byte (65535 becomes 255): the contrast of single images is not stretched.
* Transparent pixels are laid over white. Gray, palette, 1-bit and CMYK images become RGB.
* Of an animation or a file with several pages the first image is taken.
* 32-bit and floating-point pixels have no known range and are refused.
* An image of more than `MAX_PIXELS` is read reduced; one of more than `largest_pixels` is refused.
* HEIC needs the package pillow-heif (extra `heic`), AVIF Pillow 11.3.
"""

import functools
import io
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features
from torch import Tensor
from torchvision.io import ImageReadMode

from focaldet.errors import ConfigError, DataError, ImageTooLargeError
from focaldet.files import open_plain
from focaldet.types import ImageSize

MAX_PIXELS = 50_000_000
MAX_JPEG_PIXELS = 200_000_000  # of which no more than a quarter is decoded
START_OF_SCAN = b"\xff\xda"  # its two bytes cannot stand within the data of a scan
USUAL_SCANS, MOST_SCANS, MOST_SCANNED_PIXELS = 16, 200, 1_000_000_000
"""Scans of a JPEG that are read at any size and at most; and pixels times scans between the two."""
MEGAPIXELS_VARIABLE = "FOCALDET_MAX_MEGAPIXELS"
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"}
    | {".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif"}
)

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"mif1"), "HEIF")
_JPEG = ("JPEG", "MPO")
_OPTIONAL = ("AVIF", "HEIF")
_NEW_SUFFIXES = (".avif", ".heic", ".heif", ".jpg", ".jpeg")  # phones also call their HEIC images jpg
_SIDEWAYS = (5, 6, 7, 8)


def largest_pixels(image_format: str | None) -> int:
    """The pixels of the largest image of a format that is read, or what FOCALDET_MAX_MEGAPIXELS says of all formats.

    Raises:
        ConfigError: the variable is not a number above 0.
    """
    text = os.environ.get(MEGAPIXELS_VARIABLE)
    if not text:
        return MAX_JPEG_PIXELS if image_format in _JPEG else MAX_PIXELS
    try:
        megapixels = float(text)
    except ValueError:
        megapixels = -1.0
    if not 0 < megapixels < 1e6:
        raise ConfigError(f"{MEGAPIXELS_VARIABLE}: must be a number of megapixels above 0, got {text!r}")
    return round(megapixels * 1e6)


class _Quiet:
    """A context without Pillow's warnings and its own limit of pixels, as long as any thread is inside.

    `warnings.catch_warnings` alone is not safe here: two threads that leave in the wrong order would restore each
    other's filters for good.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._filters = threading.Lock(), 0, warnings.catch_warnings()
        self._limit = Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = self._limit


_QUIET = _Quiet()


def read_header(path: Path | io.BytesIO) -> ImageSize:
    """Height and width of an image file, or of one in memory, after EXIF rotation, without decoding it.

    Raises:
        DataError: the file is missing or not an image, or it has more than `largest_pixels`.
    """
    with _open_image(path) as image:
        return _upright_size(image)


def is_turned(path: Path) -> bool:
    """Whether the EXIF orientation of an image file says that its pixels are not stored upright.

    Raises:
        DataError: the file is missing or not an image.
    """
    with _open_image(path) as image:
        return _orientation(image) != 1


def read_image(path: Path) -> UInt8[Tensor, "3 H W"]:
    """The pixels of an image file, upright; those of a very large one are reduced (`read_reduced`).

    The memory lies as H × W × 3, which is how decoders write it.

    Raises:
        DataError: the file is missing, damaged or not an image, its range of values is unknown, or it has more than
            `largest_pixels`.
    """
    return read_reduced(path)[0]


def read_reduced(
    path: Path | io.BytesIO, *, least_px: int = 0, most_pixels: int | None = None
) -> tuple[UInt8[Tensor, "3 h w"], ImageSize]:
    """The pixels of an image file, or of one in memory, upright, and the size of the whole image.

    Only an image of more than `MAX_PIXELS` is reduced: by the smallest whole factor that brings it below, as long as
    its short side keeps `least_px`. Of a JPEG the decoder computes no more than that.

    Args:
        path: the file, or its content.
        least_px: what the short side keeps at least.
        most_pixels: the largest image that is read; `largest_pixels` of its format by default.

    Raises:
        DataError: see `read_image`; of a too large one an `ImageTooLargeError`.
    """
    with _open_image(path, most_pixels=most_pixels) as image:
        orientation, size = _orientation(image), _upright_size(image)
        _refuse_many_scans(image, path)
        if image.width * image.height <= MAX_PIXELS:
            pixels = _decode_jpeg(image)
            return _upright(_decode(image, name=_file_name(path)) if pixels is None else pixels, orientation), size
        factor = 1
        while -(-image.width // factor) * -(-image.height // factor) > MAX_PIXELS:
            factor += 1
        factor = max(1, min(factor, min(size) // max(1, least_px)))
        width, height = (-(-side // factor) for side in image.size)
        image.draft("RGB", (width, height))  # halves, quarters or eighths of a JPEG, never less than this
        rest = max(1, round(image.width / width))
        return _upright(_decode(image.reduce(rest) if rest > 1 else image, name=_file_name(path)), orientation), size


def from_array(image: Image.Image | numpy.ndarray | Tensor) -> UInt8[Tensor, "3 H W"]:
    """The pixels of an image in memory, as they are (no EXIF rotation).

    Arrays are uint8 and RGB (not OpenCV's BGR) of shape H × W × 3, or H × W for gray; tensors are uint8 RGB 3 × H × W.

    Raises:
        DataError: another type, shape or value range.
    """
    if isinstance(image, Image.Image):
        with _QUIET:
            return _decode(image, name="image given as PIL image")
    name = f"image given as {type(image).__name__}"
    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise DataError(f"values must be uint8 in 0…255, got {image.dtype}", file=name)
    if isinstance(image, Tensor):
        wanted, fits = "3 × H × W", image.ndim == 3 and image.shape[0] == 3
    else:
        wanted, fits = "H × W × 3 (RGB) or H × W", image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if not fits or 0 in image.shape:
        raise DataError(f"shape must be {wanted}, got {' × '.join(map(str, image.shape))}", file=name)
    if isinstance(image, Tensor):
        return image
    color = numpy.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    # torch takes neither read-only memory nor negative strides such as those of `image[..., ::-1]`.
    usable = color if color.flags.writeable and min(color.strides) > 0 else color.copy()
    return torch.from_numpy(usable).permute(2, 0, 1)


def to_pixels(image: Any) -> UInt8[Tensor, "3 H W"]:
    """The pixels of an image in any form: a path, a PIL image, an array, or a tensor on any device.

    Arrays and tensors are as in `from_array`; tensors may also be floating point in 0…255, which is rounded.

    Raises:
        DataError: the file cannot be read, or another type, shape or value range.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        return from_array(_round_to_bytes(image) if image.is_floating_point() else image)
    if isinstance(image, numpy.ndarray | Image.Image):
        return from_array(image)
    raise DataError(
        f"must be a path, a PIL image, a uint8 RGB array or a tensor, got {type(image).__name__}", file="image"
    )


def _round_to_bytes(image: Float[Tensor, "*axes"]) -> UInt8[Tensor, "*axes"]:
    """Floating-point pixels rounded to bytes; those in 0…1 are refused, not taken for a black image."""
    low, high = (image.min().item(), image.max().item()) if image.numel() else (0.0, 0.0)
    hint = ": multiply by 255" if 0 < high <= 1 and bool((image != image.round()).any()) else ""
    if hint or not (low >= 0 and high <= 255):
        raise DataError(f"values must be in 0…255, got {low:g}…{high:g}{hint}", file="image given as Tensor")
    return image.round().to(torch.uint8)


def _refuse_many_scans(image: Image.Image, path: Path | io.BytesIO) -> None:
    """Refuse a JPEG whose scans would take minutes: each goes over all pixels, and takes but a few bytes of the file.

    Raises:
        DataError: gives the number of scans.
    """
    if image.format not in _JPEG or not isinstance(image, ImageFile.ImageFile) or image.fp is None:
        return
    image.fp.seek(0)
    scans = image.fp.read().count(START_OF_SCAN)
    if scans > USUAL_SCANS and (scans > MOST_SCANS or scans * image.width * image.height > MOST_SCANNED_PIXELS):
        problem = f"is a JPEG of {scans} scans, which would take very long; usual are at most 10"
        raise DataError(problem, file=_file_name(path))


def _upright_size(image: Image.Image) -> ImageSize:
    width, height = image.size
    return ImageSize(width, height) if _orientation(image) in _SIDEWAYS else ImageSize(height, width)


@contextmanager
def _open_image(path: Path | io.BytesIO, *, most_pixels: int | None = None) -> Iterator[Image.Image]:
    """The opened image, its header read; whatever fails inside becomes a `DataError` that names the file."""
    name = _file_name(path)
    try:
        if isinstance(path, Path) and not path.is_file():  # also keeps out pipes and devices, which would block
            problem = "is a folder, pipe or device, not a file" if path.exists() else "no such file"
            raise DataError(problem, file=name)
        is_old = isinstance(path, Path) and path.suffix.lower() not in _NEW_SUFFIXES
        with _QUIET, Image.open(path, formats=_FORMATS if is_old else _formats_for(path)) as image:
            most = largest_pixels(image.format) if most_pixels is None else most_pixels
            if image.width * image.height > most:
                raise ImageTooLargeError(_too_large(image, most), file=name)
            yield image
    except (DataError, ConfigError):
        raise
    except UnidentifiedImageError:
        raise DataError(_describe_unknown(path), file=name) from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them into
        raise DataError(f"is damaged: {error or type(error).__name__}", file=name) from None


def _file_name(path: Path | io.BytesIO) -> str | Path:
    """What messages call an image file or an image in memory."""
    return path if isinstance(path, Path) else "image in memory"


def _first_bytes(path: Path | io.BytesIO) -> bytes:
    """The twelve bytes by which formats are distinguished."""
    if isinstance(path, io.BytesIO):
        return bytes(path.getbuffer()[:12])
    with open_plain(path) as file:
        return bytes(file.read(12))


def _too_large(image: Image.Image, most_pixels: int) -> str:
    allowed = f"{most_pixels / 1e6:g} megapixels"
    return (
        f"has {image.width} × {image.height} pixels, allowed are {allowed}; the environment variable "
        f"{MEGAPIXELS_VARIABLE} sets another limit"
    )


def _formats_for(path: Path | io.BytesIO) -> tuple[str, ...]:
    """The formats with the one that the first bytes of the file say, where Pillow can be taught it.

    Raises:
        DataError: it cannot; says which package is missing.
    """
    start = _first_bytes(path)
    kind = _BRANDS.get(start[8:12]) if start[4:8] == b"ftyp" else None
    if kind == "AVIF" and not features.check("avif"):
        raise DataError(
            "is an AVIF image, which this Pillow cannot read: install pillow 11.3 or later", file=_file_name(path)
        )
    if kind == "HEIF" and not _teach_heif():
        remedy = "install the package pillow-heif (pip install 'focaldet[heic]')"
        raise DataError(f"is a HEIC image, which cannot be read here: {remedy}", file=_file_name(path))
    return (*_FORMATS, kind) if kind else _FORMATS


@functools.cache
def _teach_heif() -> bool:
    """Teach Pillow to read HEIC; False where the package for it is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _describe_unknown(path: Path | io.BytesIO) -> str:
    start = _first_bytes(path)
    if not start:
        return "is empty (0 bytes)"
    return f"is not an image in a known format ({', '.join((*_FORMATS, *_OPTIONAL))}); it starts with {start!r}"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1…8; 1 where there is none or it cannot be understood."""
    if image.format == "TIFF":  # Pillow turns these by itself
        return 1
    try:
        # Not `image.getexif()`: that of PNG files decodes the whole image to look behind the pixels.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (struct.error, SyntaxError, ValueError, LookupError, TypeError, OSError):
        return 1
    return int(value) if value in range(1, 9) else 1


def _upright(pixels: UInt8[Tensor, "3 H1 W1"], orientation: int) -> UInt8[Tensor, "3 H W"]:
    """The pixels as a viewer shows them; orientations 5…8 are stored with rows and columns exchanged."""
    if orientation in _SIDEWAYS:
        pixels = pixels.transpose(1, 2)
    flips = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(flips) if flips else pixels


def _decode_jpeg(image: Image.Image) -> UInt8[Tensor, "3 H W"] | None:
    """Pixels of a gray or YCbCr JPEG by torchvision: Pillow's bytes in three quarters of the time; else None.

    Also None where torchvision refuses, so that Pillow decides, and its message says what is wrong.
    """
    if image.format not in _JPEG or image.mode not in ("RGB", "L"):
        return None
    if not isinstance(image, ImageFile.ImageFile) or image.fp is None:
        return None
    image.fp.seek(0)
    data = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
    try:
        # The operator, since `torchvision.io.decode_jpeg` warns that it will be removed; then Pillow decodes.
        pixels: Tensor = torch.ops.image.decode_jpeg(data, ImageReadMode.RGB.value, False)
        return pixels
    except (RuntimeError, AttributeError):
        image.fp.seek(0)
        return None


def _decode(image: Image.Image, *, name: str | Path) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(numpy.array(_rgb(image, name=name))).permute(2, 0, 1)


def _rgb(image: Image.Image, *, name: str | Path) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        high_byte = numpy.asarray(image).clip(0, 65535) >> 8
        return Image.fromarray(high_byte.astype(numpy.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError("has 32-bit pixels, whose range is unknown; allowed are 8 and 16 bits", file=name)
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        return paper.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
