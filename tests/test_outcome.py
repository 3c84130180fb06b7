"""What `on_end` is told of a connection: the same that the log says, and the error that was raised or warned of."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import peers
import pytest

import ringmain
from ringmain import errors
from ringmain.outcome import Outcome, RelayOutcome, State, Verdict

Run = Callable[[Any], Any]


@pytest.mark.parametrize("lost", [False, True], ids=["ended", "reset"])
def test_a_loader_tells_what_became_of_a_connection(run: Run, caplog: pytest.LogCaptureFixture, lost: bool) -> None:
    caplog.set_level(logging.INFO, "ringmain")
    told: list[Outcome] = []

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
            loader.on_end = told.append
            client = peers.connect(loader.port)
            client.sendall(b"12345")
            assert bytes(await anext(loader)) == b"12345"
            peers.close_with_reset(client) if lost else client.close()
            assert [block async for block in loader] == []

    if lost:
        with pytest.raises(errors.ReceiveError) as caught:
            run(main())
        assert told[0].error is caught.value
    else:
        run(main())
        assert told[0].error is None
    assert told[0].verdict is (Verdict.RESET if lost else Verdict.ENDED)
    assert str(told[0]).endswith(f": {'reset' if lost else 'ended'} after 5 bytes")
    assert str(told[0]) in caplog.messages


def test_a_saver_tells_why_it_lost_a_client(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ringmain")
    told: list[Outcome] = []

    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen_once=True) as saver:
            saver.on_end = told.append
            client = peers.connect(saver.port)
            await saver.write(b"12345")
            assert await asyncio.to_thread(client.recv, 10) == b"12345"
            peers.close_with_reset(client)
            while True:
                await saver.write(b"6")
                await asyncio.sleep(0.01)

    with pytest.raises(errors.SendError) as caught:
        run(main())
    assert [it.verdict for it in told] == [Verdict.RESET]
    assert told[0].error is caught.value
    assert str(told[0]) in caplog.messages


def test_a_relay_tells_of_both_sides(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ringmain")
    told: list[RelayOutcome] = []

    async def main() -> None:
        async with (
            ringmain.load("127.0.0.1:0", listen_once=True) as loader,
            ringmain.relay("127.0.0.1:0", f"127.0.0.1:{loader.port}", listen_once=True, one_way=True) as relayer,
        ):
            relayer.on_end = told.append
            serving = asyncio.ensure_future(relayer.serve())
            with peers.connect(relayer.port) as client:
                client.sendall(b"12345")
            assert b"".join([bytes(block) async for block in loader]) == b"12345"
            await serving

    run(main())
    assert (told[0].verdict, told[0].error) == (Verdict.ENDED, None)
    assert (told[0].source.size, told[0].source.state) == (5, State.ENDED)
    assert (told[0].destination.size, told[0].destination.state) == (0, None)
    assert str(told[0]).endswith(": ended after 5 bytes")
    assert str(told[0]) in caplog.messages


def test_a_direction_passes_the_end_on_before_it_has_ended() -> None:
    assert State.RUNNING.next is State.ENDING
    assert State.ENDING.next is State.ENDED
    with pytest.raises(KeyError):
        _ = State.ENDED.next


@pytest.mark.parametrize("verb", ["load", "save"])
def test_the_next_client_is_served_though_who_was_told_of_the_last_one_has_failed(run: Run, verb: str) -> None:
    async def meet(verb: ringmain.Loader | ringmain.Saver) -> None:
        with peers.connect(verb.port) as client:
            if isinstance(verb, ringmain.Saver):
                await verb.write(b"12345")
                await verb.end_connection()
            else:
                client.sendall(b"12345")
                client.shutdown(socket.SHUT_WR)
                while True:
                    await anext(verb)

    def fail(_: Outcome) -> None:
        raise LookupError("no room for it")

    async def main() -> None:
        async with getattr(ringmain, verb)("127.0.0.1:0", **({"listen": True} if verb == "save" else {})) as it:
            it.on_end = fail
            for _ in range(2):
                with pytest.raises(LookupError):
                    async with asyncio.timeout(peers.TIMEOUT):
                        await meet(it)
            it.on_end = None

    run(main())
