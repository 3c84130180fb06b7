"""Clients of a saver that serves many: how they come, and how they read."""

import asyncio
from pathlib import Path

import witness
from conforming import Net
from conftest import Certificates
from merging import until

import ringmain

PLAIN = Net(Certificates(*[Path()] * 5), tls=False)


async def connect(saver: ringmain.Saver, net: Net, count: int) -> list[witness.Witness]:
    """Return clients that are ready for data, where another task makes the saver serve them."""
    clients = [await witness.connect(saver.port, net.client()) for _ in range(count)]
    await asyncio.gather(*(client.shake_hands() for client in clients))
    return clients


async def come(saver: ringmain.Saver, net: Net, count: int = 1, *, waiting: bool = True) -> list[witness.Witness]:
    """Return clients that are served, and read nothing yet; `waiting` unless another task makes the saver do that."""
    wanted = saver.connections + count
    if waiting:
        clients, _ = await asyncio.gather(connect(saver, net, count), saver.wait_for_peer())
    else:
        clients = await connect(saver, net, count)
    await until(lambda: saver.connections == wanted)
    return clients


def read_on(clients: list[witness.Witness]) -> "asyncio.Future[list[None]]":
    """Let clients read to the end, and close then."""

    async def read(client: witness.Witness) -> None:
        try:
            await client.read_to_end()
        finally:
            client.sock.close()

    return asyncio.gather(*(read(client) for client in clients))


def stalled(saver: ringmain.Saver) -> bool:
    """Tell whether there is a client that has been sent something, and takes no more for now."""
    return any(outflow.counters.bytes_out and outflow.counters.stalls for outflow in saver._clients.outflows)
