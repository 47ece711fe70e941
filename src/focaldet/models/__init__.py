"""Detectors: the one table of names, and how a name becomes a network."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from focaldet import config as configs
from focaldet.errors import ConfigError
from focaldet.models import two_stage_presets as two_stage
from focaldet.models.base import Detector, LossContext
from focaldet.models.faster_rcnn.model import FasterRCNNConfig
from focaldet.models.retinanet import DetectConfig, LossConfig, RetinaNetConfig
from focaldet.models.ssd import DecoderConfig, SSDConfig
from focaldet.models.yolov2 import YOLOv2Config, YOLOv2LossConfig
from focaldet.nets.tdm import WIDTHS_TO_STRIDE_8
from focaldet.ops.anchors import AnchorConfig
from focaldet.ops.matching import MatchConfig
from focaldet.ops.priors import PriorConfig
from focaldet.types import Preprocessing, Resize

__all__ = [
    "DETECTORS",
    "PREPROCESSING",
    "Detector",
    "FasterRCNNConfig",
    "LossContext",
    "SSDConfig",
    "YOLOv2Config",
    "build",
    "from_config",
]

AnyConfig = RetinaNetConfig | FasterRCNNConfig | SSDConfig | YOLOv2Config

_TORCHVISION_ANCHORS = AnchorConfig(flavour="torchvision")

# Made for small data at 320 px: priors from 16 px on that lie evenly on every map.
_SMALL_PRIORS = PriorConfig(
    percents=(5.0, 10.0, 20.0, 35.0, 55.0, 80.0, 110.0), elongations=(2.0, 3.0), whole_px=False, starts_px=(None,) * 6
)

# As the released scripts, which are those for VOC.
_PRIORS_321 = PriorConfig(
    percents=(10.0, 20.0, 38.0, 56.0, 74.0, 92.0, 110.0), starts_px=(2.5, 2.5, 10.5, 26.5, 90.5, None)
)
_SSD_R18 = SSDConfig(
    backbone="resnet18",
    norm="frozen",
    norm_eps=1e-5,
    stride_in_1x1=False,
    extra_width=256,
    extra_paddings=(0, 0, 1, 0),
    extra_norm="group",
    module_widths=(64,),
    kernels=(3,),
    tower_init="he",
    priors=_SMALL_PRIORS,
)

MOST_CLASSES = 100_000  # a file that claims more is damaged, or made to take all memory

DETECTORS: dict[str, AnyConfig] = {
    "retinanet_r18_fpn": RetinaNetConfig(backbone="resnet18"),
    "retinanet_r34_fpn": RetinaNetConfig(backbone="resnet34"),
    "retinanet_r50_fpn": RetinaNetConfig(backbone="resnet50"),
    "retinanet_r101_fpn": RetinaNetConfig(backbone="resnet101"),
    "retinanet_x101_32x8d_fpn": RetinaNetConfig(backbone="resnext101_32x8d"),
    "retinanet_x101_64x4d_fpn": RetinaNetConfig(backbone="resnext101_64x4d"),
    # Made for small data at 320 to 640 px: anchors from 16 px on, every object gets some, nothing frozen.
    "retinanet_mobilenet_v2_fpn": RetinaNetConfig(
        backbone="mobilenet_v2",
        frozen_stages=0,
        width=96,
        p6_from="P5",
        tower_init="he",
        anchors=AnchorConfig(base_scale=2.0),
        matching=MatchConfig(low_quality="any"),
        loss=LossConfig(box="giou", box_weight=2.0),
    ),
    "retinanet_r50_fpn_tv": RetinaNetConfig(
        num_classes=91,
        norm_eps=0.0,
        p6_from="P5",
        anchors=_TORCHVISION_ANCHORS,
        matching=MatchConfig(low_quality="any"),
        loss=LossConfig(normaliser="image", box="l1"),
        detect=DetectConfig(max_detections=300),
    ),
    "retinanet_r50_fpn_v2_tv": RetinaNetConfig(
        num_classes=91,
        norm="batch",
        frozen_stages=0,
        head_norm=True,
        anchors=_TORCHVISION_ANCHORS,
        matching=MatchConfig(low_quality="any"),
        loss=LossConfig(normaliser="image", box="giou"),
        detect=DetectConfig(max_detections=300),
    ),
    "faster_rcnn_r18_fpn": replace(two_stage.SMALL, backbone="resnet18", frozen_stages=2),
    "faster_rcnn_r50_fpn": FasterRCNNConfig(),
    "faster_rcnn_r101_fpn": FasterRCNNConfig(backbone="resnet101"),
    "faster_rcnn_x101_32x8d_fpn": FasterRCNNConfig(backbone="resnext101_32x8d"),
    "faster_rcnn_mobilenet_v2_fpn": two_stage.SMALL,
    "faster_rcnn_r50_fpn_tv": two_stage.TORCHVISION,
    "faster_rcnn_r50_fpn_v2_tv": two_stage.TORCHVISION_V2,
    "faster_rcnn_r101_c4": two_stage.C4,
    "faster_rcnn_r101_c4_plus": two_stage.C4_PLUS,
    "faster_rcnn_r18_c4": two_stage.C4_SMALL,
    "faster_rcnn_inception_resnet_v2": two_stage.GRMI,
    "faster_rcnn_inception_resnet_v2_tdm": replace(two_stage.GRMI, top_down=WIDTHS_TO_STRIDE_8),
    "faster_rcnn_inception_resnet_small": two_stage.INCEPTION_SMALL,
    "faster_rcnn_inception_resnet_small_tdm": replace(two_stage.INCEPTION_SMALL, top_down=(64,)),
    "ssd513_r101": SSDConfig(),
    "ssd321_r101": SSDConfig(extra_kernels=(2, 2, 3), module_widths=(256,), priors=_PRIORS_321),
    "ssd_r18": _SSD_R18,
    "ssd_mobilenet_v2": SSDConfig(
        backbone="mobilenet_v2",
        norm="frozen",
        norm_eps=1e-5,
        stride_in_1x1=False,
        ceil_pool=False,
        dilated_c5=False,
        sources=("C3", "C4", "C5"),
        extra_width=128,
        extra_paddings=(0, 1, 0),
        extra_norm="group",
        module_widths=(32,),
        kernels=(3,),
        tower_init="he",
        priors=_SMALL_PRIORS,
    ),
    "dssd513_r101": SSDConfig(module_widths=(256,), decoder=DecoderConfig()),
    "dssd321_r101": SSDConfig(
        module_widths=(256,),
        extra_kernels=(2, 2, 3),
        priors=_PRIORS_321,
        decoder=DecoderConfig(top_kernel=3, inter_width=None),
    ),
    "dssd_r18": replace(_SSD_R18, decoder=DecoderConfig(width=64, inter_width=64, top_kernel=3)),
    "yolov2": YOLOv2Config(),
    # Made to train from random weights on small data: a quarter of the widths, anchors of 16 to 192 px.
    "yolov2_tiny": YOLOv2Config(
        backbone="darknet19_quarter",
        norm_momentum=0.1,
        width=256,
        passthrough=16,
        prior=0.01,
        anchors=((0.5, 0.5), (1.0, 1.0), (1.75, 1.75), (3.0, 3.0), (6.0, 6.0)),
        loss=YOLOv2LossConfig(warmup_images=1000),
    ),
}

_TORCHVISION_PREPROCESSING = Preprocessing(resize=Resize(rounding="down", antialias=False))

_FASTER_RCNN_600 = Preprocessing(resize=Resize(size=600, max_size=1000))
# Scaled to -1…1 and padded to the largest of a batch alone, as the TF Object Detection API does.
_GRMI_PREPROCESSING = Preprocessing(
    mean=(127.5, 127.5, 127.5),
    std=(127.5, 127.5, 127.5),
    resize=Resize(size=600, max_size=1024),
    size_divisor=1,
)

# The mean of the VGG networks, which SSD's authors kept for all backbones.
_SSD_PREPROCESSING = Preprocessing(
    channels="BGR",
    mean=(104.0, 117.0, 123.0),
    std=(1.0, 1.0, 1.0),
    resize=Resize(mode="warp", size=513, max_size=None),
    size_divisor=1,
)
_LONG_320 = Preprocessing(resize=Resize(mode="long", size=320, max_size=None))
_WARP_320 = Preprocessing(resize=Resize(mode="warp", size=320, max_size=None))

_DARKNET_PREPROCESSING = Preprocessing(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))

PREPROCESSING: dict[str, Preprocessing] = {
    "retinanet_r50_fpn_tv": _TORCHVISION_PREPROCESSING,
    "retinanet_r50_fpn_v2_tv": _TORCHVISION_PREPROCESSING,
    "faster_rcnn_r50_fpn_tv": _TORCHVISION_PREPROCESSING,
    "faster_rcnn_r50_fpn_v2_tv": _TORCHVISION_PREPROCESSING,
    "faster_rcnn_r101_c4_plus": _FASTER_RCNN_600,
    "faster_rcnn_inception_resnet_v2": _GRMI_PREPROCESSING,
    "faster_rcnn_inception_resnet_v2_tdm": _GRMI_PREPROCESSING,
    "faster_rcnn_mobilenet_v2_fpn": _LONG_320,
    "faster_rcnn_r18_fpn": _LONG_320,
    "faster_rcnn_r18_c4": _LONG_320,
    "faster_rcnn_inception_resnet_small": _LONG_320,
    "faster_rcnn_inception_resnet_small_tdm": _LONG_320,
    "ssd513_r101": _SSD_PREPROCESSING,
    "ssd321_r101": replace(_SSD_PREPROCESSING, resize=Resize(mode="warp", size=321, max_size=None)),
    "ssd_r18": _WARP_320,
    "ssd_mobilenet_v2": _WARP_320,
    "dssd513_r101": _SSD_PREPROCESSING,
    "dssd321_r101": replace(_SSD_PREPROCESSING, resize=Resize(mode="warp", size=321, max_size=None)),
    "dssd_r18": _WARP_320,
    "yolov2": replace(
        _DARKNET_PREPROCESSING,
        resize=Resize(mode="letterbox", size=544, max_size=None, antialias=False, align_corners=True),
    ),
    "yolov2_tiny": replace(_DARKNET_PREPROCESSING, resize=Resize(mode="long", size=320, max_size=None)),
}


def named_config(name: str, *, architecture: Mapping[str, Any] | None = None) -> AnyConfig:
    """The config called `name`, with the settings of `architecture` (nested, as in a YAML file) laid over it.

    Raises:
        ConfigError: the name or a setting is unknown or out of range.
    """
    if name not in DETECTORS:
        raise ConfigError(f"unknown detector {name!r}{configs.nearest(name, DETECTORS)}")
    base = DETECTORS[name]
    return configs.override(base, architecture, source=f"architecture of {name}") if architecture else base


def build(
    name: str,
    *,
    num_classes: int | None = None,
    class_names: tuple[str, ...] = (),
    preprocessing: Preprocessing | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> Detector:
    """The detector called `name` with random weights; `focaldet.load` gives a trained one.

    The number of classes is that of `class_names` unless `num_classes` says it; without both it is the config's own.

    Raises:
        ConfigError: the name or a setting is unknown or out of range, or the two numbers of classes differ.
    """
    if class_names and num_classes not in (None, len(class_names)):
        raise ConfigError(f"num_classes is {num_classes}, but {len(class_names)} class_names are given")
    count = len(class_names) or num_classes
    config = named_config(name, architecture=architecture)
    if count is not None:
        config = replace(config, num_classes=count)
    chosen = preprocessing or PREPROCESSING.get(name, Preprocessing())
    return from_config(config, class_names=class_names, preprocessing=chosen)


def from_config(config: AnyConfig, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> Detector:
    """The detector that `config` describes, with random weights.

    Raises:
        ConfigError: no detector has so many classes, or the settings describe no network.
    """
    if not 1 <= config.num_classes <= MOST_CLASSES:
        raise ConfigError(f"num_classes must be at least 1 and at most {MOST_CLASSES}, found {config.num_classes}")
    return config.build(class_names=class_names, preprocessing=preprocessing)
