"""The table of detectors: a name → its architecture, how images enter it, and what its paper published."""

from dataclasses import replace
from typing import Any

from focaldet.models.base import Preset, PublishedAP
from focaldet.models.faster_rcnn import variants as faster_rcnn
from focaldet.models.faster_rcnn.model import FasterRCNNConfig
from focaldet.models.retinanet import DetectConfig, LossConfig, RetinaNetConfig
from focaldet.models.ssd import DecoderConfig, SSDConfig
from focaldet.models.ssd_tf import TensorFlowSSDConfig
from focaldet.models.yolov2 import YOLOv2Config, YOLOv2LossConfig
from focaldet.nets.tdm import WIDTHS_TO_STRIDE_8
from focaldet.ops.anchors import AnchorConfig
from focaldet.ops.matching import MatchConfig
from focaldet.ops.priors import PriorConfig
from focaldet.types import Preprocessing, Resize

_TORCHVISION = RetinaNetConfig(
    num_classes=91,
    norm_eps=0.0,
    p6_from="P5",
    anchors=AnchorConfig(flavor="torchvision"),
    matching=MatchConfig(low_quality="any"),
    loss=LossConfig(normalizer="image", box="l1"),
    detect=DetectConfig(max_detections=300),
)

# The backbone whose weights come with focaldet; ε is that of their BatchNorm.
_LITE0: dict[str, Any] = {"backbone": "efficientnet_lite0", "norm_eps": 1e-3}

# Made for small data at 320 to 640 px: one anchor a cell, matched by how it stands out, so that objects of any size and
# shape are learned alike; a score that answers for its box; norms that keep a narrow head at its prior.
_SMALL_RETINANET = RetinaNetConfig(
    backbone="mobilenet_v2",
    frozen_stages=0,
    width=96,
    p6_from="P5",
    head_norm=True,
    tower_init="he",
    anchors=AnchorConfig(base_scale=8.0, scales=(1.0,), ratios=(1.0,)),
    matching=MatchConfig(rule="adaptive"),
    loss=LossConfig(box="giou", box_weight=2.0, quality=True),
)

# Made for small data at 320 px: priors from 16 px on that lie evenly on every map.
_SMALL_PRIORS = PriorConfig(
    percents=(5.0, 10.0, 20.0, 35.0, 55.0, 80.0, 110.0), elongations=(2.0, 3.0), whole_px=False, starts_px=(None,) * 6
)

# As the released scripts, which are those for VOC.
_SSD321 = SSDConfig(
    extra_kernels=(2, 2, 3),
    module_widths=(256,),
    priors=PriorConfig(
        percents=(10.0, 20.0, 38.0, 56.0, 74.0, 92.0, 110.0), starts_px=(2.5, 2.5, 10.5, 26.5, 90.5, None)
    ),
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
_SMALL_SSD = replace(
    _SSD_R18,
    backbone="mobilenet_v2",
    ceil_pool=False,
    dilated_c5=False,
    sources=("C3", "C4", "C5"),
    extra_width=128,
    extra_paddings=(0, 1, 0),
    module_widths=(32,),
)

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
_SSD321_PREPROCESSING = replace(_SSD_PREPROCESSING, resize=Resize(mode="warp", size=321, max_size=None))
_LONG_320 = Preprocessing(resize=Resize(mode="long", size=320, max_size=None))
_WARP_320 = Preprocessing(resize=Resize(mode="warp", size=320, max_size=None))

# As the TF Object Detection API scales; resized as OpenCV does for it, by the mean of the nearest pixels.
_TENSORFLOW_SSD_PREPROCESSING = Preprocessing(
    mean=(127.5, 127.5, 127.5),
    std=(127.5, 127.5, 127.5),
    resize=Resize(mode="warp", size=300, max_size=None, antialias=False),
    size_divisor=1,
)

_DARKNET_PREPROCESSING = Preprocessing(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))

# Lin et al. 2017, "Focal Loss for Dense Object Detection", table 2: RetinaNet with scale jitter and the 1.5× schedule,
# Faster R-CNN with a pyramid as Lin et al. 2016 trained it, "+++" as He et al. 2015, by G-RMI as Huang et al. 2016,
# with TDM as Shrivastava et al. 2016 (their abstract says 37.3), SSD513 and DSSD513 as Fu et al. 2017 trained them,
# YOLOv2 at 544 px (Redmon and Farhadi 2016, table 5).
PRESETS: dict[str, Preset] = {
    "retinanet_r18_fpn": Preset(RetinaNetConfig(backbone="resnet18")),
    "retinanet_r34_fpn": Preset(RetinaNetConfig(backbone="resnet34")),
    "retinanet_r50_fpn": Preset(RetinaNetConfig(backbone="resnet50")),
    "retinanet_r101_fpn": Preset(
        RetinaNetConfig(backbone="resnet101"), published=PublishedAP(39.1, 59.1, 42.3, 21.8, 42.7, 50.2)
    ),
    "retinanet_x101_32x8d_fpn": Preset(
        RetinaNetConfig(backbone="resnext101_32x8d"), published=PublishedAP(40.8, 61.1, 44.1, 24.1, 44.2, 51.2)
    ),
    "retinanet_x101_64x4d_fpn": Preset(RetinaNetConfig(backbone="resnext101_64x4d")),
    "retinanet_mobilenet_v2_fpn": Preset(_SMALL_RETINANET, _LONG_320),
    "retinanet_efficientnet_lite0_fpn": Preset(replace(_SMALL_RETINANET, **_LITE0), _LONG_320),
    "retinanet_r50_fpn_tv": Preset(_TORCHVISION, _TORCHVISION_PREPROCESSING),
    "retinanet_r50_fpn_v2_tv": Preset(
        replace(
            _TORCHVISION,
            norm="batch",
            norm_eps=1e-5,
            frozen_stages=0,
            p6_from="C5",
            head_norm=True,
            loss=LossConfig(normalizer="image", box="giou"),
        ),
        _TORCHVISION_PREPROCESSING,
    ),
    "faster_rcnn_r18_fpn": Preset(replace(faster_rcnn.SMALL, backbone="resnet18", frozen_stages=2), _LONG_320),
    "faster_rcnn_r50_fpn": Preset(FasterRCNNConfig()),
    "faster_rcnn_r101_fpn": Preset(
        FasterRCNNConfig(backbone="resnet101"), published=PublishedAP(36.2, 59.1, 39.0, 18.2, 39.0, 48.2)
    ),
    "faster_rcnn_x101_32x8d_fpn": Preset(FasterRCNNConfig(backbone="resnext101_32x8d")),
    "faster_rcnn_mobilenet_v2_fpn": Preset(faster_rcnn.SMALL, _LONG_320),
    "faster_rcnn_efficientnet_lite0_fpn": Preset(replace(faster_rcnn.SMALL, **_LITE0), _LONG_320),
    "faster_rcnn_r50_fpn_tv": Preset(faster_rcnn.TORCHVISION, _TORCHVISION_PREPROCESSING),
    "faster_rcnn_r50_fpn_v2_tv": Preset(faster_rcnn.TORCHVISION_V2, _TORCHVISION_PREPROCESSING),
    "faster_rcnn_r101_c4": Preset(faster_rcnn.C4),
    "faster_rcnn_r101_c4_plus": Preset(
        faster_rcnn.C4_PLUS, _FASTER_RCNN_600, published=PublishedAP(34.9, 55.7, 37.4, 15.6, 38.7, 50.9)
    ),
    "faster_rcnn_r18_c4": Preset(faster_rcnn.C4_SMALL, _LONG_320),
    "faster_rcnn_inception_resnet_v2": Preset(
        faster_rcnn.GRMI, _GRMI_PREPROCESSING, published=PublishedAP(34.7, 55.5, 36.7, 13.5, 38.1, 52.0)
    ),
    "faster_rcnn_inception_resnet_v2_atrous": Preset(faster_rcnn.GRMI_ATROUS, _GRMI_PREPROCESSING),
    "faster_rcnn_inception_resnet_v2_tdm": Preset(
        replace(faster_rcnn.GRMI, top_down=WIDTHS_TO_STRIDE_8),
        _GRMI_PREPROCESSING,
        published=PublishedAP(36.8, 57.7, 39.2, 16.2, 39.8, 52.1),
    ),
    "faster_rcnn_inception_resnet_small": Preset(faster_rcnn.GRMI_SMALL, _LONG_320),
    "faster_rcnn_inception_resnet_small_tdm": Preset(replace(faster_rcnn.GRMI_SMALL, top_down=(64,)), _LONG_320),
    "ssd513_r101": Preset(SSDConfig(), _SSD_PREPROCESSING, published=PublishedAP(31.2, 50.4, 33.3, 10.2, 34.5, 49.8)),
    "ssd321_r101": Preset(_SSD321, _SSD321_PREPROCESSING),
    "ssd_r18": Preset(_SSD_R18, _WARP_320),
    "ssd_mobilenet_v2": Preset(_SMALL_SSD, _WARP_320),
    "ssd_efficientnet_lite0": Preset(replace(_SMALL_SSD, **_LITE0), _WARP_320),
    "ssd_mobilenet_v2_tf": Preset(TensorFlowSSDConfig(), _TENSORFLOW_SSD_PREPROCESSING),
    "dssd513_r101": Preset(
        SSDConfig(module_widths=(256,), decoder=DecoderConfig()),
        _SSD_PREPROCESSING,
        published=PublishedAP(33.2, 53.3, 35.2, 13.0, 35.4, 51.1),
    ),
    "dssd321_r101": Preset(
        replace(_SSD321, decoder=DecoderConfig(top_kernel=3, inter_width=None)), _SSD321_PREPROCESSING
    ),
    "dssd_r18": Preset(replace(_SSD_R18, decoder=DecoderConfig(width=64, inter_width=64, top_kernel=3)), _WARP_320),
    "yolov2": Preset(
        YOLOv2Config(),
        replace(
            _DARKNET_PREPROCESSING,
            resize=Resize(mode="letterbox", size=544, max_size=None, antialias=False, align_corners=True),
        ),
        published=PublishedAP(21.6, 44.0, 19.2, 5.0, 22.4, 35.5),
    ),
    # Made to train from random weights on small data: a quarter of the widths, anchors of 16 to 192 px.
    "yolov2_tiny": Preset(
        YOLOv2Config(
            backbone="darknet19_quarter",
            norm_momentum=0.1,
            width=256,
            passthrough=16,
            prior=0.01,
            anchors=((0.5, 0.5), (1.0, 1.0), (1.75, 1.75), (3.0, 3.0), (6.0, 6.0)),
            loss=YOLOv2LossConfig(warmup_images=1000),
        ),
        replace(_DARKNET_PREPROCESSING, resize=Resize(mode="long", size=320, max_size=None)),
    ),
}
