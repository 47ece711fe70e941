"""Images that look the same, among any number of them, without comparing all with all.

Own code and not a library: the hash is three lines, and what libraries for it lack is the comparison of thumbnails
that keeps images of one scene apart. Axes: N images.
"""

from typing import NamedTuple

import numpy
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

MOST_BITS = 4  # in which two hashes of one image may differ
# Cuts the 64 bits into one part more than that: of hashes that differ in so few bits, one part at least is equal.
BANDS = ((0, 13), (13, 26), (26, 39), (39, 52), (52, 64))
MOST_IN_A_BUCKET = 400  # of images that agree in one part; more are images of nothing, such as night skies
FLAT = 3.0  # gray levels: an image whose thumbnail varies by less has no features
LEVELS = 22.0  # by which thumbnails of one image may differ anywhere, once they have one mean and contrast
CONTRAST = 48.0  # gray levels, standard deviation


class Fingerprint(NamedTuple):
    """64 bits and a gray thumbnail, brought to one mean and contrast."""

    bits: int
    thumbnail: UInt8[numpy.ndarray, "32 32"]

    @classmethod
    def of(cls, bits: Bool[Tensor, " 64"], gray: Float[Tensor, "32 32"]) -> "Fingerprint | None":
        """The fingerprint of these bits and this thumbnail; None where it shows nothing."""
        deviation = float(gray.std())
        if deviation < FLAT:
            return None
        even = (gray - gray.mean()) / deviation * CONTRAST + 128
        return cls(int("".join(map(str, bits.int().tolist())), 2), even.clamp(0, 255).round().to(torch.uint8).numpy())


def find_near_duplicates(fingerprints: list[Fingerprint]) -> list[tuple[int, int]]:
    """Pairs (later, earlier) of images that look the same, each later one with the first that it looks like."""
    if len(fingerprints) < 2:
        return []
    bits = numpy.array([each.bits for each in fingerprints], dtype=numpy.uint64)
    first: dict[int, int] = {}
    for later, earlier in sorted(_find_candidates(bits)):
        if later not in first and _look_the_same(fingerprints[later], fingerprints[earlier]):
            first[later] = earlier
    return sorted(first.items())


def _find_candidates(bits: numpy.ndarray) -> set[tuple[int, int]]:
    """Pairs (later, earlier) whose hashes differ in at most `MOST_BITS` bits."""
    pairs: set[tuple[int, int]] = set()
    for start, stop in BANDS:
        part = (bits >> numpy.uint64(64 - stop)) & numpy.uint64((1 << (stop - start)) - 1)
        order = numpy.argsort(part, kind="stable")
        cuts = numpy.flatnonzero(numpy.diff(part[order])) + 1
        for bucket in numpy.split(order, cuts):
            # Neighbors in order of the whole hash stand for a bucket that is too full to compare all.
            members = bucket if len(bucket) <= MOST_IN_A_BUCKET else bucket[numpy.argsort(bits[bucket], kind="stable")]
            reach = len(members) if len(bucket) <= MOST_IN_A_BUCKET else MOST_IN_A_BUCKET // 8
            for step in range(1, min(reach, len(members))):
                near = numpy.bitwise_count(bits[members[step:]] ^ bits[members[:-step]]) <= MOST_BITS
                one, other = members[step:][near], members[:-step][near]
                pairs.update(zip(numpy.maximum(one, other).tolist(), numpy.minimum(one, other).tolist(), strict=True))
    return pairs


def _look_the_same(one: Fingerprint, other: Fingerprint) -> bool:
    difference = one.thumbnail.astype(numpy.int16) - other.thumbnail
    return bool(numpy.abs(difference).max() <= LEVELS)
