"""Who may ask: a token, or this machine alone."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping

from medseg.serving.refusal import Refused


class Access:
    """The rule of one service.

    With a token every request but ``/health`` has to bring it. Without, the service listens on this machine only, and a web
    page that a browser here has open must not reach it: requests with a foreign Host (a name that was pointed at 127.0.0.1)
    or with an Origin (sent by pages, never by programs) are refused.

    Args:
        token: that requests bring as ``Authorization: Bearer TOKEN``; None asks for none.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token.encode() if token is not None else None

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises Refused: 401 where the token is missing or another, 403 where a page of a browser asks."""
        if self._token is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            sent = given.strip().encode("latin-1")  # as the header was decoded: the client's own bytes
            if scheme.lower() != "bearer" or not hmac.compare_digest(sent, self._token):
                raise Refused(
                    401,
                    "request: has no token or another one, expected 'Authorization: Bearer TOKEN'",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        elif not is_loopback(host_name(headers.get("host", ""))) or "origin" in headers:
            raise Refused(
                403, "request: comes from a web page or by a foreign name, expected a program on this machine"
            )


def host_name(host: str) -> str:
    """The name in a Host header, without port: "[::1]:8000" gives "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def is_loopback(name: str) -> bool:
    """Whether a host name or address stands for this machine alone."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
