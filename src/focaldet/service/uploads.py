"""The body of a request, read within limits of size and time, whatever its headers say."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from focaldet.service.options import ServiceOptions
from focaldet.service.pipeline import DetectionPipeline
from focaldet.service.refusals import RefusalError

FORM_FIELDS, FIELD_BYTES = 64, 16_384  # of a form, beside the image
DISCARDED_BYTES, DISCARD_SECONDS = 64_000_000, 2.0  # of a body that is refused; then the connection is cut

WorkResult = TypeVar("WorkResult")


@dataclass(frozen=True, slots=True)
class Upload:
    """An image as it was sent, and the other fields of its form by name."""

    image: bytes
    fields: Mapping[str, list[str]] = field(default_factory=dict)


@asynccontextmanager
async def read_body(request: Request, pipeline: DetectionPipeline) -> AsyncIterator[bytes]:
    """The body of a request; inside, its bytes count against the buffer of the pipeline.

    Raises:
        RefusalError: it is too large, too slow, compressed, or the buffer or the queue of the pipeline is full.
    """
    async with _limit_body(request, pipeline) as chunks:
        async with _limit_time(pipeline.options):
            body = b"".join([chunk async for chunk in chunks])
        pipeline.require_room()  # again: a body takes its time
        yield body


@asynccontextmanager
async def read_upload(request: Request, pipeline: DetectionPipeline) -> AsyncIterator[Upload]:
    """The image of a request: the field `file` of a form (multipart/form-data), or the whole body of any other type.

    Raises:
        RefusalError: as `read_body`, or the form is damaged, has no `file` or several.
    """
    async with _limit_body(request, pipeline) as chunks:
        async with _limit_time(pipeline.options):
            if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                upload = await _parse_form(request, chunks, max_bytes=pipeline.options.max_bytes)
            else:
                upload = Upload(b"".join([chunk async for chunk in chunks]))
        if not upload.image:
            raise RefusalError(422, "the request has no image: send its bytes as the body or as the form's field file")
        yield upload


async def answer_while_connected(request: Request, work: Coroutine[Any, Any, WorkResult]) -> WorkResult:
    """What `work` computes for a request whose body has been read; it is cancelled when the client goes away.

    Raises:
        ClientDisconnect: the client has gone.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_end(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()


async def _wait_for_end(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def _limit_body(request: Request, pipeline: DetectionPipeline) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    """The chunks of a body, counted while they arrive; what was counted is given back at the end."""
    options, buffer = pipeline.options, pipeline.buffer
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise RefusalError(415, "compressed bodies are not taken", closes=True)
    length = request.headers.get("content-length", "")
    counted = 0

    async def count_chunks() -> AsyncGenerator[bytes, None]:
        nonlocal counted
        if length.isascii() and length.isdigit() and int(length) > options.max_bytes:
            await _refuse_size(request, options)
        pipeline.require_room()
        async for chunk in request.stream():
            if counted + len(chunk) > options.max_bytes:
                await _refuse_size(request, options)
            buffer.take(len(chunk))
            counted += len(chunk)
            yield chunk

    try:
        yield count_chunks()
    except RefusalError as refusal:
        if _waits_for_leave(request):
            refusal.closes = True  # the body that was not asked for will not come
        elif refusal.status == 503:
            await _discard(request)
        raise
    finally:
        buffer.give_back(counted)


async def _refuse_size(request: Request, options: ServiceOptions) -> None:
    """Raise the refusal of a body that is too large."""
    if not _waits_for_leave(request):
        await _discard(request)
    raise RefusalError(413, f"the request has more than {options.max_megabytes:g} MB", closes=True)


def _waits_for_leave(request: Request) -> bool:
    """Whether the client sends its body only after the answer 100 Continue."""
    return "100-continue" in request.headers.get("expect", "").lower()


async def _discard(request: Request) -> None:
    """Read on without keeping anything, for a while: a client that still sends would not see the answer."""
    discarded = 0
    with suppress(TimeoutError, RuntimeError):  # the latter where the body has been read to its end
        async with asyncio.timeout(DISCARD_SECONDS):
            async for chunk in request.stream():
                discarded += len(chunk)
                if discarded > DISCARDED_BYTES:
                    break


@asynccontextmanager
async def _limit_time(options: ServiceOptions) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(options.body_seconds):
            yield
    except TimeoutError:
        message = f"the request did not arrive within {options.body_seconds:g} s"
        raise RefusalError(408, message, closes=True) from None


async def _parse_form(request: Request, chunks: AsyncGenerator[bytes, None], *, max_bytes: int) -> Upload:
    """The parts of a form, all in memory."""
    parser: Any = MultiPartParser(
        request.headers, chunks, max_files=1, max_fields=FORM_FIELDS, max_part_size=FIELD_BYTES
    )
    parser.spool_max_size = max_bytes  # nothing is written to a disk
    try:
        form = await parser.parse()
    except MultiPartException:
        message = f"the form is damaged, or has more than one file, {FORM_FIELDS} fields or {FIELD_BYTES} bytes in one"
        raise RefusalError(400, message) from None
    fields: dict[str, list[str]] = {}
    images: dict[str, bytes] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                images[name] = await value.read()
            else:
                fields.setdefault(name, []).append(value)
    finally:
        await form.close()
    if images and "file" not in images:
        raise RefusalError(422, "the image must be the form's field file")
    return Upload(images.get("file", b""), fields)
