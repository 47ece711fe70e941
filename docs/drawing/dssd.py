"""DSSD513: SSD's encoder, the decoder that goes back to the finest map, and what predicts on each map."""

from pathlib import Path

from drawing.canvas import GREEN, ORANGE, Canvas
from drawing.network import Network, convolution
from drawing.ssd import MAP_PX, draw_encoder, draw_predictors, map_width, row


def draw_decoder(canvas: Canvas, network: Network, x: float, starts: list[float]) -> list[float]:
    """The maps of the decoder beside those of the encoder, from the coarsest down; their right ends, finest first."""
    ends = []
    coarsest = len(starts) - 1
    for level, start in enumerate(starts):
        cells, _, channels = network.shapes["decoder"][level]
        width = max(map_width(cells), 48)
        canvas.arrow((start + 1, row(level)), (x - width / 2 - 3, row(level)))
        canvas.box(x, row(level), width, MAP_PX, GREEN if level == coarsest else ORANGE, str(channels))
        if level < coarsest:
            canvas.arrow((x, row(level + 1) + MAP_PX / 2 + 1), (x, row(level) - MAP_PX / 2 - 2))
        ends.append(x + width / 2)
    return ends


def draw_deconvolution(canvas: Canvas, network: Network, x: float, y: float) -> None:
    """The form of all deconvolution modules, from left to right."""
    step = "decoder.steps.0"
    up = network.part(f"{step}.up")
    canvas.words(x + 280, y - 70, "deconvolution module", size=15, bold=True)
    upper, lower, middle = y - 32, y + 32, y
    canvas.words(x, upper + 4, "coarser map", size=12, anchor="start", dark=True)
    canvas.words(x, lower + 4, "encoder's map", size=12, anchor="start", dark=True)
    wide = str(network.channels(f"{step}.up"))
    stages = {
        upper: [
            (f"{convolution(up)} up, {wide}", f"transposed, stride {up.stride[0]}"),
            (f"{convolution(network.part(f'{step}.up_conv.conv'))}, {wide}", "BatchNorm"),
        ],
        lower: [
            (f"{convolution(network.part(f'{step}.fine_conv1.conv'))}, {wide}", "BatchNorm, ReLU"),
            (f"{convolution(network.part(f'{step}.fine_conv2.conv'))}, {wide}", "BatchNorm"),
        ],
    }
    join = x + 438
    for height, boxes in stages.items():
        canvas.arrow((x + 88, height), (x + 105, height))
        for index, lines in enumerate(boxes):
            canvas.box(x + 165 + 142 * index, height, 116, 44, ORANGE, *lines)
        canvas.arrow((x + 224, height), (x + 247, height))
        canvas.arrow((x + 366, height), (join, height), (join, middle + (11 if height > middle else -11)))
    canvas.sign(join, middle, "×")
    canvas.arrow((join + 10, middle), (join + 62, middle))
    canvas.words(join + 34, middle - 7, "ReLU")
    canvas.words(join + 66, middle + 4, f"map of {wide}", size=12, anchor="start", dark=True)


def dssd(path: Path) -> None:
    """DSSD513: the encoder is SSD's; deconvolution modules go back to the finest map before anything is predicted."""
    network = Network("dssd513_r101")
    meaning = "DSSD513: encoder, decoder of six deconvolution modules, and what predicts on each of seven maps"
    canvas = Canvas(1000, 610, title="DSSD", meaning=meaning)
    canvas.heading(170, "encoder", "SSD's backbone and extra layers")
    canvas.heading(386, "decoder", "deconvolution, product")
    canvas.heading(540, "module (c)", f"W = {network.channels('predictors.0.module.conv1')}")
    canvas.heading(646, "two branches", "for classes and for boxes")
    canvas.heading(766, "classes")
    canvas.heading(858, "boxes")
    widths = draw_encoder(canvas, network, 170)
    starts = [170 + width / 2 for width in widths]
    ends = draw_decoder(canvas, network, 386, starts)
    draw_predictors(canvas, network, ends, 540)
    draw_deconvolution(canvas, network, 380, 542)
    canvas.write(path)
