import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from focaldet.data.augment.geometry import (
    INTERPOLATIONS,
    ImageView,
    Sample,
    Window,
    boxes_in_view,
    flip_horizontal,
    flip_vertical,
    part_in_image,
    resample_window,
    resize_image,
    resize_sample,
    visible_fractions,
    visible_part,
)
from focaldet.types import ImageSize, Resize, Target
from tests.data.painted import painted, painted_box

SAMPLE = painted((30, 50), [(5, 4, 20, 12), (30, 10, 49, 29)], [0, 1], ignored=[False, True])


def same(one, other):
    fields = ("boxes", "labels", "ignored")
    equal = all(torch.equal(getattr(one.target, name), getattr(other.target, name)) for name in fields)
    return torch.equal(one.image, other.image) and equal


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical])
def test_flip_moves_boxes_with_pixels_and_is_its_own_inverse(flip):
    once = flip(SAMPLE)
    for box, label in zip(once.target.boxes, once.target.labels, strict=True):
        assert torch.equal(box, painted_box(once.image, label))
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
        assert (box - painted_box(out.image, label)).abs().max() <= 1


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
    view = ImageView(top=4, left=10, window=ImageSize(20, 20), shown=ImageSize(40, 40), x=0, y=0)
    assert resample_window(SAMPLE.image, view=view, antialias=True).shape == (3, 40, 40)
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
    assert visible_fractions(boxes, size=size)[[0, 1, 5, 6]].tolist() == [0.5, 0.25, 0, 0]
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


def test_rules_on_which_boxes_stay_by_hand():
    size = ImageSize(20, 20)
    boxes = torch.tensor(
        [
            [-10.0, 0.0, 10.0, 10.0],  # its center on the edge
            [-10.5, 0.0, 10.0, 10.0],  # its center beyond
            [-30.0, 0.0, 0.9, 10.0],  # less than a pixel in sight
            [10.0, 10.0, 10.5, 10.5],  # half a pixel, whole
            [-30.0, 0.0, 0.01, 10.0],  # half a thousandth of the frame's width
            [25.0, 0.0, 30.0, 10.0],  # outside
            [5.0, 5.0, 5.0, 9.0],  # without area
        ]
    )
    target = Target(boxes, torch.arange(7), torch.arange(7) % 2 == 0)
    kept = {keep: visible_part(target, size=size, keep=keep) for keep in ("visible", "center", "any")}
    assert {keep: part.labels.tolist() for keep, part in kept.items()} == {
        "visible": [0, 1],
        "center": [0, 3],
        "any": [0, 1, 2, 3],
    }
    assert kept["any"].boxes[2].tolist() == pytest.approx([0, 0, 0.9, 10])
    assert kept["any"].ignored.tolist() == [True, False, True, False]
    wide = visible_part(target, size=size, keep="any", frame=ImageSize(20, 850))
    assert wide.labels.tolist() == [0, 1, 2]  # half a pixel is less than a thousandth of 850


@settings(max_examples=500, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
def test_the_part_in_the_image_lies_where_the_whole_view_would_show_it(image, corner, length, shown):
    size, window = ImageSize(*image), Window(corner[0], corner[1], ImageSize(100, 100))
    view = ImageView(top=3, left=5, window=ImageSize(*length), shown=ImageSize(*shown), x=7, y=9)
    part = part_in_image(view, window, size=size)
    starts = (window.top + 3, window.left + 5)
    spans = [(max(0, start), min(start + long, limit)) for start, long, limit in zip(starts, length, size, strict=True)]
    if any(first >= last for first, last in spans):
        assert part is None
        return
    assert (part.top, part.left) == (spans[0][0], spans[1][0])
    assert tuple(part.window) == tuple(last - first for first, last in spans)
    positions = ((part.y - 9, part.shown.height), (part.x - 7, part.shown.width))
    for (begin, wide), start, long, frame, span in zip(positions, starts, length, shown, spans, strict=True):
        assert 0 <= begin < begin + wide <= frame and wide >= 1
        ideal = [(edge - start) * frame / long for edge in span]
        # To half a pixel, but for what is less than a pixel and becomes one.
        limit = 0.51 if ideal[1] - ideal[0] >= 1 else 1.0
        assert abs(begin - ideal[0]) <= limit and abs(begin + wide - ideal[1]) <= limit


def test_a_view_within_the_image_stays_as_it_is():
    view = ImageView(top=4, left=10, window=ImageSize(20, 20), shown=ImageSize(37, 41), x=2, y=3)
    assert part_in_image(view, Window(0, 0, SAMPLE.size), size=SAMPLE.size) == view


def test_every_interpolation_gives_bytes_of_the_size_down_to_one_pixel():
    for kind, antialias in INTERPOLATIONS:
        for shown in ((1, 1), (1, 5), (7, 1), (30, 50), (61, 90)):
            view = ImageView(top=2, left=3, window=ImageSize(9, 14), shown=ImageSize(*shown), x=0, y=0)
            out = resample_window(noise(30, 50), view=view, antialias=antialias, interpolation=kind)
            assert out.shape == (3, *shown) and out.dtype == torch.uint8
        flat = resample_window(
            torch.full((3, 30, 50), 77, dtype=torch.uint8), view=view, antialias=antialias, interpolation=kind
        )
        assert (flat == 77).all()


def noise(height, width):
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(97, 131), (60, 80), (48, 64), (129, 70), (1, 50)])
def test_without_antialiasing_it_is_torchvisions_own_interpolation(size):
    """torchvision normalizes first and gives a scale, not a size; both are linear and give the same image."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    image = noise(*size)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected, _ = GeneralizedRCNNTransform(80, 100, mean, std)([image / 255])
    resized = resize_image(image, Resize(mode="short", size=80, max_size=100, rounding="down", antialias=False))
    height, width = resized.shape[1:]
    assert expected.image_sizes[0] == (height, width)
    normalized = (resized / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(normalized, expected.tensors[0, :, :height, :width], atol=1e-5)


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
