"""The dataset: what it holds comes out again, subsets are exact, and COCO's size stays small."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from focaldet.data.config import DataConfig
from focaldet.data.dataset import CROWD, DIFFICULT, Classes, Dataset, FileSource, pack_paths, starts
from focaldet.data.problems import Problems
from focaldet.errors import DataError
from focaldet.types import ImageSize


def small_index(root: Path = Path("/images")) -> Dataset:
    """Three images with 2, 0 and 1 boxes; the second box is a crowd, the third difficult."""
    path_bytes, path_offsets = pack_paths(["a.png", "sub/é.png", "c.png"])
    return Dataset(
        name="train",
        root=root,
        classes=Classes(("cat", "dog"), (3, 7)),
        image_ids=torch.tensor([10, 20, 30]),
        sizes=torch.tensor([[4, 6], [8, 8], [5, 5]], dtype=torch.int32),
        offsets=torch.tensor([0, 2, 2, 3]),
        boxes=torch.tensor([[0, 0, 2, 2], [1, 1, 6, 4], [0, 0, 5, 5]], dtype=torch.float64),
        labels=torch.tensor([0, 1, 1], dtype=torch.int32),
        flags=torch.tensor([0, CROWD, DIFFICULT], dtype=torch.uint8),
        areas=torch.tensor([3.5, 15, 25], dtype=torch.float64),
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        problems=Problems(),
    )


def test_one_image_comes_out_as_it_went_in():
    dataset = small_index()
    assert len(dataset) == 3
    assert [dataset.path(i) for i in range(3)] == [Path("/images") / name for name in ("a.png", "sub/é.png", "c.png")]
    assert dataset.size(0) == ImageSize(4, 6)
    target = dataset.target(0)
    assert target.boxes.tolist() == [[0, 0, 2, 2], [1, 1, 6, 4]]
    assert target.labels.tolist() == [0, 1]
    assert target.ignored.tolist() == [False, True]
    assert dataset.target(2).ignored.tolist() == [True]


def test_an_image_without_boxes_is_kept():
    assert small_index().target(1).boxes.shape == (0, 4)


@pytest.mark.parametrize("chosen", [[2, 0], [1], [], [0, 1, 2], [2, 2, 1]])
def test_subset_is_the_chosen_images_in_order(chosen):
    dataset = small_index()
    subset = dataset.subset(chosen, "part")
    assert subset.name == "part" and len(subset) == len(chosen)
    for new, old in enumerate(chosen):
        assert subset.path(new) == dataset.path(old)
        assert subset.size(new) == dataset.size(old)
        assert int(subset.image_ids[new]) == int(dataset.image_ids[old])
        assert torch.equal(subset.target(new).boxes, dataset.target(old).boxes)
        assert torch.equal(subset.target(new).ignored, dataset.target(old).ignored)


def test_fingerprint_is_of_the_contents_alone():
    dataset = small_index()
    assert dataset.fingerprint() == small_index(Path("/elsewhere")).fingerprint()
    assert dataset.fingerprint() == replace(dataset, name="other").fingerprint()
    moved = dataset.boxes.clone()
    moved[0, 0] += 1e-9
    for other in (
        replace(dataset, boxes=moved),
        replace(dataset, classes=Classes(("cat", "cow"), (3, 7))),
        dataset.subset([0, 2, 1], "train"),
        dataset.subset([0, 1], "train"),
    ):
        assert other.fingerprint() != dataset.fingerprint()
    remainders = torch.full((3, 2), 1e-14)
    assert replace(dataset, side_remainders=remainders).fingerprint() == dataset.fingerprint()


def test_pickle_gives_an_equal_index():
    assert pickle.loads(pickle.dumps(small_index())).fingerprint() == small_index().fingerprint()


def test_size_of_cocos_training_split():
    num_images, num_boxes = 118_287, 860_001
    owners = torch.randint(num_images, (num_boxes,), generator=torch.Generator().manual_seed(0))
    path_bytes, path_offsets = pack_paths([f"train2017/{i:012d}.jpg" for i in range(num_images)])
    corner = torch.rand(num_boxes, 2, dtype=torch.float64) * 300
    dataset = Dataset(
        name="train2017",
        root=Path("/coco"),
        classes=Classes(tuple(map(str, range(80))), tuple(range(80))),
        image_ids=torch.arange(num_images),
        sizes=torch.full((num_images, 2), 500, dtype=torch.int32),
        offsets=starts(owners.bincount(minlength=num_images)),
        boxes=torch.cat([corner, corner + 100], 1),
        labels=torch.zeros(num_boxes, dtype=torch.int32),
        flags=torch.zeros(num_boxes, dtype=torch.uint8),
        areas=torch.full((num_boxes,), 1e4, dtype=torch.float64),
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        problems=Problems(),
        side_remainders=torch.zeros(num_boxes, 2),
    )
    assert 50e6 < dataset.nbytes < 54e6
    assert dataset.path(117_000).name == "000000117000.jpg"
    half = dataset.subset(range(0, num_images, 2), "half")
    assert torch.equal(half.target(50_000).boxes, dataset.target(100_000).boxes)


def test_file_source_reads_the_image_and_its_boxes(tmp_path):
    Image.new("RGB", (6, 4), (1, 2, 3)).save(tmp_path / "a.png")
    source = FileSource(small_index(tmp_path))
    pixels, target = source.load(0, epoch=5)
    assert pixels.shape == (3, 4, 6) and pixels[:, 0, 0].tolist() == [1, 2, 3]
    assert len(target.boxes) == 2


def test_file_source_notices_an_image_that_changed(tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="changed to 4 × 6 pixels since it was read as 6 × 4"):
        FileSource(small_index(tmp_path)).load(0, epoch=0)


def test_a_config_takes_strings_for_paths():
    assert DataConfig(path="cells", val="cells/val.json") == DataConfig(path=Path("cells"), val=Path("cells/val.json"))
