"""RoI pooling: against torchvision, a literal crop-and-resize, gradients in double, and regions that are not there."""

import math

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align, roi_pool

from focaldet.ops.roi import PoolConfig, blend_corners, crop_and_resize, pool, pool_pyramid, region_levels

ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # of a sum of 16 or 36 numbers in another order, on maps of N(0, 1)
KINDS = ("align", "align_legacy", "max", "crop_resize")
FRAME = (256, 320)


def propose_regions(count, *, seed=0, frame=FRAME, overhang=0.0):
    """Regions of many sizes and the images they belong to; some reach beyond the frame by `overhang` px."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 2, generator=generator).pow(2) * torch.tensor([frame[1] * 0.9, frame[0] * 0.9]) + 1
    room = torch.tensor([frame[1], frame[0]]) - size + 2 * overhang
    corner = torch.rand(count, 2, generator=generator) * room - overhang
    return torch.cat([corner, corner + size], 1), torch.randint(2, (count,), generator=generator)


def pyramid(channels=3, *, dtype=torch.float32, images=2):
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randn(images, channels, FRAME[0] // stride, FRAME[1] // stride, generator=generator, dtype=dtype)
        for stride in (4, 8, 16, 32)
    ]


def square(side):
    return torch.tensor([[10.0, 20.0, 10.0 + side, 20.0 + side]])


@pytest.mark.parametrize(
    ("side", "level"),
    [(0, 2), (16, 2), (111.9, 2), (112, 3), (223.9, 3), (224, 4), (447, 4), (448, 5), (896, 5), (5000, 5)],
)
def test_a_region_of_imagenets_size_is_read_at_stride_16(side, level):
    assert region_levels(square(side), finest=2, coarsest=5).tolist() == [level]


def test_levels_follow_the_area_and_stay_in_the_pyramid():
    wide = torch.tensor([[0.0, 0.0, 448.0, 112.0], [0.0, 0.0, 112.0, 448.0]])
    assert region_levels(wide, finest=2, coarsest=5).tolist() == [4, 4]
    assert region_levels(wide, finest=2, coarsest=3).tolist() == [3, 3]
    assert region_levels(square(112), finest=2, coarsest=5, canonical_px=112).tolist() == [4]
    assert region_levels(torch.zeros(0, 4), finest=2, coarsest=5).shape == (0,)
    inside_out = torch.tensor([[10.0, 10.0, 0.0, 0.0]])
    assert region_levels(inside_out, finest=2, coarsest=5).tolist() == [2]


def test_levels_equal_a_plain_loop():
    regions, _ = propose_regions(400, frame=(900, 1300))
    for region, level in zip(regions.tolist(), region_levels(regions, finest=2, coarsest=5).tolist(), strict=True):
        side = math.sqrt((region[2] - region[0]) * (region[3] - region[1]))
        assert level == min(5, max(2, math.floor(4 + math.log2(side / 224 + 1e-6))))


def test_legacy_align_over_a_pyramid_equals_torchvision():
    levels, (regions, image_index) = pyramid(), propose_regions(60, overhang=10)
    reference = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = reference(
        {str(number): level for number, level in enumerate(levels)},
        [regions[image_index == 0], regions[image_index == 1]],
        [FRAME, FRAME],
    )
    order = image_index.argsort(stable=True)
    actual = pool_pyramid(
        levels,
        regions[order],
        image_index[order],
        finest=2,
        frame_px=FRAME,
        config=PoolConfig(kind="align_legacy"),
    )
    assert len(region_levels(regions, finest=2, coarsest=5).unique()) >= 3
    torch.testing.assert_close(actual, expected, **ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_regions_is_kept(kind):
    levels, (regions, image_index) = pyramid(), propose_regions(40)
    config = PoolConfig(kind=kind, size=3)
    together = pool_pyramid(levels, regions, image_index, finest=2, frame_px=FRAME, config=config)
    number = region_levels(regions, finest=2, coarsest=5) - 2
    for index in range(0, 40, 7):
        one = slice(index, index + 1)
        alone = pool(
            levels[int(number[index])],
            regions[one],
            image_index[one],
            stride_px=2 ** (2 + int(number[index])),
            frame_px=FRAME,
            config=config,
        )
        torch.testing.assert_close(together[one], alone)


@pytest.mark.parametrize(("ratio", "asked"), [(2, 2), (3, 3), (0, -1)])
@pytest.mark.parametrize("kind", ["align", "align_legacy", "max"])
def test_one_map_equals_torchvision(kind, ratio, asked):
    features, (regions, image_index) = pyramid()[2], propose_regions(30, overhang=30)
    rows = torch.cat([image_index[:, None].float(), regions], 1)
    if kind == "max":
        expected = roi_pool(features, rows, 5, 1 / 16)
    else:
        expected = roi_align(features, rows, 5, 1 / 16, asked, aligned=kind == "align")
    config = PoolConfig(kind=kind, size=5, sampling_ratio=ratio)
    actual = pool(features, regions, image_index, stride_px=16, frame_px=FRAME, config=config)
    if kind != "max" and ratio:
        torch.testing.assert_close(actual, expected, **ROUNDING)
    else:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", ["align", "align_legacy"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("size", "samples"), [(7, 2), (2, 1), (3, 5)])
def test_the_sum_of_rows_is_torchvisions_align_forward_and_backward(kind, channels_last, size, samples):
    """In double nothing but the order of the sums differs; regions reach far beyond the map, some are inside out."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    features = pyramid(channels=5, dtype=torch.float64)[1].contiguous(memory_format=form)
    regions, image_index = propose_regions(50, overhang=60)
    regions = torch.cat([regions, regions[:3, [2, 3, 0, 1]], regions[:2] - 500, regions[:2] + 500]).double()
    image_index = torch.cat([image_index, image_index[:7]])
    rows = torch.cat([image_index[:, None].double(), regions], 1)
    first, second = features.clone().requires_grad_(), features.clone().contiguous().requires_grad_()
    expected = roi_align(first, rows, size, 1 / 8, samples, aligned=kind == "align")
    config = PoolConfig(kind=kind, size=size, sampling_ratio=samples)
    actual = pool(second, regions, image_index, stride_px=8, frame_px=FRAME, config=config)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected.backward(upstream)
    actual.backward(upstream)
    torch.testing.assert_close(second.grad, first.grad, rtol=1e-12, atol=1e-12)


def test_bfloat16_maps_get_their_gradient_in_bfloat16():
    levels, (regions, image_index) = pyramid(channels=4), propose_regions(30)
    maps = [level.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_() for level in levels]
    wide = [level.detach().float().requires_grad_() for level in maps]
    arguments = {"finest": 2, "frame_px": FRAME, "config": PoolConfig()}
    for each in (maps, wide):
        pool_pyramid(each, regions, image_index, **arguments).square().sum().backward()
    for half, whole in zip(maps, wide, strict=True):
        assert half.grad.dtype == torch.bfloat16
        assert torch.equal(half.grad, whole.grad.bfloat16())


def test_what_tells_the_two_aligns_apart():
    """On a map that holds its own column, aligned gives the middle of a cell of the region; legacy half a cell more."""
    columns = torch.arange(20.0).expand(1, 1, 16, 20)
    region = torch.tensor([[64.0, 64.0, 192.0, 192.0]])  # columns 4 to 12 of stride 16
    actual = {
        kind: pool(
            columns,
            region,
            torch.zeros(1, dtype=torch.int64),
            stride_px=16,
            frame_px=FRAME,
            config=PoolConfig(kind=kind, size=4),
        )[0, 0, 0].tolist()
        for kind in ("align", "align_legacy", "max")
    }
    assert actual["align"] == pytest.approx([4.5, 6.5, 8.5, 10.5])
    assert actual["align_legacy"] == pytest.approx([5.0, 7.0, 9.0, 11.0])
    assert actual["max"] == [6.0, 8.0, 10.0, 12.0], "RoIPool counts the last column of the region in"


def literal_crop(image, box, size, frame):
    """TensorFlow's crop_and_resize, written out; `box` is xyxy in pixels."""
    channels, height, width = image.shape
    x1, x2 = box[0] / frame[1], box[2] / frame[1]
    y1, y2 = box[1] / frame[0], box[3] / frame[0]
    crop = torch.zeros(channels, size, size, dtype=image.dtype)
    for i in range(size):
        for j in range(size):
            row = (y1 + i * (y2 - y1) / (size - 1) if size > 1 else (y1 + y2) / 2) * (height - 1)
            column = (x1 + j * (x2 - x1) / (size - 1) if size > 1 else (x1 + x2) / 2) * (width - 1)
            if not (0 <= row <= height - 1 and 0 <= column <= width - 1):
                continue
            top, left = math.floor(row), math.floor(column)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            down, along = row - top, column - left
            upper = image[:, top, left] * (1 - along) + image[:, top, right] * along
            lower = image[:, bottom, left] * (1 - along) + image[:, bottom, right] * along
            crop[:, i, j] = upper * (1 - down) + lower * down
    return crop


@pytest.mark.parametrize("size", [1, 2, 5, 17])
def test_crop_and_resize_is_the_literal_one(size):
    features = pyramid(dtype=torch.float64)[3]
    regions, image_index = propose_regions(25, overhang=40)
    regions = regions.double()
    actual = crop_and_resize(features, regions, image_index, size=size, frame_px=FRAME)
    for index in range(len(regions)):
        expected = literal_crop(features[image_index[index]], regions[index].tolist(), size, FRAME)
        torch.testing.assert_close(actual[index], expected, rtol=1e-9, atol=1e-9)
    assert (actual == 0).any(), "some samples lie outside of the map"


def test_the_whole_frame_is_the_whole_map():
    features = pyramid(dtype=torch.float64, images=1)[3]
    whole = torch.tensor([[0.0, 0.0, FRAME[1], FRAME[0]]], dtype=torch.float64)
    actual = crop_and_resize(features, whole, torch.zeros(1, dtype=torch.int64), size=8, frame_px=FRAME)
    torch.testing.assert_close(actual[0, :, :, 0], features[0, :, :, 0])
    torch.testing.assert_close(actual[0, :, -1, -1], features[0, :, -1, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    features = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    regions, image_index = propose_regions(4, frame=(48, 56), overhang=6)
    regions = regions.double().requires_grad_()
    config = PoolConfig(kind=kind, size=2)

    def pooled(maps):
        return pool(maps, regions, image_index, stride_px=8, frame_px=(48, 56), config=config)

    assert torch.autograd.gradcheck(pooled, [features])
    pooled(features).sum().backward()
    assert regions.grad is None, "coordinates have no gradient"


@pytest.mark.parametrize("kind", KINDS)
def test_no_regions_leave_a_gradient_of_zero(kind):
    levels = [level.requires_grad_() for level in pyramid()]
    nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    actual = pool_pyramid(levels, *nothing, finest=2, frame_px=FRAME, config=PoolConfig(kind=kind, size=3))
    assert actual.shape == (0, 3, 3, 3)
    actual.sum().backward()
    assert all(level.grad is not None and not level.grad.any() for level in levels)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_and_images_without_a_region_too(kind):
    levels = [level.requires_grad_() for level in pyramid()]
    one = (square(30.0), torch.ones(1, dtype=torch.int64))
    pool_pyramid(levels, *one, finest=2, frame_px=FRAME, config=PoolConfig(kind=kind)).sum().backward()
    assert [bool(level.grad.any()) for level in levels] == [True, False, False, False]
    assert not levels[0].grad[0].any() and levels[0].grad[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_pooled_in_full(kind):
    level, (regions, image_index) = pyramid()[1], propose_regions(5)
    arguments = {"stride_px": 8, "frame_px": FRAME, "config": PoolConfig(kind=kind)}
    half = level.to(torch.bfloat16)
    actual = pool(half, regions, image_index, **arguments)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, pool(half.float(), regions, image_index, **arguments))


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (3, 1)])
def test_the_form_by_index_is_grid_sample(size):
    """What CUDA computes in deterministic mode: values and gradients, on the border and beyond it too."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, *size, dtype=torch.float64, generator=generator, requires_grad=True)
    grid = torch.rand(6, 4, 4, 2, dtype=torch.float64, generator=generator) * 2.4 - 1.2
    grid[0, 0] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    whole = torch.nn.functional.grid_sample(
        image[None].expand(6, -1, -1, -1), grid, padding_mode="border", align_corners=True
    )
    actual = blend_corners(image, grid)
    torch.testing.assert_close(actual, whole)
    weights = torch.randn(whole.shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad((crops * weights).sum(), image)[0] for crops in (actual, whole)]
    torch.testing.assert_close(*gradients)
