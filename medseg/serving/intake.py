"""A request's body, from the network to a file: bounded in size and time while it comes in."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Mapping
from pathlib import Path

from starlette.types import Message, Receive

from medseg.serving.limits import ServiceLimits
from medseg.serving.refusal import Refused

_BLOCK_BYTES = 1 << 20


class ClientGone(Exception):
    """The client went away before it had its answer."""


def check_headers(headers: Mapping[str, str], limits: ServiceLimits) -> None:
    """Refuses what can be refused before a byte of the body is read.

    Raises:
        Refused: 415 for an encoded body or a form, 413 for one that says it is too large, 400 for one of two lengths.
    """
    if "transfer-encoding" in headers and "content-length" in headers:
        # Whoever stands in between may have believed the other one, and then takes a part of this for the next request.
        raise Refused(400, "request: has a Content-Length and a Transfer-Encoding, expected one of them")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refused(
            415, "body: is sent with a Content-Encoding, expected none; send the file itself, .nii.gz as it is"
        )
    if headers.get("content-type", "").strip().lower().startswith("multipart/"):
        raise Refused(
            415, "body: is a form, expected the scan's bytes alone; with curl use --data-binary @FILE, not --form"
        )
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.max_body_bytes:
        raise _too_large(limits)
    if length == "0":
        raise Refused(422, "body: is empty, expected a scan; with curl use --data-binary @FILE")


async def receive_body(receive: Receive, path: Path, limits: ServiceLimits) -> int:
    """Writes the body to ``path``, counting while it reads: what a request says of its length is not believed.

    Args:
        receive: of the request; its body not begun yet.
        path: of a new file in a folder that the caller removes.
        limits: size and time.

    Returns:
        Bytes written, at least 1.

    Raises:
        Refused: 413 too large, 408 too slow, 422 empty, 503 no room on the disk.
        ClientGone: the connection was closed before the end.
    """
    size, began, waiting = 0, time.monotonic(), bytearray()
    more = True
    try:
        with path.open("xb") as file:
            while more:
                message = await _next(receive, began, size, limits)
                body, more = message.get("body", b""), message.get("more_body", False)
                size += len(body)
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
                waiting += body
                if len(waiting) >= _BLOCK_BYTES or not more:
                    await asyncio.to_thread(file.write, bytes(waiting))
                    waiting.clear()
    except OSError as error:
        raise _no_room(error) from error
    if size == 0:
        raise Refused(422, "body: is empty, expected a scan; with curl use --data-binary @FILE")
    return size


async def _next(receive: Receive, began: float, size: int, limits: ServiceLimits) -> Message:
    now = time.monotonic()
    deadline = began + limits.grace_seconds + size / limits.least_bytes_per_second
    try:
        async with asyncio.timeout(max(0.0, min(limits.grace_seconds, deadline - now))):
            message = await receive()
    except TimeoutError as error:
        raise Refused(
            408,
            f"body: came in too slowly ({size:,} bytes in {time.monotonic() - began:.0f} s), expected "
            f"{limits.least_bytes_per_second / 1000:.0f} kB/s; try again on a faster connection",
        ) from error
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


def _too_large(limits: ServiceLimits) -> Refused:
    return Refused(
        413,
        f"body: is larger than {limits.max_body_bytes / 2**20:,.0f} MiB, the most that this service takes; crop or "
        "compress the scan, or have --max-mib raised",
    )


def _no_room(error: OSError) -> Refused:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "no room on its disk" if full else "a fault of its disk"
    return Refused(503, f"service: has {reason}; try again later", headers={"Retry-After": "60"})
