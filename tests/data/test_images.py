"""Every kind of image file gives the right pixels or a `DataError` that names the file."""

import io
import json
import pickle
import struct
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, ImageOps, features

from focaldet.data import images
from focaldet.data.augment.geometry import resize_image
from focaldet.data.config import DataConfig
from focaldet.data.dataset import FileSource
from focaldet.data.images import MAX_PIXELS, from_array, read_header, read_image, read_reduced
from focaldet.data.splits import find_parts, open_parts
from focaldet.errors import ConfigError, DataError, ImageTooLargeError
from focaldet.types import ImageSize, Resize
from tests.data.datasets import coco_document, write_coco


def photo(width: int = 24, height: int = 16) -> Image.Image:
    """A smooth image without symmetry, which JPEG keeps well."""
    y, x = numpy.mgrid[0:height, 0:width]
    return Image.fromarray(numpy.stack([x * 9, y * 12, x * 3 + y * 5], axis=2).astype(numpy.uint8))


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(numpy.array(image.convert("RGB"))).permute(2, 0, 1)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix):
    path = saved(tmp_path / f"p.{suffix}", photo(), **({"lossless": True} if suffix == "webp" else {}))
    assert read_header(path) == ImageSize(16, 24)
    assert torch.equal(read_image(path), pixels(photo()))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"subsampling": 0, "quality": 30}])
def test_jpeg_equals_pillow_bit_for_bit(tmp_path, options):
    for image in (photo(), photo(37, 23), photo().convert("L")):
        path = saved(tmp_path / "p.jpg", image, **options)
        assert torch.equal(read_image(path), pixels(Image.open(path)))


def test_jpeg_takes_the_quick_way_and_pillow_where_that_is_closed(tmp_path, monkeypatch):
    path = saved(tmp_path / "p.jpg", photo())
    with Image.open(path) as image:
        quick = images._decode_jpeg(image)
    assert quick is not None
    monkeypatch.setattr(images, "_decode_jpeg", lambda image: None)
    assert torch.equal(read_image(path), quick)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"p.{suffix}", photo(), exif=exif)
    with Image.open(path) as image:
        image.load()
        wanted = pixels(ImageOps.exif_transpose(image))
    assert torch.equal(read_image(path), wanted)
    assert read_header(path) == ImageSize(*wanted.shape[1:])
    assert read_header(path) == (ImageSize(24, 16) if orientation > 4 else ImageSize(16, 24))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0broken",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
    ],
)
def test_exif_that_cannot_be_understood_is_not_a_rotation(tmp_path, exif):
    path = saved(tmp_path / "p.jpg", photo(), exif=exif)
    assert read_header(path) == ImageSize(16, 24)
    assert read_image(path).shape == (3, 16, 24)


def test_gray_palette_and_one_bit_become_rgb(tmp_path):
    for mode in ("L", "P", "1"):
        image = photo().convert(mode)
        assert torch.equal(read_image(saved(tmp_path / f"{mode}.png", image)), pixels(image))


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = saved(tmp_path / "p.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    red, green, blue = read_image(path).float().mean((1, 2)).tolist()
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_their_high_byte(tmp_path, suffix):
    values = numpy.array([[0, 255, 256], [32768, 65280, 65535]], dtype=numpy.uint16)
    path = saved(tmp_path / f"p.{suffix}", Image.fromarray(values))
    assert read_image(path)[1].tolist() == [[0, 0, 1], [128, 255, 255]]


def test_transparent_pixels_lie_on_white(tmp_path):
    for mode, color in (("RGBA", (10, 20, 30, 0)), ("LA", (10, 0))):
        image = Image.new(mode, (2, 1), color)
        image.putpixel((1, 0), (*color[:-1], 255))
        read = read_image(saved(tmp_path / f"{mode}.png", image))
        assert read[:, 0, 0].tolist() == [255, 255, 255]
        assert read[0, 0, 1] == 10
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    read = read_image(saved(tmp_path / "p.png", palette, transparency=b"\x00\xff"))
    assert read[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]


def test_first_image_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    path = saved(tmp_path / "p.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read_image(path)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
def test_extreme_shapes(tmp_path, size):
    for suffix in ("png", "jpg"):
        path = saved(tmp_path / f"p.{suffix}", Image.new("RGB", size, "white"))
        assert read_image(path).shape == (3, size[1], size[0])


def damaged_files() -> dict[str, bytes]:
    stream = io.BytesIO()
    photo(200, 200).save(stream, "JPEG")
    jpeg = stream.getvalue()
    stream = io.BytesIO()
    photo(200, 200).save(stream, "PNG")
    png = stream.getvalue()
    return {
        "empty.jpg": b"",
        "page.jpg": b"<!DOCTYPE html><html>not found</html>",
        "half.jpg": jpeg[: len(jpeg) // 2],
        "head.jpg": jpeg[:20],
        "half.png": png[: len(png) // 2],
        "head.png": png[:10],
        "text.png": b"a" * 5000,
        "wrong_checksum.png": png[:60] + b"\0\0\0\0" + png[64:],
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    }


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(damaged_files()[name])
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_messages_tell_an_empty_file_from_a_web_page(tmp_path):
    for name, words in (("empty.jpg", "is empty"), ("page.jpg", "<!DOCTYPE")):
        (tmp_path / name).write_bytes(damaged_files()[name])
        with pytest.raises(DataError, match=words):
            read_header(tmp_path / name)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(tmp_path, mode):
    with pytest.raises(DataError, match="32-bit"):
        read_image(saved(tmp_path / "p.tif", Image.new(mode, (3, 3))))


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.jpg"):
        with pytest.raises(DataError, match=r"no such file|is a folder"):
            read_header(path)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    empty = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, empty))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [7072, 12000, 60000])
def test_bombs_are_refused_from_the_header_at_once(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    read_header(saved(tmp_path / "first.png", photo()))  # Pillow loads its plug-ins with the first image
    begin = time.perf_counter()
    for read in (read_header, read_image):
        with pytest.raises(DataError, match="allowed are 50 megapixels"):
            read(tmp_path / "bomb.png")
    assert side * side > MAX_PIXELS
    assert time.perf_counter() - begin < 2 * 0.05


def test_just_below_the_limit_is_allowed(tmp_path):
    (tmp_path / "large.png").write_bytes(png_header(7071, 7071))
    assert read_header(tmp_path / "large.png") == ImageSize(7071, 7071)


def test_pillows_warnings_stay_inside_and_filters_are_restored(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(10000, 10000))  # Pillow itself only warns of this size
    before = list(warnings.filters)

    def refuse() -> None:
        for _ in range(50):
            with pytest.raises(DataError):
                read_header(tmp_path / "bomb.png")

    threads = [threading.Thread(target=refuse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_from_array_takes_what_people_hold():
    wanted = pixels(photo())
    array = numpy.array(photo())
    assert torch.equal(from_array(photo()), wanted)
    assert torch.equal(from_array(array), wanted)
    assert torch.equal(from_array(wanted), wanted)
    assert torch.equal(from_array(array[:, :, ::-1]), wanted.flip(0))
    array.setflags(write=False)
    assert torch.equal(from_array(array), wanted)
    assert torch.equal(from_array(array[:, :, 0]), wanted[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    "image",
    [
        numpy.zeros((4, 4, 3), numpy.float32),
        numpy.zeros((4, 4, 4), numpy.uint8),
        numpy.zeros((0, 4, 3), numpy.uint8),
        torch.zeros(3, 4, 4),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        Image.new("F", (2, 2)),
    ],
)
def test_from_array_refuses_the_rest(image):
    with pytest.raises(DataError, match=r"uint8|shape|32-bit"):
        from_array(image)


def test_real_photographs_equal_pillow(real_data):
    files = sorted((real_data / "coco_mini" / "val2017").glob("*.jpg"))[:10]
    assert files
    for path in files:
        with Image.open(path) as image:
            assert torch.equal(read_image(path), pixels(image))


@pytest.fixture
def small_limits(monkeypatch):
    """Images of more than 20 000 pixels are read reduced, JPEG up to 80 000, others only if the environment says so."""
    monkeypatch.setattr(images, "MAX_PIXELS", 20_000)
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 80_000)


@pytest.mark.parametrize(("kind", "width", "height"), [("jpg", 300, 200), ("jpg", 199, 399), ("png", 300, 200)])
def test_a_large_image_is_read_reduced_with_its_boxes_in_place(
    tmp_path, small_limits, monkeypatch, kind, width, height
):
    """A bright square stays where the box says, to a pixel, through reading, resizing and back."""
    pixels = numpy.zeros((height, width, 3), numpy.uint8)
    pixels[60:120, 90:150] = 255
    path = saved(tmp_path / f"large.{kind}", Image.fromarray(pixels))
    if kind == "png":
        with pytest.raises(DataError, match=r"300 × 200 pixels, allowed are 0.02 mega.*FOCALDET_MAX_MEGAPIXELS"):
            read_image(path)
        monkeypatch.setenv("FOCALDET_MAX_MEGAPIXELS", "0.07")
    assert read_header(path) == ImageSize(height, width)
    reduced, size = read_reduced(path)
    assert size == (height, width) and reduced.shape[1] * reduced.shape[2] <= 20_000
    rows, columns = (reduced[0] > 127).nonzero().unbind(1)
    x, y = width / reduced.shape[2], height / reduced.shape[1]
    edges = [columns.min() * x, rows.min() * y, (columns.max() + 1) * x, (rows.max() + 1) * y]
    assert [float(edge) for edge in edges] == pytest.approx([90, 60, 150, 120], abs=2)
    assert read_reduced(path, least_px=min(size))[0].shape[1:] == size
    whole = resize_image(read_reduced(path, least_px=min(size))[0], Resize("letterbox", 64))
    assert resize_image(reduced, Resize("letterbox", 64), original=size).shape == whole.shape
    monkeypatch.setenv("FOCALDET_MAX_MEGAPIXELS", "many")
    with pytest.raises(ConfigError, match="FOCALDET_MAX_MEGAPIXELS: must be a number"):
        read_header(path)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_boxes_of_a_reduced_image_are_scaled_in_training(tmp_path, small_limits, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    write_coco(tmp_path)
    Image.new("RGB", (400, 150)).save(tmp_path / "images" / "big.jpg", exif=exif)
    document = coco_document()
    document["images"][0]["file_name"] = "big.jpg"
    (tmp_path / "instances_train.json").write_text(json.dumps(document))
    (dataset,) = open_parts(DataConfig(path=tmp_path), find_parts(DataConfig(path=tmp_path))).values()
    i = next(i for i in range(len(dataset)) if dataset.path(i).name == "big.jpg")
    pixels, target = FileSource(dataset).load(i, epoch=0)
    assert dataset.size(i) == ((150, 400) if orientation == 1 else (400, 150)) and max(pixels.shape[1:]) == 200
    torch.testing.assert_close(target.boxes, dataset.target(i).boxes / 2)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "jp2", "j2k", "avif", "pbm"])
def test_more_kinds_of_images_are_read(tmp_path, suffix):
    assert f".{suffix}" in images.SUFFIXES
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    path, form = tmp_path / f"a.{suffix}", {"jfif": "JPEG", "jpe": "JPEG", "pbm": "PPM"}.get(suffix)
    picture = Image.new("1", (24, 16), 1) if suffix == "pbm" else photo()
    picture.save(path, form)
    assert read_header(path) == ImageSize(16, 24)
    difference = (from_array(picture.convert("RGB")).int() - read_image(path).int()).abs()
    assert difference.float().mean() < 12


def test_heic_is_read_with_its_package_and_named_without_it(tmp_path, monkeypatch):
    path = tmp_path / "phone.jpg"  # phones name some of their HEIC so
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(16))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._teach_heif.cache_clear()
    with pytest.raises(DataError, match=r"is a HEIC image, which cannot be read here: install the package pillow-heif"):
        read_header(path)
    monkeypatch.undo()
    images._teach_heif.cache_clear()
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(photo(64, 48)).save(tmp_path / "a.heic")
    assert read_header(tmp_path / "a.heic") == ImageSize(48, 64)
    difference = (from_array(photo(64, 48)).int() - read_image(tmp_path / "a.heic").int()).abs()
    assert difference.float().mean() < 12


def test_pillows_own_limit_is_left_as_it_was(tmp_path):
    read_image(saved(tmp_path / "a.png", photo()))
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


def test_the_error_of_a_too_large_image_survives_a_pickle():
    """As a process that loads data hands it over."""
    error = ImageTooLargeError("has 9 × 9 pixels", file="a.png")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.problem) == (ImageTooLargeError, str(error), error.problem)
