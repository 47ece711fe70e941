"""Caffe's SSD and DSSD with ResNet-101 as named arrays, a key for each blob: `<layer>.<index of the blob>` (`conv1.0`).

Layers are called as in the authors' scripts (chengyangfu/caffe, branch dssd: python/caffe/model_libs.py and
examples/ssd/ssd_coco_resnet_513.py, ssd_coco_resnet_deconv_513.py, ssd_pascal_resnet_321.py,
ssd_pascal_resnet_deconv_321.py). A convolution has weights, and a bias where no BatchNorm follows; BatchNorm has a
mean, a variance and a factor that both are divided by; Scale has γ and β. Priors come in focaldet's order, min,
√(min · max), then each ratio and its inverse, and boxes as x, y, w, h divided by the variances; of a prior's classes
the background is the first, in focaldet the last.

Axes: P priors of a cell, V = K + 1 class values, C channels.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.models import Detector, DetectorConfig, SSDConfig, find_preset
from focaldet.models.ssd_settings import SSDLossConfig
from focaldet.nets.resnet import RESNETS
from focaldet.nets.ssd import at_level
from focaldet.weights.formats.detector_weights import DetectorWeights, coco_classes
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.normalization import with_input
from focaldet.weights.sources import WeightsSource
from focaldet.weights.tensor_names import build_on_meta, require_fit, require_numbers, shapes_of, tensor_shapes

CAFFE_BACKBONE = "resnet101"
CAFFE_NOTE = (
    "a Caffe file states neither priors, nor their centers and variances, nor ε: they are those of the settings"
)

FACTOR = ".factor"
"""End of the name that stands for the third blob of a BatchNorm; focaldet has no such tensor."""
_MODULE = re.compile(r"res(.+)_inter(\d+)_branch1\.0")
_OUTPUT = re.compile(r".+_mbox_conf(new)?\.0")


def is_caffe(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of Caffe's SSD or DSSD."""
    return any(_OUTPUT.fullmatch(key) for key in tensors)


def read_caffe(
    file: TensorFile, source: WeightsSource, stated: str | None, detector: Detector | None
) -> DetectorWeights:
    """The SSD or DSSD of a file, whose settings are those of `detector` where the file does not state them.

    Raises:
        CheckpointError: `detector` is not such an SSD, or an array is missing, left over or of another shape.
    """
    like = find_preset(matching_ssd_preset(file.tensors)) if detector is None else detector
    config = _infer_ssd_config(like.config, file.tensors, source=source.label)
    names = dict(_tensor_names(config))
    shapes = shapes_of(build_on_meta(config))
    expected = {key: shapes.get(name, (1,)) for key, name in names.items()}
    require_fit(expected, tensor_shapes(file.tensors), source=source.label)
    require_numbers(file.tensors, source=source.label)
    blobs = {name: file.tensors[key] for key, name in names.items()}
    return DetectorWeights(
        config=config,
        tensors={name: _convert_blob(name, blobs, config) for name in blobs if not name.endswith(FACTOR)},
        preprocessing=with_input(like.preprocessing, stated or "caffe_ssd", source=source.label),
        classes=coco_classes(config.num_classes),
        notes=(CAFFE_NOTE,),
        license=file.license,
    )


def matching_ssd_preset(tensors: Mapping[str, Tensor]) -> str:
    """The preset whose layers a file has: a decoder makes it a DSSD, five extra layers one for 513 px."""
    size = 513 if any(key.startswith("res10_") for key in tensors) else 321
    return f"{'dssd' if _has_decoder(tensors) else 'ssd'}{size}_r101"


def _convert_blob(name: str, blobs: Mapping[str, Tensor], config: SSDConfig) -> Tensor:
    """A tensor with its numbers as focaldet keeps them."""
    layer, _, part = name.rpartition(".")
    if part in ("running_mean", "running_var"):
        sums, factor = blobs[name], blobs[layer + FACTOR]
        # A factor of 0 stands there before any training; Caffe then takes 0. In tensors, so that both can be tracked.
        return torch.where(factor == 0, torch.zeros_like(sums), sums / factor)
    return background_last(blobs[name], config.num_classes + 1) if layer.endswith(".classes") else blobs[name]


def background_last(rows: Float[Tensor, "PV *C"], values: int) -> Float[Tensor, "PV *C"]:
    """The rows of a class layer, those of a prior together, with the first of every prior's `values` moved behind."""
    return rows.reshape(-1, values, *rows.shape[1:]).roll(-1, dims=1).reshape(rows.shape)


def _infer_ssd_config(config: DetectorConfig, tensors: Mapping[str, Tensor], *, source: str) -> SSDConfig:
    """`config` with what the scripts say of all such files, and with what the names and shapes of this one say."""
    if not isinstance(config, SSDConfig) or config.backbone != CAFFE_BACKBONE:
        raise CheckpointError(
            f"{source}: Caffe's files are of SSD and DSSD with {CAFFE_BACKBONE}, not {type(config).__name__} "
            f"with {config.backbone}"
        )
    decoder = None
    if _has_decoder(tensors):
        if config.decoder is None:
            fits = f"it fits {matching_ssd_preset(tensors)}"
            raise CheckpointError(
                f"{source}: made for another network: it is a DSSD, this network has no decoder ({fits})"
            )
        has_inter = any("_mbox_confnew_inter" in key for key in tensors)
        width = config.decoder.inter_width or config.decoder.width
        decoder = replace(config.decoder, inter_width=width if has_inter else None)
    if "group" in (config.norm, config.extra_norm, decoder and decoder.norm):
        raise CheckpointError(f"{source}: Caffe's networks have BatchNorm; every norm must be batch or frozen")
    inferred = replace(
        config,
        num_classes=_infer_num_ssd_classes(config, tensors) or config.num_classes,
        stride_in_1x1=True,
        ceil_pool=True,
        dilated_c5=True,
        sources=("C3", "C5"),
        extra_paddings=(0,),
        loss=SSDLossConfig(),
        decoder=decoder,
    )
    return replace(inferred, module_widths=_module_widths(inferred, tensors))


def _infer_num_ssd_classes(config: SSDConfig, tensors: Mapping[str, Tensor]) -> int | None:
    """K by the outputs of the first class layer; None where they are not a whole number of values for every prior."""
    outputs = next((len(value) for key, value in tensors.items() if _OUTPUT.fullmatch(key) and value.ndim), 0)
    values, rest = divmod(outputs, config.priors.per_cell)
    return values - 1 if values > 1 and not rest else None


def _module_widths(config: SSDConfig, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The widths in the layers' names, one for each map; the config's own where they mean the same."""
    by_feature = {match[1]: int(match[2]) for key in tensors if (match := _MODULE.fullmatch(key))}
    expected = [at_level(config.module_widths, level) for level in range(config.priors.num_levels)]
    stated = [by_feature.get(feature, width) for feature, width in zip(_features(config), expected, strict=True)]
    return config.module_widths if stated == expected else tuple(stated)


def _has_decoder(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("deconv_") for key in tensors)


def _tensor_names(config: SSDConfig) -> Iterator[tuple[str, str]]:
    """Caffe's key and focaldet's name of every tensor of the network that `config` describes."""
    yield from _backbone()
    for extra in range(config.priors.num_levels - len(config.sources)):
        yield from _residual_unit(str(6 + extra), f"extras.{extra}")
    if config.decoder is not None:
        yield from _decoder(config)
    for level, feature in enumerate(_features(config)):
        yield from _predictor(config, level, feature)


def _convolution(layer: str, name: str, norms: tuple[str, str, str] | None = None) -> Iterator[tuple[str, str]]:
    """The keys and names of a convolution; `norms` are Caffe's BatchNorm and Scale, and focaldet's norm."""
    yield f"{layer}.0", f"{name}.weight"
    if norms is None:
        yield f"{layer}.1", f"{name}.bias"
        return
    batch_norm, scale, norm = norms
    for index, part in enumerate((".running_mean", ".running_var", FACTOR)):
        yield f"{batch_norm}.{index}", norm + part
    for index, part in enumerate((".weight", ".bias")):
        yield f"{scale}.{index}", norm + part


def _backbone() -> Iterator[tuple[str, str]]:
    yield from _convolution("conv1", "backbone.conv1", ("bn_conv1", "scale_conv1", "backbone.bn1"))
    for stage, depth in enumerate(RESNETS[CAFFE_BACKBONE].depths, start=1):
        for number in range(depth):
            # The two long stages count their blocks, a, b1, b2 and so on, the others have letters.
            name = "abc"[number] if depth == 3 else f"b{number}" if number else "a"
            shortcut = ("downsample.0", "downsample.1") if number == 0 else None
            yield from _residual_unit(f"{stage + 1}{name}", f"backbone.layer{stage}.{number}", "bn", shortcut)


def _residual_unit(
    block: str, module: str, norms: str = "norm", shortcut: tuple[str, str] | None = ("project", "project_norm")
) -> Iterator[tuple[str, str]]:
    """What ResBody makes under the name `block`: three convolutions, and one in the shortcut if there is any."""
    parts = {"branch1": shortcut} if shortcut else {}
    parts |= {f"branch2{letter}": (f"conv{number}", f"{norms}{number}") for number, letter in enumerate("abc", start=1)}
    for branch, (convolution, norm) in parts.items():
        norm_names = (f"bn{block}_{branch}", f"scale{block}_{branch}", f"{module}.{norm}")
        yield from _convolution(f"res{block}_{branch}", f"{module}.{convolution}", norm_names)


def _single(layer: str, module: str) -> Iterator[tuple[str, str]]:
    """A 3×3 convolution and its BatchNorm outside of a residual unit."""
    return _convolution(layer, f"{module}.conv", (f"{layer}_bn", f"{layer}_scale", f"{module}.norm"))


def _decoder(config: SSDConfig) -> Iterator[tuple[str, str]]:
    for level, (number, source) in enumerate(zip(_map_numbers(config)[:-1], _sources(config), strict=False)):
        step = f"decoder.steps.{level}"
        yield from _convolution(f"deconv_{number}", f"{step}.up")
        yield from _single(f"deconv_{number}_pre", f"{step}.up_conv")
        yield from _single(f"{source}_pre1", f"{step}.fine_conv1")
        yield from _single(f"{source}_pre2", f"{step}.fine_conv2")


def _predictor(config: SSDConfig, level: int, feature: str) -> Iterator[tuple[str, str]]:
    """The prediction module of a map and its two outputs, which a DSSD calls new."""
    block, module = f"{feature}_inter{at_level(config.module_widths, level)}", f"predictors.{level}"
    yield from _residual_unit(block, f"{module}.module")
    for kind, inter, output in (("loc", "box_inter", "boxes"), ("conf", "class_inter", "classes")):
        layer = f"res{block}_mbox_{kind}{'new' if config.decoder else ''}"
        if config.decoder and config.decoder.inter_width:
            yield from _single(f"{layer}_inter", f"{module}.{inter}")
        yield from _convolution(layer, f"{module}.{output}")


def _map_numbers(config: SSDConfig) -> Sequence[int]:
    """What the scripts call the maps, from the finest."""
    return (3, 5, *range(6, 4 + config.priors.num_levels))


def _sources(config: SSDConfig) -> list[str]:
    """The layers of the encoder that give the maps."""
    return ["res3b3_relu", "res5c_relu", *(f"res{number}_relu" for number in _map_numbers(config)[2:])]


def _features(config: SSDConfig) -> list[str]:
    """The layers that the prediction modules read: the encoder's, or the decoder's and the coarsest of the encoder."""
    sources = _sources(config)
    if config.decoder is None:
        return sources
    return [*(f"combined_{number}_EltwisePROD_relu" for number in _map_numbers(config)[:-1]), sources[-1]]
