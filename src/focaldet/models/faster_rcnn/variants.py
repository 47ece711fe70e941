"""The settings that the Faster R-CNN entries of the table of presets are made of."""

from dataclasses import replace
from typing import Any

from focaldet.models.faster_rcnn.losses import StageConfig
from focaldet.models.faster_rcnn.model import FasterRCNNConfig
from focaldet.models.faster_rcnn.plus import PlusConfig, RefineConfig
from focaldet.models.faster_rcnn.postprocess import FasterRCNNDetectConfig
from focaldet.nets.regions import RPNHeadConfig
from focaldet.ops.anchors import AnchorConfig
from focaldet.ops.matching import MatchConfig
from focaldet.ops.proposals import ProposalConfig, ProposalLimits
from focaldet.ops.roi import PoolConfig
from focaldet.ops.sampling import SampleConfig

TORCHVISION = FasterRCNNConfig(
    num_classes=90,
    norm_eps=0.0,
    anchors=AnchorConfig(base_scale=8.0, scales=(1.0,), flavor="torchvision"),
    pooling=PoolConfig(kind="align_legacy"),
    region=replace(FasterRCNNConfig().region, beta=1 / 9),
)

_64_REGIONS = StageConfig(MatchConfig(background_iou=0.5), SampleConfig(count=64, positives=0.25), beta=1.0)

# Made for small data at 320 px: anchors from 16 px on, few regions, a narrow pyramid and head, nothing frozen.
SMALL = FasterRCNNConfig(
    backbone="mobilenet_v2",
    frozen_stages=0,
    width=96,
    tower_init="he",
    anchors=AnchorConfig(base_scale=4.0, scales=(1.0,)),
    pooling=PoolConfig(canonical_px=112),
    head_width=512,
    region=_64_REGIONS,
    proposals=ProposalConfig(detect=ProposalLimits(1000, 300), train=ProposalLimits(1000, 300)),
)

# One map of stride 16 with anchors of 32…512 px, and conv5 on 14 × 14 cells of a region, as Detectron's C4.
C4 = FasterRCNNConfig(
    backbone="resnet101",
    trunk="c4",
    anchors=AnchorConfig(base_scale=2.0, scales=(1.0, 2.0, 4.0, 8.0, 16.0)),
    pooling=PoolConfig(size=14, sampling_ratio=0),
    background_box=False,
    proposals=ProposalConfig(detect=ProposalLimits(6000, 1000), train=ProposalLimits(12000, 2000)),
)
_FROM_64_PX = AnchorConfig(base_scale=4.0, scales=(1.0, 2.0, 4.0, 8.0))

# Everything of one map goes into NMS, as in the TF Object Detection API.
_ALL_ANCHORS = 1_000_000
GRMI = FasterRCNNConfig(
    backbone="inception_resnet_v2",
    norm_eps=1e-3,
    frozen_stages=0,
    trunk="c4",
    rpn_head=RPNHeadConfig(width=512, relu6=True, softmax=True),
    anchors=_FROM_64_PX,
    anchor_weights=(10.0, 10.0, 5.0, 5.0),
    pooling=PoolConfig(kind="crop_resize", size=17),
    background_box=False,
    straddle_px=0.0,
    rpn=replace(FasterRCNNConfig().rpn, beta=1.0),
    proposals=ProposalConfig(
        detect=ProposalLimits(_ALL_ANCHORS, 300), train=ProposalLimits(_ALL_ANCHORS, 300), objects_join=False
    ),
    region=_64_REGIONS,
    detect=FasterRCNNDetectConfig(score_threshold=0.0, nms_iou=0.6),
)

# The one that its authors released.
GRMI_ATROUS = replace(
    GRMI,
    output_stride=8,
    rpn=replace(GRMI.rpn, box_weight=2.0),
    region=replace(GRMI.region, box_weight=2.0),
)

# Made for small data at 320 px: anchors of 16…128 px, few regions of few cells, BatchNorm that learns.
_SMALL_C4: dict[str, Any] = {
    "norm": "batch",
    "frozen_stages": 0,
    "tower_init": "he",
    "anchors": AnchorConfig(base_scale=1.0, scales=(1.0, 2.0, 4.0, 8.0)),
    "proposals": SMALL.proposals,
    "region": SMALL.region,
}
GRMI_SMALL = replace(
    GRMI,
    **_SMALL_C4,
    backbone="inception_resnet_small",
    rpn_head=RPNHeadConfig(width=128, relu6=True, softmax=True),
    pooling=PoolConfig(kind="crop_resize", size=9),
    straddle_px=None,
    detect=FasterRCNNDetectConfig(),
)

C4_PLUS = replace(
    C4,
    anchors=_FROM_64_PX,
    pooling=PoolConfig(kind="max", size=14),
    background_box=True,
    plus=PlusConfig(refine=RefineConfig(), context=True, scales=(1 / 3, 2 / 3, 1.0, 4 / 3, 5 / 3)),
    straddle_px=0.0,
    proposals=ProposalConfig(detect=ProposalLimits(6000, 300), train=ProposalLimits(12000, 2000)),
    region=_64_REGIONS,
)
C4_SMALL = replace(C4, **_SMALL_C4, backbone="resnet18", pooling=PoolConfig(size=7, canonical_px=112))
TORCHVISION_V2 = replace(
    TORCHVISION,
    norm="batch",
    norm_eps=1e-5,
    frozen_stages=0,
    neck_norm=True,
    rpn_head=RPNHeadConfig(depth=2),
    head="4conv1fc",
)
