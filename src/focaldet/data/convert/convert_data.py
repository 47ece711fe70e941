"""`convert_data`: any data that can be read, as COCO, Pascal VOC or YOLO."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from focaldet.config import make_folder
from focaldet.data.config import DataConfig
from focaldet.data.convert.writers import SPLIT_WRITERS, Exported, TargetFormat
from focaldet.data.dataset import Dataset
from focaldet.data.formats.text import quantity
from focaldet.data.splits import find_parts, open_parts
from focaldet.errors import ConfigError, DataError
from focaldet.runtime import Progress

ImagePlacing = Literal["hardlink", "symlink", "copy"]


@dataclass(frozen=True, slots=True)
class ConvertedData:
    """What `convert_data` wrote: counts, and notes on what the format could not hold and on the reading."""

    out: Path
    num_images: int
    num_boxes: int
    notes: tuple[str, ...]


def convert_data(
    config: DataConfig,
    *,
    to: TargetFormat,
    out: Path,
    images: ImagePlacing = "hardlink",
    progress: Progress | None = None,
) -> ConvertedData:
    """Write all splits of a data set as COCO, VOC or YOLO into a new folder.

    COCO holds everything. VOC and YOLO are written with all digits of the coordinates; what they cannot hold is left
    out and counted in the notes.

    Args:
        config: the data.
        to: the format to write.
        out: a folder that does not exist or is empty.
        images: whether images are linked (hard links are copies where the disk is another one) or copied.
        progress: called with the images done and the images there are.

    Raises:
        DataError: the data cannot be read, or an image not be copied.
        ConfigError: there is something in `out`, or the splits cannot be distinguished in the format.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out: {out} is there already and not an empty folder: choose another")
    datasets = open_parts(config, find_parts(config))
    make_folder(out)
    writer = SPLIT_WRITERS[to](out, list(datasets.values()))
    placed = _Placing(images)
    total, done = sum(map(len, datasets.values())), 0
    for dataset in datasets.values():
        exported = list(_name_images(dataset, writer.names(dataset)))
        for image in exported:
            placed.put(image.source, writer.image_path(dataset, image))
            done += 1
            if progress is not None:
                progress(done, total)
        writer.write_split(dataset, exported)
    writer.close()
    notes = [f"{name}: {line}" for name, dataset in datasets.items() for line in dataset.problems.lines()]
    boxes = sum(len(dataset.boxes) for dataset in datasets.values())
    return ConvertedData(out, total, boxes, (*notes, *placed.notes(), *writer.notes()))


def _name_images(dataset: Dataset, names: Sequence[str]) -> Iterator[Exported]:
    for i, name in enumerate(names):
        yield Exported(i, dataset.path(i), name)


@dataclass(slots=True)
class _Placing:
    """Puts images at their new places."""

    how: ImagePlacing
    copies: int = 0
    done: set[Path] = field(default_factory=set)

    def put(self, source: Path, target: Path) -> None:
        """Link or copy one image; once where two splits share it."""
        if target in self.done:
            return
        self.done.add(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        real = Path(os.path.realpath(source))
        actions: Mapping[ImagePlacing, Callable[[Path, Path], object]] = {
            "hardlink": os.link,
            "symlink": os.symlink,
            "copy": shutil.copyfile,
        }
        try:
            actions[self.how](real, target)
        except OSError as error:
            if self.how == "copy":
                raise DataError(f"cannot be copied to {target}: {error.strerror}", file=source) from None
            self.copies += 1
            shutil.copyfile(real, target)

    def notes(self) -> Iterator[str]:
        """What was done otherwise than asked for."""
        if self.copies:
            yield f"{quantity(self.copies, 'image')} copied, because no {self.how} can be made there"
