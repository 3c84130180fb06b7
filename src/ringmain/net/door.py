"""What hands out clients: a gate, or a process that has accepted them."""

import ssl
from typing import Protocol

from ringmain.net.dial import Preface
from ringmain.net.gate import Guest
from ringmain.net.link import Link
from ringmain.net.reception import OnFailed
from ringmain.outcome import Unserved


class Door(Protocol):
    """Hands out clients, as `Gate` does, which tells what is promised."""

    @property
    def unserved(self) -> Unserved:
        """How many came and were not served."""

    on_failed: OnFailed | None
    """What hears of the clients that are not served."""

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at; none where somebody else listens."""

    @property
    def port(self) -> int:
        """The port listened at."""

    @property
    def peers(self) -> list[str]:
        """Who is served."""

    async def next_connection(self, context: ssl.SSLContext | None, preface: Preface | None = None) -> Link:
        """Return the next client that is ready for data; raise NoMoreClients after `stop`."""

    def watch_over(self, link: Link, guest: Guest) -> None:
        """Turn a client that was handed out away if it sends nothing while others wait."""

    def done(self, link: Link) -> None:
        """Let the next client in, in place of one that was handed out; nothing where that was done before."""

    def stop(self) -> None:
        """Serve no other client."""

    def close(self) -> None:
        """Close all that is open."""
