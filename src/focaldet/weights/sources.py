"""Where weights come from: a file, a run folder, or a name that stands for a download."""

import re
from dataclasses import dataclass
from pathlib import Path

from torchvision.models import get_model_weights

from focaldet.config import nearest
from focaldet.errors import CheckpointError, ConfigError
from focaldet.nets.timm_backbone import published_weights
from focaldet.runtime import Progress
from focaldet.types import Preprocessing
from focaldet.weights.download import cache_folder, download, sha256, stated_checksum
from focaldet.weights.normalization import describe_scaling

TORCHVISION_WEIGHTS = {
    "torchvision:coco_v1": ("retinanet_resnet50_fpn", "COCO_V1"),
    "torchvision:coco_v2": ("retinanet_resnet50_fpn_v2", "COCO_V1"),
    "torchvision:faster_rcnn_coco_v1": ("fasterrcnn_resnet50_fpn", "COCO_V1"),
    "torchvision:faster_rcnn_coco_v2": ("fasterrcnn_resnet50_fpn_v2", "COCO_V1"),
    "torchvision:imagenet_v1": (None, "IMAGENET1K_V1"),
    "torchvision:imagenet_v2": (None, "IMAGENET1K_V2"),
}
"""Names of torchvision's published weights: its model (None: the detector's own backbone) and its version."""

TORCHVISION_MODELS = (
    *(model for model, _ in TORCHVISION_WEIGHTS.values() if model),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d", "mobilenet_v2"),
)
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
EMBEDDED_WEIGHTS = {"embedded:efficientnet_lite0": "efficientnet_lite0"}
"""Names of the weights that come with focaldet, and their backbones."""

_HUB = "https://huggingface.co"
INDEX_SUFFIX, GRAPH_SUFFIX = ".index", ".pb"  # of the files that stand for a checkpoint and a graph of TensorFlow
CHECKPOINT_PART = re.compile(r"(?<=.)\.(data-\d{5}-of-\d{5}|meta)$")
RUN_WEIGHTS = ("weights/best.safetensors", "weights/last.safetensors")


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """A weights file and what is known about it beside its content.

    `label` is what messages call it. `input` is the input statement that follows from its origin, `license` likewise.
    """

    label: str
    path: Path
    input: str | None = None
    license: str | None = None


def find_weights(spec: str | Path, *, backbone: str | None = None, progress: Progress | None = None) -> WeightsSource:
    """The file that `spec` means: a path, a run folder (its best weights), or a name such as `torchvision:coco_v1`.

    Only a name of torchvision's or timm's (`timm:resnet18`, with a tag or without) downloads, into `cache_folder()`;
    `torchvision:imagenet_v1` and `_v2` are those of `backbone`.

    Raises:
        CheckpointError: no such file or name, or the download failed.
        ConfigError: the weights of that name do not exist for this backbone.
    """
    if str(spec) in EMBEDDED_WEIGHTS:
        return WeightsSource(str(spec), EMBEDDED_FOLDER / f"{EMBEDDED_WEIGHTS[str(spec)]}.safetensors")
    if (name := str(spec)).startswith("timm:"):
        return _timm_source(name.removeprefix("timm:"), progress=progress)
    if str(spec) in TORCHVISION_WEIGHTS:
        url = _torchvision_url(str(spec), backbone=backbone)
        return _torchvision_source(str(spec), download(url, cache_folder(), progress=progress))
    path = Path(spec)
    if path.is_dir():
        return WeightsSource(str(spec), _run_weights(path))
    _refuse_checkpoint_part(path)
    index = path.with_name(f"{path.name}{INDEX_SUFFIX}")
    if not path.exists() and index.is_file():  # how TensorFlow calls a checkpoint
        return WeightsSource(str(spec), index)
    if not path.exists():
        hint = nearest(str(spec), [*EMBEDDED_WEIGHTS, *TORCHVISION_WEIGHTS])
        raise CheckpointError(f"weights: no file or run folder {str(spec)!r}, and no weights have that name{hint}")
    return _torchvision_source(str(spec), path) if _is_torchvision_file(path) else WeightsSource(str(spec), path)


def embedded_weights(backbone: str | None) -> str | None:
    """The name of the weights that come with focaldet for this backbone; None where there are none."""
    return next((name for name, known in EMBEDDED_WEIGHTS.items() if known == backbone), None)


def _torchvision_source(label: str, path: Path) -> WeightsSource:
    """A file that torchvision published: all of those were trained on RGB with ImageNet's mean and deviation."""
    return WeightsSource(label, path, input="imagenet", license="torchvision (BSD-3-Clause)")


def _timm_source(name: str, *, progress: Progress | None) -> WeightsSource:
    """The weights of a model of timm, as its makers published them on the Hugging Face hub."""
    published = published_weights(name)
    folder = cache_folder() / "timm" / published.name
    path = download(f"{_HUB}/{published.hub_id}/resolve/main/model.safetensors", folder, progress=progress)
    scaling = Preprocessing(mean=published.mean, std=published.std)
    return WeightsSource(f"timm:{published.name}", path, input=describe_scaling(scaling), license=published.license)


def _run_weights(folder: Path) -> Path:
    for name in RUN_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    missing = f"{folder}: is not a run folder with weights (neither {' nor '.join(RUN_WEIGHTS)} is there)"
    endings = (INDEX_SUFFIX, GRAPH_SUFFIX)
    files = sorted(folder / path.name.removesuffix(INDEX_SUFFIX) for path in folder.glob("*") if path.suffix in endings)
    hint = f"; TensorFlow's are read by the name of the file: {' or '.join(map(str, files))}" if files else ""
    raise CheckpointError(missing + hint)


def _refuse_checkpoint_part(path: Path) -> None:
    """Raise where a file of a checkpoint of TensorFlow is named that says nothing by itself.

    Raises:
        CheckpointError: says what to name.
    """
    checkpoint = path.with_name(CHECKPOINT_PART.sub("", path.name))
    if checkpoint == path or not path.is_file():
        return
    index = path.with_name(f"{checkpoint.name}{INDEX_SUFFIX}")
    hint = f"name {checkpoint}" if index.is_file() else f"{index.name}, which must lie beside it, is missing"
    raise CheckpointError(f"{path}: is a part of a checkpoint of TensorFlow: {hint}")


def _torchvision_url(name: str, *, backbone: str | None) -> str:
    model, version = TORCHVISION_WEIGHTS[name]
    model = model or backbone
    published = [member.name for member in get_model_weights(model)] if model in TORCHVISION_MODELS else []
    if model is None or version not in published:
        raise ConfigError(
            f"{name}: torchvision has published none for backbone {model!r} (it has: {published or 'nothing'})"
        )
    return str(get_model_weights(model)[version].url)


def _is_torchvision_file(path: Path) -> bool:
    """True for an unchanged file of torchvision: its name is known and its content fits the checksum in the name."""
    published = {member.url.rsplit("/", 1)[-1] for model in TORCHVISION_MODELS for member in get_model_weights(model)}
    if path.name not in published or not path.is_file():
        return False
    stated = stated_checksum(path.name)
    return stated is not None and sha256(path).startswith(stated)
