"""The routes: ``POST /segment``, ``GET /model``, ``GET /health``, ``GET /metrics``."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, cast, get_args

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive

from medseg.errors import UsageError
from medseg.inference.outputs import OutputFormat, OutputSpec
from medseg.serving.access import Access
from medseg.serving.intake import ClientGone, check_headers, receive_body
from medseg.serving.metrics import Metrics
from medseg.serving.refusal import Body, Refusal, Refused
from medseg.serving.service import Answer, Job, Service

_LOG = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16
_MEDIA_TYPES = {".gz": "application/gzip", ".png": "image/png", ".tif": "image/tiff", ".dcm": "application/dicom"}
_FORMATS = get_args(OutputFormat)


def build_app(service: Service, access: Access) -> FastAPI:
    """The ASGI application around a service.

    Args:
        service: the model; entered and closed by whoever runs the application.
        access: who may ask.
    """
    routes = _Routes(service, access)
    # Without redirects: theirs repeat the Host that was sent, to whoever asks.
    app = FastAPI(title="medseg", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_api_route("/segment", routes.segment, methods=["POST", "PUT"], response_model=None)
    app.add_api_route("/model", routes.model, methods=["GET"], response_model=None)
    app.add_api_route("/health", routes.health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", routes.metrics, methods=["GET"], response_model=None)
    app.add_exception_handler(HTTPException, _unknown)
    return app


async def _unknown(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    sentence = "request: is none of POST /segment, GET /model, GET /health, GET /metrics; correct method and path"
    return Refusal(Refused(status, sentence))


class _Routes:
    def __init__(self, service: Service, access: Access) -> None:
        self._service, self._access, self._metrics = service, access, Metrics()

    async def health(self) -> Response:
        """200 while requests are taken, 503 when the service is stopping; nothing about data or model."""
        stopping = self._service.stopping
        return JSONResponse({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)

    async def metrics(self, request: Request) -> Response:
        """Counters in Prometheus's format."""
        try:
            self._access.check(request.headers)
        except Refused as refused:
            return Refusal(refused)
        service = self._service
        text = self._metrics.text(busy=service.busy, waiting=service.waiting, queue=service.limits.queue)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def model(self, request: Request) -> Response:
        """What the model wants and draws."""
        try:
            self._access.check(request.headers)
        except Refused as refused:
            return Refusal(refused)
        engine = self._service.engine
        return JSONResponse(
            {
                "models": engine.model_sha256s(),
                "labels": {name: list(values) for name, values in engine.plan.labels.items()},
                "channels": [channel.name for channel in engine.plan.channels],
                "formats": list(_FORMATS),
                "max_body_bytes": self._service.limits.max_body_bytes,
                "versions": {"medseg": version("medseg"), **engine.versions()},
            }
        )

    async def segment(self, request: Request) -> Response:
        """The mask of the scan in the body, on the scan's own grid."""
        name, began = secrets.token_hex(6), time.monotonic()
        body, received = Body(request.receive), 0.0
        try:
            job, received = await self._submitted(request, body, began)
            answer = await _waited(job, body)
        except Refused as refused:
            refused.headers["X-Request-ID"] = name
            return self._refusal(name, refused, body)
        except ClientGone:
            self._metrics.gone += 1
            _LOG.info("request %s: client gone after %.1f s", name, time.monotonic() - began)
            return Response(status_code=499)
        except Exception:  # noqa: BLE001 - one request's fault, logged with its traceback; the others go on
            _LOG.exception("request %s: a fault of medseg itself", name)
            sentence = f"service: failed on this request; report {name} to whoever runs it"
            return self._refusal(name, Refused(500, sentence, headers={"X-Request-ID": name}), body)
        total = time.monotonic() - began
        self._metrics.answers[200] += 1
        self._metrics.seconds.update({"receive": received, "total": total, **answer.seconds})
        _LOG.info("request %s: mask after %.1f s", name, total)
        return _mask_response(answer, name)

    async def _submitted(self, request: Request, body: Body, began: float) -> tuple[Job, float]:
        """The job of this request's body, and the seconds that the body took."""
        service = self._service
        self._access.check(request.headers)
        spec = _wanted(request)
        check_headers(request.headers, service.limits)
        service.enter()
        folder = None
        try:
            folder = service.spool.new()
            size = await receive_body(body, folder / "body", service.limits)
            seconds = time.monotonic() - began
            self._metrics.bytes_in += size
            return service.submit(folder / "body", folder, spec), seconds
        except BaseException as error:
            service.leave()
            if folder is not None:
                service.spool.remove(folder)
            if isinstance(error, OSError):
                raise Refused(503, "service: can't write to its disk; try again later") from error
            raise

    def _refusal(self, name: str, refused: Refused, body: Body) -> Response:
        self._metrics.answers[refused.status] += 1
        _LOG.info("request %s: %d", name, refused.status)
        return Refusal(refused, body)


def _wanted(request: Request) -> OutputSpec:
    given = request.query_params.multi_items()
    chosen = given[0][1] if given else "auto"
    if len(given) > 1 or any(name != "format" for name, _ in given) or chosen not in _FORMATS:
        raise Refused(
            400, f"request: its query is not understood, expected none or format= one of {', '.join(_FORMATS)}"
        )
    try:
        return OutputSpec(format=cast("OutputFormat", chosen))
    except UsageError as error:
        raise Refused(400, str(error)) from error


async def _waited(job: Job, receive: Receive) -> Answer:
    """The job's answer.

    Raises:
        ClientGone: the connection was closed first; a job that was not begun is given up then.
        Refused: as the job.
    """
    leaving = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((job.task, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:  # also where the server gives this request up
        leaving.cancel()
        if not job.task.done():
            job.give_up()
    if not job.task.done():
        raise ClientGone
    return job.task.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _mask_response(answer: Answer, name: str) -> Response:
    suffix = answer.name.removeprefix("mask")
    headers: dict[str, Any] = {
        "Content-Length": str(len(answer.content)),
        "Content-Disposition": f'attachment; filename="mask{suffix}"',
        "X-Request-ID": name,
        "X-Medseg-Volume-ml": json.dumps(answer.volume_ml),
        "X-Medseg-Warnings": json.dumps(list(answer.warnings)),
        "X-Medseg-Flags": json.dumps(list(answer.flags)),
    }
    media_type = _MEDIA_TYPES.get(f".{suffix.rpartition('.')[2]}", "application/octet-stream")
    return StreamingResponse(_chunks(answer.content), headers=headers, media_type=media_type)


def _chunks(content: bytes) -> Iterator[bytes]:
    # Piece by piece, so that the time for each can be limited: a client that takes none is let go.
    yield from (content[start : start + _CHUNK_BYTES] for start in range(0, len(content), _CHUNK_BYTES))
