"""What every request has to pass before anything looks at it: who it speaks to, where it comes from, whether it may.

"Only on this machine" protects nobody: any web page that is open on the machine can send requests to it, and a name
that resolves to 127.0.0.1 makes them look like its own. So the name in ``Host`` must be one of ours, a browser must say
that the request comes from our own page, and what changes anything, or names files, needs a token. In this order: size
of the head, Host, method, origin, token, size of the body. Refusals are short and fixed; nothing that came in is sent
back. It knows no page and no daemon; how long a connection may last is decided where connections are.

>>> door = Door(hosts=allowed_hosts("127.0.0.1"), token=None)
>>> door.refusal("GET", "/live", {"host": "127.0.0.1:9100"}), door.refusal("GET", "/live", {"host": "evil.example"})
(None, Refusal(status=421, reason='this server does not answer to that Host name'))
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY_BYTES = 1 << 16
MOST_HEAD_BYTES = 1 << 14
"""Path and headers."""

PROBES = frozenset({"/live", "/ready"})
"""Fixed sentences that name nothing: they never need a token."""

PAGE = frozenset({"/", "/page.js", "/page.css"})
"""The page itself, which holds no data; a browser cannot send a token for it."""

FROM_ANYWHERE = PROBES | {"/metrics"}
"""Plain reading of these is not refused for where it comes from: a browser lets no foreign page see the answer."""

READ, WRITE = frozenset({"GET", "HEAD"}), frozenset({"POST"})
PATHS: dict[str, frozenset[str]] = dict.fromkeys((*PROBES, *PAGE, "/metrics", "/status.json"), READ) | {
    "/submit": WRITE
}
"""Every path that there is, and the methods that it takes."""

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "connection": "close",
}
"""Go with every answer. A connection is for one request, so that none is kept open."""

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d{1,5})?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered: its HTTP status, and a fixed sentence."""

    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class Door:
    """Decides on a request's head.

    Parameters
    ----------
    hosts
        Names, in lower case, that ``Host`` may give.
    token
        SHA-256 of the token; None where there is none.
    private
        Whether a token is needed for all but probes and the page: where other machines can reach the server.
    """

    hosts: frozenset[str]
    token: bytes | None
    private: bool = False

    def refusal(self, method: str, path: str, headers: Mapping[str, str]) -> Refusal | None:
        """Say why a request is refused; None where it is not. `headers` have names in lower case."""
        host = _HOST.fullmatch(headers.get("host", ""))
        if host is None or host["name"].lower() not in self.hosts:
            return Refusal(421, "this server does not answer to that Host name")
        if path not in PATHS:
            return Refusal(404, "there is nothing under this path")
        if method not in PATHS[path]:
            return Refusal(405, f"this path takes {' and '.join(sorted(PATHS[path]))} only")
        if not (method in READ and path in FROM_ANYWHERE) and _is_foreign(headers):
            return Refusal(403, "a page of another origin may not ask this")
        if method in WRITE or (path not in PROBES | PAGE and (self.private or "authorization" in headers)):
            if self.token is None:
                return Refusal(403, "this needs a token, and the daemon was started without a token_file")
            if not self.trusts(headers):
                return Refusal(401, "this needs the right token, as Authorization: Bearer TOKEN")
        if (
            not headers.get("content-length", "0").isdecimal()
            or {"content-length", "transfer-encoding"} <= headers.keys()
        ):
            return Refusal(400, "where the body ends is not clear")
        if int(headers.get("content-length", "0")[:12]) > MOST_BODY_BYTES:
            return Refusal(413, f"a body may have {MOST_BODY_BYTES} bytes at most")
        return None

    def trusts(self, headers: Mapping[str, str]) -> bool:
        """Whether a request brings the token; takes the same time for every wrong one."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = digest_of(given.strip())
        return hmac.compare_digest(digest, self.token or b"") and scheme.lower() == "bearer"


class Guard:
    """ASGI middleware: lets through what `door` lets through, with ``scope["trusted"]`` and a body of limited size."""

    def __init__(self, app: App, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"no way to answer {scope['type']}")

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", []) if pair[0].decode("latin-1").lower() not in HEADERS]
                message["headers"] = kept + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        headers, refused = _headers(scope)
        refused = refused or self._door.refusal(scope["method"], scope["path"], headers)
        body = b""
        if refused is None and scope["method"] in WRITE:
            taken = await _body(receive)
            refused = Refusal(413, f"a body may have {MOST_BODY_BYTES} bytes at most") if taken is None else None
            body = taken or b""
        if refused is not None:
            await _refuse(refused, scope["path"], send_safely)
            return
        scope["trusted"] = self._door.token is not None and self._door.trusts(headers)

        async def receive_body() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_body, send_safely)


def digest_of(token: str) -> bytes:
    """SHA-256 of a token: what is kept of it, and compared."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def allowed_hosts(address: str, more: Iterable[str] = ()) -> frozenset[str]:
    """Return the names that ``Host`` may give: this machine's own, the address itself, and `more`."""
    own = {"localhost", "127.0.0.1", "[::1]", *(name.lower() for name in more)}
    try:
        number = ipaddress.ip_address(address)
    except ValueError:
        return frozenset(own | {address.lower()})
    if not number.is_unspecified:
        own.add(f"[{number}]" if number.version == 6 else str(number))
    return frozenset(own)


def _headers(scope: Scope) -> tuple[dict[str, str], Refusal | None]:
    """Return the headers by name; refuse too many, and one that decides something and is there twice."""
    found: dict[str, str] = {}
    size = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    for name_bytes, value in scope["headers"]:
        name = name_bytes.decode("latin-1").lower()
        if name in found and name in {"host", "origin", "authorization", "content-length", "sec-fetch-site"}:
            return found, Refusal(400, "a header that must be there once is there twice")
        found[name] = value.decode("latin-1")
        size += len(name_bytes) + len(value) + 4
    if size > MOST_HEAD_BYTES:
        return found, Refusal(431, f"path and headers may have {MOST_HEAD_BYTES} bytes at most")
    return found, None


def _is_foreign(headers: Mapping[str, str]) -> bool:
    if headers.get("sec-fetch-site", "none").lower() not in {"same-origin", "none"}:
        return True
    origin = headers.get("origin")
    return origin is not None and origin.lower() not in {
        f"{scheme}://{headers['host'].lower()}" for scheme in ("http", "https")
    }


async def _body(receive: Receive) -> bytes | None:
    """Read the whole body; None where it is too large, or its sender is gone."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > MOST_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


async def _refuse(refusal: Refusal, path: str, send: Send) -> None:
    body = json.dumps({"error": refusal.reason}).encode("ascii")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.status == 405:
        headers.append((b"allow", ", ".join(sorted(PATHS[path])).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
