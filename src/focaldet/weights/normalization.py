"""What numbers a network was trained to see: input statements in weights files and on the command line."""

import re
from dataclasses import replace

from focaldet.config import nearest
from focaldet.errors import ConfigError
from focaldet.types import Preprocessing

IMAGENET = Preprocessing()
INPUTS = {
    "imagenet": IMAGENET,  # RGB, mean and standard deviation of ImageNet: torchvision, timm's usual one
    "efficientnet": replace(IMAGENET, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)),  # TensorFlow's, RGB
    "symmetric": replace(IMAGENET, mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)),  # RGB in -1…1
    "unit": replace(IMAGENET, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),  # RGB in 0…1
    "caffe": Preprocessing(channels="BGR", mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0)),  # MSRA's ResNets
    "caffe_ssd": Preprocessing(channels="BGR", mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0)),  # SSD and DSSD
    "detectron2": Preprocessing(channels="BGR", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0)),  # its ResNets
    "detectron2_x101": Preprocessing(channels="BGR", mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)),
}
"""The input scalings that `--weights.input` can name (only channels, mean and standard deviation count)."""

_DECIMAL = r"\d+(?:\.\d+)?"
_TRIPLE = rf"{_DECIMAL}|\({_DECIMAL},{_DECIMAL},{_DECIMAL}\)"
FORMULA = re.compile(
    rf"(?:(?P<before>RGB|BGR),)?(?:x|\(x-(?P<mean>{_TRIPLE})\))/(?P<scale>{_TRIPLE})(?:-(?P<shift>{_DECIMAL}))?"
    r"(?:,(?P<after>RGB|BGR))?"
)


def replace_scaling(preprocessing: Preprocessing, trained_with: Preprocessing) -> Preprocessing:
    """`preprocessing` with the channels, mean and standard deviation of `trained_with`; its resize rule stays."""
    return replace(preprocessing, channels=trained_with.channels, mean=trained_with.mean, std=trained_with.std)


def with_input(preprocessing: Preprocessing, statement: str | None, *, source: str) -> Preprocessing:
    """`preprocessing` with the channels and scaling of `statement`, if there is one; its resize rule stays.

    A statement is a name of `INPUTS` or a formula over pixels x in 0…255, such as `x/127.5-1, RGB`,
    `RGB, (x - 127) / 128` or, for each channel, `(x - (124, 116, 104)) / (58, 57, 57), RGB`.

    Raises:
        ConfigError: the statement is not understood; names `source`.
    """
    if statement is None:
        return preprocessing
    scaling = INPUTS.get(statement) or _parse_formula(statement)
    if scaling is None:
        raise ConfigError(
            f"{source}: weights.input: {statement!r} is neither a formula such as 'x/127.5-1, RGB' nor a known name"
            f"{nearest(statement, INPUTS)}"
        )
    return replace_scaling(preprocessing, scaling)


def describe_input(preprocessing: Preprocessing) -> str:
    """The input scaling in a few words, for messages."""
    for name, known in INPUTS.items():
        if replace_scaling(preprocessing, known) == preprocessing:
            return f"{name} ({known.channels})"
    return describe_scaling(preprocessing)


def describe_scaling(preprocessing: Preprocessing) -> str:
    """The input scaling as a formula that `with_input` reads."""
    mean, std = ("({:.9g}, {:.9g}, {:.9g})".format(*values) for values in (preprocessing.mean, preprocessing.std))
    return f"(x - {mean}) / {std}, {preprocessing.channels}"


def _parse_formula(statement: str) -> Preprocessing | None:
    """(x - mean) / scale - shift is (x - mean - shift · scale) / scale; the channels stand before or after it."""
    match = FORMULA.fullmatch(statement.replace(" ", ""))
    if match is None or bool(match["before"]) == bool(match["after"]):
        return None
    mean, scale = _three_numbers(match["mean"] or "0"), _three_numbers(match["scale"])
    if 0 in scale:
        return None
    shift = float(match["shift"] or 0)
    red, green, blue = (m + shift * s for m, s in zip(mean, scale, strict=True))
    channels = match["before"] or match["after"]
    return replace(IMAGENET, channels="RGB" if channels == "RGB" else "BGR", mean=(red, green, blue), std=scale)


def _three_numbers(text: str) -> tuple[float, float, float]:
    """A number for each channel; a single one is that of all three."""
    first, *others = (float(part) for part in text.strip("()").split(","))
    second, third = others or (first, first)
    return first, second, third
