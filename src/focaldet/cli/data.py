"""`focaldet check`, `anchors` and `convert-data`: what the data is like, which anchors suit it, other formats."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from focaldet.check.advice import candidate_models
from focaldet.check.anchor_clusters import anchor_shapes
from focaldet.check.check import check_data
from focaldet.cli import Switch
from focaldet.cli.flags import SPLIT_HELP, Architecture, Data, DataParts, data_config
from focaldet.cli.output import UNREADABLE, print_error, print_json, print_table, progress, say
from focaldet.data.convert.convert_data import ImagePlacing, convert_data
from focaldet.data.convert.writers import TargetFormat
from focaldet.data.formats.text import quantity
from focaldet.data.splits import open_split
from focaldet.errors import DataError
from focaldet.models import find_preset, named_config
from focaldet.report.check_page import write_check_page
from focaldet.types import Resize


def check_command(
    data: Data = None,
    *,
    parts: DataParts = None,
    model: str | None = None,
    architecture: Architecture = None,
    size: int | None = None,
    short_side: int | None = None,
    max_side: int | None = None,
    all_classes: Annotated[bool, Parameter(name="--all", negative="")] = False,
    listed: Annotated[bool, Parameter(name="--list", negative="")] = False,
    decode: bool = True,
    strict: Switch = False,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    html: Path | None = None,
    json: Switch = False,
) -> int:
    """Say what is in a data set, what is wrong with it, and how the anchors of a detector fit its boxes.

    Args:
        model: Detector whose anchors are measured against the boxes; by default the one that training would choose.
        size: Long side in pixels of the image that the anchors meet, instead of the detector's own.
        short_side: Short side in pixels, the paper's form.
        max_side: Limit of the long side with --short-side.
        all_classes: Count the boxes of every class, not only of the most and the least frequent.
        listed: List every problem, not only how many there are of each kind.
        decode: Decode every image, which also finds damage, copies and near duplicates; --no-decode reads headers only.
        strict: End with status 1 where there are warnings, not only for errors.
        only: Kinds of problems to report, such as box-tiny; by default all.
        skip: Kinds of problems not to report.
        html: Write the report as a page with images of each kind of problem.
        json: Print JSON.
    """
    model = model or candidate_models()[0]
    detector, preprocessing = named_config(model, architecture=architecture or {}), find_preset(model).preprocessing
    resize = preprocessing.resize.with_sides(size=size, short_side=short_side, max_side=max_side)
    try:
        with progress("check") as seen:
            report = check_data(
                data_config(data, parts),
                detector=detector,
                preprocessing=replace(preprocessing, resize=resize),
                decode=decode,
                only=only,
                skip=skip,
                progress=seen,
            )
    except DataError as error:
        print_error(error)
        return UNREADABLE
    if json:
        print_json(report.to_dict())
    else:
        say(*report.lines(listed=listed, all_classes=all_classes))
        say(f"\nanchors are those of {model}; others: --model, --size, --architecture")
        if report.advice is not None:
            source = shlex.quote(str(data)) if data is not None else "DIR"
            say(*report.advice.lines())
            say(f"next     focaldet train {source} --model {model} {report.advice.flags()} --out runs/mine")
    if html is not None:
        write_check_page(report, html)
        say(f"look at  {html}", file=sys.stderr if json else sys.stdout)
    return report.exit_status(strict=strict)


def anchors_command(
    data: Data = None,
    *,
    parts: DataParts = None,
    split: Annotated[str, Parameter(help=SPLIT_HELP)] = "train",
    clusters: int = 5,
    size: int = 416,
    short_side: int | None = None,
    max_side: int | None = None,
    seed: int = 0,
    json: Switch = False,
) -> None:
    """Compute anchors for your boxes: k-means with the distance 1 - IoU, as YOLOv2 does.

    Args:
        clusters: How many; YOLOv2 has 5.
        size: Long side in pixels of the image that the anchors meet.
        short_side: Short side in pixels, the paper's form.
        max_side: Limit of the long side with --short-side.
        seed: Seed of the first centers.
        json: Print JSON.
    """
    resize = Resize().with_sides(
        size=None if short_side is not None else size, short_side=short_side, max_side=max_side
    )
    dataset = open_split(data_config(data, parts), split, seed=seed)
    shapes = anchor_shapes(dataset, resize, num_clusters=clusters, seed=seed)
    if json:
        print_json(shapes.to_dict())
        return
    rows = [[f"{side:.2f}" for side in pixels] + [f"{side:.5g}" for side in cells] for pixels, cells in shapes.pairs()]
    print_table([["WIDTH PX", "HEIGHT PX", "WIDTH / 32", "HEIGHT / 32"], *rows], left=set())
    boxes = f'{quantity(shapes.num_boxes, "box", "boxes")} of "{shapes.split}" at {shapes.resize}'
    say(f"\naverage IoU {shapes.average_iou:.3f} of {boxes}")
    cells = ",".join(f"[{width:.5g},{height:.5g}]" for width, height in shapes.cells)
    say(f"for YOLOv2: --architecture.anchors [{cells}]")


def convert_data_command(
    data: Data = None,
    *,
    to: TargetFormat,
    out: Path,
    parts: DataParts = None,
    images: ImagePlacing = "hardlink",
) -> None:
    """Write a data set of any layout as COCO, Pascal VOC or YOLO, and say what the format cannot hold.

    Args:
        to: Format to write: coco, voc or yolo.
        out: A new folder.
        images: Whether images are linked (hardlink, symlink) or copied (copy).
    """
    with progress("convert") as seen:
        converted = convert_data(data_config(data, parts), to=to, out=out, images=images, progress=seen)
    for note in converted.notes:
        say(note)
    counts = f"{quantity(converted.num_images, 'image')}, {quantity(converted.num_boxes, 'box', 'boxes')}"
    say(f"{counts}; look at  {converted.out}")
