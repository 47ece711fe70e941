import torch

from focaldet.data.loading.collate import blank_image, pack, pad_images
from focaldet.types import ImageSize, Preprocessing
from tests.data.painted import painted

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


def test_packing_and_unpacking_keeps_every_target_apart():
    samples = [
        painted((10, 12), [(1, 2, 5, 6), (3, 3, 9, 9)], [1, 2], ignored=[True, False]),
        painted((12, 10), [], []),
        painted((5, 5), [(0, 0, 5, 5)], [3]),
    ]
    sizes = tuple(ImageSize(100 + i, 200) for i in range(3))
    packed = pack(
        samples, preprocessing=PREPROCESSING, indices=(7, 8, 9), original_sizes=sizes, image_names=("a", "b", "c")
    )
    batch = packed.unpack()
    assert (batch.indices, batch.original_sizes, batch.image_names) == ((7, 8, 9), sizes, ("a", "b", "c"))
    assert batch.sizes == ((10, 12), (12, 10), (5, 5))
    for sample, target in zip(samples, batch.targets, strict=True):
        for name in ("boxes", "labels", "ignored"):
            assert torch.equal(getattr(target, name), getattr(sample.target, name))
