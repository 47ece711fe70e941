"""Seconds (clock, processor) and peak memory of reading a COCO file of the size of COCO's training split.

python benchmarks/coco_index.py               # 118,287 images, 860,001 boxes: 0.1 GB
python benchmarks/coco_index.py --polygons    # with a mask of 30 points for each box, as the real file has: 0.5 GB
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NUM_IMAGES, NUM_BOXES, NUM_CLASSES, NUM_POINTS = 118_287, 860_001, 80, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the images and boxes")
    parser.add_argument("--polygons", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.read is not None:
        measure_reading(words.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instances_train2017.json"
        write_file(file, fraction=words.fraction, polygons=words.polygons)
        print(f"{file.stat().st_size / 1e6:.0f} MB")
        for _ in range(words.rounds):
            subprocess.run([sys.executable, __file__, "--read", str(file)], check=True)


def write_file(file: Path, *, fraction: float, polygons: bool) -> None:
    """Rows as COCO's own file has them, with coordinates of two digits."""
    draw = random.Random(0)
    num_images, num_boxes = int(NUM_IMAGES * fraction), int(NUM_BOXES * fraction)
    with file.open("w") as out:
        out.write('{"info": {"year": 2017}, "licenses": [{"id": 1, "name": "none", "url": "http://example.org"}], ')
        out.write('"images": [')
        for number in range(num_images):
            name, url = f"{number:012d}.jpg", f"http://images.example.org/train2017/{number:012d}.jpg"
            image = {"license": 1, "file_name": name, "coco_url": url, "height": 480, "width": 640}
            image |= {"date_captured": "2013-11-14 11:18:45", "id": number}
            out.write(", " * (number > 0) + json.dumps(image))
        out.write('], "annotations": [')
        for number in range(num_boxes):
            x, y, width, height = (round(draw.uniform(1, most), 2) for most in (400, 300, 200, 150))
            row = {"area": round(width * height, 4), "iscrowd": 0, "image_id": draw.randrange(num_images)}
            row |= {"bbox": [x, y, width, height], "category_id": 1 + draw.randrange(NUM_CLASSES), "id": number}
            mask = [round(x + width * draw.random(), 2) for _ in range(2 * NUM_POINTS)]
            out.write(", " * (number > 0) + json.dumps({"segmentation": [mask]} | row if polygons else row))
        categories = [{"supercategory": "c", "id": k, "name": f"c{k}"} for k in range(1, NUM_CLASSES + 1)]
        out.write('], "categories": ' + json.dumps(categories) + "}")


def measure_reading(file: Path) -> None:
    """Print how long the records take, how long the dataset, and by how much memory has grown at most."""
    from focaldet.data.formats.assemble import build_dataset
    from focaldet.data.formats.coco import read_coco_file

    before = memory_mb("VmRSS")
    begin, computed = time.perf_counter(), time.process_time()
    records = read_coco_file(file, name="train2017", look_up=False)
    print(f"records {spent(begin, computed)}, peak +{memory_mb('VmHWM') - before:.0f} MB", end="; ")
    dataset = build_dataset(records, read_images=False)
    print(f"dataset of {len(dataset)} images {spent(begin, computed)}, peak +{memory_mb('VmHWM') - before:.0f} MB")


def spent(begin: float, computed: float) -> str:
    return f"{time.perf_counter() - begin:.1f} s ({time.process_time() - computed:.1f} s computed)"


def memory_mb(name: str) -> float:
    """What Linux says of this process: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


if __name__ == "__main__":
    main()
