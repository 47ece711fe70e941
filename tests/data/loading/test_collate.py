from dataclasses import replace

import torch

from focaldet.data.augment.geometry import resize_sample
from focaldet.data.loading.collate import blank_image, pad_images
from focaldet.data.loading.sampler import Pick
from focaldet.data.loading.samples import Samples
from focaldet.types import ImageSize, Preprocessing, Resize
from tests.data.painted import PaintedSource, painted

PREPROCESSING = Preprocessing(channels="BGR", mean=(10.4, 20.6, 30.0), size_divisor=16)


def test_padding_is_the_rounded_mean_in_rgb_below_and_to_the_right():
    images = [torch.full((3, 20, 5), 200, dtype=torch.uint8), torch.full((3, 4, 33), 100, dtype=torch.uint8)]
    batch = pad_images(images, preprocessing=PREPROCESSING)
    assert batch.shape == (2, 3, 32, 48)
    for image, frame in zip(images, batch, strict=True):
        _, height, width = image.shape
        assert torch.equal(frame[:, :height, :width], image)
        for outside in (frame[:, height:], frame[:, :, width:]):
            assert outside.flatten(1).unique(dim=1).squeeze(1).tolist() == [30, 21, 10]


def test_images_in_floating_point_are_padded_with_the_exact_mean():
    batch = pad_images([torch.full((3, 4, 4), 0.25)], preprocessing=PREPROCESSING)
    assert batch.dtype == torch.float32
    assert torch.equal(batch[0, :, :4, :4], torch.full((3, 4, 4), 0.25))
    assert torch.equal(batch[0, :, 4, 4], torch.tensor([30.0, 20.6, 10.4]))


def test_blank_is_an_image_of_the_mean():
    assert blank_image(ImageSize(2, 1), preprocessing=PREPROCESSING).tolist() == [
        [[30], [30]],
        [[21], [21]],
        [[10], [10]],
    ]


def test_a_packed_batch_keeps_every_target_apart():
    boxes = [(1, 2, 5, 6), (3, 3, 9, 9)]
    source = PaintedSource(
        (
            painted((10, 12), boxes, [1, 2], ignored=[True, False]),
            painted((12, 10), [], []),
            painted((5, 5), [(0, 0, 5, 5)], [3]),
        )
    )
    preprocessing = replace(PREPROCESSING, resize=Resize("long", 32, None))
    samples = Samples(source, preprocessing, seed=0, augmentation=None, num_epochs=1)
    batch = samples.__getitems__([Pick(0, image, 0) for image in (2, 0, 1)]).unpack()
    assert (batch.indices, batch.original_sizes) == ((2, 0, 1), ((5, 5), (10, 12), (12, 10)))
    assert batch.image_names == tuple(str(source.dataset.path(image)) for image in (2, 0, 1))
    for image, size, target in zip(batch.indices, batch.sizes, batch.targets, strict=True):
        resized = resize_sample(source.samples[image], preprocessing.resize)
        assert (size, target) == (resized.size, resized.target)
