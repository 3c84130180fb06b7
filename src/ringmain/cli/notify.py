"""What a service manager hears of a run: sd_notify(3) of systemd. Nothing is said where none wants to hear."""

import contextlib
import os
import socket
from collections.abc import Callable

from ringmain.errors import printable

# How often its one line of status may change, in seconds.
_STATUS_EVERY = 1.0


class ServiceManager:
    """Whoever has set NOTIFY_SOCKET, and perhaps WATCHDOG_USEC; those that we start do not see them.

    `is_there` tells whether there is one.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.is_there = address.startswith(("/", "@"))
        usec, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        watched = usec.isdecimal() and int(usec) > 0 and pid == str(os.getpid())
        self._watchdog = (
            int(usec) / 2_000_000 if watched else None
        )  # half of the time that we have: sd_watchdog_enabled

    def tell(self, line: str, patience: float = 0.0) -> None:
        """Tell one thing, as READY=1; what a busy manager has no room for in so many seconds is not told."""
        if not self.is_there:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patience)
            sock.sendto(line.encode(), self._address)

    async def keep_told(self, status: Callable[[], str]) -> None:
        """Tell that the loop is running, as often as is wanted, and the status whenever it has changed."""
        import asyncio

        last = ""
        while True:
            if self._watchdog is not None:
                self.tell("WATCHDOG=1")
            if (now := printable(status())) != last:
                self.tell(f"STATUS={now}")
                last = now
            await asyncio.sleep(min(self._watchdog or _STATUS_EVERY, _STATUS_EVERY))
