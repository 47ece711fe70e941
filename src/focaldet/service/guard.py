"""What surrounds every request: the token, the headers of every answer, errors as JSON, and metrics."""

import asyncio
import hmac
import time
from collections.abc import Mapping
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from focaldet.service.answers import encode_json
from focaldet.service.metrics import ServiceMetrics
from focaldet.service.refusals import LOGGER, RefusalError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
}
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/v2/health/live", "/v2/health/ready"})
"""What needs no token: the pages, which have no secret, and the questions of whoever supervises the process."""
DISCONNECTED = 499  # in the metrics alone: the client went away
ENDING = RefusalError(503, "the service is ending, try again later", retry_seconds=5, closes=True)
"""For requests that are cut off as their time in an ending service is over, which the server would answer with 500."""


class Guard:
    """The outermost part of the application (ASGI)."""

    def __init__(self, app: ASGIApp, *, token: str | None, metrics: ServiceMetrics) -> None:
        self.app, self.token, self.metrics = app, token, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, is_ending=getattr(scope["app"].state, "is_ending", False))
            await send(message)

        try:
            self._require_allowed(scope)
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = status or DISCONNECTED
        except (RefusalError, asyncio.CancelledError) as error:
            if status:  # too late to say so: the connection breaks off
                raise
            refusal = error if isinstance(error, RefusalError) else ENDING
            await _send_error(send_with_headers, refusal.status, refusal.message, refusal.headers)
        except Exception:
            LOGGER.exception("a request failed")
            if status:
                raise
            await _send_error(send_with_headers, 500, "internal error", {})
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self.metrics.observe_request(path, status or DISCONNECTED, time.perf_counter() - started)

    def _require_allowed(self, scope: Scope) -> None:
        """Refuse a request without the token that it needs, or with a query that is not text.

        Raises:
            RefusalError: it is one of these.
        """
        if not scope["query_string"].isascii():
            raise RefusalError(400, "the query must be percent-encoded")
        path = scope["path"]
        if self.token is None or path in OPEN_PATHS or path.startswith("/static/"):
            return
        kind, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        # As it is, or percent-encoded, which is how the page sends what a header cannot hold.
        is_right = [hmac.compare_digest(text.encode(), self.token.encode()) for text in (secret, unquote(secret))]
        if kind.lower() != "bearer" or not any(is_right):
            raise RefusalError(401, "send the token of this service as Authorization: Bearer TOKEN")


def _add_headers(message: Message, *, is_ending: bool) -> None:
    """Give an answer the headers of all; before the end also the one that keeps the next request away."""
    headers = MutableHeaders(scope=message)
    for name, value in (HEADERS | ({"Connection": "close"} if is_ending else {})).items():
        headers.setdefault(name, value)


async def _send_error(send: Send, status: int, message: str, headers: Mapping[str, str]) -> None:
    """Answer with an error as JSON."""
    body = encode_json({"error": message})
    lines = {"Content-Type": "application/json", "Content-Length": str(len(body))} | dict(headers)
    raw = [(name.lower().encode(), value.encode()) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
