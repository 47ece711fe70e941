"""The images of an export."""

import shutil

from focaldet.data.config import DataConfig
from focaldet.data.splits import open_split
from focaldet.export.images import open_export_images
from focaldet.weights import load_detector


def test_named_data_are_divided_as_those_of_the_run(small_run, demo_data, tmp_path):
    """The second seed of a comparison leaves out the images that the first one does."""
    held_out = [open_split(DataConfig(path=demo_data), "val", seed=seed).fingerprint() for seed in range(20)]
    other = next(seed for seed in range(20) if held_out[seed] != held_out[0])
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    (run / "config.yaml").write_text(f"data: {{path: {demo_data}, split_seed: 0}}\nseed: {other}\n")
    images = open_export_images(run, load_detector(run).detector, data=demo_data, split="val")
    assert images.labeled.dataset.fingerprint() == held_out[0]
