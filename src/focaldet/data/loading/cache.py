"""Decoded pictures kept in memory: decoding takes half of the time that loading a small picture does."""

from dataclasses import dataclass, field

from jaxtyping import UInt8
from torch import Tensor

from focaldet.data.dataset import Dataset, ImageSource
from focaldet.types import Target


@dataclass(slots=True)
class CachedSource:
    """A source that reads each picture once, until the pictures it keeps take `max_bytes`.

    Nothing is thrown out again: when every picture comes once per epoch, the least recently used one is the next one
    wanted, and a cache that forgets would never hit. Right only for sources that give the same in every epoch, and for
    users who do not write into what they get.
    """

    source: ImageSource
    max_bytes: int
    _pictures: dict[int, tuple[Tensor, Target]] = field(default_factory=dict)
    _bytes: int = 0

    @property
    def dataset(self) -> Dataset:
        return self.source.dataset

    def load(self, i: int, *, epoch: int) -> tuple[UInt8[Tensor, "3 H W"], Target]:
        """Picture i and its boxes, from memory where they are there."""
        if i in self._pictures:
            return self._pictures[i]
        image, target = self.source.load(i, epoch=epoch)
        if self._bytes + image.nbytes <= self.max_bytes:
            self._pictures[i] = image, target
            self._bytes += image.nbytes
        return image, target
