"""torchvision's Faster R-CNNs made lively, as torchvision_retinanet.py does it for RetinaNet."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)

from tests.models.torchvision_retinanet import KEPT, calibrate_norms, photographs, standardise

EQUIVALENTS = {
    "faster_rcnn_r50_fpn_tv": (fasterrcnn_resnet50_fpn, FasterRCNN_ResNet50_FPN_Weights.COCO_V1),
    "faster_rcnn_r50_fpn_v2_tv": (fasterrcnn_resnet50_fpn_v2, FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1),
}
# Random maps are rough: what a proposal moves by the last digit shows in the logits, so the anchors move by little.
# How much depends on the processor's kernels: with three times these two, logits were 2.5e-4 apart with some of them.
OBJECTNESS_STD, ANCHOR_STD = 3.0, 0.01
LOGIT_STD, REGION_STD = 1.0, 1.0  # the latter is divided by the weights 10, 10, 5, 5


@torch.no_grad()
def lively(name: str, *, size_px: int, proposals: int, seed: int = 0) -> nn.Module:
    """The torchvision model that a user gets with `weights=COCO_V1`, but with lively random weights.

    BatchNorm statistics are measured on photographs; the last layers are scaled so that objectness, class logits and
    boxes spread evenly over positions and regions, every channel for itself.
    """
    torch.manual_seed(seed)
    builder, published = EQUIVALENTS[name]
    limits = {"min_size": size_px, "max_size": size_px * 5 // 3, "rpn_post_nms_top_n_test": proposals}
    model = builder(weights=None, weights_backbone=None, **limits).eval()
    prepared = [model.transform([image / 255])[0] for image in photographs()[:2]]
    calibrate_norms(model.backbone, [one.tensors for one in prepared])
    pyramids = [model.backbone(one.tensors) for one in prepared]
    for module in [*model.rpn.head.modules(), *model.roi_heads.modules()]:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    rpn, maps = model.rpn.head, [list(pyramid.values()) for pyramid in pyramids]
    standardise(rpn.cls_logits, rpn.conv, maps, std=OBJECTNESS_STD)
    standardise(rpn.bbox_pred, rpn.conv, maps, std=ANCHOR_STD)
    heads = model.roi_heads
    pooled = [
        heads.box_roi_pool(pyramid, model.rpn(one, pyramid)[0], one.image_sizes)
        for one, pyramid in zip(prepared, pyramids, strict=True)
    ]
    calibrate_norms(heads.box_head, pooled)
    vectors = torch.cat(pooled)
    for layer in heads.box_head.children():
        # Centred layers keep what tells regions apart; random ones would drown it in what they share.
        if isinstance(layer, nn.Linear):
            _spread(layer, vectors.flatten(1), std=1.0)
        is_plain = not isinstance(heads.box_head, nn.Sequential)
        vectors = layer(vectors.flatten(1) if isinstance(layer, nn.Linear) else vectors)
        vectors = vectors.relu() if is_plain else vectors
    _spread(heads.box_predictor.cls_score, vectors, std=LOGIT_STD)
    _spread(heads.box_predictor.bbox_pred, vectors, std=REGION_STD)
    # Through the door of the published weights: frozen BatchNorm, and for V1 its ε of 0, come with them.
    state = model.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
        equivalent: nn.Module = builder(weights=published, **limits, box_detections_per_img=KEPT)
    return equivalent.eval()


def _spread(layer: nn.Linear, vectors: Tensor, *, std: float) -> None:
    """Give every output of `layer` mean 0 and this standard deviation over the regions."""
    layer.bias.zero_()
    values = layer(vectors)
    scale = std / values.std(dim=0)
    layer.weight.mul_(scale[:, None])
    layer.bias.copy_(-values.mean(dim=0) * scale)


@torch.no_grad()
def run_model(model: Any, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """torchvision's proposals with the raw outputs of both stages, and its final detections for one image."""
    raw: dict[str, Tensor] = {}

    def keep_proposals(_module: Any, _inputs: Any, outputs: Any) -> None:
        raw["proposals"] = outputs[0][0]

    def keep_anchors(_module: Any, _inputs: Any, outputs: Any) -> None:
        maps, boxes = outputs
        raw["objectness"] = torch.cat([level.permute(0, 2, 3, 1).reshape(1, -1) for level in maps], 1)
        raw["anchor_deltas"] = torch.cat([level.permute(0, 2, 3, 1).reshape(1, -1, 4) for level in boxes], 1)

    def keep_regions(_module: Any, _inputs: Any, outputs: Any) -> None:
        raw["logits"], raw["deltas"] = outputs[0], outputs[1].reshape(len(outputs[1]), -1, 4)

    hooks = [
        model.rpn.register_forward_hook(keep_proposals),
        model.rpn.head.register_forward_hook(keep_anchors),
        model.roi_heads.box_predictor.register_forward_hook(keep_regions),
    ]
    detections: dict[str, Tensor] = model([image / 255])[0]
    for hook in hooks:
        hook.remove()
    return raw, detections
