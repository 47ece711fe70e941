"""The application: which path is answered by what."""

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
from focaldet.service.answers import SCORE_TEXT, Answer, ErrorAnswer, build_answer, read_selection
from focaldet.service.docs_page import render_docs
from focaldet.service.guard import Guard
from focaldet.service.metrics import ServiceMetrics
from focaldet.service.options import ServiceOptions
from focaldet.service.pipeline import DetectionPipeline
from focaldet.service.refusals import RefusalError
from focaldet.service.uploads import read_body, read_upload

STATIC = {"app.css": "text/css", "app.js": "text/javascript"}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        401: "the token is missing or wrong",
        408: "the body did not arrive in time",
        413: "too many bytes or pixels",
        422: "not an image, or a field out of range",
        503: "busy; the header Retry-After says for how many seconds",
    }.items()
}
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
        yield
        pipeline.stop()

    app = FastAPI(
        title=f"{options.name}: object detection",
        description="Images in, boxes with names and scores out.",
        docs_url=None,
        redoc_url=None,
        lifespan=run_threads,
    )
    app.add_middleware(Guard, token=options.token, metrics=metrics)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_http_error)
    _add_pages(app, predictor, options, metrics)
    _add_predict(app, predictor, options, pipeline)
    _add_protocol(app, predictor, options, pipeline)
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
    kept = predictor.thresholds
    info = {
        "name": options.name,
        "score": DEFAULT_SCORE if kept is None else round(kept.overall.score, 2),
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

    @app.get("/healthz", summary="Whether the service runs")
    async def send_health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Counts and times for Prometheus", response_class=Response)
    async def send_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_predict(app: FastAPI, predictor: Predictor, options: ServiceOptions, pipeline: DetectionPipeline) -> None:
    """The plain form for programs."""

    @app.post(
        "/predict",
        summary="Detect objects in one image",
        responses=PREDICT_RESPONSES,
        openapi_extra=UPLOAD,
    )
    async def predict(request: Request) -> JSONResponse:
        started = time.perf_counter()
        query = {name: request.query_params.getlist(name) for name in request.query_params}
        async with read_upload(request, options, pipeline.buffer) as upload:
            selection = read_selection({**query, **upload.fields}, predictor)
            (result,) = await pipeline.detect([upload.image])
        return JSONResponse(build_answer(result, selection, started=started))


def _add_protocol(app: FastAPI, predictor: Predictor, options: ServiceOptions, pipeline: DetectionPipeline) -> None:
    """The Open Inference Protocol."""
    metadata = {
        "name": options.name,
        "versions": [protocol.MODEL_VERSION],
        "platform": "focaldet",
        "inputs": protocol.TENSOR_INPUTS,
        "outputs": protocol.TENSOR_OUTPUTS,
    }

    def require_model(name: str, version: str = protocol.MODEL_VERSION) -> None:
        if (name, version) != (options.name, protocol.MODEL_VERSION):
            raise RefusalError(404, f"there is no such model; this service has {options.name}, version 1")

    @app.get("/v2", summary="Name and extensions of the server")
    async def describe_server() -> dict[str, Any]:
        return {"name": "focaldet", "version": version("focaldet"), "extensions": protocol.EXTENSIONS}

    @app.get("/v2/health/live", summary="Whether the server lives")
    async def send_live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Whether the server takes requests")
    async def send_ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get("/v2/models/{model}", summary="Inputs and outputs of the detector")
    @app.get("/v2/models/{model}/versions/{version}", include_in_schema=False)
    async def describe_model(model: str, version: str = protocol.MODEL_VERSION) -> dict[str, Any]:
        require_model(model, version)
        return metadata

    @app.get("/v2/models/{model}/ready", summary="Whether the detector takes requests")
    @app.get("/v2/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def send_model_ready(model: str, version: str = protocol.MODEL_VERSION) -> dict[str, Any]:
        require_model(model, version)
        return {"name": model, "ready": True}

    @app.post("/v2/models/{model}/infer", summary="Detect objects in images", responses=REFUSALS)
    @app.post("/v2/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, version: str = protocol.MODEL_VERSION) -> Response:
        require_model(model, version)
        length = request.headers.get(protocol.JSON_LENGTH_HEADER)
        async with read_body(request, options, pipeline.buffer) as body:
            inference = await pipeline.run(
                lambda data: protocol.read_inference(data, length, predictor=predictor), body
            )
            results = await pipeline.detect(inference.images)
        answer, json_length = protocol.write_inference(inference, results, name=options.name)
        if json_length is None:
            return Response(answer, media_type="application/json")
        headers = {protocol.JSON_LENGTH_HEADER: str(json_length)}
        return Response(answer, media_type="application/octet-stream", headers=headers)
