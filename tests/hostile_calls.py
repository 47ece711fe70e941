"""Calls that a hostile name, system or neighbour could break: each prepares a folder and says what to type.

`benchmarks/hostile.py` runs them as programs, with the weights of a small detector: each must end in the right result
or one line. What commands do then is in `tests/test_hostile_calls.py` and `tests/test_outputs.py`.
"""

import json
import os
import resource
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from focaldet.files import write_json
from focaldet.outputs import MANIFEST
from focaldet.training.run_folder import HOLDER, LOCK, lock_run
from tests import hostile

ESCAPE, TURN, NOT_TEXT = "e\x1b[31mRED\x1b]0;own\x07", "a\u202egnp", os.fsdecode(b"\xff\xfe")


class Call(NamedTuple):
    """A line to type, and where it runs: `limits` are those of `resource`, `output` a file in place of the terminal."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = {}
    limits: Mapping[int, int] = {}
    output: str | None = None
    neighbour: Callable[[], AbstractContextManager[object]] = nullcontext
    """What goes on meanwhile."""


Prepare = Callable[[Path, str], Call]
"""From an empty folder and the path of a weights file."""
SMALL = ("--size", "64", "--device", "cpu")


def data_set(folder: Path, *, names: tuple[str, ...] = ("a", "b"), image: str = "a.png") -> Path:
    """Four images with a box each, for training and validation."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        images = [{"id": i, "file_name": f"{i}{image}", "width": 64, "height": 64} for i in range(1, 5)]
        rows = [
            {"id": i, "image_id": i, "category_id": 1 + i % len(names), "bbox": [9, 9, 20, 24], "area": 480}
            for i in range(1, 5)
        ]
        categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        for each in images:
            Image.new("RGB", (64, 64), "gray").save(folder / split / str(each["file_name"]))
        document = {"images": images, "annotations": rows, "categories": categories}
        (folder / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


def yolo_set(folder: Path, name: str) -> Path:
    """An image with a label, called so."""
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    picture = folder / "images" / "train" / f"{name}.png"
    Image.new("RGB", (64, 64), "gray").save(picture)
    (folder / "labels" / "train" / f"{name}.txt").write_text("0 .5 .5 .2 .2\n")
    (folder / "data.yaml").write_text("train: images/train\nnames: [a]\n")
    return folder


def image(path: Path, size: tuple[int, int] = (64, 48)) -> Path:
    Image.new("RGB", size, "gray").save(path)
    return path


def check(*, names: tuple[str, ...] = ("a", "b"), words: tuple[str, ...] = (), **settings: object) -> Prepare:
    return lambda folder, _: Call(("check", str(data_set(folder, names=names)), *words), **settings)  # type: ignore[arg-type]


def predict(
    name: str = "a.png", *words: str, size: tuple[int, int] = (64, 48), out: str = "out", **settings: object
) -> Prepare:
    def prepare(folder: Path, weights: str) -> Call:
        target = str(image(folder / name, size))
        options = SMALL if "--size" not in words else SMALL[2:]
        line = ("predict", weights, target, "--out", str(folder / out), *options, *words)
        return Call(line, **settings)  # type: ignore[arg-type]

    return prepare


def train(
    *words: str, before: Callable[[Path], object] = lambda _: None, workers: int = 0, **settings: object
) -> Prepare:
    """A training of one epoch into `run`."""

    def prepare(folder: Path, _: str) -> Call:
        before(folder / "run")
        data = str(data_set(folder / "data"))
        line = (
            "train",
            data,
            "--model",
            "yolov2_tiny",
            "--epochs",
            "1",
            "--workers",
            str(workers),
            "--batch-size",
            "4",
        )
        return Call((*line, "--out", str(folder / "run"), *SMALL, *words), **settings)  # type: ignore[arg-type]

    return prepare


def held(*words: str) -> Prepare:
    """A training into the folder of another one that goes on."""

    def prepare(folder: Path, weights: str) -> Call:
        return train(*words)(folder, weights)._replace(neighbour=lambda: lock_run(folder / "run"))

    return prepare


def in_folder(content: object, *, name: str = MANIFEST, command: str = "predict") -> Prepare:
    """A call into a folder that holds a hidden file, and a file outside that must stay."""

    def prepare(folder: Path, weights: str) -> Call:
        (folder / "outside.json").write_text("of the user")
        (folder / "out").mkdir()
        if callable(content):
            content(folder / "out" / name)
        else:
            write_json(folder / "out" / name, content)
        if command == "eval":
            line = ("eval", weights, "--data", str(data_set(folder / "data")), "--out", str(folder / "out"))
            return Call((*line, *SMALL, "--split", "val"))
        return predict()(folder, weights)

    return prepare


def bad_image(name: str) -> Prepare:
    def prepare(folder: Path, weights: str) -> Call:
        (folder / name).write_bytes(b"bad")
        return Call(("predict", weights, str(folder / name), "--out", str(folder / "out"), *SMALL))

    return prepare


def eval_with(**settings: object) -> Prepare:
    def prepare(folder: Path, weights: str) -> Call:
        data = str(data_set(folder / "data"))
        return Call(("eval", weights, "--data", data, "--out", str(folder / "out"), *SMALL), **settings)  # type: ignore[arg-type]

    return prepare


def strange_settings(text: str) -> Prepare:
    def prepare(folder: Path, _: str) -> Call:
        (folder / "a.yaml").write_text(text)
        return Call(("train", "--config", str(folder / "a.yaml")))

    return prepare


def link_to_itself(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(path)


def make(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


FULL = {resource.RLIMIT_FSIZE: 2000}
"""No file may be longer: writing fails as on a full disk."""
DEAD = {"process": 2**22 + 1, "machine": os.uname().nodename, "start": "\x1b[31m"}

TEXT: dict[str, Prepare] = {
    "file name that is no UTF-8": predict(NOT_TEXT + ".png"),
    "label name that is no UTF-8": lambda folder, _: Call(("check", str(yolo_set(folder, NOT_TEXT)))),
    "the same as JSON": lambda folder, _: Call(("check", str(yolo_set(folder, NOT_TEXT)), "--json")),
    "escapes in a damaged file's name": bad_image(ESCAPE + ".jpg"),
    "escapes in a name": predict(ESCAPE + ".png"),
    "a name that turns": predict(TURN + ".png"),
    "a name of 240 letters": predict("x" * 240 + ".png"),
    "escapes in a class": check(names=(ESCAPE, "b")),
    "escapes in a class, as JSON": check(names=(ESCAPE, "b"), words=("--json",)),
    "half a character in a class": check(names=("\ud800x", "b")),
    "a class of 400 000 letters": check(names=("x" * 400_000, "b")),
    "a null in a class": check(names=("a\0b", "b")),
    "escapes in a setting": strange_settings(f"{ESCAPE!r}: 1\n".replace("\\x", "\\x")),
    "a terminal of ASCII": check(names=("혈구", "b"), environment={"PYTHONIOENCODING": "ascii"}),
    "a terminal of Latin-1": check(names=("혈구", "b"), environment={"PYTHONIOENCODING": "latin-1"}),
    "a terminal in no language": check(names=("혈구", "b"), environment={"LC_ALL": "C", "PYTHONUTF8": "0"}),
    "a terminal that is full": check(output="/dev/full"),
    "escapes in the folder of results": predict(out=ESCAPE),
}
SYSTEM: dict[str, Prepare] = {
    "no room to predict": predict(limits=FULL),
    "no room to evaluate": eval_with(limits=FULL),
    "no room to train": train(limits=FULL),
    "no room for a page": check(words=("--html", "page.html"), limits={resource.RLIMIT_FSIZE: 200}),
    "no memory for a size": predict("a.png", "--size", "6000", limits={resource.RLIMIT_AS: 6_000_000_000}),
    "a size that is too large": predict("a.png", "--size", "100000"),
    "few open files": train(limits={resource.RLIMIT_NOFILE: 24}),
    "no processes for workers": train(workers=2, limits={resource.RLIMIT_NOFILE: 40}),
    "a side of 65 501 px": predict(size=(65_501, 2)),
    "a side of 1 px": predict(size=(1, 1)),
    "results into a file": predict(out="a.png"),
    "results below a file": predict(out="a.png/b"),
    "a name of results of 300 letters": predict(out="x" * 300),
    "a path of 5000 letters": predict(out="/".join(["x" * 200] * 25)),
    "results into a link to itself": lambda folder, weights: (
        link_to_itself(folder / "out"), predict()(folder, weights)
    )[1],
    "results into a device": predict(out="../../../../../../dev/null"),
    "an image that is a link to itself": lambda folder, weights: (
        link_to_itself(folder / "b.png"), Call(("predict", weights, str(folder / "b.png"), *SMALL))
    )[1],
    "no time zone, no home": predict(environment={"HOME": "/nowhere", "TZ": "\x1b"}),
    "no folder for temporary files": predict(environment={"TMPDIR": "/nowhere"}),
}  # fmt: skip
WRITERS: dict[str, Prepare] = {
    "a training goes on": held(),
    "a training goes on, overwrite": held("--overwrite"),
    "a training goes on, resume": lambda folder, _: Call(
        ("train", "--resume", str(folder / "run")), neighbour=lambda: lock_run(folder / "run")
    ),
    "a lock of the dead": train(before=lambda run: make(run / HOLDER, json.dumps(DEAD).encode())),
    "a lock that is a folder": train(before=lambda run: (run / LOCK).mkdir(parents=True)),
    "a lock that is a pipe": train(before=lambda run: (run.mkdir(), os.mkfifo(run / LOCK))),
    "a lock that is a link to itself": train(before=lambda run: link_to_itself(run / LOCK)),
    "a holder that is no JSON": train(before=lambda run: make(run / HOLDER, b"\xff" * 20_000)),
    "a holder that is a pipe": train(before=lambda run: (run.mkdir(), os.mkfifo(run / HOLDER))),
    "a list that names others' files": in_folder({"command": "predict", "files": ["../outside.json", "/etc/passwd"]}),
    "a list of 10⁶ names": in_folder({"command": "predict", "files": ["../outside.json"] * 10**6}),
    "a list with escapes": in_folder({"command": ESCAPE, "files": [ESCAPE, 7, None]}),
    "a list that is a pipe": in_folder(os.mkfifo),
    "a list that is a folder": in_folder(lambda path: path.mkdir()),
    "a list nested deeply": in_folder(lambda path: make(path, b"[" * 100_000)),
    "results of another command": in_folder({"command": "predict", "files": ["metrics.json"]}, command="eval"),
}
IMAGES: dict[str, Callable[[Path], Path]] = {
    **{f"{scans} scans": hostile.jpeg_of_scans(scans, 1024) for scans in (100, 1000, 20_000)},
    **{
        f"claims {width} × {height}, {suffix[1:]}": hostile.image_that_claims(suffix, width, height)
        for suffix, width, height in (
            (".png", 60_000, 60_000), (".bmp", 60_000, 60_000), (".gif", 65_535, 65_535), (".tif", 60_000, 60_000),
            (".webp", 16_383, 16_383), (".jpg", 65_500, 65_500), (".ppm", 10**9, 10**9), (".png", 2**31 - 1, 1),
        )
    },
    "text of 200 MB in a PNG": hostile.png_of_text(200),
    "20 000 frames": hostile.gif_of_frames(20_000),
}  # fmt: skip
CALLS: dict[str, dict[str, Prepare]] = {"text": TEXT, "system": SYSTEM, "writers": WRITERS}
