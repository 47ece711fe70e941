"""The presets `ssd` and `yolo` as a whole: boxes, pixels, padding; and that the older presets stay as they were."""

import random
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from focaldet.data.augment.augmenter import Augmenter
from focaldet.data.augment.color import draw_color_change
from focaldet.data.augment.config import AugmentConfig
from focaldet.data.augment.geometry import INTERPOLATIONS, Sample
from focaldet.data.augment.ssd_crops import draw_window
from focaldet.types import ImageSize, Preprocessing, Resize, Target
from tests.data.augment.test_augmenter import BOXES, PARTNERS, SAMPLE, SIZE, drawn
from tests.data.painted import painted, painted_box

SSD_INPUT = Preprocessing(channels="BGR", mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0), resize=Resize("warp", 160))
YOLO_INPUT = Preprocessing(mean=(0.0,) * 3, std=(255.0,) * 3, resize=Resize("letterbox", 160, None))
INPUTS = {"ssd": SSD_INPUT, "yolo": YOLO_INPUT}
MEAN = torch.tensor([123, 117, 104], dtype=torch.uint8)[:, None, None]
GRAY = torch.full((3, 1, 1), 128, dtype=torch.uint8)
# Sums of the corners and mean brightness, of one image and of a mosaic; seeds 0 to 5, before these two came.
BEFORE = {
    ("none", 0): ([714.7] * 6, [72.8] * 6),
    ("none", 1): ([1169.2, 890.8, 1589.0, 921.9, 777.9, 1286.5], [91.5, 95.1, 104.4, 93.3, 117.5, 102.2]),
    ("light", 0): ([751.7, 883.5, 799.0, 768.4, 774.4, 656.8], [72.7, 82.7, 77.2, 68.5, 78.0, 82.5]),
    ("light", 1): ([1181.3, 1369.2, 568.4, 929.1, 1023.5, 1400.2], [86.0, 120.0, 85.2, 108.5, 103.6, 95.3]),
    ("strong", 0): ([773.8, 860.1, 866.6, 894.5, 732.0, 652.3], [69.6, 96.9, 78.8, 92.7, 62.1, 89.6]),
    ("strong", 1): ([1477.7, 1175.1, 1872.6, 548.9, 1088.3, 1355.3], [116.4, 77.5, 108.3, 74.5, 110.1, 83.5]),
}


def chained(name, seed, *, sample=SAMPLE, partners=(), **changes):
    return drawn(AugmentConfig(name, **changes), seed, sample=sample, partners=partners, preprocessing=INPUTS[name])


@pytest.mark.parametrize(("name", "num_partners"), [(name, count) for name, full in BEFORE for count in (3 * full,)])
def test_the_older_presets_give_what_they_gave(name, num_partners):
    outs = [drawn(AugmentConfig(name), seed, partners=PARTNERS[:num_partners]) for seed in range(6)]
    corners, brightness = BEFORE[name, int(num_partners > 0)]
    assert [float(out.target.boxes.sum()) for out in outs] == pytest.approx(corners, abs=0.1)
    assert [float(out.image.float().mean()) for out in outs] == pytest.approx(brightness, abs=0.1)


@pytest.mark.parametrize("name", INPUTS)
def test_a_painted_object_stays_under_its_box(name):
    kept = 0
    for seed in range(150):
        out = chained(name, seed, recolor=0.0)
        for box, label in zip(out.target.boxes, out.target.labels.tolist(), strict=True):
            if min(box[2:] - box[:2]) > 8:  # resampling blurs the edge, more where a small window fills the frame
                pixels = painted_box(out.image, label)
                assert (box - pixels).abs().max() <= 3.1, (seed, label, box, pixels)
                kept += 1
    assert kept > 200


def mirrored(boxes, width):
    return [(width - x2, y1, width - x1, y2) for x1, y1, x2, y2 in boxes]


def scaled_edges(start, length, shown, limit):
    """Where an axis of the image, 0 to `limit`, begins and ends in a frame that shows `length` from `start` on."""
    first, last = max(start, 0), min(start + length, limit)
    if first >= last:
        return None
    begin, end = round((first - start) * shown / length), round((last - start) * shown / length)
    if begin == end:
        begin = (first - start) * shown // length
    return first, last, begin, max(begin + 1, end)


def expected_ssd(rng, box_list):
    """The original corners after window, warp and mirror; boxes whose center is not in the window are gone."""
    window = draw_window(SIZE, torch.tensor(box_list), augmentation=AugmentConfig("ssd"), rng=rng)
    rng.uniform(1, 1), rng.random(), rng.randint(0, 0), rng.randint(0, 0)
    columns = scaled_edges(window.left, window.size.width, 160, SIZE.width)
    rows = scaled_edges(window.top, window.size.height, 160, SIZE.height)
    if columns is None or rows is None:
        return rng, []
    boxes = []
    for x1, y1, x2, y2 in box_list:
        inside_x = window.left <= (x1 + x2) / 2 <= window.left + window.size.width
        inside_y = window.top <= (y1 + y2) / 2 <= window.top + window.size.height
        if inside_x and inside_y:
            xs, ys = (
                [begin + (min(max(edge, first), last) - first) * (end - begin) / (last - first) for edge in pair]
                for pair, (first, last, begin, end) in (((x1, x2), columns), ((y1, y2), rows))
            )
            boxes.append((xs[0], ys[0], xs[1], ys[1]))
            exact = [(x - window.left) * 160 / window.size.width for x in (max(x1, columns[0]), min(x2, columns[1]))]
            assert xs == pytest.approx(exact, abs=0.51)  # whole pixels of the frame: at most half a pixel is rounded
    rng.choice(INTERPOLATIONS), draw_color_change(AugmentConfig("ssd"), rng)
    return rng, boxes


def expected_yolo(rng, box_list):
    """darknet's load_data_detection in plain numbers: jittered aspect, fitted into the square, a random place."""
    rng.uniform(1, 1), rng.random()
    tall, wide = (side * (1 + rng.uniform(-0.3, 0.3)) for side in (160 * 180 // 240, 160))
    aspect = wide / tall
    height, width = (160, round(160 * aspect)) if aspect < 1 else (round(160 / aspect), 160)
    y, x = rng.randint(0, 160 - height), rng.randint(0, 160 - width)
    draw_color_change(AugmentConfig("yolo"), rng)
    boxes = [
        (x + x1 * width / 240, y + y1 * height / 180, x + x2 * width / 240, y + y2 * height / 180)
        for x1, y1, x2, y2 in box_list
    ]
    return rng, boxes


@pytest.mark.parametrize(("name", "expected"), [("ssd", expected_ssd), ("yolo", expected_yolo)])
def test_boxes_are_the_original_corners_after_every_step(name, expected):
    source = random.Random(0)
    kept, flips = 0, 0
    for seed in range(150):
        corners = [(source.uniform(0, 200), source.uniform(0, 140)) for _ in range(source.randint(1, 5))]
        corners = [(x, y, source.uniform(x + 3, 240), source.uniform(y + 3, 180)) for x, y in corners]
        count = len(corners)
        target = Target(torch.tensor(corners), torch.arange(count), torch.arange(count) % 2 == 0)
        out = chained(name, seed, sample=Sample(SAMPLE.image, target))
        rng, boxes = expected(random.Random(seed), target.boxes.tolist())
        flip = rng.random() < 0.5
        want = torch.tensor(mirrored(boxes, 160) if flip else boxes).reshape(-1, 4)
        assert out.target.boxes.shape == want.shape, seed
        assert torch.allclose(out.target.boxes, want, rtol=0, atol=1e-3), seed
        assert torch.equal(out.target.ignored, out.target.labels % 2 == 0)
        kept, flips = kept + len(want), flips + flip
    assert kept > 150 and 55 < flips < 95


def test_around_an_expanded_image_lies_the_mean_and_around_darknets_the_gray():
    for name, color in (("ssd", MEAN), ("yolo", GRAY)):
        augmentation = replace(AugmentConfig(name), crop_overlaps=(), expand_ratio=(3.0, 3.0))
        seen = set()
        for seed in range(20):
            image = drawn(augmentation, seed, preprocessing=INPUTS[name]).image
            padding = (image == color).all(0)
            seen.add(round(float(padding.float().mean()), 1))
            assert not padding.all()
        assert seen <= ({0.0, 0.9} if name == "ssd" else {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6}) and len(seen) > 1


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor made under it holds."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.most = max([self.most, *sizes])
        return result


def test_an_expansion_makes_no_larger_image():
    large = painted(ImageSize(600, 800), [(100, 100, 300, 300)], [0])
    augmentation = replace(AugmentConfig("ssd"), expand=1.0, expand_ratio=(4.0, 4.0))
    for seed in range(8):
        with Largest() as largest:
            drawn(augmentation, seed, sample=large, preprocessing=SSD_INPUT)
        assert 3 * 160 * 160 <= largest.most <= 3 * 600 * 800


def test_a_crop_beside_the_image_shows_nothing_but_padding():
    augmentation = AugmentConfig(
        "none", expand=1.0, expand_ratio=(10.0, 10.0), crop_overlaps=(0.0,), crop_scale=(0.1, 0.2)
    )
    empty = 0
    for seed in range(40):
        out = drawn(augmentation, seed, preprocessing=SSD_INPUT)
        if (out.image == MEAN).all():
            assert out.target.boxes.shape == (0, 4) and out.target.labels.dtype == torch.int64
            empty += 1
    assert empty > 5


@pytest.mark.parametrize("name", INPUTS)
def test_images_without_boxes_tiny_ones_and_mosaics_go_through(name):
    empty = painted(ImageSize(50, 70), [], [])
    for seed in range(20):
        out = chained(name, seed, sample=empty)
        assert out.size == (160, 160) and out.target.boxes.shape == (0, 4)
        for size in ((1, 1), (1, 90), (90, 1), (2, 3)):
            tiny = painted(ImageSize(*size), [(0, 0, size[1], size[0])], [0])
            assert chained(name, seed, sample=tiny, partners=(tiny, SAMPLE, empty)).size == (160, 160)
            assert chained(name, seed, sample=tiny).image.dtype == torch.uint8
        boxes = chained(name, seed, partners=PARTNERS).target.boxes
        assert (boxes >= 0).all() and (boxes <= 160).all()


@pytest.mark.parametrize("name", INPUTS)
def test_the_same_numbers_give_the_same_sample(name):
    before, state = SAMPLE.image.clone(), torch.get_rng_state()
    one, other, another = (chained(name, seed) for seed in (4, 4, 5))
    assert torch.equal(one.image, other.image) and torch.equal(one.target.boxes, other.target.boxes)
    assert not torch.equal(one.image, another.image)
    assert torch.equal(SAMPLE.image, before) and torch.equal(torch.get_rng_state(), state)


def test_five_kinds_of_interpolation_are_drawn_evenly():
    generator = torch.Generator().manual_seed(0)
    noise = Sample(torch.randint(0, 256, (3, 90, 70), generator=generator, dtype=torch.uint8), Target.empty())
    kinds = {}
    for seed in range(300):
        out = drawn(
            AugmentConfig("none", interpolation="random"),
            seed,
            sample=noise,
            preprocessing=Preprocessing(resize=Resize("warp", 64)),
        )
        key = bytes(out.image.contiguous().numpy().tobytes())
        kinds[key] = kinds.get(key, 0) + 1
    assert len(kinds) == len(INTERPOLATIONS) == 5
    assert min(kinds.values()) > 35
    plain = drawn(AugmentConfig("none"), 0, sample=noise, preprocessing=Preprocessing(resize=Resize("warp", 64)))
    assert plain.image.contiguous().numpy().tobytes() in kinds


def test_the_numbers_of_the_presets():
    assert len(BOXES) == 3
    assert AugmentConfig("ssd").keep_boxes == "center" and AugmentConfig("yolo").keep_boxes == "any"
    assert len(AugmentConfig("ssd").crop_overlaps) + 1 == 7
    assert Augmenter(AugmentConfig("yolo"), YOLO_INPUT)(SAMPLE, rng=random.Random(0)).target.boxes.shape == (3, 4)
