"""`focaldet serve`."""

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from focaldet.cli.flags import flags_of
from focaldet.cli.output import CLEAN, say
from focaldet.data.formats.text import quantity
from focaldet.evaluation.inference import InferenceOptions
from focaldet.service.options import ServiceOptions
from focaldet.service.server import ServiceFactory, serve

TOKEN_VARIABLE = "FOCALDET_TOKEN"

if TYPE_CHECKING:
    ServiceFields = dict[str, Any]
    DetectorFields = dict[str, Any]
else:
    ServiceFields = flags_of(ServiceOptions, group=Group("Service", sort_key=1))
    DetectorFields = flags_of(InferenceOptions, group=Group("Inference", sort_key=2), skip=("batch_size", "workers"))


def serve_command(
    run: str,
    /,
    weights: str | None = None,
    service: Annotated[ServiceFields | None, Parameter(name="*")] = None,
    options: Annotated[DetectorFields | None, Parameter(name="*")] = None,
) -> int:
    """Serve a detector over HTTP.

    Args:
        run: Run folder, weights file, or a name such as torchvision:coco_v1.
        weights: Weights for `run` where that is the name of a detector.
    """
    settings = ServiceOptions(**(service or {}))
    if settings.token is None and (token := os.environ.get(TOKEN_VARIABLE)):
        settings = replace(settings, token=token)
    inference = dict(options or {}) | {"batch_size": settings.batch_size}

    def ready(address: str, predictor: Any) -> None:
        say(f"{predictor}\nserving  {address}   (API: {address}/docs)")
        if settings.workers > 1:
            say(f"{quantity(settings.workers, 'process', 'processes')} start now")
        sys.stdout.flush()

    serve(ServiceFactory(run, settings, weights, inference), ready=ready)
    say("stopped: every accepted request was answered, or its time was over")
    return CLEAN
