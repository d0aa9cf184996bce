"""A small HTTP client for tests, which can also say what no proper client would."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 where the connection was closed without a word."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def place(address: str) -> tuple[str, int]:
    """Host and port of an address."""
    parts = urlsplit(address)
    return parts.hostname or "", parts.port or 0


def request(
    address: str, path: str, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send a proper request."""
    connection = http.client.HTTPConnection(*place(address), timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def raw(address: str, data: bytes, timeout_s: float = TIMEOUT_S) -> bytes:
    """Send bytes as they are, and return all that comes back until the other side closes."""
    with socket.create_connection(place(address), timeout=timeout_s) as connection:
        got = b""
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                got += piece
        except (ConnectionError, TimeoutError):
            pass
        return got


def silent(address: str, number: int, data: bytes = b"") -> list[socket.socket]:
    """Open so many connections that say no more than `data`; the caller closes them."""
    made = []
    for _ in range(number):
        connection = socket.create_connection(place(address), timeout=TIMEOUT_S)
        made.append(connection)
        try:
            connection.sendall(data)
        except ConnectionError:  # it had to make room already
            continue
    return made
