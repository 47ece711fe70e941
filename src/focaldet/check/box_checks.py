"""What is odd about the boxes of a split: tiny, extreme, too many, repeated; all vectorized, no image is opened.

Axes: N images, M boxes.
"""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from focaldet.check.anchor_fit import resize_boxes
from focaldet.check.findings import Findings
from focaldet.data.dataset import Dataset
from focaldet.types import Resize

TINY_PX = 4.0  # root of the area at the size of the network: half a cell of the finest usual map
EXTREME_RATIO = 12.0  # long over short side; the paper's anchors have 2 at most, and reach IoU 0.5 up to 4
WHOLE_IMAGE = 0.9  # boxes of this fraction of the image say nothing about which image it is


def note_box_sizes(dataset: Dataset, resize: Resize, findings: Findings) -> None:
    """Images with boxes that are tiny at the size of the network, or very long and thin; ignored boxes do not count."""
    rows = (dataset.flags == 0).nonzero()[:, 0]
    resized, _ = resize_boxes(dataset, resize)
    sides = resized[:, 2:] - resized[:, :2]
    area_root, ratio = sides.prod(1).sqrt(), sides.amax(1) / sides.amin(1).clamp(min=1e-9)
    for kind, marked, text in (
        ("box tiny", area_root < TINY_PX, f"smaller than {TINY_PX:g} × {TINY_PX:g} px at {resize}"),
        ("box extreme", ratio > EXTREME_RATIO, f"more than {EXTREME_RATIO:g} times as long as wide"),
    ):
        _note_marked(dataset, rows[marked], findings, kind=kind, text=text)


def _note_marked(dataset: Dataset, rows: Int64[Tensor, " R"], findings: Findings, *, kind: str, text: str) -> None:
    """Count the images that have the boxes at these rows."""
    owners = box_owners(dataset)[rows]
    images, counts = torch.unique(owners, return_counts=True)
    listed, numbers, totals = images.tolist(), counts.tolist(), dataset.offsets.diff().tolist()
    findings.add_images(
        "note",
        kind,
        dataset,
        listed,
        lambda k: f"{numbers[k]} of its {totals[listed[k]]} boxes: {text}",
        rows=lambda k: rows[owners == listed[k]].tolist(),
    )


def note_crowded_images(dataset: Dataset, findings: Findings, *, limit: int | None) -> None:
    """Images with more boxes than the detector answers with (`limit`), or than an evaluation counts of one class."""
    counted = dataset.flags == 0
    owners = box_owners(dataset)[counted]
    num_classes = max(1, len(dataset.classes))
    totals = owners.bincount(minlength=len(dataset))
    keys, of_class = torch.unique(owners * num_classes + dataset.labels[counted].long(), return_counts=True)
    most = torch.zeros_like(totals).scatter_reduce(0, keys // num_classes, of_class, "amax")
    marked = (most > 100) | (totals > limit if limit is not None else torch.zeros_like(totals, dtype=torch.bool))
    images = marked.nonzero()[:, 0].tolist()

    def describe(k: int) -> str:
        total, one = int(totals[images[k]]), int(most[images[k]])
        allowed = [] if limit is None or total <= limit else [f"the detector answers with {limit}"]
        allowed += [f"{one} of one class, of which an evaluation counts 100"] if one > 100 else []
        return f"{total} boxes: {'; '.join(allowed)}"

    findings.add_images("warning", "too many boxes", dataset, images, describe)


def note_repeated_boxes(dataset: Dataset, findings: Findings) -> None:
    """Boxes that are in the files twice, with the same class."""
    owners = box_owners(dataset)
    rows = torch.cat([owners[:, None].double(), dataset.labels[:, None].double(), dataset.boxes], 1)
    again = _later_copies(rows)
    images = owners[again].tolist()
    boxes = [[round(value, 2) for value in dataset.boxes[row].tolist()] for row in again[:200].tolist()]
    findings.add_images(
        "warning",
        "box twice",
        dataset,
        images,
        lambda k: f"the same box and class again: {boxes[k]}",
        rows=lambda k: [int(again[k])],
    )


def repeated_labels(dataset: Dataset) -> list[tuple[int, int]]:
    """Pairs (image, earlier image) of one size whose boxes and classes are exactly the same.

    Images without boxes and those with nothing but one box over the whole image do not count.
    """
    counts = dataset.offsets.diff()
    owners = box_owners(dataset)
    # Two sums with fixed random weights stand for the boxes of an image; what they agree in is then compared itself.
    columns = torch.cat([dataset.boxes, dataset.labels[:, None].double()], 1)
    generator = torch.Generator().manual_seed(0)
    keys = torch.stack(
        [
            torch.zeros(len(dataset), dtype=torch.float64).index_add_(0, owners, (columns * weights).sin().sum(1))
            for weights in torch.rand(2, 5, generator=generator, dtype=torch.float64)
        ],
        1,
    )
    table = torch.cat([dataset.sizes.double(), counts[:, None].double(), keys.mul(1e6).round()], 1)
    useful = counts.clone()
    sizes = dataset.sizes[owners].double().prod(1)
    whole = (dataset.boxes[:, 2:] - dataset.boxes[:, :2]).prod(1) > WHOLE_IMAGE * sizes
    useful -= owners[whole].bincount(minlength=len(dataset))
    candidates = (useful > 0).nonzero()[:, 0]
    first: dict[tuple[float, ...], int] = {}
    pairs = []
    for image, key in zip(candidates.tolist(), map(tuple, table[candidates].tolist()), strict=True):
        original = first.setdefault(key, image)
        if original != image and _sorted_boxes(dataset, image) == _sorted_boxes(dataset, original):
            pairs.append((image, original))
    return pairs


def box_owners(dataset: Dataset) -> Int64[Tensor, " M"]:
    """The image index of each box."""
    return torch.arange(len(dataset)).repeat_interleave(dataset.offsets.diff())


def _sorted_boxes(dataset: Dataset, image: int) -> list[tuple[float, ...]]:
    rows = slice(*dataset.offsets[image : image + 2].tolist())
    labels = dataset.labels[rows].tolist()
    return sorted((*box, float(label)) for box, label in zip(dataset.boxes[rows].tolist(), labels, strict=True))


def _later_copies(rows: Float64[Tensor, "M C"]) -> Int64[Tensor, " R"]:
    """The indices of rows that are equal to an earlier one."""
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1 if len(group) else 0,), len(rows), dtype=torch.int64)
    first = first.scatter_reduce(0, group, torch.arange(len(rows)), "amin")
    return (first[group] != torch.arange(len(rows))).nonzero()[:, 0]
