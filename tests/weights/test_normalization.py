"""Statements of what numbers a network was trained to see."""

from dataclasses import replace

import pytest

from focaldet.errors import ConfigError
from focaldet.types import Preprocessing, Resize
from focaldet.weights.normalization import INPUTS, describe_input, with_input

KEPT = Preprocessing(resize=Resize("long", size=320), size_divisor=64)


def normalize(preprocessing: Preprocessing, value: float) -> list[float]:
    return [(value - mean) / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)]


@pytest.mark.parametrize(
    ("statement", "channels", "black", "white"),
    [
        ("x/127.5-1, RGB", "RGB", -1.0, 1.0),
        ("symmetric", "RGB", -1.0, 1.0),
        ("x/255, RGB", "RGB", 0.0, 1.0),
        ("unit", "RGB", 0.0, 1.0),
        ("x/255-0.5,BGR", "BGR", -0.5, 0.5),
        ("x / 1 - 0, BGR", "BGR", 0.0, 255.0),
        ("RGB, (x - 127) / 128", "RGB", -127 / 128, 1.0),
        ("(x-51)/102-0.5, BGR", "BGR", -1.0, 1.5),
    ],
)
def test_statements_mean_what_they_say(statement: str, channels: str, black: float, white: float) -> None:
    preprocessing = with_input(KEPT, statement, source="file")
    assert preprocessing.channels == channels
    assert normalize(preprocessing, 0) == pytest.approx([black] * 3)
    assert normalize(preprocessing, 255) == pytest.approx([white] * 3)
    assert (preprocessing.resize, preprocessing.size_divisor) == (KEPT.resize, KEPT.size_divisor)


def test_imagenet_is_torchvisions_mean_and_std_on_255() -> None:
    preprocessing = INPUTS["imagenet"]
    assert preprocessing.mean == pytest.approx([255 * x for x in (0.485, 0.456, 0.406)])
    assert preprocessing.std == pytest.approx([255 * x for x in (0.229, 0.224, 0.225)])


@pytest.mark.parametrize(
    "statement",
    [
        "",
        "x/0, RGB",
        "x/1",
        "RGB, x/1, BGR",
        "(x-1)/(1,2), RGB",
        "x/(1,0,1), RGB",
        "x/127.5-1",
        "normal",
        "x/127.5-1, RGBA",
        "{}",
    ],
)
def test_unknown_statements_are_refused(statement: str) -> None:
    with pytest.raises(ConfigError, match=r"some file: weights\.input: .* is neither"):
        with_input(KEPT, statement, source="some file")


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match='did you mean "imagenet"'):
        with_input(KEPT, "image-net", source="x")


@pytest.mark.parametrize("name", INPUTS)
def test_descriptions_name_the_known_inputs(name: str) -> None:
    assert describe_input(with_input(KEPT, name, source="x")).startswith(name)


def test_descriptions_of_other_inputs_show_numbers_and_can_be_typed() -> None:
    other = replace(KEPT, channels="BGR", mean=(1.5, 2.0, 3.0), std=(4.0, 5.25, 6.0))
    assert with_input(KEPT, describe_input(other), source="x") == other
