"""Which errors of a detector come together in one image, more often than chance would have it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from focaldet.evaluation.error_kinds import DETECTED, Outcome, OutcomeKind

OWN_KINDS: tuple[OutcomeKind, ...] = ("duplicate", "background")  # of false positives; the others are about an object
ERROR_NAMES: dict[OutcomeKind, str] = {
    "missed": "missed {}",
    "wrong class": "{} as another class",
    "poor box": "{} with a poor box",
    "duplicate": "duplicate {}",
    "background": "false {}",
}
FEWEST_IMAGES = 3  # with both errors, or they are not listed


@dataclass(frozen=True, slots=True)
class ErrorPair:
    """Two errors, such as "missed RBC", and in how many images both occur; `expected` is the number by chance.

    By chance is: as many images with each of them, independent of each other.
    """

    first: str
    second: str
    num_images: int
    expected: float


def pair_errors(outcomes: Sequence[Sequence[Outcome]], class_names: Sequence[str]) -> list[ErrorPair]:
    """The pairs of errors that share more images than by chance, those with the most images above it first.

    An error is a kind of `classify_outcomes` with a class: an object that was missed, or has the wrong class or a poor
    box, and a false positive that repeats an object or lies on the background.

    Args:
        outcomes: those of each image.
        class_names: names by label.
    """
    per_image = [name_errors(several, class_names) for several in outcomes]
    single = Counter(error for errors in per_image for error in errors)
    both = Counter(pair for errors in per_image for pair in combinations(sorted(errors), 2))
    pairs = [
        ErrorPair(first, second, count, single[first] * single[second] / len(per_image))
        for (first, second), count in both.items()
        if count >= FEWEST_IMAGES
    ]
    above = [pair for pair in pairs if pair.num_images > pair.expected]
    return sorted(above, key=lambda pair: (pair.expected - pair.num_images, pair.first, pair.second))


def name_errors(outcomes: Sequence[Outcome], class_names: Sequence[str]) -> set[str]:
    """The errors in one image, each once."""
    errors = set()
    for outcome in outcomes:
        is_error = outcome.kind != DETECTED if outcome.index is not None else outcome.kind in OWN_KINDS
        if is_error:
            errors.add(ERROR_NAMES[outcome.kind].format(class_names[outcome.label]))
    return errors
