"""The table of annotation formats. A new one is a module with functions to find and read its files, and a row here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from focaldet.data.formats.coco import find_coco, read_coco
from focaldet.data.formats.csv import find_csv, read_csv
from focaldet.data.formats.imagefolder import find_imagefolder, read_imagefolder
from focaldet.data.formats.labelme import find_labelme, read_labelme
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import DatasetLayout, Records
from focaldet.data.formats.voc import find_voc, read_voc
from focaldet.data.formats.vott import find_vott, read_vott
from focaldet.data.formats.yolo import find_yolo, read_yolo


class AnnotationFormat(NamedTuple):
    """How the files of one format are recognized and read.

    `find(listing, file)` gives the splits in the folder of `listing`, or of the one file that was named instead; None
    where it is not of this format. `read(layout, splits, reading)` gives the records of some splits.
    """

    find: Callable[[Listing, Path | None], DatasetLayout | None]
    read: Callable[[DatasetLayout, list[str], Reading], list[Records]]


# In the order in which they are tried. YOLO is last: it takes any folder of images below a file that names classes.
FORMATS: Mapping[str, AnnotationFormat] = {
    "coco": AnnotationFormat(find_coco, read_coco),
    "voc": AnnotationFormat(find_voc, read_voc),
    "labelme": AnnotationFormat(find_labelme, read_labelme),
    "vott": AnnotationFormat(find_vott, read_vott),
    "imagefolder": AnnotationFormat(find_imagefolder, read_imagefolder),
    "csv": AnnotationFormat(find_csv, read_csv),
    "yolo": AnnotationFormat(find_yolo, read_yolo),
}
