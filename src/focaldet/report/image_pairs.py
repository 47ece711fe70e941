"""Images in a report, twice side by side: with the annotated boxes, and with the detections."""

from collections.abc import Sequence
from html import escape

from PIL import Image

from focaldet import draw
from focaldet.data.dataset import ImageSource
from focaldet.data.formats.text import quantity
from focaldet.evaluation.diagnostics import ImageScore
from focaldet.report.page import embed_image
from focaldet.types import Detections, Target

NUM_IMAGES, NUM_WORST = 12, 6
LONGEST_SIDE_PX = 440  # of an image on the page: twelve pairs stay near one megabyte


def worst_images(
    source: ImageSource,
    detections: Sequence[Detections],
    scores: Sequence[ImageScore],
    *,
    score: float,
    most: int = NUM_WORST,
) -> list[str]:
    """At most so many images with the most errors, the worst first; nothing where none has any."""
    worst = sorted((each for each in scores if each.errors), key=lambda each: (-each.errors, each.right, each.image))
    text = (
        f"<p>Truth on the left, detections with a score of at least {score:.2f} on the right, most errors first: wrong "
        "detections and missed objects at IoU .5.</p>"
    )
    pairs = [
        image_pair(source, each.image, [("detections", detections[each.image].above(score))], note=_count_errors(each))
        for each in worst[:most]
    ]
    return [text, *pairs] if pairs else []


def even_images(source: ImageSource, detections: Sequence[Detections], *, score: float) -> list[str]:
    """Images at even distances through the split: chosen before anybody saw how good they are."""
    text = (
        f"<p>Truth on the left, detections with a score of at least {score:.2f} on the right. The images stand at "
        "even distances in the split; they were not selected.</p>"
    )
    indices = even_indices(len(source.dataset), NUM_IMAGES)
    return [text, *(image_pair(source, i, [("detections", detections[i].above(score))]) for i in indices)]


def even_indices(num_images: int, most: int) -> list[int]:
    """At most so many indices of images, at even distances."""
    count = min(most, num_images)
    return [number * num_images // count for number in range(count)]


def image_pair(source: ImageSource, index: int, detections: Sequence[tuple[str, Detections]], *, note: str = "") -> str:
    """An image with its annotated boxes, and again with each of the named detections."""
    truth = target_as_detections(source.dataset.target(index), source.dataset.classes.names)
    name = source.dataset.path(index).name
    texts = [f"{title}: {count_classes(each)}" for title, each in [("ground truth", truth), *detections]]
    drawings = draw_truth_and_detections(source, index, [each for _, each in detections])
    images = "".join(embed_image(drawing, alt=f"{name}: {text}") for text, drawing in zip(texts, drawings, strict=True))
    caption = escape("; ".join(filter(None, (f"{name}: {texts[0]}", *texts[1:], note))))
    several = " several" if len(texts) > 2 else ""
    return f'<figure class="pair{several}"><div>{images}</div><figcaption>{caption}</figcaption></figure>'


def draw_truth_and_detections(
    source: ImageSource,
    index: int,
    detections: Sequence[Detections],
    *,
    longest_px: int = LONGEST_SIDE_PX,
    show_scores: bool = True,
) -> list[Image.Image]:
    """An image with its annotated boxes, and again with each of `detections`.

    A source may load a very large image reduced, with its annotated boxes: detections are in pixels of the stored
    image whatever it does.

    Args:
        source: the images.
        index: of the image.
        detections: in pixels of the stored image, as an evaluation has them.
        longest_px: of the longer side of a drawing; smaller images keep their size.
        show_scores: whether the scores of detections stand beside their classes.

    Raises:
        DataError: the image cannot be read.
    """
    pixels, target = source.load(index, epoch=0)
    full, stored = draw.to_image(pixels), source.dataset.size(index)
    scale = min(1.0, longest_px / max(full.size))
    small = full.resize((max(1, round(full.width * scale)), max(1, round(full.height * scale))))
    truth = target_as_detections(target, source.dataset.classes.names)
    drawings = [draw.boxes(small, truth.scale(small.width / full.width, small.height / full.height), show_scores=False)]
    for each in detections:
        resized = each.scale(small.width / stored.width, small.height / stored.height)
        drawings.append(draw.boxes(small, resized, show_scores=show_scores))
    return drawings


def target_as_detections(target: Target, names: tuple[str, ...]) -> Detections:
    """Ground truth in the form that `draw.boxes` takes; the names of ignored boxes say so."""
    labels = target.labels + target.ignored * len(names)
    return Detections(target.boxes, target.boxes.new_ones(len(labels)), labels, (*names, *map(_ignored_name, names)))


def count_classes(detections: Detections) -> str:
    """For example `12 cell, 1 dog`."""
    names = detections.names
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing"


def _count_errors(image: ImageScore) -> str:
    return f"{quantity(image.wrong, 'wrong detection')}, {image.missed} missed, {image.right} right"


def _ignored_name(name: str) -> str:
    return f"{name} (ignored)"
