"""The work of a loading process: read images, augment them, and collate a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from focaldet.data.augment.augmenter import NUM_PARTNERS, Augmenter
from focaldet.data.augment.config import AugmentConfig
from focaldet.data.augment.geometry import Sample, join_targets, resize_sample
from focaldet.data.dataset import ImageSource
from focaldet.data.loading.collate import PackedBatch, pad_images
from focaldet.data.loading.rng import generator
from focaldet.data.loading.sampler import Pick
from focaldet.errors import FocaldetError
from focaldet.types import Batch, Preprocessing


@dataclass(frozen=True, slots=True, eq=False)
class Samples(Dataset[PackedBatch]):
    """A source as a torch dataset of packed batches; without `augmentation` images are only resized."""

    source: ImageSource
    preprocessing: Preprocessing
    seed: int
    augmentation: AugmentConfig | None
    num_epochs: int
    first_epoch: int = 0

    def __getitems__(self, picks: Sequence[Pick]) -> PackedBatch | FocaldetError:
        """The batch of these images, all of one size; or the error, which torch would not carry out of a process."""
        try:
            samples, names = zip(*(self.sample(pick) for pick in picks), strict=True)
        except FocaldetError as error:
            return error
        targets = [sample.target for sample in samples]
        preprocessing, dataset = self._sized_preprocessing(picks[0]), self.source.dataset
        batch = Batch(
            images=pad_images([sample.image for sample in samples], preprocessing=preprocessing),
            sizes=tuple(sample.size for sample in samples),
            targets=(),
            indices=tuple(pick.image for pick in picks),
            original_sizes=tuple(dataset.size(pick.image) for pick in picks),
            image_names=names,
        )
        return PackedBatch(batch, join_targets(targets), tuple(map(len, targets)))

    def sample(self, pick: Pick) -> tuple[Sample, str]:
        """A sample for the network, augmented by (seed, epoch, image, repeat), and the names of the images in it."""
        preprocessing = self._sized_preprocessing(pick)
        if self.augmentation is None:
            return resize_sample(self._load(pick.image, pick.epoch), preprocessing.resize), self._name(pick.image)
        rng = generator("sample", self.seed, pick.epoch, pick.image, pick.repeat)
        epoch = pick.epoch - self.first_epoch
        mosaic = rng.random() < self.augmentation.mosaic_probability(epoch=epoch, num_epochs=self.num_epochs)
        num_images = len(self.source.dataset)
        images = [pick.image, *(rng.randrange(num_images) for _ in range(NUM_PARTNERS if mosaic else 0))]
        first, *partners = (self._load(image, pick.epoch) for image in images)
        augment = Augmenter(self.augmentation, preprocessing)
        return augment(first, rng=rng, partners=partners), " + ".join(map(self._name, images))

    def _sized_preprocessing(self, pick: Pick) -> Preprocessing:
        """The preprocessing at the input size of the image."""
        if pick.size_px is None:
            return self.preprocessing
        return replace(self.preprocessing, resize=replace(self.preprocessing.resize, size=pick.size_px))

    def _load(self, image: int, epoch: int) -> Sample:
        return Sample(*self.source.load(image, epoch=epoch))

    def _name(self, image: int) -> str:
        dataset = self.source.dataset
        return str(dataset.path(image))
