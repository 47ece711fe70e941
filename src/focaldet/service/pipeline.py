"""From the bytes of an image to its detections, for many requests at a time and within limits.

Axes: H W pixels.
"""

import asyncio
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import UInt8
from torch import Tensor

from focaldet.data.images import read_header, read_reduced
from focaldet.errors import DataError
from focaldet.prediction import Predictor
from focaldet.service.batching import BatchedDetections, BatchQueue, Observe
from focaldet.service.options import ServiceOptions
from focaldet.service.refusals import Quota, RefusalError, refuse_image
from focaldet.types import Detections, ImageSize

DECODING_THREADS = min(4, os.cpu_count() or 1)
AVERAGING = 0.1  # of the seconds per image, from which Retry-After is reckoned

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
    """Decodes images in threads and hands them to the batches.

    At most `options.queue` images are inside; of these no more than two batches are decoded at a time, whatever their
    size, the others wait as the bytes that came.
    """

    def __init__(self, predictor: Predictor, options: ServiceOptions, *, observe: Observe) -> None:
        self.options = options
        self.images = Quota(options.queue)
        self.buffer = Quota(round(options.buffer_megabytes * 1e6))
        self._observe = observe
        self._seconds_per_image = 0.0
        self._decoded = asyncio.Semaphore(2 * options.batch_size)
        self._pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="focaldet-decode")
        self._batches = BatchQueue(predictor, batch_size=options.batch_size, observe=self._note_batch)

    def start(self) -> None:
        """Start the threads."""
        self._batches.start()

    def stop(self) -> None:
        """End the threads after what they have to do."""
        self._batches.stop()
        self._pool.shutdown()

    async def detect(self, images: Sequence[bytes | UInt8[Tensor, "3 H W"]]) -> list[ImageResult]:
        """The detections of the images of one request: encoded ones, or RGB pixels.

        Raises:
            RefusalError: there are too many, or one of them cannot be read.
        """
        if len(images) > self.images.limit:
            raise RefusalError(413, f"{len(images)} images in a request, at most {self.images.limit} are taken")
        self.images.seconds = self._seconds_per_image * self.images.taken
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
        async with self._decoded:
            started = time.perf_counter()
            pixels = await self.run(self._decode, image) if isinstance(image, bytes) else image
            decode_seconds = time.perf_counter() - started
            timed: BatchedDetections = await asyncio.wrap_future(self._batches.submit(pixels))
        size = ImageSize(*pixels.shape[1:])
        return ImageResult(size, timed.detections, decode_seconds, timed.wait_seconds, timed.detect_seconds)

    async def run(self, function: Callable[[Given], Computed], value: Given) -> Computed:
        """`function(value)` in one of the threads that decode."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, value)

    def _decode(self, data: bytes) -> UInt8[Tensor, "3 H W"]:
        """The pixels of an encoded image, as `read_image` gives those of a file; its header is looked at first."""
        try:
            size = read_header(io.BytesIO(data))
            if size.height * size.width > self.options.max_pixels:
                raise RefusalError(
                    413,
                    f"the image has {size.width} × {size.height} pixels, "
                    f"at most {self.options.max_megapixels:g} megapixels are taken",
                )
            return read_reduced(io.BytesIO(data))[0]
        except DataError as error:
            raise refuse_image(error) from None

    def _note_batch(self, num_images: int, seconds: float) -> None:
        """Keep the smoothed time of an image."""
        before = self._seconds_per_image or seconds / num_images
        self._seconds_per_image = (1 - AVERAGING) * before + AVERAGING * seconds / num_images
        self._observe(num_images, seconds)
