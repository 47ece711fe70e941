"""Faster R-CNN on a feature pyramid: backbone, pyramid, proposals on five levels, and what each region becomes."""

from pathlib import Path

from drawing.canvas import GREEN, PURPLE, Canvas
from drawing.network import Network, convolution
from drawing.regions import (
    MAP_PX,
    anchor_sides_px,
    anchor_words,
    draw_column,
    draw_predictor,
    draw_proposals,
    pooling_words,
    predictor_words,
    resnet_maps,
    training_words,
    width_of,
)

ROW_PX, TOP_PX = 58, 104  # distance of the levels, where P6 lies
BACKBONE_PX, SUM_PX, PYRAMID_PX, POOLED_PX, PROPOSED_PX = 176, 304, 412, 474, 616  # from left to right


def row(level: int) -> float:
    """The height of P2…P6, numbered from 0."""
    return TOP_PX + (4 - level) * ROW_PX


def draw_pyramid(canvas: Canvas, network: Network) -> None:
    """From C2…C5 to P2…P6, the way down between them."""
    pyramid = network.part("pyramid")
    for level in range(5):
        y, width = row(level), width_of(network, "levels", level)
        canvas.box(PYRAMID_PX, y, width * 0.6, MAP_PX, GREEN, f"P{level + 2}")
        if level == 4:
            break
        start = BACKBONE_PX + width_of(network, "backbone", level) / 2
        canvas.words(SUM_PX - 38, y - 6, convolution(pyramid.lateral[level]))
        end = PYRAMID_PX - width * 0.3
        canvas.words(SUM_PX + 32, y - 6, convolution(pyramid.output[level]))
        if level == 3:
            canvas.arrow((start + 1, y), (end - 2, y))
            canvas.dot(SUM_PX, y)
            continue
        canvas.arrow((start + 1, y), (SUM_PX - 11, y))
        canvas.sign(SUM_PX, y, "+")
        canvas.arrow((SUM_PX + 10, y), (end - 2, y))
        canvas.arrow((SUM_PX, row(level + 1) + (0 if level == 2 else 10)), (SUM_PX, y - 12))
        canvas.words(SUM_PX - 8, y - ROW_PX / 2 + 4, "× 2", anchor="end")
    canvas.arrow((PYRAMID_PX, row(3) - MAP_PX / 2 - 1), (PYRAMID_PX, row(4) + MAP_PX / 2 + 2))
    canvas.words(PYRAMID_PX - 8, row(4) + ROW_PX / 2 + 4, "every other cell", anchor="end")


def draw_levels(canvas: Canvas, network: Network) -> None:
    """What leaves the levels: all of them to the proposal head, the finer four also to the second stage."""
    for level, ((side,), count) in enumerate(zip(anchor_sides_px(network), network.level_sizes, strict=True)):
        y, start = row(level), PYRAMID_PX + width_of(network, "levels", level) * 0.3
        canvas.wire((start + 1, y), (PROPOSED_PX, y))
        canvas.words(POOLED_PX + 9, y - 6, f"{side} px", anchor="start")
        canvas.words(PROPOSED_PX - 8, y - 6, f"{count:,}", anchor="end", dark=True)
        canvas.dot(PROPOSED_PX, y)
        if level < network.detector.num_pooled:
            canvas.dot(POOLED_PX, y)
    canvas.wire((PROPOSED_PX, row(0)), (PROPOSED_PX, row(4)))


def draw_second_stage(canvas: Canvas, network: Network, regions_px: tuple[float, float], y: float) -> None:
    """From the levels and from the regions, which come from the point `regions_px`, to classes and boxes."""
    x, config = 584, network.detector.config
    canvas.arrow((POOLED_PX, row(network.detector.num_pooled - 1)), (POOLED_PX, y), (x - 62, y))
    canvas.words(POOLED_PX - 8, y + 4, f"P2 … P{1 + network.detector.num_pooled}", size=12, anchor="end", dark=True)
    left, top = regions_px
    canvas.arrow((left, top), (left, y - 62), (x, y - 62), (x, y - 25))
    canvas.box(x, y, 120, 46, PURPLE, network.size("pooled"), pooling_words(network))
    head = network.part("roi_head")
    for name, layer, x in (("fc6", head.fc6, 714), ("fc7", head.fc7, 822)):
        canvas.arrow((x - 69 if name == "fc6" else x - 62, y), (x - 47, y))
        canvas.box(x, y, 90, 46, PURPLE, f"{name}, {layer.out_features}", "ReLU")
    draw_predictor(canvas, network, 950, y, start=868)
    level = (
        f"its level k = ⌊4 + log2(√(w h) / {config.pooling.canonical_px})⌋, 2 ≤ k ≤ {1 + network.detector.num_pooled}"
    )
    classes, *boxes = predictor_words(network)
    canvas.words(244, y - 4, "second stage: the class of each region", size=15, bold=True)
    canvas.words(244, y + 14, "the finer levels alone", size=11.5)
    notes = [
        f"the {sum(network.level_sizes):,} anchors have {anchor_words(network)}",
        training_words(network),
        f"a region of w × h px is read from {level}",
        *(classes, " ".join(boxes)),
    ]
    for index, line in enumerate(notes):
        canvas.words(POOLED_PX + 10, y + 78 + 19 * index, line, size=12, anchor="start")


def faster_rcnn(path: Path) -> None:
    """ResNet-101 with the pyramid, as the table's row has it."""
    network = Network("faster_rcnn_r101_fpn")
    meaning = (
        "Faster R-CNN: a pyramid P2 to P6 on ResNet-101; a shared head proposes regions on all five levels, "
        "each region is cut from its level, and two layers give classes and boxes"
    )
    canvas = Canvas(1020, 630, title="Faster R-CNN on a feature pyramid", meaning=meaning)
    canvas.heading(BACKBONE_PX, "ResNet-101", "height × width × channels")
    canvas.heading(PYRAMID_PX, "pyramid", f"{network.channels('levels')} channels")
    per_cell = network.detector.config.anchors.per_cell
    canvas.heading(548, "anchors", f"{per_cell} in each cell")
    canvas.heading(800, "first stage: proposals", "one head for all levels")
    draw_column(canvas, network, BACKBONE_PX, resnet_maps(network), top=row(3), row_px=ROW_PX)
    draw_pyramid(canvas, network)
    draw_levels(canvas, network)
    canvas.arrow((PROPOSED_PX, row(3)), (652, row(3)))
    draw_proposals(canvas, network, 706, row(3), down_px=124)
    draw_second_stage(canvas, network, (820, row(3) + 124 + 27), 456)
    canvas.write(path)
