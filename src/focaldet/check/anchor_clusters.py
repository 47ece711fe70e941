"""Clusters of the shapes of a data set's boxes at the network's input size, to choose anchors from."""

from dataclasses import dataclass
from typing import Any

from focaldet.check.anchor_fit import resize_boxes
from focaldet.config import to_dict
from focaldet.data.dataset import Dataset
from focaldet.errors import ConfigError
from focaldet.ops.clusters import cluster_sizes
from focaldet.types import Resize

CELL_PX = 32


@dataclass(frozen=True, slots=True)
class AnchorShapes:
    """Clusters of one split: (width, height) in pixels of the resized image and in cells of 32 px, small ones first.

    `average_iou` is the mean IoU, in (0, 1], of each of the `num_boxes` boxes with the cluster that fits it best.
    """

    split: str
    resize: str
    num_boxes: int
    pixels: tuple[tuple[float, float], ...]
    cells: tuple[tuple[float, float], ...]
    average_iou: float

    def pairs(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """Each cluster in pixels and in cells."""
        return list(zip(self.pixels, self.cells, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return to_dict(self)


def anchor_shapes(dataset: Dataset, resize: Resize, *, num_clusters: int, seed: int) -> AnchorShapes:
    """k-means over the boxes of a split as the network sees them; without ignored boxes.

    Raises:
        ConfigError: there are fewer different boxes than clusters.
    """
    boxes, _ = resize_boxes(dataset, resize)
    if not len(boxes):
        raise ConfigError(f'clusters: split "{dataset.name}" has no boxes')
    clusters = cluster_sizes((boxes[:, 2:] - boxes[:, :2]).double(), num_clusters=num_clusters, seed=seed)
    pairs = clusters.sizes.tolist()
    return AnchorShapes(
        split=dataset.name,
        resize=str(resize),
        num_boxes=len(boxes),
        pixels=tuple((round(width, 2), round(height, 2)) for width, height in pairs),
        cells=tuple((round(width / CELL_PX, 5), round(height / CELL_PX, 5)) for width, height in pairs),
        average_iou=clusters.average_iou,
    )
