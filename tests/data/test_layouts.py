"""Every layout as its tool writes it: recognized, read with the boxes that were written, and clean of false alarms."""

import pytest

from focaldet.data.config import DataConfig
from focaldet.data.splits import find_parts, inspect_splits, open_parts, open_splits
from focaldet.training.config import RunConfig
from focaldet.training.trainer import train
from tests.data.layouts import LAYOUTS


def contents_of(dataset):
    names = dataset.classes.names
    return {
        dataset.path(i).name: [
            (names[label], pytest.approx(box, abs=1e-3))
            for label, box in zip(dataset.target(i).labels.tolist(), dataset.target(i).boxes.tolist(), strict=True)
        ]
        for i in range(len(dataset))
    }


def assert_is(dataset, contents, *, background):
    wanted = {name: boxes for name, boxes in contents.items() if boxes or background}
    assert contents_of(dataset) == {name: [(label, list(box)) for label, box in b] for name, b in wanted.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognized_and_read(tmp_path, name):
    layout = LAYOUTS[name]
    wanted = layout.write(tmp_path)
    config = DataConfig(path=tmp_path)
    parts = find_parts(config)
    assert {part.layout.format for part in parts.values()} == {layout.format}
    assert set(parts) == set(wanted)
    datasets = open_parts(config, parts)
    for split, contents in wanted.items():
        assert_is(datasets[split], contents, background=layout.background)
    inspection = inspect_splits(config, seed=0)
    assert inspection.problems.count("error") == 0
    assert {kind for severity, kind in inspection.problems.counts if severity == "warning"} <= (
        set() if layout.background else {"image unused"}
    )
    splits = open_splits(config, seed=0)
    assert len(splits.train) >= 1 and len(splits.val) >= 1


def train_on(folder, data):
    """One epoch of the smallest detector."""
    config = RunConfig(
        data=DataConfig(path=data),
        model="retinanet_mobilenet_v2_fpn",
        architecture={"width": 32, "head_depth": 1},
        out=folder / "run",
        epochs=1,
        size=64,
        threads=1,
    )
    train(config)
    assert (folder / "run" / "weights" / "best.safetensors").is_file()


@pytest.mark.parametrize("name", ["cvat_yolo_project", "kaggle_voc"])
def test_a_layout_is_trained_on(tmp_path, name):
    LAYOUTS[name].write(tmp_path / "data")
    train_on(tmp_path, tmp_path / "data")


@pytest.mark.prove
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_trained_on(tmp_path, name):
    test_a_layout_is_trained_on(tmp_path, name)
