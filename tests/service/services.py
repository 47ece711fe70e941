"""A detector of bright rectangles behind the service, in this process and in one of its own."""

import io
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
import torch
import uvicorn
from PIL import Image

from focaldet.prediction import Predictor
from focaldet.service import server
from focaldet.service.app import build_service
from focaldet.service.options import ServiceOptions
from focaldet.service.server import ServiceFactory, serve
from tests.evaluation.cases import BrightDetector, make_image

SECRET = "a secret of tests"


def bright_predictor():
    return Predictor(BrightDetector(), device="cpu", precision="fp32", category_ids=(7, 9))


class SlowPredictor(Predictor):
    """Takes some time for each batch, until `gate` is set where there is one."""

    seconds, gate, started, numbers = 0.0, None, None, torch.ones(500, 500)

    def detect_prepared(self, images):
        if self.started is not None:
            self.started.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        end = time.monotonic() + self.seconds
        while self.seconds > 10 and time.monotonic() < end:  # as a large network does
            self.numbers = (self.numbers @ self.numbers).tanh()
        time.sleep(max(0.0, end - time.monotonic()))
        return super().detect_prepared(images)


def slow_predictor(seconds=0.0, gate=None, started=None):
    predictor = SlowPredictor(BrightDetector(), device="cpu", precision="fp32")
    predictor.seconds, predictor.gate, predictor.started = seconds, gate, started
    return predictor


def encode(image=None, kind="PNG", **settings):
    """An image as the bytes of a file; PNG keeps every pixel."""
    pixels = (make_image() if image is None else image).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(numpy.ascontiguousarray(pixels)).save(buffer, kind, **settings)
    return buffer.getvalue()


@contextmanager
def running_service(predictor, **settings):
    """A real uvicorn on loopback in a thread of this process: its host and port."""
    from focaldet.service.server import _listen

    options = ServiceOptions(port=0, **settings)
    listener = _listen(options)
    config = uvicorn.Config(build_service(predictor, options), log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[:2]
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


@dataclass(frozen=True)
class SlowFactory(ServiceFactory):
    """A service whose detector takes so long for a batch; for the program below."""

    seconds: float = 0.0

    def load(self):
        return slow_predictor(self.seconds)


if __name__ == "__main__":
    server.DRAIN_SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else server.DRAIN_SECONDS
    factory = SlowFactory("none", ServiceOptions(port=0, batch_size=1), seconds=float(sys.argv[1]))
    serve(factory, ready=lambda address, _: print(address, flush=True))
