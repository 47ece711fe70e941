"""Resizing, padding, batches, devices: what evaluation and prediction share."""

import pytest
import torch
from torch.nn.functional import interpolate

from focaldet.data.transforms import Sample, resize_sample
from focaldet.errors import ConfigError
from focaldet.evaluate.inference import (
    detect_batch,
    has_native_bf16,
    inference_mode,
    pad_images,
    pick_device,
    pick_precision,
    resize_asked,
    resize_image,
)
from focaldet.types import ImageSize, Preprocessing, Resize, Target

from .cases import BrightDetector, picture

CPU = torch.device("cpu")


def noise(height, width):
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(60, 80), (333, 500), (7, 91)])
def test_with_antialiasing_a_picture_is_what_training_sees(size):
    resize = Resize(mode="short", size=48, max_size=100)
    resized = resize_image(noise(*size), resize)
    assert resized.dtype == torch.uint8
    assert torch.equal(resized, resize_sample(Sample(noise(*size), Target.empty()), resize).image)


@pytest.mark.parametrize("size", [(97, 131), (60, 80), (48, 64), (129, 70), (1, 50)])
def test_without_antialiasing_it_is_torchvisions_own_interpolation(size):
    """torchvision normalises first and gives a scale, not a size; both are linear and give the same picture."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    image = noise(*size)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected, _ = GeneralizedRCNNTransform(80, 100, mean, std)([image / 255])
    ours = resize_image(image, Resize(mode="short", size=80, max_size=100, rounding="down", antialias=False))
    height, width = ours.shape[1:]
    assert expected.image_sizes[0] == (height, width)
    normalised = (ours / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(normalised, expected.tensors[0, :, :height, :width], atol=1e-5)


def test_rounding_down_gives_the_sizes_of_torchvision():
    """Also those that double precision leaves a hair below a whole number, such as 1297 → 1332."""
    from torchvision.models.detection.transform import _resize_image_and_masks

    resize = Resize(mode="short", size=80, max_size=133, rounding="down", antialias=False)
    generator = torch.Generator().manual_seed(0)
    for height, width in torch.randint(20, 1400, (300, 2), generator=generator).tolist():
        resized, _ = _resize_image_and_masks(torch.empty(1, height, width), 80, 133)
        assert resize.target(ImageSize(height, width)) == resized.shape[1:], (height, width)
    assert Resize(rounding="down").target(ImageSize(1297, 700)).height == 1332


def test_interpolation_keeps_fractions():
    resized = resize_image(noise(10, 10), Resize(mode="warp", size=7, antialias=False))
    assert (resized != resized.round()).any()
    assert torch.equal(resized, interpolate(noise(10, 10)[None].float(), size=(7, 7), mode="bilinear")[0])


def test_padding_goes_to_the_bottom_and_right_of_the_largest():
    batch = pad_images([noise(20, 40), noise(33, 10)], Preprocessing(mean=(1.0, 2.0, 3.0), size_divisor=16))
    assert batch.shape == (2, 3, 48, 48)
    assert torch.equal(batch[0, :, :20, :40], noise(20, 40))
    assert torch.equal(batch[1, :, :33, :10], noise(33, 10))
    assert batch[0, :, 20:].flatten(1).unique(dim=1).flatten().tolist() == [1, 2, 3]
    assert batch[1, :, :, 10:].flatten(1).unique(dim=1).flatten().tolist() == [1, 2, 3]


def test_bgr_networks_are_padded_with_their_mean_in_rgb_order():
    batch = pad_images([noise(1, 1)], Preprocessing(channels="BGR", mean=(1.0, 2.0, 3.0), size_divisor=4))
    assert batch[0, :, 3, 3].tolist() == [3, 2, 1]


def test_boxes_are_scaled_and_clipped_to_the_original():
    detector = BrightDetector()
    batch = pad_images([picture(size=(32, 64), box=(0, 0, 64, 16))], detector.preprocessing)
    (found,) = detect_batch(
        detector, batch, sizes=[ImageSize(32, 64)], original_sizes=[ImageSize(100, 127)], device=CPU, precision="fp32"
    )
    assert found.boxes.tolist() == [[0.0, 0.0, 127.0, 50.0]]


def test_lower_precision_reaches_the_products_only():
    class Products(BrightDetector):
        def forward(self, images, targets=None):
            self.product = torch.ones(2, 2) @ torch.ones(2, 2)
            return super().forward(images)

    detector = Products()
    one = pad_images([picture()], detector.preprocessing)
    sizes = [ImageSize(48, 64)]
    for precision, dtype in [("fp32", torch.float32), ("bf16", torch.bfloat16)]:
        (found,) = detect_batch(detector, one, sizes=sizes, original_sizes=sizes, device=CPU, precision=precision)
        assert detector.product.dtype == dtype
        assert found.boxes.dtype == torch.float32


def test_every_module_gets_its_mode_back():
    detector = BrightDetector().train()
    detector.dropout.eval()
    with pytest.raises(RuntimeError, match="within"), inference_mode(detector):
        assert not detector.training
        raise RuntimeError("within")
    assert detector.training
    assert not detector.dropout.training


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ({}, Resize("short", 800, 1333, "down", False)),
        ({"size": 320}, Resize("long", 320, None, "down", False)),
        ({"short_side": 600}, Resize("short", 600, None, "down", False)),
        ({"short_side": 600, "max_side": 1000}, Resize("short", 600, 1000, "down", False)),
    ],
)
def test_sides_that_are_asked_for_keep_the_way_of_resizing(sides, expected):
    assert resize_asked(Resize("short", 800, 1333, "down", False), **sides) == expected


@pytest.mark.parametrize(
    ("sides", "problem"),
    [
        ({"size": 64, "short_side": 64}, "give either"),
        ({"max_side": 64}, "max_side: needs short_side"),
        ({"size": 0}, "must be at least 1"),
        ({"short_side": 64, "max_side": -1}, "must be at least 1"),
    ],
)
def test_contradicting_sides_are_refused(sides, problem):
    with pytest.raises(ConfigError, match=problem):
        resize_asked(Resize(), **sides)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gpu", "device: 'gpu' is unknown; allowed: cpu, cuda"),
        ("cuda:x", "device: 'cuda:x' is unknown"),
        ("cuda:99", "device: 'cuda:99' is not there"),
        ("cpu:1", "device: 'cpu:1' is not there"),
    ],
)
def test_devices_that_are_not_there_are_refused(name, problem):
    with pytest.raises(ConfigError, match=problem):
        pick_device(name)


def test_the_best_device_there_is(monkeypatch):
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device(None) == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")


def test_precision_follows_the_hardware_unless_it_is_given(monkeypatch):
    assert pick_precision("fp16", device=CPU) == "fp16"
    for capable, expected in [(True, "bf16"), (False, "fp32")]:
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda capable=capable: {"avx512_bf16": capable}, raising=False
        )
        assert has_native_bf16(CPU) is capable
        assert pick_precision(None, device=CPU) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_native_bf16(CPU)
    assert not has_native_bf16(torch.device("mps"))
