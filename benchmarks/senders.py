"""Send standard input on one TLS connection in Python: `python -m benchmarks.senders aiofastnet PORT`.

The source waits while the transport has more than it wants, as asyncio's documentation asks for.
"""

import asyncio
import os
import ssl
import sys

HOST = "127.0.0.1"
SIZE = 256 << 10  # of a read


class Sender(asyncio.Protocol):
    """One end of a connection that is sent on."""

    def __init__(self) -> None:
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pause_writing(self) -> None:
        """Wait: the transport has enough."""
        self.may_write.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self.may_write.set()

    def connection_lost(self, error: Exception | None) -> None:
        """End; whether properly shows in the count."""
        del error
        if not self.ended.done():
            self.ended.set_result(None)


async def aiofastnet(port: int) -> None:
    """Send by aiofastnet's TLS on uvloop, as its documentation recommends."""
    import aiofastnet

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    loop = asyncio.get_running_loop()
    transport, sender = await aiofastnet.create_connection(loop, Sender, HOST, port, ssl=context)
    while data := os.read(0, SIZE):
        await sender.may_write.wait()
        transport.write(data)
    transport.close()
    await sender.ended


def main(name: str, port: str) -> None:
    """Send."""
    import uvloop

    uvloop.run({"aiofastnet": aiofastnet}[name](int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
