r"""Tell a service manager how the daemon is: systemd's notification protocol, without a library.

systemd names a socket in ``NOTIFY_SOCKET`` and, where it watches the process, an interval in ``WATCHDOG_USEC``; each
message is one datagram of ``NAME=value`` lines (`man sd_notify`). Without the variable nothing is sent, so a daemon
started by hand and one started by systemd run the same code. A message that cannot be delivered is logged once and
never disturbs the daemon. It does not know when the daemon is ready or alive: whoever calls it does.

>>> notifier = Notifier.from_environment({})
>>> notifier.wanted, notifier.ready(), notifier.beat(0.0)
(False, False, False)
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

_BEATS_PER_INTERVAL = 3
"""systemd asks for two; a third covers one that came late."""

_SEND_S = 1.0
_MOST_STATUS = 512


class Notifier:
    """Messages to the service manager; call it from one thread.

    Parameters
    ----------
    address
        The socket: an absolute path, or a name in Linux' abstract namespace after ``@``; empty sends nothing.
    watchdog_s
        The process counts as hung when it was silent for so many seconds; None where nobody watches.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s
        self._beat_at_s: float | None = None
        self._complained = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Notifier:
        """Read ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``, as a service manager sets them.

        A watchdog meant for another process (``WATCHDOG_PID``) is left alone.
        """
        values = os.environ if environment is None else environment
        address = values.get("NOTIFY_SOCKET", "")
        if address and address[0] not in "/@":
            logger.warning("NOTIFY_SOCKET=%s is no Unix socket; the service manager is told nothing", shown(address))
            address = ""
        microseconds = values.get("WATCHDOG_USEC", "")
        mine = values.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = bool(address) and mine and microseconds.isdecimal() and int(microseconds) > 0
        return cls(address, int(microseconds) / 1e6 if watched else None)

    @property
    def wanted(self) -> bool:
        """Whether there is anyone to tell."""
        return bool(self._address)

    @property
    def watchdog_s(self) -> float | None:
        """The process counts as hung when it was silent for so many seconds; None where nobody watches."""
        return self._watchdog_s

    def ready(self, status: str = "") -> bool:
        """Say that the daemon has started; return whether it was sent, as every method here does."""
        return self._send("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        """Say in one line what the daemon is doing."""
        return self._send(*_status(text))

    def stopping(self, status: str = "") -> bool:
        """Say that the daemon ends now."""
        return self._send("STOPPING=1", *_status(status))

    def beat(self, now_s: float) -> bool:
        """Say that the loop is alive; call it every turn: a message leaves only when a third of the interval passed.

        Parameters
        ----------
        now_s
            Monotonic time in seconds.
        """
        if self._watchdog_s is None:
            return False
        if self._beat_at_s is not None and now_s - self._beat_at_s < self._watchdog_s / _BEATS_PER_INTERVAL:
            return False
        self._beat_at_s = now_s
        return self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> bool:
        if not self._address or not lines:
            return False
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.settimeout(_SEND_S)
                channel.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), os.fsencode(address))
        except (OSError, AttributeError) as error:  # AttributeError: a system without Unix sockets
            if not self._complained:
                logger.warning("the service manager at %s does not listen: %s", shown(self._address), error)
            self._complained = True
            return False
        self._complained = False
        return True


def _status(text: str) -> list[str]:
    return [f"STATUS={shown(text)[:_MOST_STATUS]}"] if text else []
