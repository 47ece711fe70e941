"""Advice on the settings of a training, decided from its images and boxes by the table in `advice.yaml`.

`focaldet train` takes it where a setting is `auto`. Each piece is one value with its reason in one sentence.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float64
from torch import Tensor

from focaldet.check.anchor_fit import resize_boxes
from focaldet.config import read_mapping
from focaldet.data.dataset import Dataset
from focaldet.data.formats.text import quantity
from focaldet.data.loading.sampler import pair_images_with_classes
from focaldet.models import PRESETS
from focaldet.nets.necks import PYRAMID_STRIDES_PX
from focaldet.types import Resize

BASE_SCALE = "architecture.anchors.base_scale"
RULES: Mapping[str, Any] = read_mapping(Path(__file__).with_name("advice.yaml"))


class Choice(NamedTuple):
    """The value that was chosen for a setting, and why: the rest of a sentence that begins with setting and value."""

    setting: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.setting} {self.value}: {self.reason}"


def candidate_models() -> tuple[str, ...]:
    """The detectors that `model: auto` may choose, the best first."""
    return tuple(name for name in RULES["models"] if name in PRESETS)


def small_models() -> tuple[str, ...]:
    """The detectors made for small data, whose size is chosen from the data unless it is named."""
    return tuple(RULES["small_models"])


def advise_size(dataset: Dataset, resize: Resize) -> Choice:
    """The long side in pixels (of a square its side) at which the objects of `dataset` are large enough to detect.

    It is the smallest of those in the table at which few objects are too small, and not larger than the images.
    `resize` is the detector's rule, whose sides are replaced.
    """
    rule = RULES["size"]
    images_px = _quantile(dataset.sizes.amax(1).double(), 0.5)
    sides = [side for number, side in enumerate(rule["sides_px"]) if number == 0 or side <= images_px]
    seen = {side: object_sides(dataset, resize.with_sides(size=side)) for side in sides}
    if not len(seen[sides[0]]):
        return Choice("size", sides[0], "there are no boxes to choose by")
    fraction, least = rule["fraction"], rule["object_px"]
    small = {side: _quantile(objects, fraction) for side, objects in seen.items()}
    chosen = next((side for side in sides if small[side] >= least), sides[-1])
    shown = sides[0] if chosen != sides[0] else chosen
    parts = [f"{small[side]:.0f} px at {side}" for side in dict.fromkeys((shown, chosen))]
    reason = f"{fraction:.0%} of the objects are smaller than {', than '.join(parts)}"
    if small[chosen] < least:
        larger = [side for side in rule["sides_px"] if side > chosen]
        limit = f"{larger[0]} px would enlarge half of the images" if larger else "more is slow"
        reason += f", where {least} px would be better, but {limit}"
    return Choice("size", chosen, reason)


def advise_anchors(dataset: Dataset, resize: Resize) -> Choice:
    """How many strides wide the anchors are: on the finest map as wide as the smaller objects.

    Adaptive matching finds an anchor for every object, but one that is four times as wide learns slowly: its overlap is
    what the box loss and the target of the score begin with.
    """
    rule = RULES["anchors"]
    sides, stride = object_sides(dataset, resize), PYRAMID_STRIDES_PX[0]
    if not len(sides):
        return Choice(BASE_SCALE, float(rule["most"]), "there are no boxes to choose by")
    small = _quantile(sides, rule["fraction"])
    scale = round(min(max(small / stride, rule["least"]), rule["most"]), 1)
    reason = f"anchors from {scale * stride:.0f} px on, as {rule['fraction']:.0%} of the objects are smaller than "
    return Choice(BASE_SCALE, scale, f"{reason}{small:.0f} px")


def anchor_models() -> tuple[str, ...]:
    """The detectors whose anchors are chosen from the data, the best first."""
    return tuple(RULES["anchors"]["models"])


def has_fitted_anchors(model: str, settings: Iterable[str]) -> bool:
    """Whether the anchors of a detector follow the data: unless one of the `settings` that are given says otherwise."""
    own = ("architecture.anchors.", "architecture.matching.")
    return model in anchor_models() and not any(name.startswith(own) for name in settings)


def object_sides(dataset: Dataset, resize: Resize) -> Float64[Tensor, " M"]:
    """The root of the area of each box, without ignored ones, in pixels of the resized image."""
    boxes, _ = resize_boxes(dataset, resize)
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt()


def advise_epochs(dataset: Dataset, *, batch_size: int) -> Choice:
    """How often the images are passed through."""
    epochs = _first_row("epochs", images=len(dataset))["epochs"]
    updates = epochs * max(1, len(dataset) // batch_size)
    return Choice("epochs", epochs, f"{quantity(updates, 'update')} in all, from {quantity(len(dataset), 'image')}")


def advise_batch_size(dataset: Dataset) -> Choice:
    """The images of an update: few where there are few, so that an epoch has some updates."""
    size = _first_row("batch_size", images=len(dataset))["batch_size"]
    return Choice("batch_size", size, f"for {quantity(len(dataset), 'image')}")


def advise_augmentation(dataset: Dataset, *, epochs: int) -> Choice:
    """The preset of the augmentation: where images are seen often none was ahead of it (docs/small_data.md)."""
    preset = _first_row("augment", images=len(dataset), epochs=epochs)["preset"]
    reason = f"{quantity(len(dataset), 'image')}, each seen {quantity(epochs, 'time')}"
    return Choice("augment.preset", preset, reason)


def advise_sampling(dataset: Dataset) -> Choice:
    """Whether images of rare classes are drawn more often."""
    _, labels = pair_images_with_classes(dataset)
    num_images = [number for number in labels.bincount().tolist() if number] or [1]
    imbalance = max(num_images) / min(num_images)
    sampling = _first_row("sampling", imbalance=imbalance)["sampling"]
    return Choice("sampling", sampling, f"{imbalance:.1f} images with the most frequent class for one with the rarest")


def _first_row(name: str, **facts: float | int) -> Mapping[str, Any]:
    """The first row of a list of the table whose conditions hold: `x_below` and `x_from` are compared with fact x."""
    tests = {"below": lambda fact, limit: fact < limit, "from": lambda fact, limit: fact >= limit}
    for row in RULES[name]:
        conditions = [(key.rpartition("_"), limit) for key, limit in row.items() if key.rpartition("_")[2] in tests]
        if all(tests[test](facts[fact], limit) for (fact, _, test), limit in conditions):
            return dict(row)
    raise LookupError(f"advice.yaml: {name}: no row fits {facts}")


def _quantile(values: Float64[Tensor, " M"], fraction: float) -> float:
    """The value below which this fraction lies, without torch's limit of 16 million values."""
    return float(values.sort().values[int(fraction * (len(values) - 1))]) if len(values) else 0.0
