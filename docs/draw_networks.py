"""Draw ssd.svg, dssd.svg and yolov2.svg: the networks with the sizes that they have, read from the built networks."""

import argparse
from pathlib import Path

from drawing.dssd import dssd
from drawing.ssd import ssd
from drawing.yolov2 import yolov2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the pictures")
    out = parser.parse_args().out
    for draw in (ssd, dssd, yolov2):
        draw(out / f"{draw.__name__}.svg")


if __name__ == "__main__":
    main()
