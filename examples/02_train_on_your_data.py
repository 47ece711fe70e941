"""Look at a data set, train a small RetinaNet on it, and print what it reaches per class.

python examples/02_train_on_your_data.py DIR --weights mobilenet_v2.safetensors --out runs/mine
"""

import argparse
from pathlib import Path

import focaldet


def main() -> None:
    """Check, train, evaluate: the three commands as three calls."""
    parser = argparse.ArgumentParser(description="Check, train, evaluate.")
    parser.add_argument("data", type=Path, help="folder in COCO, Pascal VOC, YOLO or CSV form")
    parser.add_argument("--weights", default=None, help="weights of the backbone; random without")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--size", type=int, default=320, help="long side in pixels")
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    chosen = parser.parse_args()

    data = focaldet.DataConfig(path=chosen.data)
    print(*focaldet.check_data(data).lines(), sep="\n")

    config = focaldet.RunConfig(
        data=data,
        model="retinanet_mobilenet_v2_fpn",
        weights=chosen.weights,
        size=chosen.size,
        epochs=chosen.epochs,
        out=chosen.out,
    )
    result = focaldet.train(config)
    print(f"{result.epochs} epochs, {result.seconds_training:.0f} s of training")

    metrics = focaldet.evaluate(chosen.out, data)
    for row in metrics.per_class:
        print(row.name, row.num_boxes, "boxes, AP", "-" if row.ap is None else f"{100 * row.ap:.1f}")


if __name__ == "__main__":
    main()
