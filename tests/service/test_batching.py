"""Batches of what waits: the same detections as alone, in order, and no request takes others with it."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from itertools import chain

import pytest
import torch

from focaldet.errors import ConfigError
from focaldet.service.batching import BatchQueue
from tests.evaluation.cases import make_image
from tests.service.services import bright_predictor, slow_predictor


@asynccontextmanager
async def running_queue(predictor, *, batch_size=4, observe=None, **settings):
    """A started queue, and the sizes of the batches that it makes; ended afterwards."""
    sizes = []
    observe = observe or (lambda number, *_: sizes.append(number))
    queue = BatchQueue(predictor, batch_size=batch_size, observe=observe, **settings)
    queue.start()
    try:
        yield queue, sizes
    finally:
        queue.end()


def submit(queue, image):
    return queue.submit(queue.predictor.prepare(image))


async def until(event):
    assert await asyncio.to_thread(event.wait, 10)


def images(number):
    return [make_image(size=(48 + 8 * (k % 3), 64), box=(8, 8, 20 + k, 40)) for k in range(number)]


def test_batches_answer_as_predict_does():
    """Images of three sizes; those that wait behind the first are put together, as many as are allowed."""
    gate, started = threading.Event(), threading.Event()

    async def run():
        async with running_queue(slow_predictor(gate=gate, started=started)) as (queue, sizes):
            first, *rest = images(10)
            futures = [submit(queue, first)]
            await until(started)
            futures += [submit(queue, image) for image in rest]
            gate.set()
            return await asyncio.gather(*futures), sizes

    results, sizes = asyncio.run(run())
    expected = bright_predictor().predict(images(10))
    assert [result.detections for result in results] == expected
    assert len({tuple(map(tuple, each.boxes.tolist())) for each in expected}) == 10
    assert sizes == [1, 4, 4, 1]
    assert all(result.detect_seconds > 0 for result in results)
    assert results[-1].wait_seconds > 0


def test_images_of_one_padded_size_are_put_together_from_behind_others():
    gate, started = threading.Event(), threading.Event()
    shapes = [(64, 64), (32, 64), (64, 64), (32, 64), (64, 64), (32, 64), (64, 64)]

    async def run():
        async with running_queue(slow_predictor(gate=gate, started=started)) as (queue, sizes):
            futures = [submit(queue, make_image())]
            await until(started)
            futures += [submit(queue, make_image(size=size, box=(8, 8, 20, 30))) for size in shapes]
            gate.set()
            return await asyncio.gather(*futures), sizes

    results, sizes = asyncio.run(run())
    assert sizes == [1, 4, 3]
    assert [result.detections.boxes.tolist() for result in results[1:]] == [[[8, 8, 20, 30]]] * 7


def test_lanes_share_the_cores_and_a_lone_one_has_all(monkeypatch):
    """Two batches are inside at the same time, each then with its part of the cores; a lone image has all of them."""
    threads = {}
    set_threads = torch.set_num_threads
    before = torch.get_num_threads()

    def note(number):
        threads.setdefault(threading.current_thread().name, []).append(number)
        set_threads(number)

    monkeypatch.setattr("torch.set_num_threads", note)
    both = threading.Barrier(2)
    predictor = bright_predictor()
    detect, wait = predictor.detect_prepared, [False]

    def detect_together(prepared):
        if wait[0]:
            both.wait(10)
        assert torch.get_num_threads() == threads[threading.current_thread().name][-1]
        return detect(prepared)

    predictor.detect_prepared = detect_together

    async def run():
        async with running_queue(predictor, batch_size=1, lanes=2, cores=4) as (queue, _):
            assert queue.is_alive
            await submit(queue, make_image())
            assert [*chain(*threads.values())] == [4]
            wait[0] = True
            await asyncio.gather(*(submit(queue, make_image()) for _ in range(4)))
            queue.end()
            deadline = time.monotonic() + 10
            while queue.is_running and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            assert not queue.is_running

    asyncio.run(run())
    assert len(threads) == 2
    assert 2 in [*chain(*threads.values())]
    assert torch.get_num_threads() == before  # of this thread: each has a number of its own


def test_an_image_that_fails_fails_alone():
    gate, started = threading.Event(), threading.Event()
    predictor = slow_predictor(gate=gate, started=started)
    detect = predictor.detect_prepared

    def refuse_small(prepared):
        if any(image.original_size.width == 63 for image in prepared):
            raise ConfigError("too small")
        return detect(prepared)

    predictor.detect_prepared = refuse_small

    async def run():
        async with running_queue(predictor) as (queue, sizes):
            first = submit(queue, make_image())
            await until(started)
            good, bad = submit(queue, make_image()), submit(queue, torch.zeros(3, 63, 63, dtype=torch.uint8))
            gate.set()
            assert (await first).detections == (await good).detections
            with pytest.raises(ConfigError, match="too small"):
                await bad
            assert sizes == [1, 1]

    asyncio.run(run())


def test_what_is_cancelled_is_not_computed():
    gate, started = threading.Event(), threading.Event()

    async def run():
        async with running_queue(slow_predictor(gate=gate, started=started), batch_size=1) as (queue, sizes):
            first = submit(queue, make_image())
            await until(started)
            cancelled = submit(queue, make_image())
            assert cancelled.cancel()
            second = submit(queue, make_image())
            gate.set()
            assert [len((await each).detections) for each in (first, second)] == [1, 1]
            assert sum(sizes) == 2

    asyncio.run(run())


def test_what_was_submitted_before_the_end_is_answered():
    async def run():
        async with running_queue(slow_predictor(seconds=0.02), batch_size=2) as (queue, _):
            futures = [submit(queue, image) for image in images(7)]
            queue.end()
            assert len(await asyncio.gather(*futures)) == 7

    asyncio.run(run())


def test_a_count_that_fails_ends_no_lane(caplog):
    def fail(number, seconds, is_shared):
        raise OSError("the disk is full")

    async def run():
        async with running_queue(bright_predictor(), observe=fail) as (queue, _):
            for _ in range(2):
                assert len((await asyncio.wait_for(submit(queue, make_image()), 10)).detections) == 1
            assert queue.is_alive

    asyncio.run(run())
    assert ("could not be counted" in caplog.text, "OSError: the disk is full" in caplog.text) == (True, True)


async def until_warm(queue):
    deadline = time.monotonic() + 10
    while not queue.is_warm and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert queue.is_warm


def test_each_lane_begins_with_a_blank_image_that_is_not_counted():
    predictor, lanes = bright_predictor(), []
    warm_up = predictor.warm_up

    def note():
        lanes.append(threading.current_thread().name)
        warm_up()

    predictor.warm_up = note

    async def run():
        async with running_queue(predictor, lanes=3) as (queue, sizes):
            await until_warm(queue)
            assert (len({*lanes}), len(lanes), sizes) == (3, 3, [])
            await submit(queue, make_image())
            assert sizes == [1]

    asyncio.run(run())


def test_a_blank_image_that_fails_ends_no_lane(caplog):
    predictor = bright_predictor()
    predictor.warm_up = lambda: 1 / 0

    async def run():
        async with running_queue(predictor) as (queue, _):
            await until_warm(queue)
            assert len((await submit(queue, make_image())).detections) == 1

    asyncio.run(run())
    assert "a blank image could not be computed" in caplog.text


def test_the_first_free_lane_leaves_work_to_the_others():
    async def take():
        queue = BatchQueue(bright_predictor(), batch_size=8, observe=lambda *_: None, lanes=2, cores=2)
        futures = [submit(queue, make_image()) for _ in range(6)]
        first, second = queue._next_batch(), queue._next_batch()
        assert [len(jobs) for jobs, _ in (first, second)] == [3, 2] and len(futures) == 6

    asyncio.run(take())
