"""Damaged annotation files: each mutation gives a dataset that holds together, or a typed error, and nothing else."""

import random
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from focaldet.data.config import DataConfig
from focaldet.data.dataset import Dataset
from focaldet.data.formats import assemble as assembling
from focaldet.data.images import read_header
from focaldet.data.splits import inspect_splits, open_splits
from focaldet.errors import FocaldetError
from tests.data.datasets import write_coco, write_csv, write_voc, write_yolo
from tests.data.layouts import LAYOUTS

FILES = {
    "json": (write_coco, "instances_train.json"),
    "xml": (write_voc, "Annotations/a.xml"),
    "voc list": (write_voc, "ImageSets/Main/train.txt"),
    "txt": (write_yolo, "labels/train/a.txt"),
    "yaml": (write_yolo, "data.yaml"),
    "csv": (write_csv, "train.csv"),
    "classes": (write_csv, "classes.csv"),
    "CVAT json": (LAYOUTS["cvat_coco_project"].write, "annotations/instances_Train.json"),
    "VOC devkit": (LAYOUTS["voc_devkit"].write, "VOCdevkit/VOC2007/Annotations/f0.xml"),
    "darknet": (LAYOUTS["darknet"].write, "obj.data"),
    "darknet list": (LAYOUTS["darknet"].write, "train.txt"),
    "OpenImages": (LAYOUTS["open_images"].write, "train-annotations-bbox.csv"),
    "OpenImages classes": (LAYOUTS["open_images"].write, "class-descriptions-boxable.csv"),
    "Label Studio csv": (LAYOUTS["label_studio_csv"].write, "project-4-at-2024-05-01.csv"),
    "LabelMe": (LAYOUTS["labelme"].write, "f0.json"),
    "VoTT": (LAYOUTS["vott"].write, "Street-export.json"),
    "jsonl": (LAYOUTS["imagefolder"].write, "train/metadata.jsonl"),
}
TOKEN = re.compile(rb"-?\d+(?:\.\d+)?|\"[^\"]*\"|[A-Za-z_]+|[^\sA-Za-z0-9]")
WORDS = """null true -1 0 NaN Infinity -1e308 1e308 1e-320 0.5 [] {} "" "\\ud800" "../../x" "/etc/passwd" ../a.png
    a.png C:\\x &amp; &x; <!DOCTYPE <a> </a> , ,,,, ' " *a &a !!int !!bool - # %s ² ١ 🙂"""
STRANGE = (
    *(word.encode() for word in WORDS.split()),
    *(
        b"9" * 40,
        b"9" * 5000,
        b"x" * 3000,
        b"[" * 100,
        b" ",
        b"\t",
        b"\n",
        b"\0",
        b"\xff\xfe",
        b"\xc3",
        "\u2028".encode(),
    ),
)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to three edits: tokens exchanged, pieces cut or doubled, a bit flipped, the end cut off."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        tokens = list(TOKEN.finditer(data)) or [re.search(b"", data)]
        numbers = [token for token in tokens if token[0][-1:].isdigit()] or tokens
        one, other = draw.choice(tokens), draw.choice(tokens)
        kind = draw.randrange(10)
        if kind <= 3:
            number = draw.choice(numbers)
            data = data[: number.start()] + draw.choice((draw.choice(numbers)[0], *STRANGE)) + data[number.end() :]
        elif kind == 4:
            data = data[: one.start()] + draw.choice(STRANGE) + data[one.end() :]
        elif kind == 5:
            data = data[: one.start()] + other[0] + data[one.end() :]
        elif kind == 6:
            first, last = sorted((one.start(), other.end()))
            data = data[:first] + data[last:]
        elif kind == 7:
            first, last = sorted((one.start(), other.end()))
            data = data[:last] + data[first:]
        elif kind == 8 and data:
            position = draw.randrange(len(data))
            data = data[:position] + bytes([data[position] ^ 1 << draw.randrange(8)]) + data[position + 1 :]
        else:
            data = data[: draw.randrange(len(data) + 1)]
    return data


def assert_holds_together(dataset: Dataset) -> None:
    num_images, num_boxes = len(dataset), len(dataset.boxes)
    assert dataset.offsets[0] == 0 and dataset.offsets[-1] == num_boxes and bool((dataset.offsets.diff() >= 0).all())
    assert bool(torch.isfinite(dataset.boxes).all()) and bool(torch.isfinite(dataset.areas).all())
    assert bool((dataset.boxes[:, 2:] > dataset.boxes[:, :2]).all()) and bool((dataset.boxes >= 0).all())
    limits = dataset.sizes.flip(1).repeat_interleave(dataset.offsets.diff(), 0)
    assert bool((dataset.boxes[:, 2:] <= limits).all())
    assert num_boxes == 0 or 0 <= int(dataset.labels.min()) <= int(dataset.labels.max()) < len(dataset.classes)
    assert all(dataset.path(i).resolve().is_relative_to(dataset.root.resolve()) for i in range(num_images))


def mutate_and_open(kind: str, folder: Path, number: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Open `number` mutations of one file; how many were read and how many refused."""
    # The images never change here, so their headers are read once.
    monkeypatch.setattr(assembling, "read_header", cache(read_header))
    write, name = FILES[kind]
    write(folder)
    original = (folder / name).read_bytes()
    outcomes = {"read": 0, "refused": 0}
    for step in range(number):
        draw = random.Random(f"{kind} {seed} {step}")
        (folder / name).write_bytes(mutated(original, draw))
        bad_boxes, missing = draw.choice(("clip", "drop", "error")), draw.choice(("error", "skip"))
        strict, lenient = draw.random() < 0.2, draw.random() < 0.2
        config = DataConfig(path=folder, bad_boxes=bad_boxes, missing=missing, strict=strict)
        try:
            if lenient:
                datasets = list(inspect_splits(config, seed=0).datasets.values())
            else:
                splits = open_splits(config, seed=0)
                datasets = [splits.train, splits.val]
        except FocaldetError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        for dataset in datasets:
            assert_holds_together(dataset)
            assert all(dataset.problems.lines(listed=True))
    return outcomes


@pytest.mark.parametrize("kind", FILES)
def test_a_few_mutations(tmp_path, monkeypatch, kind):
    outcomes = mutate_and_open(kind, tmp_path, 25, 0, monkeypatch)
    assert min(outcomes.values()) > 0  # both ends are reached, so the mutations are neither too mild nor too wild


@pytest.mark.prove
@pytest.mark.parametrize("kind", FILES)
def test_a_hundred_thousand_mutations(tmp_path, monkeypatch, kind):
    outcomes = mutate_and_open(kind, tmp_path, 100_000 // len(FILES) + 1, 1, monkeypatch)
    assert min(outcomes.values()) > 0
