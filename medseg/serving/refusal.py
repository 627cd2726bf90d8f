"""A request that gets no mask: its status and one sentence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

_DRAIN_SECONDS = 5.0
_DRAIN_BYTES = 1 << 28


class Refused(Exception):
    """What a request is answered with in place of a mask.

    Args:
        status: of HTTP.
        sentence: for the user: what is wrong and what to do. No path, no header text, no traceback.
        headers: of the answer.
    """

    def __init__(self, status: int, sentence: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


class Body:
    """A request's ``receive`` that knows whether the body has come to its end; call it like the one it is made of."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def __call__(self) -> Message:
        """The next message."""
        message = await self._receive()
        self.ended = self.ended or message["type"] != "http.request" or not message.get("more_body", False)
        return message


class Refusal(JSONResponse):
    """The answer of a :class:`Refused`: ``{"error": sentence}``.

    Args:
        refused: the reason.
        body: as far as it was read; None if nothing was.

    The rest of the body is read and thrown away for a few seconds before the connection is closed: a connection closed with
    data unread is reset, and a client that is still sending would see that in place of the answer.
    """

    def __init__(self, refused: Refused, body: Body | None = None) -> None:
        self._rest = body
        super().__init__({"error": refused.sentence}, refused.status, {**refused.headers, "connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Sends the answer; see the class."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        rest, left = self._rest or Body(receive), _DRAIN_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not rest.ended and left > 0:
                    left -= len((await rest()).get("body", b""))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
