"""The service on a socket: uvicorn, and guards for what it leaves open.

uvicorn waits without limit for a request's headers, for the rest of a body whose answer is out, and for a client that takes
no bytes; each of these would hold a connection for ever.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from medseg.errors import EnvironmentFault
from medseg.serving.limits import ServiceLimits

_MOST_CONNECTIONS = 1000
_OTHER_FILES = 100
"""Descriptors that the libraries and the requests' files take."""


class _Guarded(H11Protocol):
    """One connection with a time limit on everything that uvicorn waits for outside the application."""

    header_seconds = 10.0
    write_seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in H11Protocol
        super().connection_made(transport)
        self._idle: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(high=0)  # pause_writing comes as soon as a byte has to wait
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._idle, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def _expect_request(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self.loop.call_later(self.header_seconds, self._give_up)

    def _give_up(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever its type says
        if cycle is None or cycle.response_complete:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host``; port 0 takes a free one.

    Raises:
        EnvironmentFault: the address is taken or not of this machine.
    """
    opened = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except (OSError, OverflowError) as error:
        if opened is not None:
            opened.close()
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise EnvironmentFault(
            f"{host}:{port}: can't be listened on ({reason}); choose another --host or --port"
        ) from error
    return opened


def server_for(
    app: FastAPI, limits: ServiceLimits, *, certificate: str | None = None, key: str | None = None
) -> uvicorn.Server:
    """A server that is not running yet; ``run(sockets=[...])`` serves until a signal or ``should_exit``.

    Args:
        app: the application.
        limits: times for headers, answers and stopping.
        certificate: file of the TLS certificate; None speaks plain HTTP.
        key: file of its private key.
    """
    guarded: type[H11Protocol] = type(
        "Guarded", (_Guarded,), {"header_seconds": limits.header_seconds, "write_seconds": limits.write_seconds}
    )
    options: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key} if certificate else {}
    config = uvicorn.Config(
        app,
        http=guarded,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=most_connections(limits),
        timeout_graceful_shutdown=max(1, round(limits.stop_seconds)),
        **options,
    )
    return uvicorn.Server(config)


def most_connections(limits: ServiceLimits) -> int:
    """Connections at once: as many as descriptors allow, where each request in work has two files open besides."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(limits.queue + 8, min(_MOST_CONNECTIONS, soft - _OTHER_FILES - 2 * limits.queue))
