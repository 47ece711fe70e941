"""SSD513: backbone and extra layers from bottom to top, and what predicts on each of the seven maps."""

from itertools import pairwise
from pathlib import Path

from drawing.canvas import BLUE, GREEN, ORANGE, PURPLE, RED, Canvas
from drawing.network import Network, convolution

ROW_PX, TOP_PX, MAP_PX = 46, 92, 32  # distance of the maps, where the coarsest one lies, their height
COARSEST = 6


def row(level: int) -> float:
    """The y of the map of a level, the coarsest at the top; C4, which does not predict, has its own."""
    return TOP_PX + (COARSEST - level + (level == 0)) * ROW_PX


def map_width(side: int) -> float:
    """Maps grow with the logarithm of their side: 1 cell is 36 px wide, 513 are 144."""
    return 36 + 12 * side.bit_length() - 12


def draw_encoder(canvas: Canvas, network: Network, x: float) -> list[float]:
    """Backbone and extra layers from bottom to top; the widths of the maps of all levels, finest first."""
    detector = network.detector
    places, count = detector.source_maps, len(detector.extras)
    levels = [("backbone", index, f"C{index + 2}") for index in places]
    levels += [(f"extras.{extra}", 0, f"E{extra + 1}") for extra in range(count)]
    widths = []
    for level, (part, index, name) in enumerate(levels):
        cells = network.shapes[part][index][0]
        widths.append(map_width(cells))
        canvas.box(x, row(level), widths[-1], MAP_PX, BLUE if part == "backbone" else GREEN, name)
        canvas.words(x - widths[-1] / 2 - 7, row(level) + 4, network.size(part, index), anchor="end")
    for extra in range(count):
        level = len(places) + extra
        canvas.arrow((x, row(level - 1) - MAP_PX / 2 - 1), (x, row(level) + MAP_PX / 2 + 2))
        first = network.part(f"extras.{extra}.conv1")
        words = f"unit of {convolution(first)}, stride {first.stride[0]}"
        canvas.words(x + 10, row(level) + ROW_PX / 2 + 4, words, anchor="start")
    draw_stem(canvas, network, x)
    return widths


def draw_stem(canvas: Canvas, network: Network, x: float) -> None:
    """The maps of the backbone that do not predict, and the image."""
    finest = row(0)
    spread = network.part("backbone").layer4[0].conv2.dilation[0]
    maps = [
        ("C4", "backbone", 2, finest - ROW_PX, f"3 × 3, dilation {spread}, stride 1"),
        ("C2", "backbone", 0, finest + ROW_PX, ""),
        ("conv1", "backbone.conv1", 0, finest + 2 * ROW_PX, "pool 3 × 3, stride 2, rounds up"),
    ]
    first = network.part("backbone.conv1")
    for name, part, index, y, above in maps:
        width = map_width(network.shapes[part][index][0])
        canvas.box(x, y, width, MAP_PX, BLUE, name)
        canvas.words(x - width / 2 - 7, y + 4, network.size(part, index), anchor="end")
        canvas.words(x + 10, y - ROW_PX / 2 + 4, above, anchor="start")
    for index in range(-1, 3):
        y = finest + index * ROW_PX
        canvas.arrow((x, y - MAP_PX / 2 - 1), (x, y - ROW_PX + MAP_PX / 2 + 2))
    bottom = finest + 2 * ROW_PX + MAP_PX / 2
    canvas.arrow((x, bottom + 22), (x, bottom + 2))
    canvas.words(x + 10, bottom + 18, f"{convolution(first)}, stride {first.stride[0]}", anchor="start")
    canvas.words(x, bottom + 38, f"image, {network.side_px} × {network.side_px}, warped", size=13, dark=True)


def draw_predictors(canvas: Canvas, network: Network, starts: list[float], x: float) -> None:
    """On each map its own prediction module, and what follows it; `starts` are the right ends of the maps."""
    per_cell, values = network.detector.config.priors.per_cell, network.part("predictors.0").values
    for level, start in enumerate(starts):
        name, y = f"predictors.{level}", row(level)
        canvas.arrow((start + 1, y), (x - 38, y))
        canvas.box(x, y, 72, MAP_PX, PURPLE, str(network.channels(f"{name}.module")))
        last = x + 36
        predictor = network.part(name)
        if predictor.class_inter is not None:
            canvas.arrow((last + 1, y), (last + 20, y))
            inter = f"{convolution(predictor.class_inter.conv)}, {network.channels(f'{name}.class_inter')}"
            canvas.box(last + 70, y, 96, MAP_PX, PURPLE, inter)
            last += 118
        kernel = convolution(predictor.classes)
        canvas.arrow((last + 1, y), (last + 20, y))
        canvas.box(last + 72, y, 100, MAP_PX, ORANGE, f"{kernel}, {network.channels(f'{name}.classes')}")
        canvas.box(last + 164, y, 78, MAP_PX, RED, f"{kernel}, {network.channels(f'{name}.boxes')}")
        priors = per_cell * network.shapes[f"{name}.classes"][0][0] * network.shapes[f"{name}.classes"][0][1]
        canvas.words(last + 272, y + 4, f"{priors:,}", size=12, anchor="end", dark=True)
    canvas.words(last + 72, 70, f"{per_cell} · {values} each cell", size=11.5)
    canvas.words(last + 164, 70, f"{per_cell} · 4", size=11.5)
    canvas.words(last + 272, 70, "priors", size=11.5, anchor="end")


def draw_module(canvas: Canvas, network: Network, x: float, y: float) -> None:
    """The form of all prediction modules, from bottom to top: three convolutions beside the one of the shortcut."""
    part = "predictors.0.module"
    inner, widened = ("W", f"{network.channels(part) // network.channels(f'{part}.conv1')} W")
    left, right = x - 50, x + 50
    rows = [y - index * 56 for index in range(3)]
    for name, width, here in zip(("conv1", "conv2", "conv3"), (inner, inner, widened), rows, strict=True):
        canvas.box(left, here, 84, 34, PURPLE, f"{convolution(network.part(f'{part}.{name}'))}, {width}")
    canvas.box(right, rows[1], 84, 34, PURPLE, f"{convolution(network.part(f'{part}.project'))}, {widened}")
    for below, above in pairwise(rows):
        canvas.arrow((left, below - 18), (left, above + 20))
        canvas.words(left - 6, (below + above) / 2 + 4, "ReLU", anchor="end")
    fork, join = y + 36, rows[2] - 44
    canvas.arrow((x, fork + 16), (x, fork), (left, fork), (left, y + 20))
    canvas.arrow((x, fork), (right, fork), (right, rows[1] + 20))
    canvas.arrow((left, rows[2] - 18), (left, join), (x - 12, join))
    canvas.arrow((right, rows[1] - 18), (right, join), (x + 12, join))
    canvas.sign(x, join, "+")
    canvas.arrow((x, join - 10), (x, join - 30))
    canvas.words(x + 10, join - 18, "ReLU", anchor="start")
    canvas.words(x, fork + 30, "the map", size=12, dark=True)


def module_widths(network: Network) -> list[str]:
    """Which W each map has, a line for each."""
    widths: dict[int, list[str]] = {}
    for level in range(len(network.detector.predictors)):
        width = network.channels(f"predictors.{level}.module.conv1")
        widths.setdefault(width, []).append(str(network.shapes[f"predictors.{level}.classes"][0][0]))
    return [f"W = {width} for sides of {', '.join(sides)} cells" for width, sides in widths.items()]


def ssd(path: Path) -> None:
    """SSD513: backbone and extra layers, and what predicts on each map."""
    network = Network("ssd513_r101")
    meaning = "SSD513: ResNet-101 and five extra layers; seven maps, each with its own prediction module"
    canvas = Canvas(980, 580, title="SSD", meaning=meaning)
    canvas.heading(190, "backbone and extra layers", "ResNet-101; height × width × channels")
    canvas.heading(400, "module (c)", "")
    canvas.heading(508, "classes")
    canvas.heading(600, "boxes")
    canvas.heading(845, "prediction module (c)", "BatchNorm after each of the four")
    widths = draw_encoder(canvas, network, 190)
    draw_predictors(canvas, network, [190 + width / 2 for width in widths], 400)
    draw_module(canvas, network, 845, 262)
    for index, line in enumerate(module_widths(network)):
        canvas.words(845, 354 + 17 * index, line)
    total = sum(sizes[0][0] * sizes[0][1] for part, sizes in network.shapes.items() if part.endswith(".classes"))
    per_cell = network.detector.config.priors.per_cell
    ratios = ", ".join(f"{ratio:g}" for ratio in network.detector.config.priors.elongations)
    notes = [
        f"{per_cell} priors in each cell, {per_cell * total:,} in all: two squares, the smaller one",
        f"stretched to width : height = {ratios}, and to 1 : {ratios}",
        "numbers of a prior: a softmax over 80 classes and the background, 4 of its box",
        "unit: as module (c), but 2 × 2 with stride 2 where it has 1 × 1 on the map",
    ]
    for index, line in enumerate(notes):
        canvas.words(440, 466 + 19 * index, line, size=12, anchor="start")
    canvas.write(path)
