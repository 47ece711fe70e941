"""Images of many requests, put into batches: what waits while batches are computed makes the next.

So a batch never waits for more images, and a lone request is answered as fast as `predict` answers it.

Several lanes, threads that take from one queue, share the cores: torch splits an operation over the cores and joins
them again at its end, which for the operations of one image costs more than that each core has an image of its own.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Lock, Thread

import torch

from focaldet.prediction import Predictor, ResizedImage
from focaldet.service.refusals import LOGGER
from focaldet.types import Detections

Observe = Callable[[int, float, bool], None]
"""Called after each batch, in its lane, with its number of images and the seconds that it took."""


@dataclass(frozen=True, slots=True)
class BatchedDetections:
    """The detections of an image, and the seconds that it waited for its batch and that the batch took."""

    detections: Detections
    wait_seconds: float
    detect_seconds: float


@dataclass(frozen=True, slots=True)
class _Job:
    image: ResizedImage
    future: "asyncio.Future[BatchedDetections]"
    submitted: float = field(default_factory=time.perf_counter)


class BatchQueue:
    """Threads that run a detector on the images they are given, in batches.

    Each begins with a blank image, which nobody counts: the first one in a thread takes many times as long as others.

    How many may wait is for the caller to limit.

    Args:
        predictor: the detector; the lanes call it at the same time.
        batch_size: most images of a batch, all of which have one padded size.
        observe: called after each batch; what it raises is logged and ends nothing.
        lanes: the number of threads.
        cores: the cores that they share: a lane that is alone, with nothing waiting, computes with all of them.
    """

    def __init__(
        self, predictor: Predictor, *, batch_size: int, observe: Observe, lanes: int = 1, cores: int = 1
    ) -> None:
        self.predictor, self.batch_size, self.observe = predictor, batch_size, observe
        self.lanes, self.cores = lanes, cores
        self._warming = Lock()  # one after the other: each has all cores for it
        self._changed = Condition()  # guards what follows
        self._waiting: deque[_Job] = deque()
        self._busy, self._is_ending, self._num_cold = 0, False, lanes
        names = [f"focaldet-batches-{number}" for number in range(lanes)]
        self._threads = [Thread(target=self._run, name=name, daemon=True) for name in names]

    @property
    def is_alive(self) -> bool:
        """Whether every lane runs."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def is_running(self) -> bool:
        """Whether any lane runs."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def is_warm(self) -> bool:
        """Whether every lane has computed its blank image."""
        return self._num_cold == 0

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let the threads end after what has been submitted; they are daemons, so that nobody must wait for them."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()

    def submit(self, image: ResizedImage) -> "asyncio.Future[BatchedDetections]":
        """The detections of an image, some time later; one that is cancelled in time costs nothing."""
        job = _Job(image, asyncio.get_running_loop().create_future())
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def _run(self) -> None:
        torch.get_num_threads()  # else torch's first operation here takes the number that any thread set last
        self._warm_up()
        while batch := self._next_batch():
            jobs, threads = batch
            is_shared = threads < self.cores
            if self.cores > 1:
                torch.set_num_threads(threads)  # of this lane alone: OpenMP and MKL keep it for each thread
            try:
                self._detect(jobs, is_shared=is_shared)
            except BaseException:  # this lane ends, which the health of the service then says
                _hand_over(jobs, [RuntimeError("the lane of the batch has ended")] * len(jobs))
                raise
            with self._changed:
                self._busy -= 1

    def _warm_up(self) -> None:
        """Compute a blank image; where that fails, the images will say why."""
        try:
            with self._warming:
                if not self._is_ending:
                    self.predictor.warm_up()
        except Exception:
            LOGGER.exception("a blank image could not be computed")
        with self._changed:
            self._num_cold -= 1

    def _next_batch(self) -> tuple[list[_Job], int] | None:
        """The first image that waits with others of its padded size, and how many threads compute them; else None.

        None is the end. Without the look behind those of other sizes, images of mixed sizes would pass one by one.
        """
        with self._changed:
            while True:
                self._waiting = deque(job for job in self._waiting if not job.future.cancelled())
                if self._waiting:
                    break
                if self._is_ending:
                    return None
                self._changed.wait()
            size = self._waiting[0].image.padded_size
            most = min(self.batch_size, -(-len(self._waiting) // self.lanes))  # the other lanes have work, too
            fits = [job for job in self._waiting if job.image.padded_size == size][:most]
            taken = set(map(id, fits))
            self._waiting = deque(job for job in self._waiting if id(job) not in taken)
            self._busy += 1
            is_alone = self._busy == 1 and not self._waiting
            return fits, self.cores if is_alone else max(1, self.cores // self.lanes)

    def _detect(self, jobs: Sequence[_Job], *, is_shared: bool) -> None:
        """Answer the images of a batch; where it fails, each alone, so that one cannot take the others with it."""
        started = time.perf_counter()
        try:
            results = self.predictor.detect_prepared([job.image for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                _hand_over(jobs, [error])
                return
            for job in jobs:
                self._detect([job], is_shared=is_shared)
            return
        seconds = time.perf_counter() - started
        answers = [
            BatchedDetections(each.detections, started - job.submitted, seconds)
            for job, each in zip(jobs, results, strict=True)
        ]
        try:
            self.observe(len(jobs), seconds, is_shared)
        except Exception:
            LOGGER.exception("a batch could not be counted")
        _hand_over(jobs, answers)


def _hand_over(jobs: Sequence[_Job], results: Sequence[BatchedDetections | Exception]) -> None:
    """Give the results of a batch to those who wait, in one call of the event loop."""
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        jobs[0].future.get_loop().call_soon_threadsafe(_resolve, jobs, results)


def _resolve(jobs: Sequence[_Job], results: Sequence[BatchedDetections | Exception]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.future.done():  # cancelled
            continue
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
