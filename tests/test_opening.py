"""What is opened: once, and not where there is no memory or no room for it."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import peers
import pytest
from conftest import Run, open_descriptors
from steps import cancelled_at

import ringmain
from ringmain.flow import clients
from ringmain.flow import inflow as inflows

OPENED = {
    "load": lambda: ringmain.load("127.0.0.1:0"),
    "load many": lambda: ringmain.load("127.0.0.1:0", max_connections=2),
    "save": lambda: ringmain.save("127.0.0.1:0", listen=True),
    "save many": lambda: ringmain.save("127.0.0.1:0", listen=True, max_connections=2),
    "relay": lambda: ringmain.relay("127.0.0.1:0", "127.0.0.1:1"),
}


@pytest.mark.parametrize("make", OPENED.values(), ids=OPENED.keys())
def test_what_is_open_or_was_is_not_opened_again(run: Run, make: Callable[[], Any]) -> None:
    async def main() -> None:
        it = make()
        entered = await asyncio.gather(it.__aenter__(), it.__aenter__(), return_exceptions=True)
        assert sorted(type(each) for each in entered if each is not it) == [ringmain.UsageError]
        assert it.port > 0
        with pytest.raises(ringmain.UsageError, match="open already"), it:
            pass
        assert it.port > 0
        await it.aclose()
        with pytest.raises(ringmain.UsageError, match="open before; call ringmain"):
            await it.__aenter__()

    run(main())
    with make() as it, pytest.raises(ringmain.UsageError, match="open already"), it:
        pass
    with pytest.raises(ringmain.UsageError, match="open before"), it:
        pass


@pytest.mark.parametrize("make", OPENED.values(), ids=OPENED.keys())
def test_what_could_not_be_opened_may_be_tried_again(run: Run, make: Callable[[], Any]) -> None:
    async def main() -> None:
        it = make()
        assert await cancelled_at(1, it.__aenter__()) in (True, False)
        if not it.addresses:
            await it.__aenter__()
        assert it.port > 0
        await it.aclose()

    run(main())


class _NoMemory:
    """Stands for a class: the first object of it finds no memory, and is told of what it was to be made of."""

    def __init__(self, kind: type) -> None:
        self.kind, self.calls = kind, 0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise MemoryError
        return self.kind(*arguments, **keywords)


@pytest.mark.parametrize("verb", ["load", "connections", "save", "save many"])
def test_a_client_for_whom_there_is_no_memory_is_reset_and_the_next_one_served(
    run: Run, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    import ringmain.loader

    async def main() -> None:
        if verb.startswith("save"):
            monkeypatch.setattr(clients, "Outflow", _NoMemory(clients.Outflow))
            verb_of: Any = ringmain.save("127.0.0.1:0", listen=True, max_connections=1 + ("many" in verb))
        else:
            monkeypatch.setattr(ringmain.loader, "Inflow", _NoMemory(inflows.Inflow))
            verb_of = ringmain.load("127.0.0.1:0")

        async def serve_one() -> Any:
            if verb.startswith("save"):
                return await it.wait_for_peer()
            return await anext(it if verb == "load" else it.connections())

        async with verb_of as it:
            with peers.connect(it.port) as sock:
                sock.sendall(b"some")
                with pytest.raises(MemoryError):
                    await serve_one()
                assert await asyncio.to_thread(peers.ends_in_reset, sock)
            with peers.connect(it.port) as sock:
                sock.sendall(b"some")
                del sock
                await serve_one()

    run(main())


def test_a_dialled_connection_for_which_there_is_no_memory_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import ringmain.loader

    monkeypatch.setattr(ringmain.loader, "Inflow", _NoMemory(inflows.Inflow))

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            loader = ringmain.load(f"127.0.0.1:{listener.getsockname()[1]}", connect=True)
            before = open_descriptors()
            with pytest.raises(MemoryError):
                await loader.__aenter__()
            assert len(open_descriptors()) <= len(before)
            sock, _ = listener.accept()
            with sock:
                assert peers.ends_in_reset(sock)
            async with loader:
                listener.accept()[0].close()
                assert [block async for block in loader] == []

    run(main())


def test_a_loader_of_many_that_finds_no_room_listens_no_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import ringmain.loader

    monkeypatch.setattr(ringmain.loader, "Many", _NoMemory(ringmain.loader.Many))

    async def main() -> None:
        port = peers.free_port()
        loader = ringmain.load(f"127.0.0.1:{port}", max_connections=2)
        with pytest.raises(MemoryError):
            await loader.__aenter__()
        with pytest.raises(ConnectionRefusedError):
            peers.connect(port)

    run(main())
