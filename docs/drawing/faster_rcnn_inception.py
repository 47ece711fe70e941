"""Faster R-CNN on the two halves of Inception-ResNet-v2, and the top-down module that TDM puts between them."""

from pathlib import Path

from drawing.canvas import GREEN, PURPLE, Canvas
from drawing.network import Network, convolution
from drawing.regions import (
    Map,
    anchor_sides_px,
    anchor_words,
    draw_column,
    draw_predictor,
    draw_proposals,
    pooling_words,
    predictor_words,
    training_words,
    width_of,
)

TRUNK_PX, TOP_PX, ROW_PX, MORE_PX = 196, 112, 58, 24  # the trunk, its highest map, their distance
FORK_PX, LATERAL_PX, LINE_PX = 318, 298, 300  # what leaves Block17 and Block35 goes down here; the second stage
CARD_LEFT_PX, CARD_TOP_PX, CARD_PX = 340, 372, (726, 266)
HALF = "roi_head.tail"


def trunk_maps(network: Network) -> list[Map]:
    """The trunk's maps from the finest on, with the strides of those that it gives."""
    trunk = network.part("backbone")
    finest, middle, coarsest = (f"stride {stride}" for stride in trunk.strides_px)
    first = trunk.conv2d_1a.conv
    return [
        Map("Conv2d_2b", "backbone.conv2d_2b", step=f"stride {first.stride[0]}"),
        Map("Conv2d_4a", "backbone.conv2d_4a", step="pool", note=finest),
        Map("Mixed_5b", "backbone.mixed_5b", step="pool"),
        Map(f"{len(trunk.repeat)} × Block35", "backbone.repeat", note=middle),
        Map("Mixed_6a", "backbone.mixed_6a", step=f"stride {trunk.mixed_6a.stride}"),
        Map(f"{len(trunk.repeat_1)} × Block17", "backbone.repeat_1", note=coarsest),
    ]


def draw_second_stage(canvas: Canvas, network: Network) -> None:
    """From the cut-out to classes and boxes, from left to right."""
    y, tail = LINE_PX, network.part(HALF)
    canvas.box(432, y, 122, 46, PURPLE, network.size("pooled"), pooling_words(network))
    count = len(tail.repeat_2) + 1
    boxes = {"mixed_7a": "Mixed_7a", "block8": f"{count} × Block8", "conv2d_7b": "Conv2d_7b"}
    for index, (part, name) in enumerate(boxes.items()):
        x = 564 + 123 * index
        canvas.arrow((x - 70, y), (x - 54, y))
        canvas.box(x, y, 104, 46, PURPLE, network.size(f"{HALF}.{part}"), name)
    canvas.arrow((863, y), (879, y))
    canvas.box(910, y, 58, 46, PURPLE, str(network.part("roi_head").width), "mean")
    draw_predictor(canvas, network, 1018, y, start=940)


def draw_module(canvas: Canvas, network: Network) -> None:
    """The card of the module: T and L side by side, what is proposed on it and cut from it."""
    left, top = CARD_LEFT_PX, CARD_TOP_PX
    canvas.card(left, top, *CARD_PX)
    canvas.words(left + 18, top + 29, "top-down module (TDM): a re-creation", size=15, anchor="start", bold=True)
    canvas.words(left + 18, top + 46, network.name, size=11.5, anchor="start")
    step, upper, lower = network.part("pyramid.steps.0"), top + 92, top + 168
    middle = (upper + lower) / 2
    for name, conv, y, start in (("T", step.top_down, upper, FORK_PX), ("L", step.lateral, lower, LATERAL_PX)):
        canvas.arrow((start, y), (left + 21, y))
        canvas.box(left + 82, y, 120, 42, PURPLE, f"{name}: {convolution(conv)}, {conv.out_channels}", "ReLU")
        canvas.arrow((left + 143, y), (left + 196, y), (left + 196, middle + (11 if y > middle else -11)))
    canvas.words(left + 170, upper - 6, "× 2")
    canvas.sign(left + 196, middle, "‖")
    canvas.arrow((left + 206, middle), (left + 236, middle))
    canvas.box(left + 288, middle, 102, 42, PURPLE, f"{convolution(step.output)}, {step.output.out_channels}", "ReLU")
    canvas.arrow((left + 340, middle), (left + 366, middle))
    stride = network.detector.config.strides_px[0]
    canvas.box(left + 434, middle, 134, 46, GREEN, network.size("levels"), f"stride {stride}")
    for index, line in enumerate(
        (
            "T doubles by repeating its cells; no map but the finest is read,",
            "and the second half follows as above",
        )
    ):
        canvas.words(left + 22, top + 228 + 19 * index, line, size=12, anchor="start")
    draw_uses(canvas, network, left + 502, (upper, middle, lower))


def draw_uses(canvas: Canvas, network: Network, left: float, heights: tuple[float, float, float]) -> None:
    """Proposals and cut-outs of the module's map, which leaves at `left` in the middle."""
    upper, middle, lower = heights
    x, head, adapter = left + 124, network.part("rpn_head"), network.part("roi_head.adapter")
    canvas.wire((left, middle), (left + 18, middle))
    tower = head.tower[0]
    spread = f"{convolution(tower)}, dilation {tower.dilation[0]}, {tower.out_channels}"
    canvas.arrow((left + 18, middle), (left + 18, upper), (x - 90, upper))
    canvas.box(x, upper, 176, 46, PURPLE, "RPN head", spread)
    canvas.words(x, upper + 38, f"{sum(network.level_sizes):,} anchors")
    canvas.arrow((left + 18, middle), (left + 18, lower), (x - 90, lower))
    canvas.box(x, lower, 176, 42, PURPLE, network.size("pooled"), pooling_words(network))
    canvas.arrow((x, lower + 22), (x, lower + 40))
    words = f"adapter {convolution(adapter)}, {adapter.out_channels}"
    canvas.box(x, lower + 61, 176, 38, PURPLE, words, "ReLU; to Mixed_7a")


def faster_rcnn_inception(path: Path) -> None:
    """G-RMI's network of stride 16, and TDM's of stride 8."""
    network, module = Network("faster_rcnn_inception_resnet_v2"), Network("faster_rcnn_inception_resnet_v2_tdm")
    meaning = (
        "Faster R-CNN on Inception-ResNet-v2: the first half proposes regions, the second half classifies each of "
        "them; and the re-created top-down module that gives a map of stride 8"
    )
    canvas = Canvas(1084, 660, title="Faster R-CNN on Inception-ResNet-v2", meaning=meaning)
    canvas.heading(TRUNK_PX, "Inception-ResNet-v2", "height × width × channels")
    canvas.heading(484, "first stage: proposals", network.name)
    draw_column(canvas, network, TRUNK_PX, trunk_maps(network), top=TOP_PX, row_px=ROW_PX, more_px=MORE_PX)
    draw_module(canvas, module)
    top, side = TOP_PX + 2 * ROW_PX, (width_of(network, "backbone.repeat") + MORE_PX) / 2
    canvas.wire(
        (TRUNK_PX + side, top), (LATERAL_PX, top), (LATERAL_PX, CARD_TOP_PX + 168), (LATERAL_PX + 2, CARD_TOP_PX + 168)
    )
    side = (width_of(network, "backbone.repeat_1") + MORE_PX) / 2
    canvas.arrow((TRUNK_PX + side + 1, TOP_PX), (330, TOP_PX))
    canvas.dot(FORK_PX, TOP_PX)
    canvas.wire((FORK_PX, TOP_PX), (FORK_PX, CARD_TOP_PX + 92))
    canvas.dot(FORK_PX, LINE_PX)
    canvas.arrow((FORK_PX, LINE_PX), (369, LINE_PX))
    draw_proposals(canvas, network, 386, TOP_PX, down_px=96)
    canvas.arrow((432, TOP_PX + 123), (432, LINE_PX - 25))
    draw_second_stage(canvas, network)
    ((*sides,),) = anchor_sides_px(network)
    notes = [
        f"{network.detector.config.anchors.per_cell} anchors in each cell, {sum(network.level_sizes):,} in all:",
        f"sides of {', '.join(map(str, sides))} px, {anchor_words(network)}",
        f"objectness: {network.part('rpn_head').values} values of an anchor, nothing and an object",
        training_words(network),
        *predictor_words(network),
    ]
    for index, line in enumerate(notes):
        canvas.words(650, 92 + 19 * index, line, size=12, anchor="start")
    canvas.write(path)
