"""What each hostile sample costs as a command: exit status, CPU seconds and peak memory beyond the imports.

    python benchmarks/hostile.py [--kind names claims ranges "no file" yaml data images text system writers]

Each runs in a process of its own; the first row is a command that reads nothing. Exit status 1 where one ends in a
traceback or an unknown status, or takes more than 10 s or 1.5 GB beyond the first.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import hostile
from tests.hostile_calls import CALLS, IMAGES, Call

MOST_SECONDS, MOST_MEGABYTES = 10, 1500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="*", default=[])
    wanted = parser.parse_args().kind
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        image = base / "a.png"
        hostile.put(image, (Path(__file__).parents[1] / "docs" / "cells.jpg").read_bytes())
        baseline = measure(Call(("predict", str(base / "nothing.pth"), str(image))), base)
        print(f"{'KIND':9} {'SAMPLE':34} {'STATUS':>6} {'CPU s':>6} {'PEAK MB':>8}  LINE")
        show("", "(a file that does not exist)", baseline, (0.0, 0.0))
        weights = save_weights(base / "w.safetensors")
        failures = 0
        for number, (kind, name, prepare) in enumerate(samples(image, weights)):
            if wanted and kind not in wanted:
                continue
            folder = base / str(number)
            folder.mkdir()
            call = prepare(folder)
            with call.neighbour():
                row = measure(call, folder)
            failures += show(kind, name, row, baseline[1:3])
        print(f"{failures} failures")
        return 1 if failures else 0


def samples(image: Path, weights: str) -> Iterator[tuple[str, str, Callable[[Path], Call]]]:
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
        yield (
            "yaml",
            name,
            lambda folder, text=text: Call(("train", "--config", str(write_text(folder / "a.yaml", text)))),
        )
    for suffix in (".json", ".csv", ".yaml", ".txt"):
        yield "data", f"pipe{suffix}", lambda folder, suffix=suffix: Call(("check", str(hostile.fifo(suffix)(folder))))
    for name, text in DATA.items():
        yield "data", name, lambda folder, text=text: Call(("check", str(coco(folder, text()))))
    for name, write in IMAGES.items():
        yield "images", name, lambda folder, write=write: check_image(folder, write)
    for kind, calls in CALLS.items():
        for name, make in calls.items():
            yield kind, name, lambda folder, make=make: make(folder, weights)


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


def check_image(folder: Path, write: hostile.Writer) -> Call:
    text = document()
    path = write(folder)
    coco(folder, text.replace("a.jpg", f"a{path.suffix}"))
    path.replace(folder / "train" / f"a{path.suffix}")
    return Call(("check", str(folder)))


def read_settings(path: Path) -> Call:
    return Call(("train", "--config", str(path)))


def save_weights(path: Path) -> str:
    from focaldet.models import build
    from focaldet.weights import save_detector

    save_detector(path, build("yolov2_tiny", num_classes=2, class_names=("a", "b")))
    return str(path)


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def predict(weights: Path, image: Path, folder: Path) -> Call:
    return Call(("predict", str(weights), str(image), "--out", str(folder / "drawn"), "--device", "cpu"))


def measure(call: Call, folder: Path) -> tuple[int, float, float, str]:
    """Exit status, CPU seconds, peak MB, and the line of refusal, else the last one; a call is killed after 60 s."""

    def limit() -> None:
        for which, most in call.limits.items():
            resource.setrlimit(which, (most, most))

    with Path(call.output or os.devnull).open("wb") as given:
        output = given if call.output else subprocess.PIPE
        process = subprocess.Popen(
            (sys.executable, "-m", "focaldet", *call.words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE if call.output else subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **call.environment},
            preexec_fn=limit,  # noqa: PLW1509  no threads are running yet
        )
        clock = threading.Timer(60, process.kill)
        clock.start()
        text = (process.stderr or process.stdout).read()  # type: ignore[union-attr]
        clock.cancel()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    lines = text.decode("utf-8", "backslashreplace").strip().split("\n")
    refusal = next((line for line in lines if line.startswith(("focaldet:", "Traceback"))), lines[-1])
    return process.returncode, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3, refusal


def show(kind: str, name: str, row: tuple[int, float, float, str], base: tuple[float, float]) -> bool:
    """Print a row; whether it fails."""
    status, seconds, megabytes, line = row[0], row[1] - base[0], row[2] - base[1], row[3]
    fails = status not in (0, 1, 2, 3) or line.startswith("Traceback") or not line.isprintable()
    fails = fails or seconds > MOST_SECONDS or megabytes > MOST_MEGABYTES
    text = ("FAILS " if fails else "") + ascii(line if len(line) < 100 else f"{line[:60]}…{line[-38:]}")[1:-1]
    print(f"{kind:9} {name[:34]!r:36} {status:4} {seconds:6.1f} {megabytes:8.0f}  {text}", flush=True)
    return fails


if __name__ == "__main__":
    sys.exit(main())
