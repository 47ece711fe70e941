"""`focaldet serve`."""

import ipaddress
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from focaldet.cli.flags import flags_of
from focaldet.cli.output import CLEAN, say
from focaldet.data.formats.text import quantity
from focaldet.errors import ConfigError
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
        run: Run folder, weights file, exported file (.onnx, .xml, .pt2), or a name such as torchvision:coco_v1.
        weights: Weights for `run` where that is the name of a detector.
    """
    settings = ServiceOptions(**(service or {}))
    token = os.environ.get(TOKEN_VARIABLE)
    if settings.token is None and token is not None:
        if not token.strip():
            raise ConfigError(f"{TOKEN_VARIABLE}: is empty, which would let everybody in; give it a secret or unset it")
        settings = replace(settings, token=token)
    inference = dict(options or {}) | {"batch_size": settings.batch_size}

    def ready(address: str, predictor: Any) -> None:
        say(f"{predictor}\nserving  {address}   (API: {address}/docs)")
        if settings.workers > 1:
            say(f"{quantity(settings.workers, 'process', 'processes')} start now")
        if settings.token is None and not is_loopback(settings.host):
            text = f"since --host is {settings.host} and no token is set"
            say(f"note: other machines can use this service, {text} ({TOKEN_VARIABLE})")
        sys.stdout.flush()

    serve(ServiceFactory(run, settings, weights, inference), ready=ready)
    say("stopped: every accepted request was answered, or its time was over")
    return CLEAN


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
