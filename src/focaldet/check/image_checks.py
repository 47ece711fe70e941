"""What is odd about the image files: damage, copies, near duplicates, and turns noted by cameras.

Axes: N images, H W pixels.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from focaldet.check.findings import Findings
from focaldet.check.near_duplicates import Fingerprint, find_near_duplicates
from focaldet.data.dataset import Dataset
from focaldet.data.images import is_turned, read_image
from focaldet.data.problems import Location
from focaldet.errors import DataError
from focaldet.files import open_plain
from focaldet.runtime import Progress

THUMBNAIL = 32
SAMPLED_PX = 512  # of which a fingerprint is made: every k-th pixel of larger images


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What one look at an image file says: what is wrong with it, whether it is turned, and how it looks."""

    damage: str | None = None
    turned: bool = False
    fingerprint: Fingerprint | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, and an earlier one that it is a copy of; each by split and index there."""

    split: str
    image: int
    original_split: str
    original: int

    @property
    def crosses(self) -> bool:
        """Whether the two are in different splits."""
        return self.split != self.original_split


def look_at_images(datasets: Sequence[Dataset], *, progress: Progress | None) -> dict[Path, ImageFacts]:
    """Decode every image file of these splits once."""
    paths = list(dict.fromkeys(dataset.path(i) for dataset in datasets for i in range(len(dataset))))
    facts = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (path, fact) in enumerate(zip(paths, pool.map(_look, paths), strict=True), start=1):
            facts[path] = fact
            if progress is not None:
                progress(done, len(paths))
    return facts


def _look(path: Path) -> ImageFacts:
    try:
        return ImageFacts(turned=is_turned(path), fingerprint=fingerprint(read_image(path)))
    except DataError as error:
        return ImageFacts(damage=error.problem)


def fingerprint(pixels: UInt8[Tensor, "3 H W"]) -> Fingerprint | None:
    """How an image looks: 64 bits, of which an image saved again keeps nearly all, and a gray thumbnail.

    Each bit says whether a cell of 8 × 9 is darker than its right neighbor (dHash). None for an image of one color.
    """
    step = max(1, max(pixels.shape[1:]) // SAMPLED_PX)
    gray = pixels[:, ::step, ::step].float().mean(0)[None, None]
    cells = interpolate(gray, size=(8, 9), mode="area")[0, 0]
    bits = (cells[:, 1:] > cells[:, :-1]).flatten()
    small = interpolate(gray, size=(THUMBNAIL, THUMBNAIL), mode="area")[0, 0]
    return Fingerprint.of(bits, small)


def note_damage(dataset: Dataset, facts: dict[Path, ImageFacts], findings: Findings) -> None:
    """Add errors for images with an intact header and damaged pixels, such as truncated files."""
    for i in range(len(dataset)):
        path = dataset.path(i)
        if (damage := facts[path].damage) is not None:
            location = Location(path, f'split "{dataset.name}"')
            findings.problems.add(location.problem("error", "image unusable", damage))


def note_turned(dataset: Dataset, facts: dict[Path, ImageFacts], findings: Findings) -> None:
    """Add notes on images that are turned as their EXIF says."""
    images = [i for i in range(len(dataset)) if facts[dataset.path(i)].turned]
    findings.add_images(
        "note",
        "image turned",
        dataset,
        images,
        lambda _: "is turned as its EXIF orientation says; its boxes must be those of the turned image",
        rows=lambda k: range(*dataset.offsets[images[k] : images[k] + 2].tolist()),
    )


def exact_copies(datasets: Sequence[Dataset]) -> list[Pair]:
    """Image files of equal content, each with the first of them. Only files of equal length are read."""
    lengths: dict[int, list[tuple[Dataset, int]]] = defaultdict(list)
    for dataset in datasets:
        first = {dataset.path(i): i for i in reversed(range(len(dataset)))}
        for path, i in reversed(first.items()):
            lengths[path.stat().st_size].append((dataset, i))
    contents: dict[str, list[tuple[Dataset, int]]] = defaultdict(list)
    for group in lengths.values():
        for dataset, i in group if len(group) > 1 else ():
            contents[_digest(dataset.path(i))].append((dataset, i))
    return [
        Pair(dataset.name, i, first.name, original)
        for (first, original), *copies in contents.values()
        for dataset, i in copies
    ]


def near_copies(datasets: Sequence[Dataset], facts: dict[Path, ImageFacts], exact: Sequence[Pair]) -> list[Pair]:
    """Images that look like an earlier one and are not copies of it, each with the first one that it looks like."""
    copies = {(pair.split, pair.image) for pair in exact}
    places = [
        (dataset.name, i, shape)
        for dataset in datasets
        for i in range(len(dataset))
        if (dataset.name, i) not in copies and (shape := facts[dataset.path(i)].fingerprint) is not None
    ]
    pairs = find_near_duplicates([shape for _, _, shape in places])
    return [Pair(*places[later][:2], *places[earlier][:2]) for later, earlier in pairs]


def _digest(path: Path) -> str:
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
