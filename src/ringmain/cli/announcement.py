"""Who is told where a run listens: whoever looks at standard error, and scripts by the port file."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ringmain.cli.descriptors import check_room
from ringmain.cli.port_file import PortFile
from ringmain.cli.signals import hear_all_later
from ringmain.endpoint import Endpoint, LogEndpoint, as_url
from ringmain.errors import UsageError
from ringmain.net.listeners import addresses_of, open_at_once
from ringmain.terminal import screen

if TYPE_CHECKING:
    import socket

    from ringmain.sources import Asked


class Announcement:
    """Say where is listened, once. `aloud` is also where the user knows, and not only where the system has chosen."""

    def __init__(self, port_file: str | None, *, aloud: bool) -> None:
        self.aloud = aloud
        self._port_file = PortFile(port_file) if port_file is not None else None
        self._told = False

    def tell(self, *listening: tuple[list[str], Endpoint | LogEndpoint, bool]) -> None:
        """Say it if that was not done before: for each end the addresses, what was asked for, TLS."""
        if self._told:
            return
        self._told = True
        for addresses, endpoint, tls in listening:
            if self.aloud or (isinstance(endpoint, Endpoint) and endpoint.port == "0"):
                say(*(f"listening on {as_url(address, tls=tls)}" for address in addresses))
        if self._port_file is not None and listening:
            first = [addresses[0] for addresses, _, _ in listening if not addresses[0].startswith("unix:")]
            if not first:
                raise UsageError("port_file=", "a UNIX socket has no port", "leave port_file= out")
            self._port_file.write("".join(f"{address.rpartition(':')[2]}\n" for address in first))

    def withdraw(self) -> None:
        """Remove the port file, if there is one of ours."""
        if self._port_file is not None:
            self._port_file.remove()

    @contextlib.contextmanager
    def listening_at_once(self, asked: "Asked") -> Iterator["list[socket.socket] | None"]:
        """Listen, and say so, while there is no event loop yet: who connects waits in the backlog until there is one.

        Give no sockets where a name has to be resolved before, or a certificate to be read.
        """
        endpoint, settings = asked.endpoint, asked.settings
        if settings.allow:
            from ringmain.net.allow import Allowed

            Allowed(settings.allow)  # raises what is wrong with it
        sockets = None
        try:
            if not (endpoint.tls or settings.tls):
                hear_all_later()  # first: the file of a UNIX socket, too, is to be removed
                sockets = open_at_once(endpoint, settings)
            if sockets is not None:
                check_room()
                self.tell((addresses_of(sockets), endpoint, False))
            yield sockets
        finally:
            self.withdraw()
            for sock in sockets or ():
                sock.close()


def say(*lines: str) -> None:
    """Write lines to standard error, where somebody reads it."""
    with contextlib.suppress(OSError):  # nobody does, or it has no room
        screen.clear()
        for line in lines:
            print(line, file=sys.stderr, flush=True)
