"""The table of annotation formats. A new one is a module with functions to find and read its files, and a row here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from focaldet.data.formats.coco import find_coco, read_coco
from focaldet.data.formats.csv import find_csv, read_csv
from focaldet.data.formats.records import DatasetLayout, Records
from focaldet.data.formats.voc import find_voc, read_voc
from focaldet.data.formats.yolo import find_yolo, read_yolo


class AnnotationFormat(NamedTuple):
    """How the files of one format are recognized and read.

    `find(path)` gives the splits in a folder or of the one file that `path` is, None where it is not of this format.
    `read(layout, splits, images=…)` gives the records of some splits; `images` is the folder of the images or None.
    """

    find: Callable[[Path], DatasetLayout | None]
    read: Callable[..., list[Records]]


# In the order in which they are tried. YOLO is last: it takes any folder of images below a file that names classes.
FORMATS: Mapping[str, AnnotationFormat] = {
    "coco": AnnotationFormat(find_coco, read_coco),
    "voc": AnnotationFormat(find_voc, read_voc),
    "csv": AnnotationFormat(find_csv, read_csv),
    "yolo": AnnotationFormat(find_yolo, read_yolo),
}
