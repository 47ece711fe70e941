"""From the bytes of an image to its detections, for many requests at a time and within limits.

Axes: H W pixels.
"""

import asyncio
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from focaldet.cores import usable_cores
from focaldet.prediction import Predictor, ResizedImage
from focaldet.service.batching import BatchedDetections, BatchQueue
from focaldet.service.options import DRAIN_SECONDS, ServiceOptions
from focaldet.service.refusals import Quota, RefusalError, refuse_failure
from focaldet.types import Detections, ImageSize
from focaldet.weights.exported.detector import ExportedDetector

MOST_DECODING_THREADS, MOST_LANES = 4, 8
AVERAGING = 0.1  # of the seconds per image, from which Retry-After is reckoned
STOP_SECONDS = 0.5  # that a batch may still take after the requests have had their time

Given = TypeVar("Given")
Computed = TypeVar("Computed")


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What was detected in an image, its size, and where the time went, in seconds."""

    size: ImageSize
    detections: Detections
    decode_seconds: float
    wait_seconds: float
    detect_seconds: float


class DetectionPipeline:
    """Decodes and resizes images in threads and hands them to the batches.

    At most `options.queue` images are inside; each is resized before it waits for its batch, so that of whole images
    there are never more than threads that decode.
    """

    def __init__(self, predictor: Predictor, options: ServiceOptions, *, observe: Callable[[int, float], None]) -> None:
        self.predictor, self.options = predictor, options
        self.images = Quota(options.queue)
        self.buffer = Quota(round(options.buffer_megabytes * 1e6))
        self._observe = observe
        self._seconds_per_image, self._num_batches = 0.0, 0
        threads = min(MOST_DECODING_THREADS, usable_cores())
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="focaldet-decode", initializer=torch.set_num_threads, initargs=(1,)
        )
        cores = torch.get_num_threads()
        lanes = count_lanes(predictor, cores)
        self._batches = BatchQueue(
            predictor, batch_size=options.batch_size, observe=self._note_batch, lanes=lanes, cores=cores
        )

    @property
    def is_alive(self) -> bool:
        """Whether images can be detected: no thread of the batches has ended."""
        return self._batches.is_alive

    @property
    def is_running(self) -> bool:
        """Whether any thread of the batches still computes."""
        return self._batches.is_running

    @property
    def is_warm(self) -> bool:
        """Whether the first image of each thread of the batches, which takes longer than others, is behind it."""
        return self._batches.is_warm

    def start(self) -> None:
        """Start the threads."""
        self._batches.start()

    async def stop(self) -> None:
        """End the threads after what they have to do, or without them where that takes too long."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._batches.end()
        deadline = time.perf_counter() + STOP_SECONDS
        while (self.images.taken or self._batches.is_running) and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)

    def require_room(self, count: int = 1) -> None:
        """Refuse so many images where they would wait for longer than an ending service has time.

        Raises:
            RefusalError: too many wait already, or for too long.
        """
        waiting = self.images.taken
        self.images.seconds = self._seconds_per_image * waiting
        if waiting and self._seconds_per_image * (waiting + count) > DRAIN_SECONDS:
            raise self.images.refuse()
        self.images.require(count)

    async def detect(self, images: Sequence[bytes | UInt8[Tensor, "3 H W"]]) -> list[ImageResult]:
        """The detections of the images of one request: encoded ones, or RGB pixels.

        Raises:
            RefusalError: there are too many, or one of them cannot be read.
        """
        if len(images) > self.images.limit:
            raise RefusalError(413, f"{len(images)} images in a request, at most {self.images.limit} are taken")
        self.require_room(len(images))
        self.images.take(len(images))
        try:
            results = await asyncio.gather(*map(self._detect_one, images), return_exceptions=True)
        finally:
            self.images.give_back(len(images))
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, ImageResult)]

    async def _detect_one(self, image: bytes | UInt8[Tensor, "3 H W"]) -> ImageResult:
        started = time.perf_counter()
        try:
            prepared = await self.run(self._prepare, image)
            decode_seconds = time.perf_counter() - started
            timed: BatchedDetections = await self._batches.submit(prepared)
        except Exception as error:
            raise refuse_failure(error) from None
        size = prepared.original_size
        return ImageResult(size, timed.detections, decode_seconds, timed.wait_seconds, timed.detect_seconds)

    async def run(self, function: Callable[[Given], Computed], value: Given) -> Computed:
        """`function(value)` in one of the threads that decode."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, value)

    def _prepare(self, image: bytes | UInt8[Tensor, "3 H W"]) -> ResizedImage:
        """An image at the size of the network, as `predict` reads and resizes that of a file."""
        content = io.BytesIO(image) if isinstance(image, bytes) else image
        return self.predictor.prepare(content, most_pixels=self.options.max_pixels)

    def _note_batch(self, num_images: int, seconds: float, is_shared: bool) -> None:
        """Keep the smoothed time of an image, of which the lanes compute several at a time where they share cores.

        The mean of the first batches goes over into a smoothed one: were the first batch the beginning, one that is
        slow by chance would be felt for twenty others.
        """
        spent = seconds / num_images / (self._batches.lanes if is_shared else 1)
        self._num_batches += 1
        weight = max(AVERAGING, 1 / self._num_batches)
        self._seconds_per_image += weight * (spent - self._seconds_per_image)
        self._observe(num_images, seconds)


def count_lanes(predictor: Predictor, cores: int) -> int:
    """How many batches are computed at a time: on the CPU one for each core.

    OpenVINO, compiled for latency, computes one after the other with all cores: there a second lane only makes smaller
    batches of what waits. onnxruntime computes them side by side.
    """
    detector = predictor.detector
    if predictor.device.type != "cpu" or (isinstance(detector, ExportedDetector) and detector.runs_in_turn):
        return 1
    return min(cores, MOST_LANES)
