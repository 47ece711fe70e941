"""YOLOv2 beside the program it comes from: the same weights and images through both, and what differs.

python benchmarks/peer_darknet.py --darknet DIR --size 416 one.jpg two.jpg three.jpg

DIR holds darknet's `cfg/yolov2.cfg` and the `libdarknet.so` that its `make` builds (without GPU and OpenCV). The
weights are random, with the statistics of these images.

Axes: B images, H W pixels, N numbers of all cells.
"""

import argparse
import copy
import ctypes
import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import box_iou
from torchvision.utils import save_image

from focaldet.data.augment.geometry import resize_image
from focaldet.data.images import read_image
from focaldet.errors import FocaldetError
from focaldet.models import Detector, build
from focaldet.prediction import Predictor
from focaldet.types import Detections, ImageSize
from focaldet.weights.formats.darknet import write_darknet

NUM_CLASSES, THRESHOLD, NMS_IOU = 80, 0.1, 0.45
FLOATS = ctypes.POINTER(ctypes.c_float)


class Image(ctypes.Structure):
    """darknet's `image`."""

    _fields_ = [(name, ctypes.c_int) for name in ("w", "h", "c")] + [("data", FLOATS)]

    def tensor(self) -> Float[Tensor, "3 H W"]:
        """A copy of its pixels, RGB in 0…1."""
        return torch.from_numpy(numpy.ctypeslib.as_array(self.data, (self.c, self.h, self.w)).copy())


class Detection(ctypes.Structure):
    """darknet's `detection`."""

    _fields_ = [
        *((name, ctypes.c_float) for name in ("x", "y", "w", "h")),
        ("classes", ctypes.c_int),
        *((name, FLOATS) for name in ("prob", "mask")),
        ("objectness", ctypes.c_float),
        ("sort_class", ctypes.c_int),
    ]


@dataclass(frozen=True)
class Darknet:
    """The built library and the cfg of its YOLOv2 at one size."""

    library: Any
    cfg: str

    @staticmethod
    def opened(folder: Path, *, size: int) -> "Darknet":
        """The library in `folder`.

        Raises:
            FocaldetError: it is not there, or not to be loaded.
        """
        try:
            library = ctypes.CDLL(str(folder.resolve() / "libdarknet.so"))
            cfg = (folder / "cfg" / "yolov2.cfg").read_text()
        except OSError as error:
            raise FocaldetError(f"--darknet {folder}: no built darknet in this folder: {error}") from None
        library.load_network.restype = ctypes.c_void_p
        library.network_predict.restype = FLOATS
        library.network_predict.argtypes = [ctypes.c_void_p, FLOATS]
        library.load_image_color.restype = library.letterbox_image.restype = Image
        library.letterbox_image.argtypes = [Image, ctypes.c_int, ctypes.c_int]
        library.get_network_boxes.restype = ctypes.POINTER(Detection)
        library.get_network_boxes.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 2, *[ctypes.c_float] * 2]
        library.get_network_boxes.argtypes += [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
        library.do_nms_sort.argtypes = [ctypes.POINTER(Detection), *[ctypes.c_int] * 2, ctypes.c_float]
        return Darknet(library, re.sub(r"(?m)^(width|height)=\d+", rf"\1={size}", cfg))

    def network(self, weights: Path, *, with_region: bool) -> Any:
        """A loaded network; without its region layer it outputs with the numbers that go into it."""
        cfg = weights.with_suffix(".cfg")
        cfg.write_text(self.cfg if with_region else self.cfg[: self.cfg.index("[region]")])
        return self.library.load_network(str(cfg).encode(), str(weights).encode(), 0)

    def raw(self, network: Any, boxed: Image, *, num_values: int) -> Float[Tensor, " N"]:
        """What the last layer gives."""
        values = self.library.network_predict(network, boxed.data)
        return torch.from_numpy(numpy.ctypeslib.as_array(values, (num_values,)).copy())

    def detections(self, network: Any, *, width: int, height: int) -> Detections:
        """The detections of the last `network_predict` in an image of that size, cut to it; best first."""
        count = ctypes.c_int(0)
        raw = self.library.get_network_boxes(network, width, height, THRESHOLD, 0.5, None, 0, ctypes.byref(count))
        self.library.do_nms_sort(raw, count.value, NUM_CLASSES, NMS_IOU)
        rows = [
            (one.prob[k], k, one.x - one.w / 2, one.y - one.h / 2, one.x + one.w / 2, one.y + one.h / 2)
            for one in raw[: count.value]
            for k in range(NUM_CLASSES)
            if one.prob[k] > 0
        ]
        table = torch.tensor(sorted(rows, reverse=True)).reshape(-1, 6)
        edges = torch.tensor([width, height] * 2)
        return Detections(table[:, 2:].clamp(min=0).minimum(edges), table[:, 0], table[:, 1].long())


def lively_detector(paths: list[Path], *, size: int) -> Detector:
    """Random weights whose BatchNorm has the statistics of these images, and whose outputs are spread."""
    torch.manual_seed(0)
    detect = {"score_threshold": THRESHOLD, "nms_iou": NMS_IOU, "top_k": 100_000, "max_detections": 100_000}
    detector = build("yolov2", architecture={"detect": detect, "norm_momentum": 1.0})
    resize = replace(detector.preprocessing.resize, size=size)
    detector.preprocessing = replace(detector.preprocessing, resize=resize)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    predict = detector.get_submodule("predict")
    assert isinstance(predict, nn.Conv2d)
    nn.init.normal_(predict.weight, std=0.08)
    with torch.no_grad():
        detector.train()(torch.stack([resize_image(read_image(one), resize) for one in paths]))
    return detector.eval()


def with_darknets_epsilon(detector: Detector) -> Detector:
    """A copy with variances so that sqrt(variance + 1e-5) is darknet's sqrt(variance) + 1e-6."""
    copied = copy.deepcopy(detector)
    for module in copied.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.copy_((module.running_var.double().sqrt() + 1e-6).square() - module.eps)
    return copied


def difference(detector: Detector, image: Float[Tensor, "3 H W"], peer: Float[Tensor, " N"]) -> dict[str, float]:
    """The largest difference of the raw numbers for RGB in 0…1, and its share of the largest number."""
    with torch.no_grad():
        raw = detector(image[None] * 255, [ImageSize(*image.shape[1:])])
    values = torch.cat([raw.deltas, raw.objectness[..., None], raw.logits], -1)[0]
    height, width = raw.grid
    values = values.view(height, width, -1, values.shape[-1]).permute(2, 3, 0, 1).flatten()
    largest = float((values - peer).abs().max())
    return {"absolute": largest, "relative": largest / float(peer.abs().max())}


def agreement(detections: Detections, peer: Detections) -> dict[str, float | None]:
    """How many detections each has, how many of the peer's have one of focaldet's of that class at IoU ≥ .9, and how
    far the scores of the nearest are apart."""
    overlaps = box_iou(peer.boxes, detections.boxes) * (peer.labels[:, None] == detections.labels)
    scores = (peer.scores[:, None] - detections.scores).abs().masked_fill(~(overlaps >= 0.9), 2.0).min(1).values
    pairs = scores < 2
    scores = scores[pairs]
    return {
        "focaldet": len(detections),
        "peer": len(peer),
        "classes": len(set(peer.labels.tolist())),
        "together": int(pairs.sum()),
        "largest_score_difference": float(scores.max()) if len(scores) else None,
    }


def compare(darknet: Darknet, paths: list[Path], *, size: int, folder: Path) -> list[dict[str, Any]]:
    """One row of differences per image."""
    detector, weights = lively_detector(paths, size=size), folder / "lively.weights"
    write_darknet(weights, detector)
    bare, whole = (darknet.network(weights, with_region=with_region) for with_region in (False, True))
    other, rows = with_darknets_epsilon(detector), []
    for path in paths:
        # darknet reads JPEG with another decoder.
        save_image(read_image(path) / 255, folder / "image.png")
        image = darknet.library.load_image_color(str(folder / "image.png").encode(), 0, 0)
        boxed = darknet.library.letterbox_image(image, size, size)
        raw = darknet.raw(bare, boxed, num_values=425 * (size // 32) ** 2)
        darknet.raw(whole, boxed, num_values=1)
        square, full = (darknet.detections(whole, width=w, height=h) for w, h in ((size, size), (image.w, image.h)))
        row = {"image": path.name, "size": [image.w, image.h], "raw": difference(detector, boxed.tensor(), raw)}
        row["raw_with_its_epsilon"] = difference(other, boxed.tensor(), raw)
        with torch.no_grad():
            sizes = [ImageSize(size, size)]
            detections = other.detect(other(boxed.tensor()[None] * 255, sizes), sizes)[0]
        row["detections_of_its_input"] = agreement(detections, square)
        row["detections_end_to_end"] = agreement(
            Predictor(detector, device="cpu", precision="fp32").predict(folder / "image.png"), full
        )
        rows.append(row)
    return rows


def main() -> None:
    """Compare and print one JSON object per image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--darknet", type=Path, required=True, help="folder with cfg/yolov2.cfg and libdarknet.so")
    parser.add_argument("--size", type=int, default=416, help="side of the network's input in pixels")
    parser.add_argument("images", type=Path, nargs="+")
    chosen = parser.parse_args()
    try:
        darknet = Darknet.opened(chosen.darknet, size=chosen.size)
    except FocaldetError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        for row in compare(darknet, chosen.images, size=chosen.size, folder=Path(folder)):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
