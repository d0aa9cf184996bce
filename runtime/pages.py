"""What the daemon answers over HTTP: its vital signs, metrics, status and page, and the taking in of submissions.

``/live`` and ``/ready`` look at memory only and answer whatever the disks do. What has to look at a disk (the ledger,
a submitted path) is done beside the server's loop, one thing at a time and with a limit of time, so that a share that
hangs costs one thread and not the server. Names of files are left out unless the request brought the token. Who may
ask at all is decided before (`ssai3d_rt.runtime.guard`).
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssai3d_rt.errors import InputError, MissingPackageError, StorageError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.metrics import CONTENT_TYPE, exposition
from ssai3d_rt.runtime.status import summary
from ssai3d_rt.runtime.submit import submit

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from ssai3d_rt.runtime.vitals import Verdict, Vitals

PATIENCE_S = 5.0
"""What looks at a disk may take so long, waiting for its turn included."""

KEPT_S = 1.0
"""The ledger is read at most so often, however many ask."""

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_OPEN_KEYS = ("state", "fault", "seconds", "attempts", "updated_at")
"""What is told of a stack without the token."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What the pages are about.

    Parameters
    ----------
    vitals
        The daemon's vital signs.
    out
        Its output folder, where submissions are left.
    ledger
        Its ledger's file.
    roots
        Its watched folders, as real paths.
    """

    vitals: Vitals
    out: Path
    ledger: Path
    roots: tuple[Path, ...]


class _Beside:
    """Does what may hang in a thread of its own, one thing at a time; what ran out of time blocks only what follows."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._last: Future[Any] | None = None

    async def do(self, work: Callable[[], Any]) -> Any:
        return await asyncio.wait_for(self._do(work), PATIENCE_S)

    async def _do(self, work: Callable[[], Any]) -> Any:
        async with self._turn:
            if self._last is not None and not self._last.done():
                await asyncio.wait([asyncio.wrap_future(self._last)])
            future = self._last = Future()

            def run() -> None:
                try:
                    future.set_result(work())
                except Exception as error:
                    future.set_exception(error)

            threading.Thread(target=run, name="health: disk", daemon=True).start()
            return await asyncio.shield(asyncio.wrap_future(future))


def make_app(subject: Subject) -> Starlette:
    """Return the pages as an ASGI application.

    Raises
    ------
    MissingPackageError
        `starlette` is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError:
        raise MissingPackageError("starlette", extra="status") from None
    vitals = subject.vitals
    reading, submitting = _Beside(), _Beside()
    kept: tuple[float, dict[str, Any]] = (-KEPT_S, {})

    def of_ledger() -> dict[str, Any]:
        nonlocal kept
        if time.monotonic() - kept[0] >= KEPT_S:
            kept = (time.monotonic(), summary(subject.ledger))
        return kept[1]

    async def live(_: Request) -> Response:
        return _verdict("live", vitals.live())

    async def ready(_: Request) -> Response:
        return _verdict("ready", vitals.ready())

    async def metrics(_: Request) -> Response:
        return Response(exposition(vitals), media_type=CONTENT_TYPE)

    async def status(request: Request) -> Response:
        names = bool(request.scope["trusted"])
        found: dict[str, Any] = {"vitals": vitals.snapshot(names=names)}
        try:
            of = await reading.do(of_ledger)
            found |= of if names else without_names(of)
        except (InputError, StorageError) as error:
            found["ledger_problem"] = str(error) if names else "the ledger cannot be read"
        except asyncio.TimeoutError:
            found["ledger_problem"] = f"the ledger did not answer within {PATIENCE_S:g} s"
        return _json(found)

    async def take(request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return _error(415, 'send JSON, as Content-Type: application/json, such as {"path": "/data/raw/cells.tif"}')
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            return _error(415, "send the JSON as it is, not compressed")
        try:
            values = json.loads(await request.body())
        except (ValueError, RecursionError):
            return _error(400, "the body is not JSON")
        if not isinstance(values, dict) or set(values) != {"path"} or not isinstance(values["path"], str):
            return _error(400, 'send one key, "path", with the finished file or folder')
        try:
            word = await submitting.do(lambda: submit(watched_path(values["path"], subject.roots), subject.out))
        except PermissionError as error:
            return _error(403, str(error))
        except InputError as error:
            return _error(400, str(error))
        except StorageError as error:
            return _error(503, str(error))
        except asyncio.TimeoutError:
            return _error(504, f"the disk did not answer within {PATIENCE_S:g} s; ask again")
        return _json({"word": word.name}, 202)

    routes = [
        Route("/live", live),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/status.json", status),
        Route("/submit", take, methods=["POST"]),
    ]
    for path, (name, kind) in _FILES.items():
        routes.append(Route(path, _file((_PAGE / name).read_bytes(), kind)))
    return Starlette(routes=routes)


def watched_path(text: str, roots: tuple[Path, ...]) -> Path:
    """Return the path that a submission names, where it lies, links resolved, in a watched folder.

    Raises
    ------
    InputError
        It is not an absolute path.
    PermissionError
        It lies elsewhere. The message does not say whether there is anything.
    """
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise InputError("give the whole path, from the root or drive on")
    elsewhere = PermissionError("this path lies in no watched folder")
    if path.drive.startswith(("\\\\", "//")) and path.drive.lower() not in {root.drive.lower() for root in roots}:
        raise elsewhere  # only looking at it would log this machine in over there
    try:
        named = Path(os.path.realpath(path.parent)) / path.name
        real = Path(os.path.realpath(named))
    except (OSError, ValueError):
        raise elsewhere from None
    if not any(named.is_relative_to(root) and real.is_relative_to(root) for root in roots):
        raise elsewhere
    return named


def without_names(found: dict[str, Any]) -> dict[str, Any]:
    """Return a ledger's summary without anything that could name a file.

    >>> without_names({"running": True, "paused": "/b is full", "counts": {}, "failed": [{"path": "/c"}]})
    {'running': True, 'paused': True, 'counts': {}, 'failed': [{}]}
    """
    short: dict[str, Any] = {"running": found["running"], "paused": bool(found["paused"]), "counts": found["counts"]}
    for name in ("working", "failed", "done"):
        if name in found:
            short[name] = [{key: one[key] for key in _OPEN_KEYS if key in one} for one in found[name]]
    return short


def _file(content: bytes, kind: str) -> Callable[[Request], Any]:
    async def answer(_: Request) -> Response:
        from starlette.responses import Response

        return Response(content, media_type=kind)

    return answer


def _verdict(name: str, verdict: Verdict) -> Response:
    return _json({name: verdict.ok, "reasons": list(verdict.reasons)}, 200 if verdict.ok else 503)


def _error(status: int, reason: str) -> Response:
    return _json({"error": shown(reason)}, status)


def _json(found: dict[str, Any], status: int = 200) -> Response:
    """Answer with JSON in plain ASCII and without ``<``, ``>`` and ``&``: harmless wherever a browser puts it."""
    from starlette.responses import Response

    text = json.dumps(found, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Response(text.encode("ascii"), status, media_type="application/json")
