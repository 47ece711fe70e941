"""torchvision's RetinaNets made lively: random weights whose results are many, of many classes, and far from equal."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum
from torchvision.models.detection import (
    RetinaNet_ResNet50_FPN_V2_Weights,
    RetinaNet_ResNet50_FPN_Weights,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)

from focaldet.types import ImageSize, Preprocessing

EQUIVALENTS = {
    "retinanet_r50_fpn_tv": (retinanet_resnet50_fpn, RetinaNet_ResNet50_FPN_Weights.COCO_V1),
    "retinanet_r50_fpn_v2_tv": (retinanet_resnet50_fpn_v2, RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1),
}
Result = tuple[dict[str, Tensor], dict[str, Tensor]]
LOGIT_STD, DELTA_STD, CANDIDATES = 2.0, 0.3, 500
THRESHOLD_LOGIT = -2.944439
KEPT = 120
"""Detections kept of an image: the more there are, the closer the closest two of their scores."""


def photographs() -> list[Tensor]:
    """Parts of different sizes of scikit-learn's two photographs, as RGB bytes."""
    from sklearn.datasets import load_sample_images

    first, second = (torch.from_numpy(numpy.array(image)).permute(2, 0, 1) for image in load_sample_images().images)
    corners = [(0, 0, 427, 640), (60, 100, 420, 400), (0, 200, 300, 639), (27, 0, 427, 333)]
    corners += [(10, 20, 400, 600), (100, 0, 420, 500), (0, 0, 350, 350), (5, 240, 425, 620), (50, 50, 360, 630)]
    return [whole[:, top:bottom, left:right] for top, left, bottom, right in corners for whole in (first, second)]


def coco_images(folder: Path) -> Iterator[Tensor]:
    """The images of a folder in the order of their names, as RGB bytes."""
    for path in sorted(folder.glob("*.jpg")):
        yield torch.from_numpy(numpy.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


@torch.no_grad()
def lively(name: str, *, size_px: int, seed: int = 0) -> nn.Module:
    """The torchvision model that a user gets with `weights=COCO_V1`, but with lively random weights.

    BatchNorm statistics are measured on photographs; the last layers are scaled so that logits have the standard
    deviation LOGIT_STD over positions in every channel, and shifted so that CANDIDATES of an image pass the threshold.
    """
    torch.manual_seed(seed)
    builder, published = EQUIVALENTS[name]
    model = builder(weights=None, weights_backbone=None, min_size=size_px, max_size=size_px * 5 // 3)
    inputs = [model.transform([image / 255])[0].tensors for image in photographs()[:2]]
    calibrate_norms(model.backbone, inputs)
    pyramids = [list(model.backbone(x).values()) for x in inputs]
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    classes, boxes = model.head.classification_head, model.head.regression_head
    standardise(boxes.bbox_reg, boxes.conv, pyramids, std=DELTA_STD)
    standardise(classes.cls_logits, classes.conv, pyramids, std=LOGIT_STD)
    limits = [
        torch.cat([classes.cls_logits(classes.conv(level)).flatten() for level in levels]).topk(CANDIDATES).values[-1]
        for levels in pyramids
    ]
    classes.cls_logits.bias.add_(THRESHOLD_LOGIT - torch.stack(limits).median())
    # Through the door of the published weights: frozen BatchNorm, and for V1 its ε of 0, come with them.
    state = model.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
        equivalent: nn.Module = builder(
            weights=published, min_size=size_px, max_size=size_px * 5 // 3, detections_per_img=KEPT
        )
    return equivalent.eval()


def calibrate_norms(backbone: nn.Module, inputs: list[Tensor]) -> None:
    """Give BatchNorm a random affine part and the statistics of these inputs."""
    for name, norm in backbone.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # cumulative: plain averages over the inputs
            # The last norm of a block is small, as in trained networks: else fifty random layers amplify the last
            # digit of fp32 beyond any tolerance, in torchvision against itself as well.
            low, high = (0.05, 0.3) if name.endswith("bn3") else (0.5, 1.5)
            nn.init.uniform_(norm.weight, low, high)
            nn.init.normal_(norm.bias, std=0.2)
    backbone.train()
    for x in inputs:
        backbone(x)
    backbone.eval()


def standardise(conv: nn.Conv2d, tower: nn.Module, pyramids: list[list[Tensor]], *, std: float) -> None:
    """Give every output channel of `conv` mean 0 and this standard deviation over all positions."""
    assert conv.bias is not None
    conv.bias.zero_()
    values = torch.cat([conv(tower(level)).flatten(2)[0] for levels in pyramids for level in levels], dim=1)
    scale = std / values.std(dim=1)
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias.copy_(-values.mean(dim=1) * scale)


@torch.no_grad()
def run_model(model: Any, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Raw outputs of torchvision's head and its final detections for one image."""
    raw: dict[str, Tensor] = {}
    hook = model.head.register_forward_hook(lambda _module, _inputs, outputs: raw.update(outputs))
    detections: dict[str, Tensor] = model([image / 255])[0]
    hook.remove()
    return raw, detections


def is_lively(detections: dict[str, Tensor]) -> bool:
    """At least 100 detections of at least 5 classes, with scores apart by more than 1e-5."""
    scores = detections["scores"]
    return (
        len(scores) >= 100 and len(detections["labels"].unique()) >= 5 and bool((scores[:-1] - scores[1:]).min() > 1e-5)
    )


def lively_detections(
    model: Any, images: Iterable[Tensor], *, wanted: int, run: Callable[..., Result] = run_model
) -> list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """The first `wanted` images of different sizes with lively detections, and what torchvision makes of them."""
    by_shape: dict[tuple[int, ...], tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]] = {}
    for image in images:
        if len(by_shape) == wanted:
            break
        if tuple(image.shape) not in by_shape:
            raw, detections = run(model, image)
            if is_lively(detections):
                by_shape[tuple(image.shape)] = (image, raw, detections)
    return list(by_shape.values())


def prepared(image: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, ImageSize]:
    """One image resized in floating point, as torchvision does it, padded with the mean; its size before padding."""
    size = preprocessing.resize.target(ImageSize(image.shape[1], image.shape[2]))
    resized = F.interpolate(image[None].float(), size=tuple(size), mode="bilinear", align_corners=False)
    height, width = preprocessing.padded_size(size)
    padded = torch.tensor(preprocessing.rgb_mean)[None, :, None, None].repeat(1, 1, height, width)
    padded[:, :, : size.height, : size.width] = resized
    return padded, size
