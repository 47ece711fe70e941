"""Batches of what waits: the same detections as alone, in order, and no request takes others with it."""

import threading

import pytest
import torch

from focaldet.errors import ConfigError
from focaldet.service.batching import BatchQueue
from tests.evaluation.cases import make_image
from tests.service.services import bright_predictor, slow_predictor


@pytest.fixture
def queue_of():
    """A started queue, and the sizes of the batches that it makes; stopped at the end."""
    queues = []

    def make(predictor, batch_size=4):
        sizes = []
        queue = BatchQueue(predictor, batch_size=batch_size, observe=lambda number, _: sizes.append(number))
        queue.start()
        queues.append(queue)
        return queue, sizes

    yield make
    for queue in queues:
        queue.stop()


def images(number):
    return [make_image(size=(48 + 8 * (k % 3), 64), box=(8, 8, 20 + k, 40)) for k in range(number)]


def test_batches_answer_as_predict_does(queue_of):
    """Images of three sizes; those that wait behind the first are put together, as many as are allowed."""
    gate, started = threading.Event(), threading.Event()
    queue, sizes = queue_of(slow_predictor(gate=gate, started=started))
    first, *rest = images(10)
    futures = [queue.submit(first)]
    assert started.wait(10)
    futures += [queue.submit(image) for image in rest]
    gate.set()
    results = [future.result(10) for future in futures]
    expected = bright_predictor().predict(images(10))
    assert [result.detections for result in results] == expected
    assert len({tuple(map(tuple, each.boxes.tolist())) for each in expected}) == 10
    assert sizes == [1, 4, 4, 1]
    assert all(result.detect_seconds > 0 for result in results)
    assert results[-1].wait_seconds > 0


def test_an_image_that_fails_fails_alone(queue_of):
    gate, started = threading.Event(), threading.Event()
    predictor = slow_predictor(gate=gate, started=started)
    predict = predictor.predict

    def refuse_small(pixels, *, batch_size):
        if any(image.shape[1] < 10 for image in pixels):
            raise ConfigError("too small")
        return predict(pixels, batch_size=batch_size)

    predictor.predict = refuse_small
    queue, sizes = queue_of(predictor)
    first = queue.submit(make_image())
    assert started.wait(10)
    good, bad = queue.submit(make_image()), queue.submit(torch.zeros(3, 4, 4, dtype=torch.uint8))
    gate.set()
    assert first.result(10).detections == good.result(10).detections
    with pytest.raises(ConfigError, match="too small"):
        bad.result(10)
    assert sizes == [1, 1]


def test_what_is_cancelled_is_not_computed(queue_of):
    gate, started = threading.Event(), threading.Event()
    queue, sizes = queue_of(slow_predictor(gate=gate, started=started))
    first, second = queue.submit(make_image()), queue.submit(make_image())
    assert started.wait(10)
    cancelled = queue.submit(make_image())
    assert cancelled.cancel()
    gate.set()
    assert [len(each.result(10).detections) for each in (first, second)] == [1, 1]
    queue.stop()
    assert sum(sizes) == 2


def test_what_was_submitted_before_the_end_is_answered(queue_of):
    queue, _ = queue_of(slow_predictor(seconds=0.02), batch_size=2)
    futures = [queue.submit(image) for image in images(7)]
    queue.stop()
    assert all(future.done() for future in futures)
