"""The size of a picture in a padded batch, read from its pixels."""

import pytest
import torch
from PIL import Image

from focaldet.data.loading.collate import padded
from focaldet.ops.frames import content_sizes
from focaldet.types import Preprocessing

MEAN = Preprocessing().rgb_padding


def pictures(*sizes, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_padding_is_found_in_bytes_and_in_floats(dtype):
    sizes = [(40, 50), (64, 33), (1, 1), (64, 64)]
    batch = padded(pictures(*sizes, dtype=dtype), preprocessing=Preprocessing())
    assert batch.shape == (4, 3, 64, 64)
    found = content_sizes(batch, MEAN)
    assert found.dtype == torch.float32
    assert found.tolist() == [list(size) for size in sizes]


def test_the_colour_within_a_picture_is_no_padding():
    (picture,) = pictures((20, 30))
    picture[:, 5:15, 5:25] = torch.tensor(MEAN).round().to(torch.uint8)[:, None, None]
    picture[:, :4] = torch.tensor(MEAN).round().to(torch.uint8)[:, None, None]
    assert content_sizes(picture[None], MEAN).tolist() == [[20, 30]]


def test_nothing_but_the_colour_is_whole():
    blank = torch.tensor(MEAN)[:, None, None].expand(1, 3, 20, 30)
    assert content_sizes(blank, MEAN).tolist() == [[20, 30]]


def test_one_pixel_counts_and_all_channels_do():
    for channel in range(3):
        picture = torch.tensor(MEAN)[:, None, None].repeat(1, 1, 20, 30)
        picture[0, channel, 7, 11] += 2
        assert content_sizes(picture, MEAN).tolist() == [[8, 12]]


def test_a_batch_on_meta_has_a_shape():
    assert content_sizes(torch.zeros(2, 3, 8, 8, device="meta"), MEAN).shape == (2, 2)


def test_real_pictures_reach_their_own_borders(real_data):
    files = sorted((real_data / "coco_mini" / "val2017").glob("*.jpg"))[:20]
    assert files
    for file in files:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
        pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3)
        batch = padded([pixels.permute(2, 0, 1)], preprocessing=Preprocessing())
        assert content_sizes(batch, MEAN).tolist() == [[rgb.height, rgb.width]]
