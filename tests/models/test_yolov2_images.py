"""YOLOv2 from an image's bytes to boxes in its pixels, against the float64 transcription of darknet."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from focaldet.data.augment.geometry import resize_image
from focaldet.data.images import read_image
from focaldet.models import build
from focaldet.models.yolov2 import COCO_ANCHORS
from focaldet.prediction import Predictor
from focaldet.types import Resize
from focaldet.weights import load_into
from tests.batches import full_sizes
from tests.models import darknet_oracle as oracle

THRESHOLD = 0.02
# An upright image, a wide one and one that is nearly square.
COCO_PICTURES = ("000000006818.jpg", "000000174482.jpg", "000000058636.jpg")


def detector_of(path, convolutions, *, name, classes, size, **architecture):
    """The detector with the oracle's weights, through a `.weights` file, and darknet's own sampling of images."""
    path.write_bytes(np.array([0, 2, 0, 0, 0], "<i4").tobytes() + oracle.flat_floats(convolutions).tobytes())
    detect = {"score_threshold": THRESHOLD, "max_detections": 100_000, "top_k": 100_000}
    detector = build(name, num_classes=classes, architecture={"detect": detect, **architecture})
    load_into(detector, path)
    resize = Resize("letterbox", size, None, antialias=False, align_corners=True)
    detector.preprocessing = replace(detector.preprocessing, resize=resize)
    return detector.eval()


def expected_of(pixels, layers, convolutions, *, classes, size):
    """Raw maps and (class, score, x0, y0, x1, y1) in pixels of the image, best first."""
    _, height, width = pixels.shape
    raw = oracle.network(oracle.letterbox(pixels.numpy() / 255.0, size), layers, convolutions)
    rows = []
    # darknet draws the image at a whole pixel and maps boxes back from half of one where the bars are odd: half a
    # pixel of the network, which we do not follow.
    shown_w, shown_h = (side * size // max(height, width) for side in (width, height))
    shift_x, shift_y = (size - shown_w) % 2 / 2 * width / shown_w, (size - shown_h) % 2 / 2 * height / shown_h
    for label, score, box in oracle.Region(raw, COCO_ANCHORS, classes).detections(thresh=THRESHOLD):
        x, y, w, h = oracle.corrected(box, width, height, size)
        x0, x1 = np.clip([x - w / 2 + shift_x, x + w / 2 + shift_x], 0, width)
        y0, y1 = np.clip([y - h / 2 + shift_y, y + h / 2 + shift_y], 0, height)
        rows.append((label, score, x0, y0, x1, y1))
    return raw, np.array(rows)


def check(detector, pixels, layers, convolutions, *, classes, size):
    raw, expected = expected_of(pixels, layers, convolutions, classes=classes, size=size)
    batch = resize_image(pixels, detector.preprocessing.resize)[None]
    with torch.no_grad():
        outputs = detector(batch, full_sizes(batch))
    together = torch.cat([outputs.deltas, outputs.objectness[..., None], outputs.logits], -1)[0].numpy()
    wanted = raw.reshape(len(COCO_ANCHORS), 5 + classes, -1).transpose(2, 0, 1).reshape(together.shape)
    assert np.abs(together - wanted).max() <= 1e-5 * np.abs(wanted).max()
    actual = Predictor(detector, device="cpu", precision="fp32").predict(pixels)
    assert len(expected) >= 20 and len(set(expected[:, 0])) > 1, "the network is lively"
    # As sets: the order of two scores that differ in the seventh digit means nothing.
    rows = torch.cat([actual.labels[:, None], actual.scores[:, None], actual.boxes], 1).numpy()
    tolerance = np.array([0, 1e-5, *[1e-5 * max(pixels.shape)] * 4]) + 1e-5 * np.abs(expected) * (0, 0, 1, 1, 1, 1)
    same = (np.abs(rows[None] - expected[:, None]) <= tolerance[:, None]).all(2)
    assert len(rows) == len(expected) and same.any(0).all() and same.any(1).all()


def test_the_half_pixel_is_darknets_alone():
    """A image at 64 px with 64 × 37 of it shown lies at row 13, of which darknet's way back takes 13.5."""
    pixels = torch.full((3, 37, 64), 255, dtype=torch.uint8)
    boxed = oracle.letterbox(pixels.numpy() / 255.0, 64)
    assert (boxed[:, 13:50] == 1).all() and (boxed[:, :13] == 0.5).all()
    _, y, _, h = oracle.corrected((0.5, (13 + 18.5) / 64, 1.0, 37 / 64), 64, 37, 64)
    assert (y - h / 2, y + h / 2) == pytest.approx((-0.5, 36.5))


def small_network(path, *, size):
    """A thinned network of 3 classes: what `check` takes."""
    layers = oracle.yolov2_layers(5 * 8, factor=0.25, width=64, passthrough=8)
    convolutions = oracle.lively_weights(oracle.conv_shapes(layers), seed=21)
    shape = {"backbone": "darknet19_quarter", "width": 64, "passthrough": 8}
    detector = detector_of(path, convolutions, name="yolov2", classes=3, size=size, **shape)
    return detector, layers, convolutions


@pytest.mark.parametrize("cut", [(None, None), (60, None), (None, 70)])
def test_embedded_images_are_seen_as_darknet_sees_them(tmp_path, demo_data, cut):
    """As they are, lying and upright."""
    image = sorted(Path(demo_data).rglob("*.png"))[0]
    pixels = read_image(image)[:, : cut[0], : cut[1]]
    detector, layers, convolutions = small_network(tmp_path / "a.weights", size=160)
    check(detector, pixels, layers, convolutions, classes=3, size=160)


@pytest.mark.parametrize("name", COCO_PICTURES)
def test_real_images_are_seen_as_darknet_sees_them(tmp_path, real_data, name):
    pixels = read_image(real_data / "coco_mini" / "val2017" / name)
    detector, layers, convolutions = small_network(tmp_path / "a.weights", size=224)
    check(detector, pixels, layers, convolutions, classes=3, size=224)


@pytest.mark.prove
@pytest.mark.parametrize("name", COCO_PICTURES)
def test_the_released_network_sees_real_images_as_darknet_does(tmp_path, real_data, name):
    """At full width and 544 px, the size of the paper's row."""
    pixels = read_image(real_data / "coco_mini" / "val2017" / name)
    layers = oracle.yolov2_layers(425)
    convolutions = oracle.lively_weights(oracle.conv_shapes(layers), seed=22)
    detector = detector_of(tmp_path / "a.weights", convolutions, name="yolov2", classes=80, size=544)
    check(detector, pixels, layers, convolutions, classes=80, size=544)


@pytest.mark.parametrize("original", [(30, 50), (50, 30), (40, 40), (64, 64), (9, 200)])
def test_the_letterbox_is_darknets_pixel_by_pixel(original):
    pixels = torch.randint(0, 256, (3, *original), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    actual = resize_image(pixels, Resize("letterbox", 64, None, antialias=False, align_corners=True))
    np.testing.assert_allclose(actual / 255, oracle.letterbox(pixels.numpy() / 255.0, 64), atol=1e-6)


def test_square_pixels_lie_elsewhere_than_darknets_points():
    """The same image without `align_corners` is another one: the sampling is part of what the weights expect."""
    pixels = torch.randint(0, 256, (3, 30, 50), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    actual = resize_image(pixels, Resize("letterbox", 64, None, antialias=False))
    assert np.abs(actual.numpy() / 255 - oracle.letterbox(pixels.numpy() / 255.0, 64)).max() > 0.1
