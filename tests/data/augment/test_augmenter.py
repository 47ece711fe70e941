import random
import re

import pytest
import torch

from focaldet.config import from_dict, to_dict
from focaldet.data.augment.augmenter import Augmentation, AugmentConfig, Augmenter, resize_sample
from focaldet.data.augment.config import PRESETS
from focaldet.data.loading.rng import state, stream
from focaldet.errors import ConfigError
from focaldet.types import ImageSize, Preprocessing, Resize
from tests.data.pictures import found, painted

PREPROCESSING = Preprocessing(resize=Resize("long", 160, None))
MEAN = torch.tensor([124, 116, 104], dtype=torch.uint8)
SIZE = ImageSize(180, 240)
BOXES = [(10, 12, 80, 90), (120, 20, 230, 100), (30, 110, 100, 170)]
SAMPLE = painted(SIZE, BOXES, [0, 1, 2], ignored=[False, False, True])
PARTNERS = [
    painted(ImageSize(240, 180), [(20, 20, 160, 120)], [3]),
    painted(ImageSize(100, 100), [(5, 50, 95, 95)], [4]),
    painted(ImageSize(300, 320), [(50, 50, 250, 250)], [5]),
]
GEOMETRIES = {
    "flips": Augmentation(flip_horizontal=0.5, flip_vertical=0.5),
    "jitter": Augmentation(scale_jitter=(0.4, 2.5)),
    "crop": Augmentation(crop=1.0),
    "zoom_out": Augmentation(zoom_out=1.0),
    "all": Augmentation(flip_horizontal=0.5, flip_vertical=0.5, scale_jitter=(0.5, 1.5), crop=0.4, zoom_out=0.3),
}


def drawn(augmentation, seed, *, partners=(), sample=SAMPLE, preprocessing=PREPROCESSING):
    return Augmenter(augmentation, preprocessing)(sample, stream=random.Random(seed), partners=partners)


@pytest.mark.parametrize("partners", [(), PARTNERS], ids=["single", "mosaic"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_boxes_follow_their_pixels(name, partners):
    kept = 0
    for seed in range(25):
        out = drawn(GEOMETRIES[name], seed, partners=partners)
        for box, label in zip(out.target.boxes, out.target.labels.tolist(), strict=True):
            pixels = found(out.image, label)
            if min(box[2:] - box[:2]) > 6:  # resampling blurs the edge by up to two pixels
                assert (box - pixels).abs().max() <= 2.1, (seed, label, box, pixels)
                kept += 1
    assert kept > 25


@pytest.mark.parametrize("name", GEOMETRIES)
def test_what_is_well_visible_is_kept_with_its_flag(name):
    for seed in range(25):
        out = drawn(GEOMETRIES[name], seed)
        whole = {label for label in range(3) if _shows_all(out.image, label)}
        assert whole <= set(out.target.labels.tolist())
        assert torch.equal(out.target.ignored, out.target.labels == 2)


def _shows_all(image, label):
    """Whether the object is visible and touches no edge, so that nothing of it is hidden."""
    box = found(image, label)
    if box is None:
        return False
    height, width = image.shape[1:]
    return bool((box[:2] > 2).all() and box[2] < width - 2 and box[3] < height - 2)


@pytest.mark.parametrize("partners", [(), PARTNERS], ids=["single", "mosaic"])
@pytest.mark.parametrize("resize", [Resize("long", 160, None), Resize("short", 90, 110), Resize("warp", 64)])
def test_the_frame_is_that_of_the_network_whatever_is_drawn(resize, partners):
    preprocessing = Preprocessing(resize=resize)
    for seed in range(10):
        out = drawn(PRESETS["strong"], seed, partners=partners, preprocessing=preprocessing)
        assert out.size == resize.target(SIZE)
        assert out.image.dtype == torch.uint8
        boxes = out.target.boxes
        assert (boxes >= 0).all() and (boxes[:, 2] <= out.size.width).all() and (boxes[:, 3] <= out.size.height).all()


def test_no_augmentation_is_the_plain_resize():
    out, plain = drawn(PRESETS["none"], 0), resize_sample(SAMPLE, PREPROCESSING.resize)
    assert torch.equal(out.image, plain.image)
    assert torch.equal(out.target.boxes, plain.target.boxes)


def test_around_a_smaller_picture_lies_the_mean_colour():
    places = set()
    for seed in range(8):
        colour = Augmentation(scale_jitter=(0.5, 0.5), hue=0.1, saturation=0.5, value=0.5)
        image = drawn(colour, seed).image
        padding = (image == MEAN[:, None, None]).all(0)
        assert padding.sum() == 160 * 120 - 80 * 60
        rows, columns = (~padding).nonzero(as_tuple=True)
        places.add((int(rows.min()), int(columns.min())))
        assert (int(rows.max() - rows.min()), int(columns.max() - columns.min())) == (59, 79)
    assert len(places) > 4


def test_a_crop_shows_an_object_where_a_blind_window_would_miss_it():
    corner = painted(ImageSize(240, 320), [(0, 0, 24, 24)], [0])
    blind = Augmentation(scale_jitter=(1.8, 1.8))
    aware = Augmentation(scale_jitter=(1.0, 1.0), crop=1.0)
    hits = [
        sum(len(drawn(augmentation, seed, sample=corner).target.boxes) for seed in range(60))
        for augmentation in (blind, aware)
    ]
    assert hits[1] > 2 * hits[0]


def test_a_crop_of_an_empty_picture_and_a_mosaic_of_empty_ones():
    empty = painted(ImageSize(50, 70), [], [])
    assert drawn(Augmentation(crop=1.0), 0, sample=empty).target.boxes.shape == (0, 4)
    assert drawn(PRESETS["strong"], 0, sample=empty, partners=[empty] * 3).target.boxes.shape == (0, 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_the_smallest_pictures_go_through_everything(size):
    tiny = painted(ImageSize(*size), [(0, 0, size[1], size[0])], [0])
    for seed in range(5):
        for partners in ((), (tiny, SAMPLE, tiny)):
            for resize in (Resize("long", 64, None), Resize("long", 1, None)):
                out = drawn(PRESETS["strong"], seed, sample=tiny, partners=partners, preprocessing=_with(resize))
                assert out.size == resize.target(ImageSize(*size))


def _with(resize):
    return Preprocessing(resize=resize)


def test_mosaic_shows_all_four_pictures_and_fills_the_frame():
    shown = set()
    for seed in range(10):
        out = drawn(Augmentation(scale_jitter=(2.0, 2.0)), seed, partners=PARTNERS)
        assert not (out.image == MEAN[:, None, None]).all(0).any()
        shown |= {label for label in range(6) if found(out.image, label) is not None}
    assert shown == set(range(6))


def test_the_same_numbers_give_the_same_sample_and_the_sources_stay_untouched():
    before = [sample.image.clone() for sample in (SAMPLE, *PARTNERS)]
    global_state = torch.get_rng_state()
    one, other = (drawn(PRESETS["strong"], 5, partners=PARTNERS) for _ in range(2))
    assert torch.equal(one.image, other.image) and torch.equal(one.target.boxes, other.target.boxes)
    assert not torch.equal(one.image, drawn(PRESETS["strong"], 6, partners=PARTNERS).image)
    assert all(torch.equal(a, b.image) for a, b in zip(before, (SAMPLE, *PARTNERS), strict=True))
    assert torch.equal(torch.get_rng_state(), global_state)


def test_streams_depend_on_every_key_and_on_nothing_else():
    random.seed(0)
    first = stream("sample", 1, 2, 3).random()
    random.seed(1)
    assert stream("sample", 1, 2, 3).random() == first
    keys = [("sample", 1, 2, 3), ("sample", 2, 1, 3), ("sample", 1, 23), ("sample", 12, 3), ("order", 1, 2, 3)]
    assert len({state(*key) for key in keys}) == len(keys)
    assert all(0 <= state("sample", seed) < 1 << 63 for seed in range(100))
    mean = sum(stream("sample", 0, 0, i).random() for i in range(2000)) / 2000
    assert abs(mean - 0.5) < 0.03


def test_single_settings_lie_over_the_preset():
    config = AugmentConfig("strong", mosaic=0.0, scale_jitter=(0.9, 1.1))
    assert config.resolved().mosaic == 0
    assert config.resolved().scale_jitter == (0.9, 1.1)
    assert config.resolved().saturation == PRESETS["strong"].saturation
    assert from_dict(AugmentConfig, to_dict(config)) == config
    assert from_dict(AugmentConfig, {"preset": "none", "scale_jitter": [1, 2]}).resolved().scale_jitter == (1.0, 2.0)
    assert AugmentConfig("none").resolved() == Augmentation()


def test_words_are_checked_where_no_type_checker_stands_before():
    for field, word in (("keep_boxes", "some"), ("interpolation", "cubic")):
        augmentation = Augmentation()
        object.__setattr__(augmentation, field, word)
        with pytest.raises(ConfigError, match=f"augment.{field}: must be one of .*, found '{word}'"):
            augmentation.__post_init__()


def test_parts_of_the_published_chains_lie_over_any_preset():
    config = from_dict(AugmentConfig, {"preset": "light", "expand": 0.3, "crop_overlaps": [0.5], "brightness": 10})
    assert config.resolved().crop_overlaps == (0.5,) and config.resolved().expand_ratio == (1.0, 4.0)
    assert from_dict(AugmentConfig, to_dict(config)) == config
    assert from_dict(AugmentConfig, {"preset": "ssd", "crop_overlaps": []}).resolved().crop_overlaps == ()
    assert AugmentConfig("yolo", saturation_factor=1.0).resolved().value_factor == 1.5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mosaic": 1.5}, "augment.mosaic: must be in 0…1, found 1.5"),
        ({"hue": -0.1}, "augment.hue"),
        ({"scale_jitter": (1.5, 0.5)}, "augment.scale_jitter"),
        ({"scale_jitter": (0.0, 1.0)}, "augment.scale_jitter"),
        ({"crop": 0.6, "zoom_out": 0.6}, "augment.crop"),
        ({"flip_vertical": float("nan")}, "flip_vertical"),
        ({"preset": "hard"}, "preset"),
        ({"expand": 1.5}, "augment.expand: must be in 0…1, found 1.5"),
        ({"expand_ratio": (0.5, 2)}, "augment.expand_ratio: must be 1 ≤ low ≤ high ≤ 10, found (0.5, 2.0)"),
        ({"crop_overlaps": (0.5, 1.1)}, "augment.crop_overlaps: every number must be in 0…1"),
        ({"crop_scale": (0.0, 1.0)}, "augment.crop_scale"),
        ({"crop_aspect": (2.0, 1.0)}, "augment.crop_aspect"),
        ({"aspect_jitter": 1.0}, "augment.aspect_jitter: must be in 0…0.9, found 1.0"),
        ({"brightness": 256}, "augment.brightness: must be in 0…255, found 256"),
        ({"contrast": -0.5}, "augment.contrast"),
        ({"saturation_factor": 0.5}, "augment.saturation_factor: must be in 1…10, found 0.5"),
        ({"value_factor": float("nan")}, "value_factor"),
        ({"recolour": 2}, "augment.recolour"),
        ({"keep_boxes": "some"}, "keep_boxes"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"mosiac": 0.5}, "mosaic"),
    ],
)
def test_wrong_settings_are_named(settings, named):
    with pytest.raises(ConfigError, match=re.escape(named)):
        from_dict(AugmentConfig, settings)


def test_mosaic_ends_for_the_last_share_of_the_epochs():
    augmentation = Augmentation(mosaic=0.7, mosaic_off_last=0.25)
    shares = [augmentation.mosaic_share(epoch=epoch, num_epochs=8) for epoch in range(8)]
    assert shares == [0.7] * 6 + [0.0] * 2
    assert Augmentation(mosaic=0.7).mosaic_share(epoch=7, num_epochs=8) == 0.7
