"""What the drawings of networks with two stages share: a column of maps, proposals, and what a region becomes."""

from itertools import pairwise
from typing import NamedTuple

from drawing.canvas import BLUE, GREEN, ORANGE, PURPLE, RED, Canvas
from drawing.network import Network, convolution
from drawing.ssd import map_width
from focaldet.models.faster_rcnn.model import FasterRCNNConfig

MAP_PX = 34


class Map(NamedTuple):
    """A map of the backbone: the part that gives it, which of its maps, what leads to it, and a word below its size."""

    name: str
    part: str
    index: int = 0
    step: str = ""
    note: str = ""


def draw_column(
    canvas: Canvas, network: Network, x: float, maps: list[Map], *, top: float, row_px: float, more_px: float = 0
) -> None:
    """The backbone's maps, the last one highest, above the image; boxes are `more_px` wider than maps."""
    heights = [top + (len(maps) - 1 - index) * row_px for index in range(len(maps))]
    for (name, part, index, step, note), y in zip(maps, heights, strict=True):
        width = width_of(network, part, index) + more_px
        canvas.box(x, y, width, MAP_PX, BLUE, name)
        canvas.words(x - width / 2 - 7, y + (-2 if note else 4), network.size(part, index), anchor="end")
        canvas.words(x - width / 2 - 7, y + 12, note, anchor="end")
        canvas.words(x + 10, y + row_px / 2 + 4, step, anchor="start")
    for below, above in pairwise(heights):
        canvas.arrow((x, below - MAP_PX / 2 - 1), (x, above + MAP_PX / 2 + 2))
    bottom = heights[0] + MAP_PX / 2
    canvas.arrow((x, bottom + row_px - MAP_PX), (x, bottom + 2))
    canvas.words(x, bottom + row_px - MAP_PX + 16, f"image, {by(network.image)}", size=13, dark=True)
    if network.padded != network.image:
        canvas.words(x, bottom + row_px - MAP_PX + 32, f"padded to {by(network.padded)}")


def resnet_maps(network: Network) -> list[Map]:
    """C2 and the maps after it, as many as the backbone gives."""
    stem = f"{convolution(network.part('backbone.conv1'))} and pool"
    return [
        Map(f"C{index + 2}", "backbone", index, stem if index == 0 else "")
        for index in range(len(network.shapes["backbone"]))
    ]


def width_of(network: Network, part: str, index: int = 0) -> float:
    """How wide a map is drawn."""
    return map_width(network.shapes[part][index][0])


def by(sizes: tuple[int, ...]) -> str:
    """Such as "600 × 800"."""
    return " × ".join(map(str, sizes))


def draw_proposals(canvas: Canvas, network: Network, x: float, y: float, *, down_px: float) -> None:
    """The 3 × 3 convolution around (`x`, `y`), the two 1 × 1 after it, and `down_px` below what becomes of them."""
    head = network.part("rpn_head")
    spread = head.tower[0].dilation[0]
    activation = type(head.activation).__name__ + (f", dilation {spread}" if spread > 1 else "")
    canvas.box(x, y, 108, 46, PURPLE, f"{convolution(head.tower[0])}, {head.tower[0].out_channels}", activation)
    fork, right, join = x + 68, x + 132, x + 200
    canvas.wire((x + 54, y), (fork, y))
    for height, fill, layer, name in (
        (y - 24, ORANGE, head.objectness, "objectness"),
        (y + 24, RED, head.boxes, "boxes"),
    ):
        canvas.arrow((fork, y), (fork, height), (right - 51, height))
        canvas.box(right, height, 98, 40, fill, f"{convolution(layer)}, {layer.out_channels}", name)
        canvas.wire((right + 49, height), (join, height), (join, y + 24))
    canvas.arrow((join, y + 24), (join, y + down_px - 29))
    canvas.box(x + 114, y + down_px, 232, 54, GREEN, "regions", *proposal_words(network))


def proposal_words(network: Network) -> list[str]:
    """How many go into NMS and come out of it, when detecting."""
    config: FasterRCNNConfig = network.detector.config
    limits = config.proposals.detect
    count = max(network.level_sizes)
    best = f"all {count:,}" if limits.top_k >= count else f"best {limits.top_k}"
    each = " of each level" if len(network.level_sizes) > 1 else ""
    return [f"{best}{each}, NMS at {short_fraction(config.proposals.nms_iou)},", f"best {limits.keep} of the rest"]


def training_words(network: Network) -> str:
    """How many regions there are in training."""
    config: FasterRCNNConfig = network.detector.config
    objects = " and the objects" if config.proposals.objects_join else ""
    return f"regions in training: {config.region.sampling.count} drawn from {config.proposals.train.keep}{objects}"


def short_fraction(value: float) -> str:
    """Such as ".7"."""
    return f"{value:g}".removeprefix("0")


def pooling_words(network: Network) -> str:
    """What the way of cutting regions out is called."""
    names = {"align": "RoIAlign", "max": "RoIPool", "crop_resize": "crop and resize"}
    return names[network.detector.config.pooling.kind]


def draw_predictor(canvas: Canvas, network: Network, x: float, y: float, *, start: float) -> None:
    """Class values and boxes around (`x`, `y`), and the arrows to them from `start`."""
    predictor = network.part("predictor")
    fork = x - 66
    canvas.wire((start, y), (fork, y))
    for height, fill, layer, name in (
        (y - 26, ORANGE, predictor.classes, "classes"),
        (y + 26, RED, predictor.boxes, "boxes"),
    ):
        canvas.arrow((fork, y), (fork, height), (x - 50, height))
        canvas.box(x, height, 96, 42, fill, str(layer.out_features), name)


def predictor_words(network: Network) -> list[str]:
    """What the numbers of the predictor are."""
    config: FasterRCNNConfig = network.detector.config
    count = network.part("predictor").boxes.out_features // 4
    words = [
        f"classes: a softmax over {config.num_classes} and the background",
        f"boxes: 4 · {count}, one for every class",
    ]
    return [*words, "(the background's is never read)"] if config.background_box else words


def anchor_sides_px(network: Network) -> list[list[int]]:
    """The sides of the square anchors of each level."""
    config: FasterRCNNConfig = network.detector.config
    laid = config.laid_anchors
    return [[round(laid.base_scale * stride * scale) for scale in laid.scales] for stride in config.strides_px]


def anchor_words(network: Network) -> str:
    """Such as "width : height = 2 : 1, 1 : 1, 1 : 2"."""
    anchors = network.detector.config.anchors
    ratios = ", ".join(f"{1 / ratio:g} : 1" if ratio < 1 else f"1 : {ratio:g}" for ratio in anchors.ratios)
    return f"width : height = {ratios}"
