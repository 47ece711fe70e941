"""Find objects in images with a trained detector, print them and draw them.

python examples/01_predict.py runs/demo image.jpg another.jpg --out drawn
"""

import argparse
from pathlib import Path

from PIL import Image

import focaldet


def main() -> None:
    """Predict on every image in one batch."""
    parser = argparse.ArgumentParser(description="Predict and draw.")
    parser.add_argument("run", help="run folder, weights file, or a name such as torchvision:coco_v1")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("drawn"))
    parser.add_argument("--score", type=float, default=0.3)
    chosen = parser.parse_args()

    predictor = focaldet.load(chosen.run)
    images = [Image.open(path).convert("RGB") for path in chosen.images]
    chosen.out.mkdir(parents=True, exist_ok=True)
    for path, image, detections in zip(chosen.images, images, predictor.predict(images), strict=True):
        kept = detections.above(chosen.score)
        for box, score, name in zip(kept.boxes.tolist(), kept.scores.tolist(), kept.names, strict=True):
            print(f"{path.name}: {name} {score:.2f} at {[round(side) for side in box]}")
        focaldet.draw.boxes(image, kept).save(chosen.out / f"{path.stem}.png")


if __name__ == "__main__":
    main()
