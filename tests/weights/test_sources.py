"""Which file a path, a run folder or a name means."""

import hashlib
from pathlib import Path

import pytest
from torchvision.models import get_model_weights

from focaldet.errors import CheckpointError, ConfigError
from focaldet.weights import find_weights, sources


@pytest.fixture
def fetched_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The addresses that were asked for; nothing is downloaded."""
    urls: list[str] = []

    def download(url: str, folder: Path, *, progress: object) -> Path:
        urls.append(url)
        return folder / "file.pth"

    monkeypatch.setenv("FOCALDET_HOME", str(tmp_path))
    monkeypatch.setattr(sources, "download", download)
    return urls


@pytest.mark.parametrize(
    ("name", "backbone", "file"),
    [
        ("torchvision:coco_v1", None, "retinanet_resnet50_fpn_coco-eeacb38b.pth"),
        ("torchvision:coco_v2", "resnet18", "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth"),
        ("torchvision:faster_rcnn_coco_v1", None, "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"),
        ("torchvision:faster_rcnn_coco_v2", None, "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"),
        ("torchvision:imagenet_v1", "resnet50", "resnet50-0676ba61.pth"),
        ("torchvision:imagenet_v2", "resnet50", "resnet50-11ad3fa6.pth"),
        ("torchvision:imagenet_v1", "resnext101_64x4d", "resnext101_64x4d-173b62eb.pth"),
        ("torchvision:imagenet_v1", "mobilenet_v2", "mobilenet_v2-b0353104.pth"),
    ],
)
def test_names_mean_published_files(
    fetched_urls: list[str], tmp_path: Path, name: str, backbone: str | None, file: str
) -> None:
    source = find_weights(name, backbone=backbone)
    assert [url.rsplit("/", 1)[-1] for url in fetched_urls] == [file]
    assert (source.label, source.input, source.path) == (name, "imagenet", tmp_path / "weights" / "file.pth")
    assert source.license and "BSD-3-Clause" in source.license


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("torchvision:imagenet_v2", "resnet18"),
        ("torchvision:imagenet_v1", "timm:resnet18"),
        ("torchvision:imagenet_v1", None),
    ],
)
def test_what_was_never_published_is_named(fetched_urls: list[str], name: str, backbone: str | None) -> None:
    with pytest.raises(ConfigError, match=f"{name}: torchvision has published none for backbone"):
        find_weights(name, backbone=backbone)
    assert not fetched_urls


@pytest.mark.parametrize("spec", ["torchvision:coco_v3", "torchvison:coco_v1"])
def test_misspelt_names_get_the_nearest_as_a_hint(fetched_urls: list[str], spec: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"no file or run folder .* no weights have that name .*torchvision:coco_v[12]"
    ):
        find_weights(spec)
    assert not fetched_urls


def test_paths_are_taken_as_they_are(fetched_urls: list[str], tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"anything")
    for spec in (tmp_path / "w.pth", str(tmp_path / "w.pth")):
        source = find_weights(spec)
        assert (source.path, source.label, source.input) == (tmp_path / "w.pth", str(spec), None)
    assert not fetched_urls


def test_run_folders_have_best_or_last_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run folder with weights"):
        find_weights(tmp_path)
    (tmp_path / "weights").mkdir()
    for name in ("last.safetensors", "best.safetensors"):
        (tmp_path / "weights" / name).touch()
        assert find_weights(tmp_path).path == tmp_path / "weights" / name


def test_a_published_file_is_known_by_name_and_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "resnet50-0676ba61.pth"
    path.write_bytes(b"not what the name says")
    assert find_weights(path).input is None
    monkeypatch.setattr(sources, "sha256", lambda _: "0676ba61" + "0" * 56)
    assert find_weights(path).input == "imagenet"
    other = tmp_path / f"mine-{hashlib.sha256(b'').hexdigest()[:8]}.pth"
    other.write_bytes(b"")
    assert find_weights(other).input is None, "a checksum alone says nothing about the origin"


def test_all_published_classifiers_want_imagenets_mean_and_deviation() -> None:
    """What `find_weights` states for every published file."""
    classifiers = [model for model in sources.TORCHVISION_MODELS if "_fpn" not in model]
    assert len(classifiers) == 7
    for model in classifiers:
        for member in get_model_weights(model):
            transforms = member.transforms()
            assert transforms.mean == [0.485, 0.456, 0.406]
            assert transforms.std == [0.229, 0.224, 0.225]


def test_the_files_of_tensorflow_that_are_read_are_named(tmp_path: Path) -> None:
    """For the folder of its model zoo, and for the other files of a checkpoint."""
    data = "model.ckpt.data-00000-of-00001"
    for name in ("frozen_inference_graph.pb", "model.ckpt.index", data, "model.ckpt.meta", "checkpoint"):
        (tmp_path / name).touch()
    named = f"by the name of the file: {tmp_path}/frozen_inference_graph.pb or {tmp_path}/model.ckpt$"
    with pytest.raises(CheckpointError, match=f"is not a run folder with weights .*{named}"):
        find_weights(tmp_path)
    assert find_weights(tmp_path / "model.ckpt").path == tmp_path / "model.ckpt.index"
    for name in (data, "model.ckpt.meta"):
        with pytest.raises(CheckpointError, match=rf"{name}: is a part of .*: name {tmp_path}/model\.ckpt$"):
            find_weights(tmp_path / name)
    (tmp_path / "model.ckpt.index").unlink()
    with pytest.raises(CheckpointError, match=r"model\.ckpt\.index, which must lie beside it, is missing"):
        find_weights(tmp_path / data)
