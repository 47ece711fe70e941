"""Data sets of another size than there is: a few images of one, or as many as COCO has.

python benchmarks/data_sets.py few SOURCE OUT [--images 40]    # of the training images, all of the others
python benchmarks/data_sets.py many OUT [--images 118000]      # JPEG files of 64 × 48 px, seven or nine boxes each
"""

import argparse
import io
import json
import random
from pathlib import Path

from PIL import Image

from focaldet import DataConfig, convert_data

NUM_CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    few = commands.add_parser("few")
    few.add_argument("source", type=Path)
    few.add_argument("out", type=Path)
    few.add_argument("--images", type=int, default=40)
    many = commands.add_parser("many")
    many.add_argument("out", type=Path)
    many.add_argument("--images", type=int, default=118_000)
    words = parser.parse_args()
    if words.command == "few":
        write_few(words.source, words.out, words.images)
    else:
        write_many(words.out, words.images)


def write_few(source: Path, out: Path, count: int) -> None:
    """The data as COCO, with so many training images, the same on every call."""
    convert_data(DataConfig(path=source), to="coco", out=out)
    file = out / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    kept = {image["id"] for image in random.Random(0).sample(document["images"], count)}
    document["images"] = [image for image in document["images"] if image["id"] in kept]
    document["annotations"] = [row for row in document["annotations"] if row["image_id"] in kept]
    file.write_text(json.dumps(document))
    print(f"{count} training images, {len(document['annotations'])} boxes")


def write_many(out: Path, count: int) -> None:
    """One image again and again, each time with another comment, so that no two files are equal."""
    (out / "images").mkdir(parents=True)
    draw, buffer, images, rows = random.Random(0), io.BytesIO(), [], []
    Image.effect_noise((64, 48), 60).convert("RGB").save(buffer, "JPEG")
    content = buffer.getvalue()
    for number in range(1, count + 1):
        name = f"{number:012d}.jpg"
        (out / "images" / name).write_bytes(content[:2] + b"\xff\xfe\x00\x0a" + b"%08d" % number + content[2:])
        images.append({"id": number, "file_name": name, "width": 64, "height": 48})
        for _ in range(9 if number % 7 == 0 else 7):
            box = [draw.randrange(40), draw.randrange(30), draw.randrange(4, 20), draw.randrange(4, 16)]
            category = 1 + draw.randrange(NUM_CLASSES)
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": category, "bbox": box})
            rows[-1] |= {"area": box[2] * box[3], "iscrowd": 0}
    categories = [{"id": number, "name": f"c{number}"} for number in range(1, NUM_CLASSES + 1)]
    document = {"images": images, "annotations": rows, "categories": categories}
    (out / "instances_train.json").write_text(json.dumps(document))
    print(f"{count} images, {len(rows)} boxes")


if __name__ == "__main__":
    main()
