"""`focaldet models`: the detectors there are, listed without torch, whose import alone takes seconds."""

import json as json_format
import sys
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from focaldet.cli import Switch
from focaldet.cli.output import print_json, print_table, say


def models_command(*, json: Switch = False) -> None:
    """List the detectors.

    Args:
        json: Print JSON.
    """
    rows = read_rows()
    if json:
        print_json(rows)
        return
    columns = ["NAME", "BACKBONE", "CLASSES", "PARAMETERS", "AP", "AP50", "AP75", "APS", "APM", "APL", "INPUT"]
    print_table([columns, *map(_cells, rows)], left={0, 1, 10})
    say("AP: percent on COCO test-dev, as Lin et al. 2017 print it in table 2")
    say(f"ImageNet weights come with focaldet for: {', '.join(embedded_backbones())}")
    say("any backbone of timm: --architecture.backbone timm:NAME")


def read_rows() -> list[dict[str, Any]]:
    """The fields of a `DetectorRow` for each detector, in the order of the table of presets.

    They are read from `detectors.json`, which `docs/list_detectors.py` writes and a test compares with the detectors.
    A program that has imported the presets may have registered some of its own: there all are built and counted.
    """
    if "focaldet.models" in sys.modules:
        from focaldet.models import published

        return [asdict(row) for row in published.detector_rows()]
    rows: list[dict[str, Any]] = json_format.loads(
        files("focaldet.cli").joinpath("detectors.json").read_text(encoding="utf-8")
    )
    return rows


def embedded_backbones() -> list[str]:
    """The backbones whose weights come with focaldet, by the names of their files."""
    names = (file.name for file in files("focaldet").joinpath("weights", "embedded").iterdir())
    return sorted(name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors"))


def _cells(row: dict[str, Any]) -> list[str]:
    """A line of the table: name, backbone, classes, parameters, the six figures, input."""
    published = row["published"]
    figures = [f"{value:.1f}" for value in published.values()] if published else ["-"] * 6
    return [row["name"], row["backbone"], str(row["num_classes"]), f"{row['num_parameters']:,}", *figures, row["input"]]
