"""CPU milliseconds of an image in each part of loading, to a short side of 800, beside torchvision's flip and resize.

    python benchmarks/loading_parts.py FOLDER_OF_JPEGS [--most 24]

One thread; the best of three. "none" and "light" are an image resized and put onto its canvas by the augmentation of
that name; "batch" is four of them put together.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.transforms import v2

from focaldet.data.augment.augmenter import Augmenter
from focaldet.data.augment.config import AugmentConfig
from focaldet.data.augment.geometry import Sample, resize_image
from focaldet.data.images import read_image
from focaldet.data.loading.collate import pad_images
from focaldet.models import find_preset
from focaldet.types import Target


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=24)
    words = parser.parse_args()
    torch.set_num_threads(1)
    preprocessing = find_preset("retinanet_r50_fpn").preprocessing
    paths = sorted(words.folder.glob("*.jpg"))[: words.most]
    images, rng = [read_image(path) for path in paths], random.Random(0)
    resized = [resize_image(image, preprocessing.resize) for image in images]
    target = Target(torch.tensor([[10.0, 10.0, 100.0, 100.0]]), torch.tensor([0]), torch.tensor([False]))
    peer = v2.Compose([v2.RandomHorizontalFlip(), v2.Resize(800, max_size=1333, antialias=True)])

    def augment(preset: str) -> Callable[[], object]:
        augmenter = Augmenter(AugmentConfig(preset=preset), preprocessing)
        return lambda: [augmenter(Sample(image, target), rng=rng) for image in images]

    parts: dict[str, Callable[[], object]] = {
        "decode": lambda: [read_image(path) for path in paths],
        "resize": lambda: [resize_image(image, preprocessing.resize) for image in images],
        "none": augment("none"),
        "light": augment("light"),
        "batch": lambda: [
            pad_images(resized[first : first + 4], preprocessing=preprocessing) for first in range(0, len(resized), 4)
        ],
        "torchvision": lambda: [peer(image) for image in images],
    }
    for name, part in parts.items():
        seconds = []
        for _ in range(3):
            begin = time.process_time()
            part()
            seconds.append(time.process_time() - begin)
        print(f"{name:12} {1e3 * min(seconds) / len(paths):6.2f} ms")


if __name__ == "__main__":
    main()
