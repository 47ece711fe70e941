"""RetinaNet and Faster R-CNN beside detectron2: the same weights and images through both, and what differs.

    python benchmarks/peer_detectron2.py --detectron2 DIR one.jpg two.jpg three.jpg

DIR holds a checkout of detectron2, which need not be built: what it compiles is for rotated boxes and deformable
convolutions. Its Python packages (fvcore, iopath, omegaconf, hydra-core, yacs, cloudpickle) must be importable. The
networks are those of its own configs; the weights are random, and their last layers have the statistics of the first
image. They go through a file as those of its model zoo.

Axes: B images, C channels, H W pixels, R regions.
"""

import argparse
import importlib
import json
import math
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.ops import box_iou

from focaldet.data.images import read_image
from focaldet.errors import FocaldetError
from focaldet.prediction import Predictor
from focaldet.types import Detections, ImageSize
from focaldet.weights import load_detector

CONFIGS = ("retinanet_R_50_FPN_3x", "faster_rcnn_R_50_FPN_3x", "faster_rcnn_R_50_C4_3x", "faster_rcnn_R_101_C4_3x")
SAME_REGION_PX = 0.05
LAST = {"cls_score": (1.5, -6.0), "bbox_pred": (0.3, 0.0), "objectness_logits": (3.0, 0.0), "anchor_deltas": (0.1, 0.0)}
"""Standard deviation and mean of the outputs; of a second stage 1.5 and 1, and 0."""


@dataclass(frozen=True)
class Peer:
    """detectron2's modules, and the folder of its configs."""

    folder: Path

    @staticmethod
    def opened(folder: Path) -> "Peer":
        """The checkout in `folder`.

        Raises:
            FocaldetError: there is none, or a package that it needs is missing.
        """
        sys.path.insert(0, str(folder.resolve()))
        try:
            importlib.import_module("detectron2.modeling")
        except ImportError as error:
            raise FocaldetError(f"--detectron2 {folder}: cannot be imported: {error}") from None
        return Peer(folder)

    def settings(self, name: str) -> Any:
        """One of its configs, for the CPU."""
        settings = importlib.import_module("detectron2.config").get_cfg()
        settings.merge_from_file(str(self.folder / "configs" / "COCO-Detection" / f"{name}.yaml"))
        settings.MODEL.DEVICE = "cpu"
        return settings

    def predictor(self, name: str, weights: Path | None = None) -> Any:
        """What its users call: a config and a file of weights, or random ones."""
        settings = self.settings(name)
        settings.MODEL.WEIGHTS = str(weights or "")
        return importlib.import_module("detectron2.engine").DefaultPredictor(settings)


def as_it_reads(image: UInt8[Tensor, "3 H W"]) -> Any:
    """The array that detectron2 expects: H × W × 3 in BGR."""
    return image.flip(0).permute(1, 2, 0).contiguous().numpy()


@torch.no_grad()
def livened(network: nn.Module, predict: Callable[[], object]) -> None:
    """Random weights that keep the signal of the same size, and last layers whose outputs are spread over `predict`."""
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        part = name.rpartition(".")[2]
        is_norm = ".norm." in name
        if tensor.ndim > 1:
            tensor.normal_(std=(1.6 / math.prod(tensor.shape[1:])) ** 0.5)
        elif is_norm and part in ("weight", "running_var"):
            tensor.uniform_(0.5, 1.5).mul_(0.15 if "conv3" in name and part == "weight" else 1.0)
        else:
            tensor.normal_(std=0.2)
    for name, layer in network.named_modules():
        kind = name.rpartition(".")[2]
        if kind in LAST and isinstance(layer, nn.Conv2d | nn.Linear):
            std, mean = LAST[kind] if isinstance(layer, nn.Conv2d) else (1.5 if kind == "cls_score" else 1.0, 0.0)
            _spread(layer, predict, std=std, mean=mean)


def _spread(layer: nn.Conv2d | nn.Linear, predict: Callable[[], object], *, std: float, mean: float) -> None:
    """Give every output of `layer` this mean and deviation over the image."""
    values: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: values.append(output))
    predict()
    hook.remove()
    rows = torch.cat([value.transpose(0, 1).flatten(1) if value.ndim == 4 else value.T for value in values], dim=1)
    scale = std / rows.std(dim=1)
    assert layer.bias is not None
    layer.bias.copy_((layer.bias - rows.mean(dim=1)) * scale + mean)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))


def raw_and_detections(predictor: Any, image: UInt8[Tensor, "3 H W"]) -> tuple[dict[str, Tensor], Detections]:
    """detectron2's raw outputs for an image, the input of its network, and its detections in the image's frame."""
    raw: dict[str, Tensor] = {}
    network = predictor.model

    def keep_input(_module: Any, inputs: tuple[Any, ...]) -> None:
        raw["image"] = inputs[0][0]["image"]

    def keep_dense(_module: Any, _inputs: Any, outputs: tuple[list[Tensor], list[Tensor]]) -> None:
        for name, maps in zip(("dense logits", "dense boxes"), outputs, strict=True):
            raw[name] = torch.cat([level.permute(0, 2, 3, 1).flatten() for level in maps])

    def keep_regions(_module: Any, _inputs: Any, outputs: Any) -> None:
        raw["regions"] = outputs[0][0].proposal_boxes.tensor

    def keep_second(_module: Any, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        raw["logits"], raw["deltas"] = outputs

    hooks = [network.register_forward_pre_hook(keep_input)]
    if hasattr(network, "head"):
        hooks.append(network.head.register_forward_hook(keep_dense))
    else:
        hooks.append(network.proposal_generator.rpn_head.register_forward_hook(keep_dense))
        hooks.append(network.proposal_generator.register_forward_hook(keep_regions))
        hooks.append(network.roi_heads.box_predictor.register_forward_hook(keep_second))
    instances = predictor(as_it_reads(image))["instances"]
    for hook in hooks:
        hook.remove()
    return raw, Detections(instances.pred_boxes.tensor, instances.scores, instances.pred_classes)


@torch.no_grad()
def differences(predictor: Predictor, raw: dict[str, Tensor]) -> dict[str, Any]:
    """The largest differences of the raw outputs for detectron2's own input; of regions those that both have."""
    detector, image = predictor.detector, raw["image"].flip(0)
    size = ImageSize(image.shape[1], image.shape[2])
    padded = detector.preprocessing.padded_size(size)
    batch = torch.tensor(detector.preprocessing.rgb_padding).view(1, 3, 1, 1).repeat(1, 1, *padded)
    batch[:, :, : size.height, : size.width] = image
    outputs = detector(batch, [size])
    if "regions" not in raw:
        return {
            "logits": largest(outputs.logits.flatten(), raw["dense logits"]),
            "encoded_boxes": largest(outputs.deltas.flatten(), raw["dense boxes"]),
        }
    apart = torch.cdist(outputs.regions, raw["regions"], p=torch.inf)
    nearest = apart.argmin(1)
    same = apart.amin(1) < SAME_REGION_PX
    return {
        "objectness": largest(outputs.rpn.objectness.flatten(), raw["dense logits"]),
        "encoded_anchors": largest(outputs.rpn.deltas.flatten(), raw["dense boxes"]),
        "regions": {"focaldet": len(same), "peer": len(raw["regions"]), "together": int(same.sum())},
        "regions_px": float(apart.amin(1)[same].max()),
        "logits": largest(outputs.logits[same], raw["logits"][nearest[same]]),
        "encoded_boxes": largest(outputs.deltas[same].flatten(1), raw["deltas"][nearest[same]]),
    }


def largest(values: Float[Tensor, "*N"], peer: Float[Tensor, "*N"]) -> dict[str, float]:
    """The largest difference, and the largest number of the peer's."""
    return {"difference": float((values - peer).abs().max()), "of": float(peer.abs().max())}


def agreement(detections: Detections, peer: Detections) -> dict[str, float | None]:
    """How many detections each has, how many of the peer's have one of focaldet's of that class at IoU ≥ .9, and how
    far those are apart in score and, in pixels, in box. Some of focaldet's may have no area, cut to nothing by the
    image's border; detectron2 drops those.
    """
    overlaps = box_iou(peer.boxes, detections.boxes) * (peer.labels[:, None] == detections.labels)
    best, nearest_index = overlaps.max(1)
    pairs = best >= 0.9
    scores, boxes = detections.scores[nearest_index[pairs]], detections.boxes[nearest_index[pairs]]
    return {
        "focaldet": len(detections),
        "focaldet_without_area": int((detections.boxes[:, 2:] <= detections.boxes[:, :2]).any(1).sum()),
        "peer": len(peer),
        "classes": len(set(peer.labels.tolist())),
        "together": int(pairs.sum()),
        "score_difference": float((scores - peer.scores[pairs]).abs().max()) if len(scores) else None,
        "box_difference_px": float((boxes - peer.boxes[pairs]).abs().max()) if len(scores) else None,
    }


def compare(peer: Peer, name: str, paths: list[Path], *, folder: Path) -> list[dict[str, Any]]:
    """One row of differences per image."""
    weights, images = folder / "model_final.pkl", [read_image(path) for path in paths]
    peer_predictor = peer.predictor(name)
    livened(peer_predictor.model, lambda: peer_predictor(as_it_reads(images[0])))
    arrays = {key: tensor.numpy() for key, tensor in peer_predictor.model.state_dict().items()}
    weights.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    peer_predictor, trained = peer.predictor(name, weights), load_detector(weights)
    predictor, rows = Predictor(trained.detector, device="cpu", precision="fp32"), []
    for path, image in zip(paths, images, strict=True):
        raw, detections = raw_and_detections(peer_predictor, image)
        row = {"network": name, "image": path.name, "input": list(raw["image"].shape[1:])}
        rows.append(row | differences(predictor, raw) | {"detections": agreement(predictor.predict(image), detections)})
    return rows


def main() -> None:
    """Compare and print one JSON object per network and image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detectron2", type=Path, required=True, help="folder with a checkout of detectron2")
    parser.add_argument("--network", action="append", help="one of its configs for COCO-Detection; several are allowed")
    parser.add_argument("images", type=Path, nargs="+")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")  # the peer's own, of a newer torch
    try:
        peer = Peer.opened(chosen.detectron2)
    except FocaldetError as error:
        parser.error(str(error))
    for name in chosen.network or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            for row in compare(peer, name, chosen.images, folder=Path(folder)):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
