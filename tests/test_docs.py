"""The code on the pages of the guide runs; the site is built from docs/ with every link checked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import focaldet
from focaldet.config import to_dict
from focaldet.data import config, splits
from focaldet.data.augment.config import AUGMENT_PRESETS, AugmentConfig
from focaldet.data.formats import registry
from focaldet.models.presets import PRESETS

REPOSITORY = Path(__file__).resolve().parent.parent
GUIDE = REPOSITORY / "docs" / "guide"


def code_of(page, title):
    """The Python block of a page with this title."""
    text = (GUIDE / f"{page}.md").read_text(encoding="utf-8")
    return re.search(rf'```python title="{re.escape(title)}"\n(.*?)```', text, re.DOTALL)[1]


def code_lines(code):
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    return len(lines)


@pytest.fixture
def presets(monkeypatch):
    """The table of presets, as it was again afterwards."""
    before = dict(PRESETS)
    yield PRESETS
    PRESETS.clear()
    PRESETS.update(before)


def test_the_loss_of_the_guide_trains_a_detector(presets):
    code = code_of("extend", "poly_focal.py")
    names = {"__name__": "poly_focal"}
    exec(compile(code, "poly_focal.py", "exec"), names)
    assert code_lines(code) < 60
    assert {"sys", "main"} <= names.keys()  # what its last line calls when it is run as a program
    network = focaldet.build("retinanet_poly_focal", num_classes=3)
    target = focaldet.Target(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]), torch.tensor([False]))
    sizes = [focaldet.ImageSize(64, 64)]
    outputs = network(torch.rand(1, 3, 64, 64) * 255, sizes, [target])
    from focaldet.models import LossContext

    with_term = network.losses(outputs, [target], LossContext())["class"]
    network.config = names["PolyFocalConfig"](backbone="resnet18", frozen_stages=0, num_classes=3, epsilon=0.0)
    focal = network.losses(outputs, [target], LossContext())["class"]
    plain = focaldet.build("retinanet_r18_fpn", num_classes=3).losses(outputs, [target], LossContext())["class"]
    torch.testing.assert_close(focal, plain)
    assert with_term.item() > focal.item()
    with_term.backward()
    assert network.class_subnet.state_dict()


def test_the_format_of_the_guide_is_read(tmp_path, monkeypatch):
    from PIL import Image

    code = code_of("extend", "src/focaldet/data/formats/box_lines.py")
    names = {"__name__": "focaldet.data.formats.box_lines"}
    exec(compile(code, "box_lines.py", "exec"), names)
    assert code_lines(code) < 60
    row = registry.AnnotationFormat(names["find_box_lines"], names["read_box_lines"])
    for module in (config, splits, registry):  # all imported before, or they would keep this table for good
        monkeypatch.setattr(module, "FORMATS", {"box_lines": row})
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "train.txt").write_text("a.png 1,2,30,40,dog 5,5,20,20,cat\n")
    (tmp_path / "val.txt").write_text("b.png\n")
    parts = splits.open_splits(focaldet.DataConfig(path=tmp_path), seed=0)
    assert (len(parts.train), len(parts.val)) == (1, 1)
    assert parts.train.classes.names == ("cat", "dog")
    assert parts.train.boxes.tolist() == [[1, 2, 30, 40], [5, 5, 20, 20]]
    (tmp_path / "train.txt").write_text("a.png 1,2,30,40,bird\n")
    with pytest.raises(focaldet.DataError, match=r"train.txt · line 1: got 1,2,30,40,bird; must be"):
        splits.open_splits(focaldet.DataConfig(path=tmp_path), seed=0)


def test_the_table_of_formats_is_what_the_guide_says():
    line = code_of("extend", "src/focaldet/data/formats/registry.py").strip()
    assert re.fullmatch(r'"\w+": AnnotationFormat\((\w+), (\w+)\),', line)
    assert all(isinstance(row, registry.AnnotationFormat) for row in registry.FORMATS.values())


def test_every_path_of_the_map_exists():
    text = (GUIDE / "map.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(\.\./\.\./([^)#]+)\)", text)
    assert len(links) > 40
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_every_module_has_a_page_and_a_broken_link_is_found():
    sys.path.insert(0, str(REPOSITORY / "docs" / "site"))
    try:
        import hooks
    finally:
        sys.path.pop(0)
    assert "focaldet.training.trainer" in hooks.module_names()
    assert hooks.site_page("src/focaldet/ops/nms.py") == "reference/focaldet.ops.nms.md"
    assert hooks.site_page("src/focaldet/ops") == "reference/focaldet.ops.md"
    assert hooks.site_page("LOG.md") == "LOG.md"
    assert hooks.site_page("src/focaldet/ops/none.py") is None
    found = subprocess.run(
        [sys.executable, "-m", "mkdocs", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "mkdocs" in found.stdout


def augmentation_table():
    """The presets of the augmentation as Markdown: a row for each setting that some preset changes."""
    names = [name for name in AUGMENT_PRESETS if name != "none"]
    still, presets = to_dict(AugmentConfig("none")), [to_dict(AugmentConfig(name)) for name in names]
    rows = [["setting", *names], ["---"] * (len(names) + 1)]
    for setting, nothing in still.items():
        values = [preset[setting] for preset in presets]
        if setting != "preset" and any(value != nothing for value in values):
            cells = [" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]
            rows.append(
                [f"`{setting}`", *("" if value == nothing else cell for value, cell in zip(values, cells, strict=True))]
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_the_guide_has_the_presets_of_the_augmentation_as_they_are():
    table, text = augmentation_table(), (GUIDE / "training.md").read_text(encoding="utf-8")
    assert table in text, f"docs/guide/training.md must have this table:\n{table}"
    for name in AUGMENT_PRESETS:
        line = AugmentConfig(name).describe()
        assert line.startswith(f"{name}: ") and "None" not in line and "null" not in line
    assert AugmentConfig("light").describe() == (
        "light: flip_horizontal 0.5, scale_jitter 0.8 1.25, hue 0.015, saturation 0.3, value 0.2"
    )
