"""The facts of a run in a report: its data, its settings as they held, and where it was trained."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from focaldet import config as configs
from focaldet.data.dataset import Dataset
from focaldet.errors import CheckpointError, ConfigError
from focaldet.files import to_json_text
from focaldet.models import PRESETS
from focaldet.report.page import fold, section, table
from focaldet.weights import read_metadata
from focaldet.weights.sources import embedded_weights

SMALL_AREA, LARGE_AREA = 32**2, 96**2  # square pixels of the original image, as COCO has them
MOST_CLASSES_LISTED = 30
HASH, HASH_LETTERS = re.compile("[0-9a-f]{40,}"), 12
NOT_SETTINGS = ("resume", "overwrite", "out")
NOT_SET: Mapping[str, str] = {
    "device": "the best one of the machine",
    "precision": "bf16 where the hardware has it, else fp32",
    "threads": "as torch decides",
    "weights": "none: they were random",
    "weights_input": "as the weights file states",
    "frozen_stages": "as the preset",
    "size": "not given",
    "short_side": "not given",
    "max_side": "not given",
    "minutes": "not limited",
    "save_steps": "by minutes alone",
}
"""What a setting means that has no value; of all others: off."""


def facts_sections(run: Path, datasets: Sequence[Dataset]) -> str:
    """The data, the settings and the environment of a run folder, as far as there are any."""
    settings = read_if_there(run / "config.yaml")
    return (
        _data_section(datasets)
        + section("Settings", _phase_list(settings.get("phases")), settings_table(settings), _detector_block(run))
        + section("Environment", environment_table(run / "environment.json"))
    )


def _data_section(datasets: Sequence[Dataset]) -> str:
    """What is in the data; nothing without any."""
    parts = [data_table(datasets), _class_counts(datasets), *map(_problem_list, datasets)] if datasets else []
    return section("Data", *parts)


def data_table(datasets: Sequence[Dataset]) -> str:
    """Images and boxes of each split: how many, how large, how crowded."""
    rows = []
    for dataset in datasets:
        regular = dataset.flags == 0
        areas, images = dataset.areas[regular], max(1, len(dataset))
        sizes = ((areas < SMALL_AREA).sum(), ((areas >= SMALL_AREA) & (areas <= LARGE_AREA)).sum())
        counts = torch.diff(dataset.offsets)
        small, medium, large = (int(value) for value in (*sizes, (areas > LARGE_AREA).sum()))
        most = int(counts.max()) if len(counts) else 0
        rows.append(
            [
                escape(dataset.name),
                f"{len(dataset):,}",
                f"{int((counts == 0).sum()):,}",
                f"{int(regular.sum()):,}",
                f"{int((~regular).sum()):,}",
                f"{int(regular.sum()) / images:.1f} ({most})",
                f"{small:,} / {medium:,} / {large:,}",
                _size_range(dataset),
            ]
        )
    heads = ["Split", "Images", "Without boxes", "Boxes", "Ignored", "Per image (most)", "Small / medium / large"]
    return table([*heads, "Image size, px"], rows)


def _size_range(dataset: Dataset) -> str:
    """The smallest and the largest image, width × height."""
    if not len(dataset):
        return "-"
    sides = sorted({(int(width), int(height)) for height, width in dataset.sizes.tolist()}, key=lambda s: s[0] * s[1])
    texts = [f"{width} × {height}" for width, height in (sides[0], sides[-1])]
    return texts[0] if len(sides) == 1 else f"{texts[0]} to {texts[1]}"


def _class_counts(datasets: Sequence[Dataset]) -> str:
    """Boxes of each class in each split, the most frequent first."""
    counts = [
        Counter(each.classes.names[label] for label in each.labels[each.flags == 0].tolist()) for each in datasets
    ]
    names = list(dict.fromkeys(name for each in datasets for name in each.classes.names))
    listed = sorted(names, key=lambda name: -sum(column[name] for column in counts))[:MOST_CLASSES_LISTED]
    rows = [[escape(name), *(f"{column[name]:,}" for column in counts)] for name in listed]
    more = len(names) - len(rows)
    heads = ["Class", *(f"Boxes in {escape(each.name)}" for each in datasets)]
    return table(heads, rows) + (f"<p>and {more} classes with fewer boxes.</p>" if more else "")


def _problem_list(dataset: Dataset) -> str:
    name = escape(dataset.name)
    items = "".join(f"<li>{escape(line)}</li>" for line in dataset.problems.lines())
    return f"<p>{name}:</p><ul>{items}</ul>" if items else f"<p>{name}: no problems in the annotations.</p>"


def settings_table(settings: Mapping[str, Any]) -> str:
    """The settings that a run was started with; those without a value say what that means."""
    values = {name: value for name, value in settings.items() if name not in (*NOT_SETTINGS, "phases")}
    rows = [
        [escape(name), f"<code>{escape(text)}</code>"]
        for name, value in configs.flatten(values).items()
        if (text := setting_text(name, value, settings))
    ]
    return fold("Settings of the training", table(["Setting", "Value"], rows, text_columns=[1])) if rows else ""


def setting_text(name: str, value: Any, settings: Mapping[str, Any] | None = None) -> str:
    """A value for people; empty for parts of the data that were not named one by one.

    What a setting without a value means may depend on the other `settings` of the run.
    """
    if value is None and name == "frozen_stages":
        return _frozen_text(settings or {})
    if value is None:
        return "" if name.startswith("data.") else NOT_SET.get(name, "off")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value in ([], {}, ()):
        return "none"
    return value if isinstance(value, str) else to_json_text(value)


def _frozen_text(settings: Mapping[str, Any]) -> str:
    """The stages that stay fixed where `frozen_stages` does not say: those of the preset, none of random weights."""
    architecture = settings.get("architecture")
    architecture = architecture if isinstance(architecture, Mapping) else {}
    if "frozen_stages" in architecture:
        return f"{architecture['frozen_stages']}, as the architecture says"
    weights = settings.get("weights", "auto")
    if weights == "auto":
        preset = PRESETS.get(str(settings.get("model")))
        backbone = architecture.get("backbone", None if preset is None else preset.config.backbone)
        weights = "of the preset" if preset is None else embedded_weights(backbone)
    return NOT_SET["frozen_stages"] if weights is not None else "0, as the weights were random"


def _detector_block(run: Path) -> str:
    """What the weights file says of the detector: every setting of its architecture, and its input."""
    path = run / "weights" / "best.safetensors"
    if not path.is_file():
        return ""
    try:
        metadata = read_metadata(path)
    except (CheckpointError, ConfigError):
        return ""
    resize = metadata.preprocessing.resize
    rows = [["input", str(resize)], ["channels", metadata.preprocessing.channels]]
    rows += [[name, setting_text(name, value)] for name, value in configs.flatten(metadata.config).items()]
    cells = [[escape(name), f"<code>{escape(text)}</code>"] for name, text in rows]
    title = f"The detector: {metadata.model or metadata.architecture}"
    return fold(title, table(["Setting", "Value"], cells, text_columns=[1]))


def environment_table(path: Path) -> str:
    """Versions, machine, seed and the fingerprints of the data; nothing without the file."""
    rows = [[escape(name), escape(_short_text(value))] for name, value in configs.flatten(read_if_there(path)).items()]
    return table(["Name", "Value"], rows, text_columns=[1]) if rows else ""


def read_if_there(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; an empty one without the file, which a new start of the run may remove.

    Raises:
        ConfigError: it is there and cannot be read.
    """
    try:
        return configs.read_mapping(path)
    except ConfigError:
        if path.is_file():
            raise
        return {}


def _short_text(value: object) -> str:
    """A value as text; of a hash its beginning, which tells it from all others."""
    text = "unknown" if value is None else str(value)
    return f"{text[:HASH_LETTERS]}…" if HASH.fullmatch(text) else text


def _phase_list(phases: object) -> str:
    """The phases of the run with the settings of each; nothing where there are none."""
    known = [phase for phase in phases if isinstance(phase, dict)] if isinstance(phases, list) else []
    if not known or not all(type(phase.get("epochs")) is int for phase in known):
        return ""
    items, begin = [], 1
    for phase in known:
        changes = {name: value for name, value in phase.items() if name != "epochs"}
        text = ", ".join(f"{name} {setting_text(name, value)}" for name, value in configs.flatten(changes).items())
        items.append(f"<li>epochs {begin} to {begin + phase['epochs'] - 1}: {escape(text) or 'as the run'}</li>")
        begin += phase["epochs"]
    return f"<p>Phases:</p><ol>{''.join(items)}</ol>"
