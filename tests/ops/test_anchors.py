import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from focaldet.config import from_dict
from focaldet.errors import ConfigError
from focaldet.ops.anchors import AnchorConfig, cell_anchors, level_anchors, pyramid_anchors

STRIDES = (8, 16, 32, 64, 128)


def shapes(height, width):
    return tuple((-(-height // stride), -(-width // stride)) for stride in STRIDES)


@pytest.mark.parametrize(("image", "count"), [((800, 1344), 201_600), ((608, 1024), 116_712)])
def test_counts_of_the_papers_sizes(image, count):
    anchors = pyramid_anchors(AnchorConfig(), strides_px=STRIDES, shapes=shapes(*image), image=image)
    assert len(anchors) == count


def test_sides_run_from_32_to_813_px():
    areas = torch.cat([cell_anchors(AnchorConfig(), stride_px=s) for s in STRIDES])
    sides = ((areas[:, 2] - areas[:, 0]) * (areas[:, 3] - areas[:, 1])).sqrt()
    assert sides.min().item() == pytest.approx(32, rel=1e-5)
    assert sides.max().item() == pytest.approx(512 * 2 ** (2 / 3), rel=1e-5)


def test_ratio_is_height_over_width_and_outer():
    anchors = cell_anchors(AnchorConfig(), stride_px=8)
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    torch.testing.assert_close(height / width, torch.tensor([0.5] * 3 + [1.0] * 3 + [2.0] * 3))
    swapped = cell_anchors(AnchorConfig(order="scale, ratio"), stride_px=8)
    torch.testing.assert_close(swapped, anchors.view(3, 3, 4).transpose(0, 1).reshape(9, 4))


def test_detectron_rounding_at_p3():
    # DETECTRON's quantisation: 24 × 48 for ratio 2 and 44 × 24 for ratio .5 instead of 22.6 × 45.3.
    anchors = cell_anchors(AnchorConfig(flavor="detectron1", scales=(1.0,)), stride_px=8)
    sizes = [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in anchors.tolist()]
    assert sizes == [(44.0, 24.0), (32.0, 32.0), (24.0, 48.0)]
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    torch.testing.assert_close(centers, torch.full((3, 2), 4.0))  # (stride - 1) / 2 plus half of the "+ 1"


@pytest.mark.parametrize("image", [(320, 416), (800, 1088), (224, 352)])
def test_torchvision_flavor_equals_torchvision(image):
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    reference = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    maps = [torch.zeros(1, 1, *shape) for shape in shapes(*image)]
    expected = reference(ImageList(torch.zeros(1, 3, *image), [image]), maps)[0]
    actual = pyramid_anchors(AnchorConfig(flavor="torchvision"), strides_px=STRIDES, shapes=shapes(*image), image=image)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_cells_go_row_by_row():
    anchors = level_anchors(AnchorConfig(scales=(1.0,), ratios=(1.0,)), stride_px=8, height=2, width=3)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centers.tolist() == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8]]


def test_anchors_cached_by_evaluation_serve_training():
    settings = {"strides_px": STRIDES, "shapes": shapes(96, 160), "image": (96, 160)}
    with torch.inference_mode():
        pyramid_anchors(AnchorConfig(), **settings)
    deltas = torch.zeros(1, requires_grad=True)
    (deltas * pyramid_anchors(AnchorConfig(), **settings)).sum().backward()  # raises for an inference tensor
    assert deltas.grad.isfinite().all()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"ratios": []}, "ratios: .* at least 1 item"),
        ({"scales": []}, "scales: .* at least 1 item"),
        ({"ratios": [1.0, 0.0]}, "ratios.1: Input should be greater than 0, got 0"),
        ({"ratios": [-1]}, "ratios.0: Input should be greater than 0"),
        ({"scales": [-1]}, "scales.0: Input should be greater than 0"),
        ({"base_scale": 0}, "base_scale: Input should be greater than 0"),
        ({"base_scale": float("inf")}, "base_scale: Input should be a finite number"),
    ],
)
def test_settings_out_of_range_are_named(values, problem):
    with pytest.raises(ConfigError, match=problem):
        from_dict(AnchorConfig, values)


def test_the_setting_of_version_0_1_is_read_with_a_warning():
    with pytest.warns(FutureWarning, match="flavour is now called flavor"):
        assert from_dict(AnchorConfig, {"flavour": "torchvision"}) == AnchorConfig(flavor="torchvision")
