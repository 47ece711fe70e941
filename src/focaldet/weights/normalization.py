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
FORMULA = re.compile(rf"(?:x|\(x-(?P<mean>{_DECIMAL})\))/(?P<scale>{_DECIMAL})(?:-(?P<shift>{_DECIMAL}))?")


def replace_scaling(preprocessing: Preprocessing, trained_with: Preprocessing) -> Preprocessing:
    """`preprocessing` with the channels, mean and standard deviation of `trained_with`; its resize rule stays."""
    return replace(preprocessing, channels=trained_with.channels, mean=trained_with.mean, std=trained_with.std)


def with_input(preprocessing: Preprocessing, statement: str | None, *, source: str) -> Preprocessing:
    """`preprocessing` with the channels and scaling of `statement`, if there is one; its resize rule stays.

    A statement is a name of `INPUTS` or a formula over pixels x in 0…255, such as `x/127.5-1, RGB` or
    `RGB, (x - 127) / 128`.

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
    return f"(x - {preprocessing.mean}) / {preprocessing.std}, {preprocessing.channels}"


def _parse_formula(statement: str) -> Preprocessing | None:
    """(x - mean) / scale - shift is (x - mean - shift · scale) / scale; the channels stand before or after it."""
    parts = statement.replace(" ", "").split(",")
    channels = [part for part in parts if part in ("RGB", "BGR")]
    formulas = [match for part in parts if (match := FORMULA.fullmatch(part))]
    if (len(parts), len(channels), len(formulas)) != (2, 1, 1) or float(formulas[0]["scale"]) == 0:
        return None
    scale = float(formulas[0]["scale"])
    mean = float(formulas[0]["mean"] or 0) + float(formulas[0]["shift"] or 0) * scale
    return replace(IMAGENET, channels="RGB" if channels == ["RGB"] else "BGR", mean=(mean,) * 3, std=(scale,) * 3)
