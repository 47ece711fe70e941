"""Faster R-CNN on C4 of ResNet-101, and what "+++" adds: box refinement, global context, multi-scale testing."""

from pathlib import Path

import torch

from drawing.canvas import BLUE, GREEN, ORANGE, PURPLE, Canvas
from drawing.network import Network
from drawing.regions import (
    anchor_sides_px,
    anchor_words,
    draw_column,
    draw_predictor,
    draw_proposals,
    pooling_words,
    predictor_words,
    resnet_maps,
    short_fraction,
    training_words,
    width_of,
)
from focaldet.models.faster_rcnn.plus import nearest_scales

TRUNK_PX, FORK_PX, LINE_PX = 172, 288, 292  # the backbone, where C4 goes both ways, the height of the second stage
CARD_TOP_PX, CARD_PX, CARDS_PX = 400, (308, 324), (20, 346, 672)  # width and height, left ends
EXAMPLE_PX = 190  # the sides of a region
REFINED_BOXES = {"best_class": "the box of the most probable class", "every_class": "the boxes of all likely classes"}


def draw_second_stage(canvas: Canvas, network: Network) -> None:
    """Pooled, conv5, mean and predictor from left to right, and where the three additions belong."""
    y, head = LINE_PX, network.part("roi_head")
    canvas.box(414, y, 118, 46, PURPLE, network.size("pooled"), pooling_words(network))
    canvas.box(554, y, 112, 46, PURPLE, network.size("roi_head.tail"), "conv5")
    canvas.arrow((474, y), (496, y))
    canvas.arrow((611, y), (634, y))
    canvas.box(675, y, 78, 46, PURPLE, str(head.width), "mean")
    canvas.arrow((715, y), (748, y))
    canvas.badge(731, y - 14, "3")
    canvas.sign(759, y, "‖")
    canvas.badge(779, y - 18, "2")
    canvas.words(759, y - 50, f"whole image, {head.width}", dark=True)
    canvas.arrow((759, y - 42), (759, y - 12))
    canvas.words(816, y - 7, str(network.part("predictor").classes.in_features), dark=True)
    draw_predictor(canvas, network, 918, y, start=769)
    canvas.arrow((918, y + 48), (918, y + 74), (414, y + 74), (414, y + 25))
    canvas.badge(666, y + 74, "1")
    canvas.words(684, y + 66, "box refinement", anchor="start")


def draw_refinement(canvas: Canvas, network: Network, left: float, top: float) -> None:
    """Card 1: the second stage again at its own boxes, the detections of both together, a vote."""
    refine, keep = network.detector.config.plus.refine, network.detector.config.proposals.detect.keep
    first, second, middle, y = left + 76, left + 232, left + 154, top + 110
    canvas.words(middle, top + 78, REFINED_BOXES[refine.boxes])
    canvas.box(first, y, 108, 42, GREEN, "first pass", f"{keep} regions")
    canvas.arrow((first + 55, y), (second - 56, y))
    canvas.box(second, y, 108, 42, GREEN, "second pass", f"{keep} boxes")
    for x in (first, second):
        canvas.arrow((x, y + 22), (x, y + 54), (middle + (11 if x > middle else -11), y + 54))
    canvas.sign(middle, y + 54, "∪")
    canvas.words(middle + 18, y + 76, f"{2 * keep} detections", anchor="start")
    canvas.arrow((middle, y + 64), (middle, y + 87))
    canvas.box(middle, y + 106, 200, 36, ORANGE, f"NMS at {short_fraction(refine.nms_iou)} in each class")
    canvas.arrow((middle, y + 125), (middle, y + 141))
    lines = ("vote: the mean, by score,", f"of all boxes with IoU ≥ {short_fraction(refine.vote_iou)}")
    canvas.box(middle, y + 166, 200, 46, ORANGE, *lines)


def draw_context(canvas: Canvas, network: Network, left: float, top: float) -> None:
    """Card 2: the whole image through the same layers."""
    width, join = network.part("roi_head").width, left + 246
    rows = {"a region": top + 102, "the whole image": top + 182}
    middle = sum(rows.values()) / 2
    for name, y in rows.items():
        canvas.words(left + 16, y - 28, name, size=12, anchor="start", dark=True)
        canvas.arrow((left + 16, y), (left + 34, y))
        same = ("the same weights",) if y > middle else ()
        canvas.box(left + 108, y, 144, 42, PURPLE, "pool, conv5, mean", *same)
        canvas.arrow((left + 181, y), (join, y), (join, middle + (11 if y > middle else -11)))
        canvas.words(join + 7, y + 4, str(width), anchor="start")
    canvas.sign(join, middle, "‖")
    predictor, y = network.part("predictor"), top + 266
    canvas.arrow((join + 10, middle), (left + 290, middle), (left + 290, y), (left + 204, y))
    canvas.words(left + 284, y - 7, str(predictor.classes.in_features), anchor="end", dark=True)
    outputs = f"{predictor.classes.out_features} classes, {predictor.boxes.out_features} boxes"
    canvas.box(left + 118, y, 170, 42, ORANGE, "predictor", outputs)


def draw_scales(canvas: Canvas, network: Network, left: float, top: float) -> None:
    """Card 3: five maps, of which each region takes two neighbors."""
    config, join = network.detector.config, left + 286
    region = torch.tensor([[0.0, 0.0, EXAMPLE_PX, EXAMPLE_PX]])
    chosen = sorted(nearest_scales(region, network.views, canonical_px=config.pooling.canonical_px)[0].tolist())
    sides = [round(network.side_px * scale) for scale in config.plus.scales]
    rows = [top + 78 + index * 34 for index in range(len(sides))]
    y = rows[-1] + 42
    for index, (side, here) in enumerate(zip(sides, rows, strict=True)):
        part, x = f"views.{index}", left + 130
        width, (height, columns, _) = width_of(network, part), network.shapes[part][0]
        canvas.words(left + 14, here + 4, f"{side} px", size=12, anchor="start", dark=True)
        canvas.box(x, here, width, 28, PURPLE if index in chosen else BLUE, f"{height} × {columns}")
        if index in chosen:
            canvas.arrow((x + width / 2 + 1, here), (left + 191, here))
            canvas.box(left + 228, here, 72, 28, PURPLE, "… mean")
            canvas.arrow((left + 265, here), (join, here), (join, y - 18))
    canvas.box(left + 198, y, 198, 32, PURPLE, f"element-wise max, {network.part('roi_head').width}")
    canvas.words(left + 154, y + 37, f"the two in which √(w h) is nearest to {config.pooling.canonical_px} px:")
    names = " and ".join(str(sides[index]) for index in chosen)
    canvas.words(left + 154, y + 53, f"{names} for one of {EXAMPLE_PX} × {EXAMPLE_PX} px")


def draw_cards(canvas: Canvas, network: Network) -> None:
    """The three additions side by side."""
    titles = {
        "box refinement": "when predicting",
        "global context": "trained with the network",
        "multi-scale testing": "when predicting; proposals as before",
    }
    draws = (draw_refinement, draw_context, draw_scales)
    for number, (title, draw, left) in enumerate(zip(titles, draws, CARDS_PX, strict=True), start=1):
        canvas.card(left, CARD_TOP_PX, *CARD_PX)
        canvas.badge(left + 24, CARD_TOP_PX + 24, str(number))
        canvas.words(left + 42, CARD_TOP_PX + 29, title, size=15, anchor="start", bold=True)
        canvas.words(left + 42, CARD_TOP_PX + 46, titles[title], size=11.5, anchor="start")
        draw(canvas, network, left, CARD_TOP_PX)


def faster_rcnn_c4(path: Path) -> None:
    """The network of the ResNet paper's table."""
    network = Network("faster_rcnn_r101_c4_plus")
    meaning = (
        "Faster R-CNN+++: proposals on C4 of ResNet-101, conv5 on each region, "
        "and three additions: box refinement, global context, multi-scale testing"
    )
    canvas = Canvas(1000, 744, title="Faster R-CNN on C4, and +++", meaning=meaning)
    canvas.heading(TRUNK_PX, "ResNet-101 to C4", "height × width × channels")
    canvas.heading(462, "first stage: proposals", network.name)
    draw_column(canvas, network, TRUNK_PX, resnet_maps(network), top=124, row_px=60)
    canvas.wire((TRUNK_PX + width_of(network, "backbone", 2) / 2, 124), (FORK_PX, 124))
    canvas.dot(FORK_PX, 124)
    canvas.arrow((FORK_PX, 124), (306, 124))
    canvas.arrow((FORK_PX, 124), (FORK_PX, LINE_PX), (353, LINE_PX))
    draw_proposals(canvas, network, 362, 124, down_px=92)
    canvas.arrow((414, 243), (414, LINE_PX - 25))
    draw_second_stage(canvas, network)
    ((*sides,),) = anchor_sides_px(network)
    notes = [
        f"{network.detector.config.anchors.per_cell} anchors in each cell, {sum(network.level_sizes):,} in all:",
        f"sides of {', '.join(map(str, sides))} px,",
        anchor_words(network),
        training_words(network),
        *predictor_words(network),
    ]
    for index, line in enumerate(notes):
        canvas.words(640, 84 + 19 * index, line, size=12, anchor="start")
    draw_cards(canvas, network)
    canvas.write(path)
