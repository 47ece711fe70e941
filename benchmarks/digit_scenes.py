"""Write fixed scenes of look-alike classes: the embedded digits, large or small, on photographs, as a COCO folder.

    python benchmarks/digit_scenes.py OUT --height 100 200 --most 3    # large: one to three digits
    python benchmarks/digit_scenes.py OUT --height 12 30 --most 8      # small: one to eight

270 training and 100 test scenes of 320 × 240 px with at least one digit each, the same on every call; --scene HEIGHT
WIDTH makes them of another size.
"""

import argparse
import json
from pathlib import Path

from focaldet.data.demo import dataset, scenes
from focaldet.types import ImageSize

NUM_SCENES = {"train": (400, 270), "test": (150, 100)}  # drawn, and kept of those with digits


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--height", type=float, nargs=2, required=True, help="smallest and largest, in pixels")
    parser.add_argument("--most", type=int, required=True, help="digits of a scene")
    parser.add_argument("--scene", type=int, nargs=2, default=(240, 320), help="height and width, in pixels")
    flags = parser.parse_args()
    # The demo draws scenes of one kind; here are others of the same material.
    scenes.SCENE_SIZE = dataset.SCENE_SIZE = ImageSize(*flags.scene)
    scenes.DIGIT_HEIGHT_PX, scenes.MAX_DIGITS = tuple(flags.height), flags.most
    dataset.write_demo(flags.out, seed=0, **{f"num_{split}": drawn for split, (drawn, _) in NUM_SCENES.items()})
    for split, (_, kept) in NUM_SCENES.items():
        file = flags.out / f"instances_{split}.json"
        document = json.loads(file.read_text())
        with_digits = {row["image_id"] for row in document["annotations"]}
        document["images"] = [image for image in document["images"] if image["id"] in with_digits][:kept]
        ids = {image["id"] for image in document["images"]}
        document["annotations"] = [row for row in document["annotations"] if row["image_id"] in ids]
        file.write_text(json.dumps(document))
        print(f"{split}: {len(ids)} scenes, {len(document['annotations'])} digits")


if __name__ == "__main__":
    main()
