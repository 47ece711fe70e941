"""JPEGs of random blobs with a box each: what the benchmarks of loading read, without a reader of annotations."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from focaldet.data.dataset import Classes, Dataset, FileSource, pack_paths, starts
from focaldet.data.problems import Problems
from focaldet.types import ImageSize, Target

BOX = (8.0, 8.0, 38.0, 28.0)


class UncachedSource:
    """A source that the loader does not keep in memory, as it does with a small set of files."""

    def __init__(self, source: FileSource) -> None:
        self.dataset, self.source = source.dataset, source

    def load(self, i: int, *, epoch: int) -> tuple[Tensor, Target]:
        """Image i and its boxes, read anew."""
        return self.source.load(i, epoch=epoch)


def write_photographs(folder: Path, *, number: int, size: ImageSize) -> FileSource:
    """So many JPEGs of this size, at least 28 × 38 px, written into `folder`, each with one box of one class."""
    rng = torch.Generator().manual_seed(0)
    names = [f"{index}.jpg" for index in range(number)]
    for name in names:
        coarse = torch.rand(1, 3, size.height // 4, size.width // 4, generator=rng)
        pixels = (255 * interpolate(coarse, size=tuple(size), mode="bicubic").clamp(0, 1)).byte()[0]
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name, quality=90)
    boxes = torch.tensor(BOX, dtype=torch.float64).repeat(number, 1)
    path_bytes, path_offsets = pack_paths(names)
    dataset = Dataset(
        name="photographs",
        root=folder,
        classes=Classes(("cell",), (1,)),
        image_ids=torch.arange(number) + 1,
        sizes=torch.tensor(size, dtype=torch.int32).repeat(number, 1),
        offsets=starts(torch.ones(number, dtype=torch.int64)),
        boxes=boxes,
        labels=torch.zeros(number, dtype=torch.int32),
        flags=torch.zeros(number, dtype=torch.uint8),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        problems=Problems(),
    )
    return FileSource(dataset)
