"""Images of many requests, put into batches: what waits while one batch is computed makes the next.

So a batch never waits for more images, and a lone request is answered as fast as `predict` answers it.

Axes: H W pixels.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread

from jaxtyping import UInt8
from torch import Tensor

from focaldet.prediction import Predictor
from focaldet.types import Detections

Observe = Callable[[int, float], None]
"""Called after each batch with its number of images and the seconds that it took."""


@dataclass(frozen=True, slots=True)
class BatchedDetections:
    """The detections of an image, and the seconds that it waited for its batch and that the batch took."""

    detections: Detections
    wait_seconds: float
    detect_seconds: float


@dataclass(frozen=True, slots=True)
class _Job:
    pixels: UInt8[Tensor, "3 H W"]
    future: Future[BatchedDetections] = field(default_factory=Future)
    submitted: float = field(default_factory=time.perf_counter)


class BatchQueue:
    """A thread that runs a detector on the images it is given, in batches.

    How many may wait is for the caller to limit.

    Args:
        predictor: the detector; only this thread calls it.
        batch_size: most images of a batch.
        observe: called after each batch.
    """

    def __init__(self, predictor: Predictor, *, batch_size: int, observe: Observe) -> None:
        self.predictor, self.batch_size, self.observe = predictor, batch_size, observe
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="focaldet-batches", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what has been submitted."""
        self._jobs.put(None)
        self._thread.join()

    def submit(self, pixels: UInt8[Tensor, "3 H W"]) -> Future[BatchedDetections]:
        """The detections of an image, some time later; a `Future` that is cancelled in time costs nothing."""
        job = _Job(pixels)
        self._jobs.put(job)
        return job.future

    def _run(self) -> None:
        while jobs := self._next_batch():
            if running := [job for job in jobs if job.future.set_running_or_notify_cancel()]:
                self._detect(running)

    def _next_batch(self) -> list[_Job]:
        """The first image that waits, and what waits behind it; empty at the end."""
        first = self._jobs.get()
        batch = [] if first is None else [first]
        while batch and len(batch) < self.batch_size:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is None:  # the end comes after this batch
                self._jobs.put(None)
                break
            batch.append(job)
        return batch

    def _detect(self, jobs: list[_Job]) -> None:
        """Answer the images of a batch; where it fails, each alone, so that one cannot take the others with it."""
        started = time.perf_counter()
        try:
            detections = self.predictor.predict([job.pixels for job in jobs], batch_size=len(jobs))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._detect([job])
            return
        seconds = time.perf_counter() - started
        self.observe(len(jobs), seconds)
        for job, each in zip(jobs, detections, strict=True):
            job.future.set_result(BatchedDetections(each, started - job.submitted, seconds))
