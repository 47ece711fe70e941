"""YOLOv2: DarkNet-19, the passthrough, and one convolution that predicts everything on one grid."""

from pathlib import Path

from drawing.canvas import BLUE, GREEN, ORANGE, Canvas
from drawing.network import Network, convolution


def draw_darknet(canvas: Canvas, network: Network, x: float) -> dict[str, float]:
    """DarkNet-19 from bottom to top; the heights of C4 and C5."""
    heights = {}
    blocks = network.part("backbone.blocks")
    for index, block in enumerate(blocks):
        name = f"C{index}" if index >= 2 else f"block {index + 1}"
        part = f"backbone.blocks.{index}"
        y = 104 + (len(blocks) - 1 - index) * 60
        width = 82 + 12 * (len(blocks) - index)
        count = len(block)
        canvas.box(x, y, width, 38, BLUE, name, f"{count} convolution{'s' if count > 1 else ''}")
        canvas.words(x - width / 2 - 7, y + 4, network.size(part), anchor="end")
        if index:
            canvas.arrow((x, y + 40), (x, y + 21))
            canvas.words(x + 10, y + 34, "pool 2 × 2", anchor="start")
        heights[name] = y
    canvas.arrow((x, 104 + 5 * 60 + 40), (x, 104 + 5 * 60 + 21))
    canvas.words(x, 104 + 5 * 60 + 56, f"image, {network.side_px} × {network.side_px}, letterbox", size=13, dark=True)
    return heights


def draw_cell(canvas: Canvas, network: Network, left: float, top: float) -> None:
    """The anchors of the middle cell on the whole grid, to scale."""
    rows, columns, _ = network.shapes["predict"][0]
    cell = 11
    for line in range(columns + 1):
        canvas.line((left + cell * line, top), (left + cell * line, top + cell * rows))
    for line in range(rows + 1):
        canvas.line((left, top + cell * line), (left + cell * columns, top + cell * line))
    for width, height in network.detector.config.anchors:
        canvas.outline(left + cell * columns / 2, top + cell * rows / 2, cell * width, cell * height)
    canvas.words(left + cell * columns / 2, top + cell * rows + 18, f"{rows} × {columns} cells of 32 px")


def draw_prediction(canvas: Canvas, network: Network, upper: float, lower: float) -> None:
    """From C5 (at the height `upper`) and C4 (`lower`) to what a cell predicts."""
    middle, rows = (upper + lower) / 2, network.shapes["top.1"][0][0]
    joined = network.part("merge.conv").in_channels
    canvas.arrow((238, upper), (355, upper))
    canvas.arrow((244, lower), (355, lower))
    for name, x, y in (("top.0", 400, upper), ("top.1", 530, upper), ("passthrough", 400, lower)):
        kernel = convolution(network.part(f"{name}.conv"))
        canvas.box(x, y, 86, 40, GREEN, kernel, str(network.channels(name)))
        canvas.arrow((x + 44, y), (x + 84 if x == 400 else x + 124, y), *([(654, middle - 13)] if x > 400 else []))
    canvas.box(530, lower, 86, 40, GREEN, "reorganise", f"{rows} × {rows} × {joined - network.channels('top')}")
    canvas.arrow((574, lower), (654, lower), (654, middle + 13))
    canvas.sign(654, middle, "‖")
    canvas.words(668, middle - 8, str(joined), anchor="start")
    canvas.arrow((664, middle), (716, middle))
    canvas.box(760, middle, 84, 44, GREEN, convolution(network.part("merge.conv")), str(network.channels("merge")))
    canvas.arrow((803, middle), (840, middle))
    canvas.box(890, middle, 96, 52, ORANGE, convolution(network.part("predict")), network.size("predict"))
    canvas.words(890, middle + 44, "linear")


def yolov2(path: Path) -> None:
    """YOLOv2 at the size of the paper's row."""
    network = Network("yolov2")
    config = network.detector.config
    canvas = Canvas(980, 500, title="YOLOv2", meaning="YOLOv2: DarkNet-19, passthrough and one grid of predictions")
    canvas.heading(190, "DarkNet-19", "height × width × channels")
    canvas.heading(600, "passthrough and prediction", "BatchNorm and leaky ReLU after each convolution but the last")
    heights = draw_darknet(canvas, network, 190)
    draw_prediction(canvas, network, heights["C5"], heights["C4"])
    draw_cell(canvas, network, 400, 238)
    count, classes = len(config.anchors), config.num_classes
    canvas.words(630, 262, f"{count} anchors in every cell, here to scale", size=13, anchor="start", bold=True)
    notes = [
        f"{count} · (4 + 1 + {classes}) = {network.channels('predict')} numbers for a cell",
        "4: the centre in its cell, σ(t_x) and σ(t_y);",
        "ln of the sides over the anchor's, t_w and t_h",
        "1: objectness, σ(t_o)",
        f"{classes}: softmax over the classes",
        "‖: side by side, first the passthrough",
    ]
    for index, line in enumerate(notes):
        canvas.words(630, 288 + 20 * index, line, size=12, anchor="start")
    canvas.write(path)
