import os
import random
import signal
import time
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.config import DataConfig
from focaldet.data.dataset import FileSource
from focaldet.data.loading import loader as loader_module
from focaldet.data.loading.cache import CachedSource
from focaldet.data.loading.loader import Loader, explain_worker_death
from focaldet.data.splits import open_splits
from focaldet.errors import ConfigError, DataError, FocaldetError
from focaldet.evaluation.evaluate import detect_all
from focaldet.models import build
from focaldet.types import ImageSize, Preprocessing, Resize
from tests.data.painted import PaintedSource, painted, painted_source

PREPROCESSING = Preprocessing(resize=Resize("long", 32, None), size_divisor=8)
STRONG = AugmentConfig("strong")


def loader(source=None, **settings):
    defaults = {"preprocessing": PREPROCESSING, "batch_size": 4, "seed": 3, "augment": STRONG, "num_epochs": 4}
    return Loader(source or painted_source(22, portrait=range(0, 22, 3), empty=(1, 2)), **{**defaults, **settings})


def content(batches):
    """Everything in these batches, comparable with ==."""
    return [
        (b.images.numpy().tobytes(), b.sizes, b.indices, b.original_sizes, b.image_names, *map(_plain, b.targets))
        for b in batches
    ]


def _plain(target):
    return target.boxes.tolist(), target.labels.tolist(), target.ignored.tolist()


def test_the_number_of_workers_and_the_first_batch_change_nothing():
    plain = [content(loader().epoch(epoch)) for epoch in range(2)]
    assert len(plain[0]) == len(loader()) == 5
    for workers in (1, 2):
        many = loader(workers=workers)
        assert [content(many.epoch(epoch)) for epoch in range(2)] == plain
        assert content(many.epoch(1, start_batch=3)) == plain[1][3:]
        next(many.epoch(0))  # an epoch given up half-way leaves nothing behind
        assert content(many.epoch(1)) == plain[1]
    assert content(loader().epoch(1, start_batch=2)) == plain[1][2:]
    assert content(loader().epoch(0, start_batch=5)) == []


def test_seed_and_epoch_change_order_and_pixels():
    first = content(loader().epoch(0))
    assert first == content(loader().epoch(0))
    assert first != content(loader(seed=4).epoch(0))
    whole = {"source": painted_source(4), "sampling": "uniform", "augment": AugmentConfig("light")}
    one, other = (next(loader(**whole).epoch(epoch)) for epoch in (0, 1))
    assert sorted(one.indices) == sorted(other.indices)
    images = [dict(zip(b.indices, b.images, strict=True)) for b in (one, other)]
    assert all(not torch.equal(images[0][i], images[1][i]) for i in range(4))


def test_the_random_state_of_the_process_is_neither_read_nor_changed():
    before = torch.get_rng_state(), numpy.random.get_state()[1].tolist()
    first = content(loader().epoch(0))
    assert content(loader(workers=1).epoch(0)) == first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert numpy.random.get_state()[1].tolist() == before[1]
    # That of `random` moves in tests, because the checks of types draw from it.
    torch.manual_seed(6), numpy.random.seed(6), random.seed(6)
    assert content(loader().epoch(0)) == first


def test_ranks_share_the_global_batches_of_one_process():
    for sampling in ("uniform", "class_balanced"):
        one = loader(batch_size=6, sampling=sampling)
        ranks = [loader(batch_size=2, rank=rank, num_ranks=3, sampling=sampling) for rank in range(3)]
        assert len(one) == len(ranks[0]) == len(ranks[1]) == len(ranks[2]) == 3
        for whole, *parts in zip(one.epoch(1), *(rank.epoch(1) for rank in ranks), strict=True):
            assert sum((part.indices for part in parts), ()) == whole.indices
            boxes = [target.boxes.tolist() for part in parts for target in part.targets]
            assert boxes == [target.boxes.tolist() for target in whole.targets]


def test_training_groups_by_aspect_and_pads_to_the_divisor():
    sizes = [set(batch.sizes) for batch in loader().epoch(0)]
    assert sum(len(kinds) > 1 for kinds in sizes) <= 1
    assert all(kinds <= {ImageSize(32, 19), ImageSize(19, 32)} for kinds in sizes)
    shapes = {tuple(batch.images.shape) for batch in loader().epoch(0)}
    assert shapes <= {(4, 3, 32, 24), (4, 3, 24, 32), (4, 3, 32, 32)}


def test_a_set_smaller_than_a_batch_is_one_batch():
    small = loader(painted_source(3), batch_size=8)
    assert len(small) == 1
    (batch,) = small.epoch(0)
    assert sorted(batch.indices) == [0, 1, 2]
    halves = [next(loader(painted_source(3), batch_size=8, rank=rank, num_ranks=2).epoch(0)) for rank in (0, 1)]
    assert halves[0].indices + halves[1].indices == batch.indices


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_evaluation_covers_every_image_once_as_it_is(num_ranks):
    source = painted_source(22, portrait=(0, 5, 9), empty=(1,))
    seen = []
    for rank in range(num_ranks):
        fraction = loader(source, augment=None, rank=rank, num_ranks=num_ranks)
        batches = list(fraction.epoch(7))
        assert len(batches) == len(fraction)
        for batch in batches:
            seen += batch.indices
            for i, size, original, target in zip(
                batch.indices, batch.sizes, batch.original_sizes, batch.targets, strict=True
            ):
                assert original == source.samples[i].size
                assert size == PREPROCESSING.resize.target(original)
                scale = target.boxes.new_tensor([size.width / original.width, size.height / original.height] * 2)
                assert torch.allclose(target.boxes, source.samples[i].target.boxes * scale)
    assert sorted(seen) == list(range(22))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_evaluated_image_is_padded_the_same_in_every_batch(batch_size):
    sizes = [(24, 40), (40, 24), (39, 24), (40, 40), (20, 40), (23, 40), (40, 17), (24, 39)]
    source = PaintedSource(tuple(painted(size, [], []) for size in sizes))
    for batch in loader(source, augment=None, batch_size=batch_size).epoch(0):
        assert {PREPROCESSING.padded_size(size) for size in batch.sizes} == {ImageSize(*batch.images.shape[2:])}


def test_what_a_network_finds_does_not_depend_on_the_batch_size():
    sizes = [(32, 64), (40, 64), (64, 64), (72, 64), (64, 40), (31, 64), (50, 64), (64, 32)]
    source = PaintedSource(tuple(painted(size, [(4, 4, 20 + 2 * i, 28)], [i % 7]) for i, size in enumerate(sizes)))
    torch.manual_seed(0)
    detector = build(
        "retinanet_mobilenet_v2_fpn",
        num_classes=2,
        preprocessing=Preprocessing(resize=Resize("long", 64)),
        architecture={"width": 16, "head_depth": 1, "detect": {"score_threshold": 0.001, "top_k": 20}},
    )
    alone, *others = (
        detect_all(detector, source, batch_size=number, precision="fp32").detections for number in (1, 3, 100)
    )
    assert all(len(one) > 0 for one in alone)
    for batches in others:
        for one, other in zip(alone, batches, strict=True):
            assert torch.equal(one.labels, other.labels)
            assert torch.allclose(one.scores, other.scores, rtol=0, atol=1e-6)
            assert torch.allclose(one.boxes, other.boxes, rtol=1e-6, atol=1e-6)


def test_an_empty_set_evaluates_to_nothing():
    assert list(loader(PaintedSource(()), augment=None).epoch(0)) == []


def test_class_balance_shows_rare_classes_more_often_and_each_time_anew():
    box = (4, 4, 30, 20)
    source = PaintedSource(tuple(painted((24, 40), [box], [1 if i == 0 else 0]) for i in range(40)))
    balanced = loader(source, sampling="class_balanced", batch_size=8, augment=AugmentConfig("light"))
    batches = [batch for epoch in range(5) for batch in balanced.epoch(epoch)]
    rare = [image for b in batches for i, image in zip(b.indices, b.images, strict=True) if i == 0]
    # The factor of the rare image is sqrt(40), that of the others sqrt(40 / 39): 5.6 of 40 places in an epoch.
    assert 5 * 5 <= len(rare) <= 5 * 6
    assert all(not torch.equal(a, b) for n, a in enumerate(rare) for b in rare[:n])
    uniform = loader(source, batch_size=8)
    assert [i for b in uniform.epoch(0) for i in b.indices].count(0) == 1


def test_mosaic_ends_with_the_last_fraction_of_the_epochs():
    half = loader(augment=AugmentConfig("none", mosaic=1.0, mosaic_off_last=0.5))

    def images(epoch):
        return {name.count(" + ") + 1 for batch in half.epoch(epoch) for name in batch.image_names}

    assert [images(epoch) for epoch in range(4)] == [{4}, {4}, {1}, {1}]
    half.set_num_epochs(6)  # as a run of some minutes does, whose length is seen as it goes on
    assert [images(epoch) for epoch in (2, 3)] == [{4}, {1}]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_with_any_number_of_workers(workers):
    broken = loader(painted_source(9, broken=4), augment=None, workers=workers)
    with pytest.raises(DataError) as caught:
        list(broken.epoch(0))
    assert str(caught.value) == "painted/broken.png · image 3 · pixels: is damaged"


class StuckSource:
    """A source whose loading process stops at the second batch, as one does that the system kills for its memory."""

    def __init__(self, end):
        self.dataset, self.end, self.parent = painted_source(12).dataset, end, os.getpid()

    def load(self, i, *, epoch):
        if i >= 4 and os.getpid() != self.parent:
            self.end()
        return painted_source(12).load(i, epoch=epoch)


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _leave():
    os._exit(3)


@pytest.mark.parametrize("end", [_kill, _leave])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_dead_worker_is_an_error_and_no_hang(end, workers):
    dying = loader(StuckSource(end), augment=None, workers=workers)
    start = time.monotonic()
    with pytest.raises(FocaldetError, match=r"a process that loads images ended.*fewer workers"):
        list(dying.epoch(0))
    assert time.monotonic() - start < 30


def test_a_worker_killed_while_the_program_computes_is_an_error_and_the_next_epoch_starts_new_ones():
    many = loader(workers=2, augment=None, batch_size=1)
    batches = many.epoch(0)
    start = time.monotonic()
    with pytest.raises(FocaldetError, match="a process that loads images ended"), explain_worker_death():
        next(batches)
        os.kill(many._torch_loader._iterator._workers[0].pid, signal.SIGKILL)
        time.sleep(20)
    assert time.monotonic() - start < 15
    with pytest.raises(FocaldetError, match="a process that loads images ended"):
        list(many.epoch(0))
    assert content(many.epoch(0)) == content(loader(augment=None, batch_size=1).epoch(0))


def test_other_errors_are_not_explained_as_dead_workers():
    with pytest.raises(RuntimeError, match="out of memory"), explain_worker_death():
        raise RuntimeError("out of memory")


def test_files_are_kept_in_memory_in_training_only(tmp_path):
    source = painted_source(6)
    dataset = replace(source.dataset, root=tmp_path)
    for i, sample in enumerate(source.samples):
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    training, evaluation = (loader(FileSource(dataset), augment=augment) for augment in (STRONG, None))
    assert isinstance(training._samples.source, CachedSource)
    assert isinstance(evaluation._samples.source, FileSource)
    pixels = [[batch.images for batch in one.epoch(0)] for one in (training, loader(source))]
    assert all(torch.equal(a, b) for a, b in zip(*pixels, strict=True))


@pytest.mark.parametrize(("workers", "side", "is_kept"), [(0, 300, True), (0, 600, False), (2, 300, False)])
def test_images_are_kept_only_where_a_quarter_of_them_fits(monkeypatch, workers, side, is_kept):
    """A process of two has half of the memory: what a COCO-size set leaves in it would seldom be asked for again."""
    dataset = replace(painted_source(6).dataset, sizes=torch.full((6, 2), side, dtype=torch.int32))
    monkeypatch.setattr(loader_module, "CACHE_BYTES", 3 * 300 * 300 * 6 // 4)
    training = loader(FileSource(dataset), augment=STRONG, workers=workers)
    assert isinstance(training._samples.source, CachedSource) == is_kept


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_size": 0}, "batch_size: must be ≥ 1, got 0"),
        ({"workers": -1}, "workers"),
        ({"num_ranks": 0}, "num_ranks"),
        ({"rank": 2, "num_ranks": 2}, "rank: must be in 0…1, got 2"),
        ({"source": painted_source(1), "num_ranks": 2}, "1 image cannot be trained on by 2 processes"),
    ],
)
def test_wrong_settings_are_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        loader(**settings)


def test_real_images_give_the_same_batches_in_workers(real_data):
    dataset = open_splits(DataConfig(path=real_data / "bccd"), seed=0).train
    source = FileSource(dataset.subset(range(24), "some"))
    settings = {"preprocessing": Preprocessing(resize=Resize("long", 320, None)), "batch_size": 8}
    plain = content(loader(source, **settings).epoch(0))
    assert len(plain) == 3
    assert content(loader(source, workers=2, **settings).epoch(0)) == plain
    (batch, *_) = loader(source, **settings, augment=None).epoch(0)
    assert batch.images.shape == (8, 3, 256, 320)
    assert set(batch.sizes) == {ImageSize(240, 320)}


def test_multi_scale_draws_a_size_every_ten_batches_whatever_the_start_and_the_workers():
    many = {"source": painted_source(96), "batch_size": 4, "multi_scale": (30, 100)}
    sizes = [batch.images.shape[-1] for batch in loader(**many).epoch(0)]
    assert len(sizes) == 24 and set(sizes) <= {32, 64, 96}
    assert len(set(sizes[:10])) == len(set(sizes[10:20])) == len(set(sizes[20:])) == 1
    assert {size for epoch in range(6) for batch in loader(**many).picks(epoch) for size in [batch[0].size_px]} == {
        *(32, 64, 96)
    }
    assert [batch.images.shape[-1] for batch in loader(**many).epoch(0, start_batch=7)] == sizes[7:]
    plain = content(loader(**many).epoch(0, start_batch=18))
    assert content(loader(**many, workers=1).epoch(0, start_batch=18)) == plain
    ranks = [loader(**many | {"batch_size": 2}, rank=rank, num_ranks=2).picks(0) for rank in range(2)]
    assert [batch[0].size_px for batch in ranks[0]] == [batch[0].size_px for batch in ranks[1]] == sizes


def test_multi_scale_changes_the_size_and_nothing_else_that_is_drawn():
    one, other = loader(multi_scale=(32, 32)), loader()
    assert content(one.epoch(0)) == content(other.epoch(0))
    assert one.picks(0) != other.picks(0)
    assert loader(augment=None, multi_scale=(32, 64)).picks(0) == loader(augment=None).picks(0), "training alone"


def test_the_last_fraction_of_a_run_has_the_largest_size():
    """Of 3 epochs of 24 batches the last tenth: 7 batches, the end of a block of 10 too."""
    many = {"source": painted_source(96), "batch_size": 4, "multi_scale": (32, 320), "num_epochs": 3}
    drawn, ended = (
        [[batch[0].size_px for batch in one.picks(epoch)] for epoch in range(3)]
        for one in (loader(**many), loader(**many, multi_scale_end=0.1))
    )
    assert ended[:2] == drawn[:2] and ended[2] == [*drawn[2][:17], *[320] * 7]
    assert drawn[2][17:] != [320] * 7
    whole = loader(**many, multi_scale_end=1.0)
    assert {batch[0].size_px for epoch in range(3) for batch in whole.picks(epoch)} == {320}


@pytest.mark.parametrize("bounds", [(33, 63), (64, 32), (-64, -32), (0, 32)])
def test_multi_scale_without_a_multiple_of_32_is_refused(bounds):
    with pytest.raises(ConfigError, match="multi_scale: no multiple of 32 px"):
        loader(multi_scale=bounds).picks(0)
