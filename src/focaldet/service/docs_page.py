"""The page /docs: every path of the service and how to call it, in one HTML page that loads nothing."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from focaldet.report.page import PAGE_POLICY, header, render_page, section, table
from focaldet.service.inference_protocol import MOST_JSON_VALUES
from focaldet.service.options import ServiceOptions

DOCS_STYLE = "code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; } td.text { min-width: 180px; }"


def render_docs(openapi: Mapping[str, Any], options: ServiceOptions, *, address: str) -> tuple[str, str]:
    """The page for the OpenAPI description of the service, and its content security policy."""
    rows = [
        [f"<code>{method.upper()} {escape(path)}</code>", escape(operation.get("summary", ""))]
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    limits = [
        ["Body of a request", f"{options.max_megabytes:g} MB, within {options.body_seconds:g} s"],
        ["Image", f"{options.max_megapixels:g} megapixels"],
        ["JSON of a request under /v2", f"{MOST_JSON_VALUES / 1e6:g} million values"],
        ["Images that wait", f"{options.queue} for each process; more are refused with 503 and Retry-After"],
    ]
    parts = [
        header(openapi["info"]["title"], escape(openapi["info"]["description"])),
        section("Paths", table(["Path", "What it does"], rows, text_columns=[1])),
        section("POST /predict", *_explain_predict(openapi["paths"]["/predict"]["post"]), _examples(options, address)),
        section("Open Inference Protocol", _explain_protocol(options, address)),
        section("Limits", table(["What", "Limit"], limits, text_columns=[1])),
        section("For programs", f'<p><a href="/openapi.json">openapi.json</a> {escape("(OpenAPI 3.1)")}</p>'),
    ]
    return render_page(openapi["info"]["title"], *parts, style=DOCS_STYLE), PAGE_POLICY


def _explain_predict(operation: Mapping[str, Any]) -> Iterator[str]:
    """Parameters and statuses as tables."""
    yield "<p>The body is the image itself, or a form (multipart/form-data) with the image as <code>file</code>.</p>"
    names = {"score": "0…1", "classes": "text"}
    rows = [
        [f"<code>{row['name']}</code>", names.get(row["name"], ""), escape(row["description"])]
        for row in operation["parameters"]
    ]
    yield table(["Query or form field", "Value", "Meaning"], rows, text_columns=[1, 2])
    statuses = [[status, escape(row["description"])] for status, row in sorted(operation["responses"].items())]
    yield "<h3>Statuses</h3>" + table(["Status", "When"], statuses, text_columns=[1])


def _examples(options: ServiceOptions, address: str) -> str:
    token = ' -H "Authorization: Bearer $TOKEN"' if options.token else ""
    lines = [
        f'curl{token} -F file=@image.jpg "{address}/predict"',
        f'curl{token} -H "Content-Type: image/jpeg" --data-binary @image.jpg "{address}/predict?score=0.5"',
    ]
    answer = (
        '{"image": {"width": 640, "height": 480},\n'
        ' "predictions": [{"box": {"x1": 12.5, "y1": 40.1, "x2": 96.0, "y2": 133.7},\n'
        '                  "name": "cell", "class": 0, "confidence": 0.93}],\n'
        ' "time_ms": {"decode": 2.1, "wait": 0.1, "detect": 35.0, "total": 38.4}}'
    )
    return f"<h3>Examples</h3><pre>{escape(chr(10).join(lines))}</pre><pre>{escape(answer)}</pre>"


def _explain_protocol(options: ServiceOptions, address: str) -> str:
    host = address.partition("://")[2]
    program = (
        "import numpy\nimport tritonclient.http as triton\n\n"
        f'client = triton.InferenceServerClient("{host}")\n'
        'image = triton.InferInput("image", [1], "BYTES")\n'
        'image.set_data_from_numpy(numpy.array([open("image.jpg", "rb").read()], dtype=object))\n'
        f'boxes = client.infer("{options.name}", [image]).as_numpy("boxes")  # B × D × 4, xyxy pixels\n'
    )
    return (
        "<p>Inputs: <code>image</code> (BYTES, encoded images; base64 in JSON) or <code>pixels</code> (UINT8, "
        "B × H × W × 3, RGB). Outputs: <code>boxes</code>, <code>scores</code>, <code>labels</code>, "
        "<code>names</code>, <code>count</code>. Parameters: <code>score</code>, <code>classes</code>. "
        f"Binary tensor data are understood.</p><pre>{escape(program)}</pre>"
    )
