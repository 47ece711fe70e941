"""What the service counts, for Prometheus."""

import os

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """Requests, images and batches of one service; where several processes share a port, of all of them."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.requests = Counter(
            "focaldet_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "focaldet_request_seconds", "Seconds from a request's headers to its answer.", ["path"], registry=registry
        )
        self.images = Counter("focaldet_images", "Images that passed the network.", registry=registry)
        self.batch_size = Histogram(
            "focaldet_batch_size", "Images that passed the network together.", buckets=BATCH_SIZES, registry=registry
        )
        self.batch_seconds = Histogram("focaldet_batch_seconds", "Seconds of a batch.", registry=registry)
        if os.environ.get(MULTIPROCESS_VARIABLE):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        self._registry = registry

    def observe_batch(self, num_images: int, seconds: float) -> None:
        """Note a batch."""
        self.images.inc(num_images)
        self.batch_size.observe(num_images)
        self.batch_seconds.observe(seconds)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Note an answer; `path` is that of the route, so that clients cannot make up new ones."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All of it in the format of Prometheus."""
        return generate_latest(self._registry)
