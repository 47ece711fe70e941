import random
import re

import pytest
import torch

from focaldet.cli.settings import run_settings
from focaldet.config import from_dict, save, to_dict
from focaldet.data.augment.augmenter import Augmenter
from focaldet.data.augment.config import AUGMENT_PRESETS, AugmentConfig
from focaldet.data.augment.geometry import resize_sample
from focaldet.data.loading.rng import generator, seed_for
from focaldet.errors import ConfigError
from focaldet.training.config import RunConfig
from focaldet.types import ImageSize, Preprocessing, Resize
from tests.data.painted import painted, painted_box

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
    "flips": AugmentConfig("none", flip_horizontal=0.5, flip_vertical=0.5),
    "jitter": AugmentConfig("none", scale_jitter=(0.4, 2.5)),
    "crop": AugmentConfig("none", crop=1.0),
    "zoom_out": AugmentConfig("none", zoom_out=1.0),
    "all": AugmentConfig(
        "none", flip_horizontal=0.5, flip_vertical=0.5, scale_jitter=(0.5, 1.5), crop=0.4, zoom_out=0.3
    ),
}


def drawn(augmentation, seed, *, partners=(), sample=SAMPLE, preprocessing=PREPROCESSING):
    return Augmenter(augmentation, preprocessing)(sample, rng=random.Random(seed), partners=partners)


@pytest.mark.parametrize("partners", [(), PARTNERS], ids=["single", "mosaic"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_boxes_follow_their_pixels(name, partners):
    kept = 0
    for seed in range(25):
        out = drawn(GEOMETRIES[name], seed, partners=partners)
        for box, label in zip(out.target.boxes, out.target.labels.tolist(), strict=True):
            pixels = painted_box(out.image, label)
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
    box = painted_box(image, label)
    if box is None:
        return False
    height, width = image.shape[1:]
    return bool((box[:2] > 2).all() and box[2] < width - 2 and box[3] < height - 2)


@pytest.mark.parametrize("partners", [(), PARTNERS], ids=["single", "mosaic"])
@pytest.mark.parametrize("resize", [Resize("long", 160, None), Resize("short", 90, 110), Resize("warp", 64)])
def test_the_frame_is_that_of_the_network_whatever_is_drawn(resize, partners):
    preprocessing = Preprocessing(resize=resize)
    for seed in range(10):
        out = drawn(AugmentConfig("strong"), seed, partners=partners, preprocessing=preprocessing)
        assert out.size == resize.target(SIZE)
        assert out.image.dtype == torch.uint8
        boxes = out.target.boxes
        assert (boxes >= 0).all() and (boxes[:, 2] <= out.size.width).all() and (boxes[:, 3] <= out.size.height).all()


def test_no_augmentation_is_the_plain_resize():
    out, plain = drawn(AugmentConfig("none"), 0), resize_sample(SAMPLE, PREPROCESSING.resize)
    assert torch.equal(out.image, plain.image)
    assert torch.equal(out.target.boxes, plain.target.boxes)


def test_around_a_smaller_image_lies_the_mean_color():
    positions = set()
    for seed in range(8):
        color = AugmentConfig("none", scale_jitter=(0.5, 0.5), hue=0.1, saturation=0.5, value=0.5)
        image = drawn(color, seed).image
        padding = (image == MEAN[:, None, None]).all(0)
        assert padding.sum() == 160 * 120 - 80 * 60
        rows, columns = (~padding).nonzero(as_tuple=True)
        positions.add((int(rows.min()), int(columns.min())))
        assert (int(rows.max() - rows.min()), int(columns.max() - columns.min())) == (59, 79)
    assert len(positions) > 4


def test_a_crop_shows_an_object_where_a_blind_window_would_miss_it():
    corner = painted(ImageSize(240, 320), [(0, 0, 24, 24)], [0])
    blind = AugmentConfig("none", scale_jitter=(1.8, 1.8))
    aware = AugmentConfig("none", scale_jitter=(1.0, 1.0), crop=1.0)
    hits = [
        sum(len(drawn(augmentation, seed, sample=corner).target.boxes) for seed in range(60))
        for augmentation in (blind, aware)
    ]
    assert hits[1] > 2 * hits[0]


def test_a_crop_of_an_empty_image_and_a_mosaic_of_empty_ones():
    empty = painted(ImageSize(50, 70), [], [])
    assert drawn(AugmentConfig("none", crop=1.0), 0, sample=empty).target.boxes.shape == (0, 4)
    assert drawn(AugmentConfig("strong"), 0, sample=empty, partners=[empty] * 3).target.boxes.shape == (0, 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_the_smallest_images_go_through_everything(size):
    tiny = painted(ImageSize(*size), [(0, 0, size[1], size[0])], [0])
    for seed in range(5):
        for partners in ((), (tiny, SAMPLE, tiny)):
            for resize in (Resize("long", 64, None), Resize("long", 1, None)):
                out = drawn(AugmentConfig("strong"), seed, sample=tiny, partners=partners, preprocessing=_with(resize))
                assert out.size == resize.target(ImageSize(*size))


def _with(resize):
    return Preprocessing(resize=resize)


def test_mosaic_shows_all_four_images_and_fills_the_frame():
    shown = set()
    for seed in range(10):
        out = drawn(AugmentConfig("none", scale_jitter=(2.0, 2.0)), seed, partners=PARTNERS)
        assert not (out.image == MEAN[:, None, None]).all(0).any()
        shown |= {label for label in range(6) if painted_box(out.image, label) is not None}
    assert shown == set(range(6))


def test_the_same_numbers_give_the_same_sample_and_the_sources_stay_untouched():
    before = [sample.image.clone() for sample in (SAMPLE, *PARTNERS)]
    global_state = torch.get_rng_state()
    one, other = (drawn(AugmentConfig("strong"), 5, partners=PARTNERS) for _ in range(2))
    assert torch.equal(one.image, other.image) and torch.equal(one.target.boxes, other.target.boxes)
    assert not torch.equal(one.image, drawn(AugmentConfig("strong"), 6, partners=PARTNERS).image)
    assert all(torch.equal(a, b.image) for a, b in zip(before, (SAMPLE, *PARTNERS), strict=True))
    assert torch.equal(torch.get_rng_state(), global_state)


def test_generators_depend_on_every_key_and_on_nothing_else():
    random.seed(0)
    first = generator("sample", 1, 2, 3).random()
    random.seed(1)
    assert generator("sample", 1, 2, 3).random() == first
    keys = [("sample", 1, 2, 3), ("sample", 2, 1, 3), ("sample", 1, 23), ("sample", 12, 3), ("order", 1, 2, 3)]
    assert len({seed_for(*key) for key in keys}) == len(keys)
    assert all(0 <= seed_for("sample", seed) < 1 << 63 for seed in range(100))
    mean = sum(generator("sample", 0, 0, i).random() for i in range(2000)) / 2000
    assert abs(mean - 0.5) < 0.03


def test_a_preset_gives_every_setting_that_is_not_named():
    config = AugmentConfig("strong", mosaic=0.0, scale_jitter=(0.9, 1.1))
    assert (config.preset, config.mosaic, config.scale_jitter) == ("strong", 0.0, (0.9, 1.1))
    assert config.saturation == AugmentConfig(preset="strong").saturation == 0.6
    assert from_dict(AugmentConfig, {"preset": "none", "scale_jitter": [1, 2]}).scale_jitter == (1.0, 2.0)
    assert AugmentConfig("none", flip_horizontal=0.5) != AugmentConfig("none") == AugmentConfig(preset="none")
    assert AugmentConfig() == AugmentConfig("light") and AugmentConfig().flip_horizontal == 0.5


def test_the_preset_none_does_nothing():
    of_other_steps = {"preset", "expand_ratio", "crop_scale", "crop_aspect", "keep_boxes", "interpolation", "recolor"}
    values = {name: value for name, value in to_dict(AugmentConfig("none")).items() if name not in of_other_steps}
    assert all(value in (0.0, [1.0, 1.0], []) for name, value in values.items() if not name.endswith("_factor"))
    assert values["saturation_factor"] == values["value_factor"] == 1.0


@pytest.mark.parametrize("preset", AUGMENT_PRESETS)
def test_a_config_is_plain_numbers_that_read_back(preset):
    config = AugmentConfig(preset, hue=0.33)
    values = to_dict(config)
    assert None not in values.values() and values["hue"] == 0.33 and values["preset"] == preset
    assert from_dict(AugmentConfig, values) == config
    assert config.overrides() == {"preset": preset, "hue": 0.33}
    assert AugmentConfig(preset).overrides() == {"preset": preset}


def test_overrides_lie_over_another_preset():
    config = AugmentConfig("light", hue=0.1, crop_overlaps=(0.5,))
    assert config.overrides() == {"preset": "light", "crop_overlaps": [0.5], "hue": 0.1}
    moved = from_dict(AugmentConfig, config.overrides() | {"preset": "strong"})
    assert moved == AugmentConfig("strong", hue=0.1, crop_overlaps=(0.5,))


def test_settings_of_version_0_1_are_read():
    old = {"preset": "strong", "hue": 0.1, "mosaic": None, "recolour": 0.25, "keep_boxes": "centre", "crop_scale": None}
    with pytest.warns(FutureWarning) as warned:
        config = from_dict(AugmentConfig, old)
    messages = [str(warning.message) for warning in warned]
    assert messages == ["settings: recolour is now called recolor", "settings: keep_boxes: centre is now called center"]
    assert config == AugmentConfig("strong", hue=0.1, recolor=0.25, keep_boxes="center")


def test_a_wrong_call_is_told_as_python_does():
    with pytest.raises(TypeError, match="hew"):
        AugmentConfig(hew=0.1)
    with pytest.raises(TypeError, match="multiple values"):
        AugmentConfig("light", preset="strong")


def test_parts_of_the_published_chains_lie_over_any_preset():
    config = from_dict(AugmentConfig, {"preset": "light", "expand": 0.3, "crop_overlaps": [0.5], "brightness": 10})
    assert config.crop_overlaps == (0.5,) and config.expand_ratio == (1.0, 4.0)
    assert from_dict(AugmentConfig, to_dict(config)) == config
    assert from_dict(AugmentConfig, {"preset": "ssd", "crop_overlaps": []}).crop_overlaps == ()
    assert AugmentConfig("yolo", saturation_factor=1.0).value_factor == 1.5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mosaic": 1.5}, "mosaic: Input should be less than or equal to 1, got 1.5"),
        ({"hue": -0.1}, "hue: Input should be greater than or equal to 0"),
        (
            {"scale_jitter": (1.5, 0.5)},
            "augment.scale_jitter: the first number must be at most the second, got 1.5",
        ),
        ({"scale_jitter": (0.0, 1.0)}, "scale_jitter.0: Input should be greater than or equal to 0.05"),
        ({"crop": 0.6, "zoom_out": 0.6}, "augment.crop"),
        ({"flip_vertical": float("nan")}, "flip_vertical"),
        ({"preset": "hard"}, "preset"),
        ({"expand": 1.5}, "expand: Input should be less"),
        ({"expand_ratio": (0.5, 2)}, "expand_ratio.0: Input should be greater than or equal to 1, got 0.5"),
        ({"expand_ratio": (1, 11)}, "expand_ratio.1: Input should be less than or equal to 10"),
        ({"crop_overlaps": (0.5, 1.1)}, "crop_overlaps.1: Input should be less than or equal to 1, got 1.1"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale.0"),
        ({"crop_aspect": (2.0, 1.0)}, "augment.crop_aspect"),
        ({"aspect_jitter": 1.0}, "aspect_jitter: Input should be less than or equal to 0.9, got 1.0"),
        ({"brightness": 256}, "brightness: Input should be less than or equal to 255, got 256"),
        ({"contrast": -0.5}, "contrast"),
        ({"saturation_factor": 0.5}, "saturation_factor: Input should be greater than or equal to 1, got 0.5"),
        ({"value_factor": float("nan")}, "value_factor"),
        ({"recolor": 2}, "recolor"),
        ({"keep_boxes": "some"}, "keep_boxes"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"mosiac": 0.5}, "mosaic"),
    ],
)
def test_wrong_settings_are_named(settings, named):
    with pytest.raises(ConfigError, match=re.escape(named)):
        from_dict(AugmentConfig, settings)


def test_mosaic_ends_for_the_last_fraction_of_the_epochs():
    augmentation = AugmentConfig("none", mosaic=0.7, mosaic_off_last=0.25)
    fractions = [augmentation.mosaic_probability(epoch=epoch, num_epochs=8) for epoch in range(8)]
    assert fractions == [0.7] * 6 + [0.0] * 2
    assert AugmentConfig("none", mosaic=0.7).mosaic_probability(epoch=7, num_epochs=8) == 0.7


def test_a_phase_and_a_flag_lay_another_preset_over_the_numbers_of_the_first(tmp_path):
    run = RunConfig(
        augment=AugmentConfig("strong", hue=0.1), phases=({"epochs": 2}, {"epochs": 1, "augment": {"preset": "none"}})
    )
    assert [phase.augment for phase in run.phase_configs] == [run.augment, AugmentConfig("none", hue=0.1)]
    save(RunConfig(augment=AugmentConfig("light", hue=0.1)), tmp_path / "config.yaml")
    assert "null" not in (tmp_path / "config.yaml").read_text().split("augment:")[1].split("sampling:")[0]
    typed, _ = run_settings({"augment": {"preset": "strong", "mosaic": 0.25}}, file=tmp_path / "config.yaml", data=None)
    assert typed.augment == AugmentConfig("strong", hue=0.1, mosaic=0.25)
    assert run_settings(None, file=tmp_path / "config.yaml", data=None).config.augment == AugmentConfig(
        "light", hue=0.1
    )
