"""The daemon's health over HTTP, served from a thread of its own, on this machine only unless told otherwise.

In a settings file:

```toml
[health]
port = 9108                   # 0, the default, serves nothing
token_file = "/etc/ssai3d-rt/token"
```

The server shares nothing with the daemon's loop but its vital signs, which are read in no time: whatever clients do,
the loop goes round. A connection is for one request, may last `LIFE_S` and no longer, and there are `MOST_CONNECTIONS`
at most; when another one comes, the oldest that still has said nothing whole makes room, so that a crowd of silent
clients keeps nobody out. What is answered is in `ssai3d_rt.runtime.pages`, to whom in `ssai3d_rt.runtime.guard`.

>>> HealthSettings.of({"port": 9108, "token": "secret"})
Traceback (most recent call last):
ssai3d_rt.errors.ConfigError: settings: unknown key "token"; did you mean "token_file"?
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ssai3d_rt.config import Settings
from ssai3d_rt.errors import ConfigError, MissingPackageError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.guard import MOST_HEAD_BYTES, Door, Guard, allowed_hosts, digest_of, is_loopback
from ssai3d_rt.runtime.pages import Subject, make_app
from ssai3d_rt.runtime.probe import leave_note

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Sequence

    from ssai3d_rt.runtime.vitals import Vitals

logger = logging.getLogger(__name__)

LIFE_S = 10.0
"""A connection ends after so long, whatever it is at."""

MOST_CONNECTIONS = 64

_AT_A_TIME = 32
"""Connections taken in at a time: few, because each is a descriptor that the daemon might need."""

_WAITING = 1024
"""Connections that the system keeps until they are taken in: many, because it lets those wait long that it drops."""

_STOP_S = 5.0
_TOKEN = re.compile(r"[\x21-\x7e]{16,512}")


class HealthSettings(Settings):
    """Settings of the health server.

    Parameters
    ----------
    port
        The TCP port; 0 serves nothing.
    address
        The address to listen at; any but this machine's own needs a token.
    token_file
        A file with the token, 16 to 512 characters on one line, that only its owner may read.
    hosts
        Further names under which the server is asked for, beside ``localhost`` and the address.
    """

    port: int = Field(default=0, ge=0, le=65535)
    address: str = "127.0.0.1"
    token_file: Path | None = None
    hosts: tuple[str, ...] = ()


@contextlib.contextmanager
def serve(
    vitals: Vitals,
    settings: HealthSettings,
    *,
    out: Path,
    ledger: Path,
    roots: Sequence[Path],
    port: int | None = None,
) -> Iterator[str]:
    """Serve a daemon's health while inside.

    Parameters
    ----------
    vitals
        The daemon's vital signs.
    settings
        Where, and to whom. With port 0 nothing is served, and the address is empty.
    out, ledger, roots
        The daemon's output folder, its ledger's file and its watched folders.
    port
        Goes before the one in `settings`; 0 takes any that is free.

    Yields
    ------
    str
        The address, such as ``http://127.0.0.1:9108``.

    Raises
    ------
    ConfigError
        The port is taken, the address is not one of this machine or needs a token, or the token file is not safe.
    MissingPackageError
        `starlette`, `uvicorn` or `prometheus_client` are not installed.
    """
    if port is None and settings.port == 0:
        _leave_note(out, "")
        yield ""
        return
    door = _door(settings)
    _require_packages()
    listener = _listen(settings.address, settings.port if port is None else port)
    try:
        subject = Subject(vitals, out, ledger, tuple(Path(os.path.realpath(root)) for root in roots))
        server = _server(subject, door)
    except BaseException:
        listener.close()
        raise
    address = _address(listener)
    thread = threading.Thread(target=_run, args=(server, listener), name="health", daemon=True)
    thread.start()
    _leave_note(out, address)
    try:
        yield address
    finally:
        _leave_note(out, "")
        server.should_exit = True
        thread.join(_STOP_S)
        if thread.is_alive():
            logger.warning("the health server did not end within %g s; it ends with the process", _STOP_S)


def _run(server: Any, listener: socket.socket) -> None:
    try:
        server.run(sockets=[listener])
    except BaseException:
        logger.exception("the health server ended; the daemon goes on without it")
    finally:
        listener.close()


def _door(settings: HealthSettings) -> Door:
    token = None if settings.token_file is None else digest_of(_read_token(settings.token_file))
    private = not is_loopback(settings.address) or bool(settings.hosts)
    if private and token is None:
        raise ConfigError(
            f"health: other machines could ask at {settings.address}{' for ' if settings.hosts else ''}"
            f"{', '.join(settings.hosts)}; give a token_file, or leave address and hosts as they are by default"
        )
    return Door(allowed_hosts(settings.address, settings.hosts), token, private=private)


def _read_token(path: Path) -> str:
    """Read the token, from a regular file that nobody but its owner may read."""
    try:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags)
    except OSError as error:
        raise ConfigError(f"health: cannot read the token_file {shown(path)}: {error.strerror or error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"health: the token_file {shown(path)} is not a file")
        if sys.platform != "win32":
            if status.st_mode & 0o077:
                raise ConfigError(f"health: others may read the token_file {shown(path)}; run: chmod 600 {shown(path)}")
            if status.st_uid not in (os.geteuid(), 0):
                raise ConfigError(f"health: the token_file {shown(path)} belongs to another user; make your own")
        text = os.read(descriptor, 1024).decode("utf-8", "replace").strip()
    finally:
        os.close(descriptor)
    if not _TOKEN.fullmatch(text):
        raise ConfigError(
            f"health: the token_file {shown(path)} must hold one line of 16 to 512 characters, letters, digits and "
            'signs; make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return text


def _require_packages() -> None:
    import importlib.util

    for package in ("starlette", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(package, extra="status")


def _listen(address: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"health: {shown(address)} is no address: {error}") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # On Windows, "reuse" lets a second program listen at the same port.
        alone = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
        listener.setsockopt(socket.SOL_SOCKET, alone, 1)
        listener.bind(place)
        listener.listen(_WAITING)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"health: cannot listen at {shown(address)} port {port}: {error.strerror or error}; "
            "stop what uses the port, or set another port in the table [health]"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # every address, and so this machine's own
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _leave_note(out: Path, address: str) -> None:
    try:
        leave_note(out, address)
    except OSError as error:
        logger.warning("cannot note in %s where health is served: %s", shown(out), error.strerror or error)


def _server(subject: Subject, door: Door) -> Any:
    """Make the server: one request for each connection, and limits that uvicorn does not have by itself."""
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Brief(H11Protocol):
        """A connection that lasts `LIFE_S` at most; uvicorn waits for ever for the first request."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self.began = time.monotonic()
            self.end = self.loop.call_later(LIFE_S, transport.abort)
            others = [other for other in self.connections if isinstance(other, Brief)]
            if len(others) >= MOST_CONNECTIONS:
                oldest = min(others, key=lambda other: (other.cycle is not None, other.began))
                self.connections.discard(oldest)
                oldest.transport.abort()
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            self.end.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            try:
                super().data_received(data)
            except h11.ProtocolError:  # nonsense after an answer was begun: nothing more can be said
                self.transport.abort()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None:  # its head made sense: what answers it must not answer a second time
                self.cycle.disconnected = True
            super().send_400_response(msg)

    class Patient(uvicorn.Server):
        """A server that asks the system to keep more connections than it takes in at a time."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for listener in sockets or []:
                listener.listen(_WAITING)

    config = uvicorn.Config(
        Guard(make_app(subject), door),
        loop="asyncio",
        http=Brief,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_AT_A_TIME,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
    )
    return Patient(config)
