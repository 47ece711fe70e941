"""An exported file as a detector: it predicts and is evaluated as the one it was made from.

Axes: B images, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import UInt8
from torch import Tensor

from focaldet.config import validate_fields
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import Detector, DetectorConfig
from focaldet.models.base import LossContext
from focaldet.ops.padded import PaddedDetections
from focaldet.ranges import ClassCount
from focaldet.types import Detections, Images, ImageSize, ImageSizes, Target
from focaldet.weights.checkpoint import Metadata, parse_metadata, require_plausible
from focaldet.weights.exported.graphs import STATEMENT, Graph, open_graph, parse_size


@validate_fields
@dataclass(frozen=True, slots=True)
class ExportedConfig(DetectorConfig):
    """All that is left to ask of a detector whose settings are part of a graph."""

    num_classes: ClassCount = 1


class ExportedDetector(Detector):
    """A detector whose network and post-processing are one graph, run by the library that the file is for.

    It has no weights that torch knows, stays on the CPU, and detects; it cannot be trained, saved or given other
    thresholds.

    Args:
        graph: the opened file.
        metadata: what the file says about itself.
        source: what messages call it.

    Raises:
        ConfigError: the number of classes is out of range.
        ValueError: the size of the images is none.
    """

    config: ExportedConfig

    def __init__(self, graph: Graph, metadata: Metadata, *, source: str) -> None:
        num_classes = metadata.config.get("num_classes") or len(metadata.class_names)
        super().__init__(
            ExportedConfig(num_classes=num_classes),
            class_names=metadata.class_names,
            preprocessing=metadata.preprocessing,
        )
        self.graph, self.metadata, self.source = graph, metadata, source
        self.input_size = parse_size(metadata.extra.get("input_size", ""))

    def extra_repr(self) -> str:
        stated = self.metadata.extra
        return f"{self.source}, {stated.get('format')} {self.precision}"

    @property
    def precision(self) -> str:
        """What the file was exported in: fp32, fp16 or int8."""
        stated = self.metadata.extra
        return stated.get("precision", "fp32")

    @property
    def max_detections(self) -> int | None:
        """The most detections of an image, as far as the file says so."""
        stated = self.metadata.extra
        text = stated.get("max_detections", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

    @property
    def runs_in_turn(self) -> bool:
        """Whether batches that are given to it at the same time are computed one after the other."""
        return self.graph.runs_in_turn

    def forward(self, images: Images, sizes: ImageSizes, targets: Sequence[Target] | None = None) -> PaddedDetections:
        """The detections of padded RGB images in 0…255, which are rounded to bytes.

        Raises:
            ConfigError: with targets, or images of another size than the graph takes.
        """
        if targets is not None:
            self.refuse("be trained")
        (height, width), size = images.shape[-2:], self.input_size
        if size is not None and size != (height, width):
            raise ConfigError(f"{self.source}: takes images of {size.width} × {size.height} px, got {width} × {height}")
        sizes = sizes if isinstance(sizes, Tensor) else torch.tensor(sizes, dtype=torch.int64)
        return self.graph.run(self.prepare(images).contiguous(), sizes.cpu())

    def prepare(self, images: Images) -> UInt8[Tensor, "B 3 H2 W2"]:
        """The images as the graph gets them: in bytes, and where their size is open and the graph does not take so
        short a side, padded further at the bottom and right.
        """
        content, least = round_to_bytes(images).cpu(), 1 if self.input_size is not None else self.graph.least_px
        height, width = (max(side, least) for side in content.shape[2:])
        if (height, width) == tuple(content.shape[2:]):
            return content
        color = torch.tensor(self.preprocessing.rgb_padding).round().clamp(0, 255).to(torch.uint8)
        padded = color.view(1, 3, 1, 1).repeat(len(content), 1, height, width)
        padded[:, :, : content.shape[2], : content.shape[3]] = content
        return padded

    def detect(self, outputs: PaddedDetections, sizes: Sequence[ImageSize]) -> list[Detections]:
        """The rows of each image that are detections."""
        boxes, scores, labels, counts = outputs
        return [
            Detections(boxes[image, :count], scores[image, :count], labels[image, :count], self.class_names)
            for image, count in enumerate(counts.tolist())
        ]

    def losses(self, outputs: Any, targets: Sequence[Target], context: LossContext) -> dict[str, Tensor]:
        """Not of an exported file.

        Raises:
            ConfigError: always.
        """
        self.refuse("be trained")

    def save(self, path: str | Path, *, license: str | None = None) -> None:  # noqa: A002  as of the base
        """Not of an exported file, which is saved by being copied.

        Raises:
            ConfigError: always.
        """
        self.refuse("be saved as weights")

    def refuse_options(self, names: Sequence[str]) -> None:
        """Refuse settings that are part of the graph.

        Raises:
            ConfigError: there are any; names the first.
        """
        if names:
            raise ConfigError(
                f"{names[0]}: {self.source} is an exported file, in which it is fixed; export the run folder again, "
                "or take that"
            )

    def refuse(self, what: str) -> NoReturn:
        """Refuse what cannot be done with a graph, such as "be trained".

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.source}: an exported file cannot {what}; take the run folder or weights file")


def round_to_bytes(images: Images) -> UInt8[Tensor, "B 3 H W"]:
    """Images as a graph takes them: what resizing without antialiasing leaves between two is rounded."""
    return images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)


def open_exported(path: Path, *, label: str) -> ExportedDetector:
    """The detector of an exported file.

    Raises:
        CheckpointError: damaged, not written by `focaldet export`, or contradicting itself.
        ConfigError: the library that it needs is not installed.
    """
    graph = open_graph(path)
    if graph.statement is None:
        raise CheckpointError(f"{path}: was not written by `focaldet export`: its metadata lack {STATEMENT!r}")
    metadata = parse_metadata({STATEMENT: graph.statement}, path)
    try:
        detector = ExportedDetector(graph, metadata, source=label)
    except (ConfigError, ValueError) as error:
        raise CheckpointError(f"{path}: metadata: {error}") from None
    require_plausible(metadata, path, num_classes=detector.config.num_classes)
    return detector
