"""Draw ssd.svg, dssd.svg, yolov2.svg and the three faster_rcnn*.svg: the networks, as they are built."""

import argparse
from pathlib import Path

from drawing.dssd import dssd
from drawing.faster_rcnn import faster_rcnn
from drawing.faster_rcnn_c4 import faster_rcnn_c4
from drawing.faster_rcnn_inception import faster_rcnn_inception
from drawing.ssd import ssd
from drawing.yolov2 import yolov2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the drawings")
    out = parser.parse_args().out
    for draw in (ssd, dssd, yolov2, faster_rcnn, faster_rcnn_c4, faster_rcnn_inception):
        draw(out / f"{draw.__name__}.svg")


if __name__ == "__main__":
    main()
