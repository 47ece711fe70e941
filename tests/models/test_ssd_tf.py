"""SSD as TensorFlow has it: its maps at any size, its settings, and BatchNorm on a single cell."""

import pytest
import torch

from focaldet.errors import ConfigError
from focaldet.models import LossContext, build, named_config
from focaldet.types import ImageSize, Target
from tests.nets.test_inception_resnet import tensorflow_same

NAME = "ssd_mobilenet_v2_tf"


@pytest.mark.parametrize(("height", "width"), [(300, 300), (299, 321), (64, 96)])
def test_every_map_is_half_of_the_one_before_rounded_up(height, width) -> None:
    with torch.device("meta"):
        detector = build(NAME, num_classes=3)
        levels = detector.levels(torch.zeros(1, 3, height, width))
    expected = [(-(-height // stride), -(-width // stride)) for stride in detector.config.strides_px]
    assert [tuple(level.shape[-2:]) for level in levels] == expected
    assert [level.shape[1] for level in levels] == [576, 1280, 512, 256, 256, 128]
    cells = [grid.cells for grid in detector.config.grids(ImageSize(height, width))]
    assert cells == expected


@torch.no_grad()
def test_halving_pads_as_tensorflow() -> None:
    """Of an even number of cells behind alone; the stem and the depthwise convolutions of the backbone."""
    detector = build(NAME, num_classes=1).eval()
    for block in (detector.backbone.features[0], detector.backbone.features[2].conv[1], detector.extras[0][1]):
        for side in (8, 9):
            x = torch.randn(1, block[0].in_channels, side, side + 1)
            padded = tensorflow_same(x, (3, 3), 2, 1, 0.0)
            expected = torch.nn.functional.conv2d(padded, block[0].weight, None, 2, 0, 1, block[0].groups)
            torch.testing.assert_close(block(x), block[1](expected).clamp(0, 6), rtol=1e-4, atol=1e-4)


def test_batch_norm_is_not_trained_on_one_cell() -> None:
    detector = build(NAME, num_classes=2, architecture={"norm": "batch"}).train()
    with pytest.raises(ConfigError, match="BatchNorm cannot be trained on the map of 1 × 1 cells of a single image"):
        detector(torch.zeros(1, 3, 300, 300), [ImageSize(300, 300)])
    frozen = build(NAME, num_classes=2, architecture={"extra_norm": "frozen"}).train()
    outputs = frozen(torch.zeros(1, 3, 64, 64), [ImageSize(64, 64)])
    losses = frozen.losses(outputs, [Target.empty()], LossContext())
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"extra_widths": [512, 256]}, r"priors\.num_levels: must be 4, one for each of the sources and extra_widths"),
        ({"sources": ["C5", "C4"]}, "sources: must go from fine to coarse"),
        ({"extra_widths": [512, 256, 256, 127]}, "extra_widths.3: .*multiple of 2"),
    ],
)
def test_settings_that_do_not_fit(settings, words) -> None:
    with pytest.raises(ConfigError, match=words):
        named_config(NAME, architecture=settings)
