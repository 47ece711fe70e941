"""What each hostile sample costs as a command: exit status, CPU seconds and peak memory beyond the imports.

    python benchmarks/hostile.py [--kind names claims ranges "no file" yaml data images]

Each runs in a process of its own; the first row is a command that reads nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import hostile

Command = tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="*", default=[])
    wanted = parser.parse_args().kind
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        image = base / "a.png"
        hostile.put(image, (Path(__file__).parents[1] / "docs" / "cells.jpg").read_bytes())
        baseline = measure(("predict", str(base / "nothing.pth"), str(image)))
        print(f"{'KIND':9} {'SAMPLE':34} {'STATUS':>6} {'CPU s':>6} {'PEAK MB':>8}  LINE")
        show("", "(a file that does not exist)", baseline, (0.0, 0.0))
        for number, (kind, name, prepare) in enumerate(samples(image)):
            if wanted and kind not in wanted:
                continue
            folder = base / str(number)
            folder.mkdir()
            show(kind, name, measure(prepare(folder)), baseline[1:3])


def samples(image: Path) -> Iterator[tuple[str, str, Callable[[Path], Command]]]:
    """Kind, name, and what makes the file and says the command."""
    tables = {
        "names": hostile.NAMES,
        "claims": hostile.JUDGED,
        "ranges": hostile.RANGES,
        "no file": hostile.STRANGE_WEIGHTS,
    }
    for kind, table in tables.items():
        for name, (write, _) in table.items():
            yield kind, name, lambda folder, write=write: predict(write(folder), image, folder)
    for name, (text, _) in hostile.YAML.items():
        yield "yaml", name, lambda folder, text=text: ("train", "--config", str(write_text(folder / "a.yaml", text)))
    for suffix in (".json", ".csv", ".yaml", ".txt"):
        yield "data", f"pipe{suffix}", lambda folder, suffix=suffix: ("check", str(hostile.fifo(suffix)(folder)))
    for name, text in DATA.items():
        yield "data", name, lambda folder, text=text: ("check", str(coco(folder, text())))
    for scans in (100, 1000, 20_000):
        yield "images", f"{scans} scans", lambda folder, scans=scans: check_image(folder, scans)


DATA: dict[str, Callable[[], str]] = {
    "100 000 classes": lambda: document(categories=[{"id": i, "name": f"c{i}"} for i in range(1, 100_001)]),
    "100 000 classes of one name": lambda: document(categories=[{"id": i, "name": "c"} for i in range(1, 100_001)]),
    "100 000 boxes on one image": lambda: document(boxes=100_000),
    "key twice": lambda: document()[:-1] + ', "images": []}',
    "lone surrogate": lambda: document(categories=[{"id": 1, "name": "\ud800"}]),
    "name of 400 000 characters": lambda: document(categories=[{"id": 1, "name": "x" * 400_000}]),
    "nested deeply": lambda: '{"images": ' + "[" * 100_000 + "]" * 100_000 + ', "annotations": [], "categories": []}',
    "number of 100 000 digits": lambda: document()[:-1] + ', "x": ' + "9" * 100_000 + "}",
    "empty lists, 10 MB": lambda: '{"annotations": [], "categories": [], "images": [' + "[]," * 3_000_000 + "[]]}",
}


def document(*, categories: list[dict[str, object]] | None = None, boxes: int = 1) -> str:
    rows = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0}
        for i in range(boxes)
    ]
    images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}]
    return json.dumps({"images": images, "annotations": rows, "categories": categories or [{"id": 1, "name": "a"}]})


def coco(folder: Path, text: str) -> Path:
    from PIL import Image

    (folder / "train").mkdir()
    Image.new("RGB", (64, 64), "gray").save(folder / "train" / "a.jpg")
    write_text(folder / "instances_train.json", text)
    return folder


def check_image(folder: Path, scans: int) -> Command:
    coco(folder, document())
    hostile.jpeg_of_scans(scans, 1024)(folder).replace(folder / "train" / "a.jpg")
    return ("check", str(folder))


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def predict(weights: Path, image: Path, folder: Path) -> Command:
    return ("predict", str(weights), str(image), "--out", str(folder / "drawn"), "--device", "cpu")


def measure(command: Command) -> tuple[int, float, float, str]:
    """Exit status, CPU seconds, peak MB, and the line of refusal, else the last one; a call is killed after 60 s."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen((sys.executable, "-m", "focaldet", *command), stdout=output, stderr=output)
        end = time.monotonic() + 60
        while (waited := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                process.kill()
            time.sleep(0.02)
        _, status, usage = waited
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().decode("utf-8", "backslashreplace").strip().split("\n")
    refusal = next((line for line in lines if line.startswith(("focaldet:", "Traceback"))), lines[-1])
    return process.returncode, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3, refusal


def show(kind: str, name: str, row: tuple[int, float, float, str], base: tuple[float, float]) -> None:
    status, seconds, megabytes, line = row
    text = line if len(line) < 100 else f"{line[:60]}…{line[-38:]}"
    print(
        f"{kind:9} {name[:34]!r:36} {status:4} {seconds - base[0]:6.1f} {megabytes - base[1]:8.0f}  {text}", flush=True
    )


if __name__ == "__main__":
    main()
