"""The application: which path is answered by what."""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from types import FrameType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from focaldet import draw
from focaldet.prediction import DEFAULT_SCORE, Predictor
from focaldet.report.page import STYLE
from focaldet.service import inference_protocol as protocol
from focaldet.service.answers import SCORE_TEXT, Answer, ErrorAnswer, SelectionReader, build_answer, encode_json
from focaldet.service.docs_page import render_docs
from focaldet.service.guard import Guard
from focaldet.service.metrics import ServiceMetrics
from focaldet.service.options import ServiceOptions
from focaldet.service.pipeline import DetectionPipeline, ImageResult
from focaldet.service.refusals import RefusalError
from focaldet.service.uploads import answer_while_connected, read_body, read_upload

STATIC = {"app.css": "text/css", "app.js": "text/javascript"}
POLL_SECONDS = 0.01
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "a damaged form or query, or JSON that breaks the protocol",
        401: "the token is missing or wrong",
        408: "the body did not arrive in time",
        413: "too many bytes or pixels, or under /v2 images or values of JSON",
        415: "a compressed body",
        422: "not an image, or a field out of range",
        503: "busy; the header Retry-After says for how many seconds",
    }.items()
}
NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "it is ending, or a part of it has failed"}}
PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Answer, "description": "the detections"},
    **REFUSALS,
}
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "The image."},
                        "score": {"type": "number", "minimum": 0, "maximum": 1, "description": SCORE_TEXT},
                        "classes": {"type": "string", "description": "Names with commas between them."},
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": "score",
            "in": "query",
            "schema": {"type": "number", "minimum": 0, "maximum": 1},
            "description": SCORE_TEXT,
        },
        {
            "name": "classes",
            "in": "query",
            "schema": {"type": "string"},
            "description": "Names of the classes to answer with; all by default.",
        },
    ],
}


def build_service(predictor: Predictor, options: ServiceOptions) -> FastAPI:
    """The application that answers with the detections of `predictor`.

    It needs nothing from a network, and no answer holds a path, a file name or a trace.
    """
    metrics = ServiceMetrics()
    pipeline = DetectionPipeline(predictor, options, observe=metrics.observe_batch)

    @asynccontextmanager
    async def run_threads(app: FastAPI) -> AsyncIterator[None]:
        pipeline.start()
        _note_end(app)
        # The server takes no connection before this ends, so that no client waits for what a first image costs.
        while pipeline.is_alive and not (pipeline.is_warm or app.state.is_ending):
            await asyncio.sleep(POLL_SECONDS)
        yield
        await pipeline.stop()

    app = FastAPI(
        title=f"{options.name}: object detection",
        description="Images in, boxes with names and scores out.",
        docs_url=None,
        redoc_url=None,
        lifespan=run_threads,
    )
    app.state.pipeline = pipeline
    app.add_middleware(Guard, token=options.token, metrics=metrics)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_http_error)
    selections = SelectionReader(predictor)
    _add_pages(app, predictor, options, metrics)
    _add_health(app, options, pipeline)
    _add_predict(app, selections, pipeline)
    _add_protocol(app, selections, pipeline)
    return app


def _note_end(app: FastAPI) -> None:
    """Let SIGTERM and SIGINT set `app.state.is_ending` before the server's own handlers stop it."""
    app.state.is_ending = False
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)

        def note(number: int, frame: FrameType | None, handler: Any = handler) -> None:
            app.state.is_ending = True
            if callable(handler):
                handler(number, frame)

        signal.signal(number, note)


async def _answer_http_error(_: Request, error: Exception) -> JSONResponse:
    """An error of the framework in the form of all others."""
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (422, None)
    texts = {404: "there is nothing at this path", 405: "this path does not take this method"}
    return JSONResponse({"error": texts.get(status, "the request is not understood")}, status, headers=headers)


def _add_pages(app: FastAPI, predictor: Predictor, options: ServiceOptions, metrics: ServiceMetrics) -> None:
    """What people and supervisors read."""
    folder = files("focaldet.service").joinpath("static")
    contents = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in (*STATIC, "index.html")}
    contents["app.css"] = STYLE + contents["app.css"]
    names = predictor.class_names
    ids = predictor.category_ids or tuple(range(1, len(names) + 1))
    thresholds = predictor.thresholds
    info = {
        "name": options.name,
        "score": DEFAULT_SCORE if thresholds is None else round(thresholds.overall.score, 2),
        "needs_token": options.token is not None,
        "max_bytes": options.max_bytes,
        "classes": [
            {"name": name, "id": category, "color": "#{:02x}{:02x}{:02x}".format(*draw.class_color(label))}
            for label, (name, category) in enumerate(zip(names, ids, strict=True))
        ],
    }

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(contents["index.html"])

    @app.get("/static/{name}", include_in_schema=False)
    async def send_static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404)
        return Response(contents[name], media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def show_docs(request: Request) -> HTMLResponse:
        page, policy = render_docs(app.openapi(), options, address=str(request.base_url).rstrip("/"))
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/info", summary="The classes, their ids and a first score, for the page")
    async def send_info() -> dict[str, Any]:
        return info

    @app.get("/metrics", summary="Counts and times for Prometheus", response_class=Response)
    async def send_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_health(app: FastAPI, options: ServiceOptions, pipeline: DetectionPipeline) -> None:
    """What tells a supervisor whether the service runs and takes requests."""

    def is_ready() -> bool:
        return pipeline.is_alive and not app.state.is_ending

    def answer(value: dict[str, Any]) -> JSONResponse:
        return JSONResponse(value, 200 if is_ready() else 503)

    @app.get("/healthz", summary="Whether the service runs", responses=NOT_READY)
    async def send_health() -> JSONResponse:
        return answer({"status": "ok" if is_ready() else "ending" if app.state.is_ending else "failed"})

    @app.get("/v2/health/live", summary="Whether the server lives")
    async def send_live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Whether the server takes requests", responses=NOT_READY)
    async def send_ready() -> JSONResponse:
        return answer({"ready": is_ready()})

    @app.get("/v2/models/{model}/ready", summary="Whether the detector takes requests", responses=NOT_READY)
    @app.get("/v2/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def send_model_ready(model: str, version: str = protocol.MODEL_VERSION) -> JSONResponse:
        _require_model(options, model, version)
        return answer({"name": model, "ready": is_ready()})


def _add_predict(app: FastAPI, selections: SelectionReader, pipeline: DetectionPipeline) -> None:
    """The plain form for programs."""

    @app.post(
        "/predict",
        summary="Detect objects in one image",
        responses=PREDICT_RESPONSES,
        openapi_extra=UPLOAD,
    )
    async def predict(request: Request) -> Response:
        started = time.perf_counter()
        query = {name: request.query_params.getlist(name) for name in request.query_params}
        async with read_upload(request, pipeline) as upload:
            selection = selections.read({**query, **upload.fields})
            (result,) = await answer_while_connected(request, pipeline.detect([upload.image]))
        return Response(encode_json(build_answer(result, selection, started=started)), media_type="application/json")


def _require_model(options: ServiceOptions, name: str, version: str) -> None:
    """Refuse the name or version of another detector."""
    if (name, version) != (options.name, protocol.MODEL_VERSION):
        raise RefusalError(404, f"no such model; this service has {options.name}, version 1")


def _add_protocol(app: FastAPI, selections: SelectionReader, pipeline: DetectionPipeline) -> None:
    """The Open Inference Protocol."""
    options = pipeline.options
    metadata = {
        "name": options.name,
        "versions": [protocol.MODEL_VERSION],
        "platform": "focaldet",
        "inputs": protocol.TENSOR_INPUTS,
        "outputs": protocol.TENSOR_OUTPUTS,
    }

    @app.get("/v2", summary="Name and extensions of the server")
    async def describe_server() -> dict[str, Any]:
        return {"name": "focaldet", "version": version("focaldet"), "extensions": protocol.EXTENSIONS}

    @app.get("/v2/models/{model}", summary="Inputs and outputs of the detector")
    @app.get("/v2/models/{model}/versions/{version}", include_in_schema=False)
    async def describe_model(model: str, version: str = protocol.MODEL_VERSION) -> dict[str, Any]:
        _require_model(options, model, version)
        return metadata

    @app.post(
        "/v2/models/{model}/infer",
        summary="Detect objects in images",
        responses=REFUSALS,
        openapi_extra=protocol.INFER_BODY,
    )
    @app.post("/v2/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, version: str = protocol.MODEL_VERSION) -> Response:
        _require_model(options, model, version)
        length = request.headers.get(protocol.JSON_LENGTH_HEADER)

        def read(body: bytes) -> protocol.Inference:
            return protocol.read_inference(body, length, selections=selections, options=options)

        async def detect(body: bytes) -> tuple[protocol.Inference, list[ImageResult]]:
            inference = await pipeline.run(read, body)
            return inference, await pipeline.detect(inference.images)

        async with read_body(request, pipeline) as body:
            inference, results = await answer_while_connected(request, detect(body))
        answer, json_length = protocol.write_inference(inference, results, name=options.name)
        if json_length is None:
            return Response(answer, media_type="application/json")
        headers = {protocol.JSON_LENGTH_HEADER: str(json_length)}
        return Response(answer, media_type="application/octet-stream", headers=headers)
