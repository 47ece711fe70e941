"""Caffe's SSD and DSSD with ResNet-101 as named arrays, a key for each blob: `<layer>.<place of the blob>` (`conv1.0`).

Layers are called as in the authors' scripts (chengyangfu/caffe, branch dssd: python/caffe/model_libs.py and
examples/ssd/ssd_coco_resnet_513.py, ssd_coco_resnet_deconv_513.py, ssd_pascal_resnet_321.py,
ssd_pascal_resnet_deconv_321.py). A convolution has weights, and a bias where no BatchNorm follows; BatchNorm has a
mean, a variance and a factor that both are divided by; Scale has γ and β. Priors come in our order, min, √(min · max),
then each ratio and its inverse, and boxes as x, y, w, h over the variances; of a prior's classes the background is the
first, with us the last.

Axes: P priors of a cell, V = K + 1 class values, C channels.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.models import DETECTORS, Detector, SSDConfig
from focaldet.models.ssd import SSDLossConfig
from focaldet.nets.resnet import RESNETS
from focaldet.nets.ssd import at_level
from focaldet.weights.tensor_names import require_fit, shapes_of, without_memory

BACKBONE = "resnet101"
INPUT = "caffe_ssd"
NOTE = "a Caffe file states neither priors, nor their centres and variances, nor ε: they are those of the settings"

FACTOR = ".factor"
"""End of what stands for the third blob of a BatchNorm among our names; we have no such tensor."""
_MODULE = re.compile(r"res(.+)_inter(\d+)_branch1\.0")
_OUTPUT = re.compile(r".+_mbox_conf(new)?\.0")


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution by its layer's name and by ours; `norms` are the names of its BatchNorm and Scale, and of ours."""

    layer: str
    ours: str
    norms: tuple[str, str, str] | None = None


def is_detector(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of Caffe's SSD or DSSD."""
    return any(_OUTPUT.fullmatch(key) for key in tensors)


def preset(tensors: Mapping[str, Tensor]) -> tuple[str, int | None]:
    """The entry of our table whose layers a file has, and its number of classes (None: its outputs fit none).

    A decoder makes it a DSSD, five extra layers one for 513 px.
    """
    size = 513 if any(key.startswith("res10_") for key in tensors) else 321
    name = f"{'dssd' if _has_decoder(tensors) else 'ssd'}{size}_r101"
    config = DETECTORS[name]
    assert isinstance(config, SSDConfig)
    return name, _num_classes(config, tensors)


def detector_tensors(
    detector: Detector, tensors: Mapping[str, Tensor], *, source: str
) -> tuple[SSDConfig, dict[str, Tensor]]:
    """The config of the network that a file holds, as far as it tells, else that of `detector`; its tensors by our
    names.

    Raises:
        CheckpointError: `detector` is no such SSD, or an array is missing, left over, of another shape or no number.
    """
    theirs = _config(detector.config, tensors, source=source)
    names = {key: name for layer in _layers(theirs) for key, name in _blobs(layer)}
    shapes = shapes_of(without_memory(theirs))
    expected = {key: shapes.get(name, (1,)) for key, name in names.items()}
    require_fit(expected, {key: tuple(value.shape) for key, value in tensors.items()}, source=source)
    for key, value in tensors.items():
        if not value.is_floating_point():
            raise CheckpointError(f"{source}: {key}: is {value.dtype}, must hold floating-point numbers")
    ours = {name: tensors[key] for key, name in names.items()}
    return theirs, {name: _translated(name, ours, theirs) for name in ours if not name.endswith(FACTOR)}


def _translated(name: str, ours: Mapping[str, Tensor], config: SSDConfig) -> Tensor:
    """A tensor with its numbers as we keep them."""
    place, _, part = name.rpartition(".")
    if part in ("running_mean", "running_var"):
        sums, factor = ours[name], ours[place + FACTOR]
        # A factor of 0 stands there before any training; Caffe then takes 0. In tensors, so that both can be traced.
        return torch.where(factor == 0, torch.zeros_like(sums), sums / factor)
    return background_last(ours[name], config.num_classes + 1) if place.endswith(".classes") else ours[name]


def background_last(rows: Float[Tensor, "PV *C"], values: int) -> Float[Tensor, "PV *C"]:
    """The rows of a class layer, those of a prior together, with the first of every prior's `values` moved behind."""
    return rows.reshape(-1, values, *rows.shape[1:]).roll(-1, dims=1).reshape(rows.shape)


def _config(config: object, tensors: Mapping[str, Tensor], *, source: str) -> SSDConfig:
    """`config` with what the scripts say of all such files, and with what the names and shapes of this one say."""
    if not isinstance(config, SSDConfig) or config.backbone != BACKBONE:
        raise CheckpointError(
            f"{source}: Caffe's files hold SSD and DSSD with {BACKBONE}, not {type(config).__name__} "
            f"with {getattr(config, 'backbone', None)}"
        )
    decoder = None
    if _has_decoder(tensors):
        if config.decoder is None:
            fitting = preset(tensors)[0]
            raise CheckpointError(
                f"{source}: made for another network: it holds a DSSD, here is no decoder (it fits {fitting})"
            )
        has_inter = any("_mbox_confnew_inter" in key for key in tensors)
        width = config.decoder.inter_width or config.decoder.width
        decoder = replace(config.decoder, inter_width=width if has_inter else None)
    if "group" in (config.norm, config.extra_norm, decoder and decoder.norm):
        raise CheckpointError(f"{source}: Caffe's networks have BatchNorm; every norm must be batch or frozen")
    theirs = replace(
        config,
        num_classes=_num_classes(config, tensors) or config.num_classes,
        stride_in_1x1=True,
        ceil_pool=True,
        dilated_c5=True,
        sources=("C3", "C5"),
        extra_paddings=(0,),
        loss=SSDLossConfig(),
        decoder=decoder,
    )
    return replace(theirs, module_widths=_module_widths(theirs, tensors))


def _num_classes(config: SSDConfig, tensors: Mapping[str, Tensor]) -> int | None:
    """K by the outputs of the first class layer; None where they are no whole number of values for every prior."""
    outputs = next((len(value) for key, value in tensors.items() if _OUTPUT.fullmatch(key) and value.ndim), 0)
    values, rest = divmod(outputs, config.priors.per_cell)
    return values - 1 if values > 1 and not rest else None


def _module_widths(config: SSDConfig, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Those that the layers' names tell, one for each map; the config's own where they mean the same."""
    found = {match[1]: int(match[2]) for key in tensors if (match := _MODULE.fullmatch(key))}
    ours = [at_level(config.module_widths, level) for level in range(config.priors.num_levels)]
    theirs = [found.get(feature, own) for feature, own in zip(_features(config), ours, strict=True)]
    return config.module_widths if theirs == ours else tuple(theirs)


def _has_decoder(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("deconv_") for key in tensors)


def _blobs(convolution: Convolution) -> Iterator[tuple[str, str]]:
    """Caffe's key and our name of everything that a convolution has."""
    layer, ours = convolution.layer, convolution.ours
    yield f"{layer}.0", f"{ours}.weight"
    if convolution.norms is None:
        yield f"{layer}.1", f"{ours}.bias"
        return
    batch_norm, scale, norm = convolution.norms
    for place, part in enumerate((".running_mean", ".running_var", FACTOR)):
        yield f"{batch_norm}.{place}", norm + part
    for place, part in enumerate((".weight", ".bias")):
        yield f"{scale}.{place}", norm + part


def _layers(config: SSDConfig) -> Iterator[Convolution]:
    """All convolutions of the network that `config` describes."""
    yield from _backbone()
    for place in range(config.priors.num_levels - len(config.sources)):
        yield from _residual_unit(str(6 + place), f"extras.{place}")
    if config.decoder is not None:
        yield from _decoder(config)
    for level, feature in enumerate(_features(config)):
        yield from _predictor(config, level, feature)


def _backbone() -> Iterator[Convolution]:
    yield Convolution("conv1", "backbone.conv1", ("bn_conv1", "scale_conv1", "backbone.bn1"))
    for stage, depth in enumerate(RESNETS[BACKBONE].depths, start=1):
        for number in range(depth):
            # The two long stages count their blocks, a, b1, b2 and so on, the others have letters.
            name = "abc"[number] if depth == 3 else f"b{number}" if number else "a"
            place = f"backbone.layer{stage}.{number}"
            unit = _residual_unit(f"{stage + 1}{name}", place, norms="bn", shortcut=("downsample.0", "downsample.1"))
            yield from (part for part in unit if number == 0 or not part.layer.endswith("_branch1"))


def _residual_unit(
    block: str, ours: str, *, norms: str = "norm", shortcut: tuple[str, str] = ("project", "project_norm")
) -> Iterator[Convolution]:
    """The four convolutions that ResBody makes under the name `block`."""
    places = {"branch1": shortcut}
    places |= {f"branch2{letter}": (f"conv{place}", f"{norms}{place}") for place, letter in enumerate("abc", start=1)}
    for branch, (convolution, norm) in places.items():
        normed = (f"bn{block}_{branch}", f"scale{block}_{branch}", f"{ours}.{norm}")
        yield Convolution(f"res{block}_{branch}", f"{ours}.{convolution}", normed)


def _single(layer: str, ours: str) -> Convolution:
    """A 3×3 convolution and its BatchNorm outside of a residual unit."""
    return Convolution(layer, f"{ours}.conv", (f"{layer}_bn", f"{layer}_scale", f"{ours}.norm"))


def _decoder(config: SSDConfig) -> Iterator[Convolution]:
    for level, (number, source) in enumerate(zip(_numbers(config)[:-1], _sources(config), strict=False)):
        step = f"decoder.steps.{level}"
        yield Convolution(f"deconv_{number}", f"{step}.up")
        yield _single(f"deconv_{number}_pre", f"{step}.up_conv")
        yield _single(f"{source}_pre1", f"{step}.fine_conv1")
        yield _single(f"{source}_pre2", f"{step}.fine_conv2")


def _predictor(config: SSDConfig, level: int, feature: str) -> Iterator[Convolution]:
    """The prediction module of a map and its two outputs, which a DSSD calls new."""
    block, ours = f"{feature}_inter{at_level(config.module_widths, level)}", f"predictors.{level}"
    yield from _residual_unit(block, f"{ours}.module")
    for kind, inter, output in (("loc", "box_inter", "boxes"), ("conf", "class_inter", "classes")):
        layer = f"res{block}_mbox_{kind}{'new' if config.decoder else ''}"
        if config.decoder and config.decoder.inter_width:
            yield _single(f"{layer}_inter", f"{ours}.{inter}")
        yield Convolution(layer, f"{ours}.{output}")


def _numbers(config: SSDConfig) -> Sequence[int]:
    """What the scripts call the maps, from the finest."""
    return (3, 5, *range(6, 4 + config.priors.num_levels))


def _sources(config: SSDConfig) -> list[str]:
    """The layers of the encoder that give the maps."""
    return ["res3b3_relu", "res5c_relu", *(f"res{number}_relu" for number in _numbers(config)[2:])]


def _features(config: SSDConfig) -> list[str]:
    """The layers that the prediction modules read: the encoder's, or the decoder's and the coarsest of the encoder."""
    sources = _sources(config)
    if config.decoder is None:
        return sources
    return [*(f"combined_{number}_EltwisePROD_relu" for number in _numbers(config)[:-1]), sources[-1]]
