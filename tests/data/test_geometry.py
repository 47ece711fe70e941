import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from focaldet.data.geometry import (
    Sample,
    View,
    boxes_in_view,
    flip_horizontal,
    flip_vertical,
    resize_image,
    resize_sample,
    visible_part,
    visible_shares,
    window_of,
)
from focaldet.types import ImageSize, Resize, Target

from .pictures import found, painted

SAMPLE = painted((30, 50), [(5, 4, 20, 12), (30, 10, 49, 29)], [0, 1], ignored=[False, True])


def same(one, other):
    fields = ("boxes", "labels", "ignored")
    equal = all(torch.equal(getattr(one.target, name), getattr(other.target, name)) for name in fields)
    return torch.equal(one.image, other.image) and equal


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical])
def test_flip_moves_boxes_with_pixels_and_is_its_own_inverse(flip):
    once = flip(SAMPLE)
    for box, label in zip(once.target.boxes, once.target.labels, strict=True):
        assert torch.equal(box, found(once.image, label))
    assert not torch.equal(once.target.boxes, SAMPLE.target.boxes)
    assert torch.equal(once.target.ignored, SAMPLE.target.ignored)
    assert same(flip(once), SAMPLE)
    assert type(once.image) is torch.Tensor and type(once.target.boxes) is torch.Tensor


def test_flips_by_hand():
    assert flip_horizontal(SAMPLE).target.boxes[0].tolist() == [30, 4, 45, 12]
    assert flip_vertical(SAMPLE).target.boxes[0].tolist() == [5, 18, 20, 26]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("mode", "size"), [("long", 100), ("long", 25), ("warp", 64), ("short", 60)])
def test_resize_moves_boxes_with_pixels(mode, size, antialias):
    resize = Resize(mode, size, None, antialias=antialias)
    out = resize_sample(SAMPLE, resize)
    assert out.size == resize.target(SAMPLE.size)
    for box, label in zip(out.target.boxes, out.target.labels, strict=True):
        assert (box - found(out.image, label)).abs().max() <= 1


def test_resize_to_the_same_size_changes_nothing_and_the_source_stays_as_it_is():
    before = SAMPLE.image.clone()
    assert same(resize_sample(SAMPLE, Resize("long", 50, None)), SAMPLE)
    resize_sample(SAMPLE, Resize("long", 20, None))
    assert torch.equal(SAMPLE.image, before)


def test_resize_keeps_the_smallest_box_and_an_empty_target():
    tiny = Sample(SAMPLE.image, Target(torch.tensor([[3.0, 3.0, 4.0, 4.0]]), torch.tensor([0]), torch.tensor([False])))
    assert torch.allclose(resize_sample(tiny, Resize("long", 5, None)).target.boxes, torch.tensor([0.3, 0.3, 0.4, 0.4]))
    empty = resize_sample(Sample(SAMPLE.image, Target.empty()), Resize("long", 25, None))
    assert empty.target.boxes.shape == (0, 4)


def test_view_cuts_first_and_leaves_boxes_whole():
    view = View(top=4, left=10, window=ImageSize(20, 20), shown=ImageSize(40, 40), x=0, y=0)
    assert window_of(SAMPLE.image, view=view, antialias=True).shape == (3, 40, 40)
    boxes = boxes_in_view(SAMPLE.target.boxes, view=view, size=SAMPLE.size)
    assert boxes.tolist() == [[-10, 0, 20, 16], [40, 12, 78, 50]]


def test_visible_part_by_hand():
    size = ImageSize(20, 20)
    boxes = torch.tensor(
        [
            [-10.0, 0.0, 10.0, 10.0],  # half of it visible
            [-30.0, 0.0, 10.0, 10.0],  # exactly a quarter
            [-31.0, 0.0, 10.0, 10.0],  # less
            [19.5, 0.0, 20.5, 10.0],  # half, but half a pixel wide
            [19.0, 0.0, 21.0, 10.0],  # half, one pixel wide
            [25.0, 0.0, 30.0, 10.0],  # outside
            [5.0, 5.0, 5.0, 9.0],  # without area
        ]
    )
    assert visible_shares(boxes, size=size)[[0, 1, 5, 6]].tolist() == [0.5, 0.25, 0, 0]
    kept = visible_part(Target(boxes, torch.arange(7), torch.arange(7) % 2 == 0), size=size)
    assert kept.labels.tolist() == [0, 1, 4]
    assert kept.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [19, 0, 20, 10]]
    assert kept.ignored.tolist() == [True, False, True]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-40, 60)] * 2, *[st.integers(1, 50)] * 2), max_size=6))
def test_visible_part_lies_inside_and_what_was_inside_stays_whole(rows):
    boxes = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=torch.float32).reshape(-1, 4)
    size, count = ImageSize(30, 40), len(boxes)
    kept = visible_part(Target(boxes, torch.arange(count), torch.zeros(count, dtype=torch.bool)), size=size)
    inside = (boxes >= 0).all(1) & (boxes[:, 2] <= 40) & (boxes[:, 3] <= 30)
    assert set(inside.nonzero().flatten().tolist()) <= set(kept.labels.tolist())
    assert (kept.boxes >= 0).all() and (kept.boxes[:, 2] <= 40).all() and (kept.boxes[:, 3] <= 30).all()
    whole = inside[kept.labels]
    assert torch.equal(kept.boxes[whole], boxes[kept.labels][whole])


def noise(height, width):
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


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
