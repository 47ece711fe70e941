"""The loader: batches of a source of images, the same for any number of processes.

A sample depends on (seed, epoch, image) alone, and the images of a batch on (seed, epoch): so a run continues bit for
bit at any batch, with any number of workers, and N ranks together see the same global batches as one.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.dataset import FileSource, ImageSource
from focaldet.data.formats.text import quantity
from focaldet.data.loading import sampler
from focaldet.data.loading.cache import CachedSource
from focaldet.data.loading.collate import PackedBatch
from focaldet.data.loading.rng import generator
from focaldet.data.loading.sampler import Pick
from focaldet.data.loading.samples import Samples
from focaldet.errors import ConfigError, FocaldetError
from focaldet.types import Batch, ImageSize, Preprocessing

CACHE_BYTES = 1 << 30  # of all processes that load together
WORTH_KEEPING = 0.25  # of the images: where fewer fit into the cache of a process, it seldom holds the next one
Sampling = Literal["uniform", "class_balanced"]


@dataclass(repr=False, eq=False)
class Loader:
    """Batches of a source, epoch after epoch.

    With `augment` it is a training loader: shuffled, augmented, full batches, equally many on every rank. Without, it
    is an evaluation loader: epoch 0 of the source, every image exactly once over all ranks, resized and nothing else;
    a batch holds images of one padded size.

    Attributes:
        source: where images and targets come from.
        preprocessing: the network's input; images are resized and padded by it, not normalized.
        batch_size: images per batch of one rank, ≥ 1.
        seed: of the order and of the augmentation.
        augment: the augmentation; `None` for evaluation.
        num_epochs: the length of the training, which decides when mosaics and random sizes end.
        first_epoch: the epoch with which that training begins, where it is a phase of a longer one.
        workers: processes that load beside this one; 0 loads in this process.
        rank: which part of every global batch is loaded, 0 … num_ranks − 1.
        num_ranks: how many processes train together.
        sampling: "uniform" gives every image once per epoch; "class_balanced" as many images, those of rare classes
            more often (`sampler.repeat_factors`). Evaluation is always "uniform".
        multi_scale: smallest and largest size in pixels, of which training draws one every few batches
            (`sampler.draw_sizes`); `None` keeps that of `preprocessing`.
        multi_scale_end: fraction of the training, at its end, whose batches all have the largest size.

    Raises:
        ConfigError: a number out of range, or fewer images to train on than ranks.
    """

    source: ImageSource
    _: KW_ONLY
    preprocessing: Preprocessing
    batch_size: int
    seed: int
    augment: AugmentConfig | None = None
    num_epochs: int = 1
    first_epoch: int = 0
    workers: int = 0
    rank: int = 0
    num_ranks: int = 1
    sampling: Sampling = "uniform"
    multi_scale: tuple[int, int] | None = None
    multi_scale_end: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("num_ranks", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be ≥ {least}, got {getattr(self, name)}")
        if not 0 <= self.rank < self.num_ranks:
            raise ConfigError(f"rank: must be in 0…{self.num_ranks - 1}, got {self.rank}")
        source, self._dataset = self.source, self.source.dataset
        if self.augment is not None and len(self._dataset) < self.num_ranks:
            raise ConfigError(
                f"{quantity(len(self._dataset), 'image')} cannot be trained on by {self.num_ranks} processes"
            )
        self._factors = sampler.repeat_factors(self._dataset) if self.sampling == "class_balanced" else None
        max_bytes = CACHE_BYTES // max(1, self.workers)
        sizes = source.dataset.sizes.long()
        whole_bytes = 3 * int(sizes.prod(1).sum())
        if self.augment is not None and isinstance(source, FileSource) and max_bytes >= WORTH_KEEPING * whole_bytes:
            source = CachedSource(source, max_bytes=max_bytes)
        self._samples = Samples(source, self.preprocessing, self.seed, self.augment, self.num_epochs, self.first_epoch)
        self._plan: list[list[Pick]] = []  # the batches that are still to be loaded
        self._torch_loader: DataLoader[Any] | None = None

    def set_num_epochs(self, number: int) -> None:
        """Change the length of the training from the next `epoch` on; images that are in memory stay there."""
        if number != self.num_epochs:
            self.num_epochs, self._samples = number, replace(self._samples, num_epochs=number)
            self._torch_loader = None  # its processes know the old length

    def __len__(self) -> int:
        """Batches per epoch of this rank; in training the same on every rank."""
        return len(self.picks(0))

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (counted from 0) from `start_batch` on. Only one epoch can be iterated at a time.

        Raises:
            FocaldetError: an image cannot be read, or a loading process ended.
        """
        self._plan[:] = self.picks(epoch)[start_batch:]
        try:
            with explain_worker_death():
                for packed in self._packed_batches():
                    if isinstance(packed, FocaldetError):
                        raise packed
                    yield packed.unpack()
        except FocaldetError:
            self._torch_loader = None  # The next epoch starts new processes.
            raise

    def picks(self, epoch: int) -> list[list[Pick]]:
        """The images of each batch of this rank."""
        if self.augment is None:
            resize, padded = self.preprocessing.resize, self.preprocessing.padded_size
            sizes = self._dataset.sizes
            frames = [padded(resize.target(ImageSize(*size))) for size in sizes.tolist()]
            return sampler.evaluation_batches(frames, batch_size=self.batch_size)[self.rank :: self.num_ranks]
        rng = generator("order", self.seed, epoch)
        if self._factors is None:
            order = sampler.uniform_order(len(self._dataset), rng=rng)
        else:
            order = sampler.balanced_order(self._factors, rng=rng)
        portrait = (self._dataset.sizes[:, 0] > self._dataset.sizes[:, 1]).tolist()
        global_size = self.batch_size * self.num_ranks
        whole = sampler.training_batches(order, portrait, epoch=epoch, batch_size=global_size, rng=rng)
        if self.multi_scale is not None:
            whole = sampler.draw_sizes(
                whole,
                self.multi_scale,
                seed=self.seed,
                epoch=epoch,
                num_epochs=self.num_epochs,
                end_fraction=self.multi_scale_end,
                first_epoch=self.first_epoch,
            )
        return [sampler.rank_slice(batch, rank=self.rank, num_ranks=self.num_ranks) for batch in whole]

    def _packed_batches(self) -> Iterator[PackedBatch | FocaldetError]:
        """Torch's iterator over the planned batches; its processes live on from epoch to epoch."""
        if self._torch_loader is None:
            self._torch_loader = DataLoader(
                self._samples,
                batch_sampler=self._plan,
                collate_fn=_keep,
                num_workers=self.workers,
                persistent_workers=self.workers > 0,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # Else torch draws a number from the random state of this process.
            )
        with warnings.catch_warnings():
            # From Python 3.12 on forking beside threads warns; a worker reads, resizes and takes none of their locks.
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            return iter(self._torch_loader)


@contextmanager
def explain_worker_death() -> Iterator[None]:
    """Replace torch's error for a dead loading process by one that says what to do.

    Torch raises it from a signal handler, so at any line of the main thread: put a whole training loop inside.

    Raises:
        FocaldetError: a loading process ended.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        problem = f"a process that loads images ended: {str(error).strip()}"
        raise FocaldetError(f"{problem} Too little memory? Use fewer workers or smaller batches.") from None


def _keep(batch: Any) -> Any:
    """The batch as it is, for torch's `collate_fn`: `Samples` has collated it."""
    return batch
