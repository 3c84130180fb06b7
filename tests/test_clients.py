"""What a saver's clients get, one after another, when it is told to stop, to break off, or to give each its own."""

import asyncio
import contextlib
import gc
import socket
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import peers
import pytest

import ringmain
from ringmain import errors
from ringmain.flow.outflow import Outflow

Run = Callable[[Any], Any]


def read_to_reset(sock: socket.socket) -> bytes:
    """Return what came before the reset."""
    got = b""
    with sock, pytest.raises(ConnectionResetError):
        while True:
            chunk = sock.recv(1 << 16)
            assert chunk, "it ended properly"
            got += chunk
    return got


def test_who_waits_for_a_client_hears_of_a_stop(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(errors.SendError, match="stopped"):
            async with ringmain.save("127.0.0.1:0", listen=True) as saver:
                asyncio.get_running_loop().call_later(0.05, saver.stop)
                await saver.write(b"for nobody")

    run(main())


def test_after_a_stop_the_present_client_is_the_last(run: Run) -> None:
    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            client = peers.connect(saver.port)
            await saver.wait_for_peer()
            assert saver.stop()
            await saver.write(b"the last words")
            await saver.end_connection()
            with client:
                assert await asyncio.to_thread(peers.read_all, client) == b"the last words"
            assert not saver.stop()
            with pytest.raises(errors.SendError, match="stopped"):
                await saver.write(b"more")

    run(main())


def test_a_peer_that_is_broken_off_gets_all_that_was_written_and_no_end(run: Run) -> None:
    data = peers.payload(300_000)

    async def main() -> bytes:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            reading = asyncio.ensure_future(asyncio.to_thread(read_to_reset, peers.connect(saver.port)))
            await saver.write(data)
            await saver.write(b"small")
            await saver.break_off()
            return await reading

    assert run(main()) == data + b"small"


def test_each_client_is_given_its_own(run: Run) -> None:
    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            numbers = iter(range(3))

            async def give(outflow: Outflow) -> bool:
                number = next(numbers)
                await outflow.send(memoryview(b"for %d" % number))
                return number < 2  # the third gets but a part

            serving = asyncio.ensure_future(saver.serve(give))
            for number in range(2):
                with peers.connect(saver.port) as client:
                    assert await asyncio.to_thread(peers.read_all, client) == b"for %d" % number
            assert await asyncio.to_thread(read_to_reset, peers.connect(saver.port)) == b"for 2"
            saver.stop()
            assert await serving

    run(main())


@pytest.mark.parametrize("listen", [False, True], ids=["dialled", "listening"])
def test_a_client_whose_gift_is_cancelled_is_reset(run: Run, listen: bool) -> None:
    async def give(outflow: Outflow) -> bool:
        await outflow.send(memoryview(b"a part"))
        await asyncio.sleep(60)
        return True

    async def main(listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        async with ringmain.save(f"127.0.0.1:{0 if listen else port}", listen=listen) as saver:
            client = peers.connect(saver.port) if listen else listener.accept()[0]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await saver.serve(give)
            assert await asyncio.to_thread(read_to_reset, client) == b"a part"
            if listen:
                second = peers.connect(saver.port)
                await saver.write(b"a stream of its own")
                await saver.end_connection()
                with second:
                    assert await asyncio.to_thread(peers.read_all, second) == b"a stream of its own"

    with socket.create_server(("127.0.0.1", 0)) as listener:
        if listen:
            run(main(listener))
        else:
            with pytest.raises(errors.SendError, match="cancelled half-way"):
                run(main(listener))


def test_all_of_a_saver_can_be_called_in_a_plain_with() -> None:
    with ringmain.save("127.0.0.1:0", listen=True) as saver:
        first = peers.connect(saver.port)
        saver.wait_for_peer()
        saver.write(b"one")
        saver.end_connection()
        with first:
            assert peers.read_all(first) == b"one"
        second = peers.connect(saver.port)
        saver.write(b"two")
        saver.break_off()
        assert read_to_reset(second) == b"two"
        assert saver.counters is None
        assert (saver.refused, saver.fullness, saver.unacknowledged_bytes) == (0, 0.0, 0)
        assert not saver.stop()


def test_a_relay_in_a_plain_with_is_stopped_from_another_thread() -> None:
    with ringmain.relay("127.0.0.1:0", "127.0.0.1:1") as relayer:
        timer = threading.Timer(0.1, relayer.stop)
        timer.start()
        relayer.serve()
        timer.join()
        assert (relayer.refused, relayer.fullness, relayer.counters, relayer.taken) == (0, 0.0, [], [])


def test_when_a_saver_is_left_it_can_still_be_asked_how_many_it_refused(run: Run) -> None:
    refused: list[int] = []

    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen=True, gate="refuse") as saver:
            saver.on_end = lambda _: refused.append(saver.refused)
            client = peers.connect(saver.port)
            await saver.wait_for_peer()
            await asyncio.to_thread(read_to_reset, peers.connect(saver.port))
            await saver.write(b"small")
        with client:
            assert await asyncio.to_thread(peers.read_all, client) == b"small"

    run(main())
    assert refused == [1]


def test_who_gives_may_take_longer_over_it_than_a_client_may_stand_still(run: Run) -> None:
    async def give(sender: Outflow) -> bool:
        for part in (b"at ", b"leisure"):
            await sender.send(memoryview(part))
            await asyncio.sleep(0.3)
        return True

    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen_once=True, idle_timeout=0.1) as saver:
            with peers.connect(saver.port) as client:
                assert await saver.serve(give)
                assert await asyncio.to_thread(peers.read_all, client) == b"at leisure"

    run(main())


def test_what_goes_wrong_for_who_gives_is_not_taken_for_the_loss_of_a_client(run: Run) -> None:
    async def give(_: Outflow) -> bool:
        raise errors.ReceiveError("load from elsewhere", "it was reset")

    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver, asyncio.timeout(peers.TIMEOUT):
            with peers.connect(saver.port):
                await saver.serve(give)

    with pytest.raises(errors.ReceiveError, match="elsewhere"):
        run(main())


def test_a_saver_that_is_stopped_before_it_listens_serves_nobody(run: Run) -> None:
    async def main() -> None:
        saver = ringmain.save("127.0.0.1:0", listen=True)
        saver.stop()
        async with saver:
            with peers.connect(saver.port), pytest.raises(errors.SendError, match="stopped"):
                await saver.write(b"for nobody")

    run(main())


def test_a_saver_that_was_left_keeps_nothing_of_what_it_sent(run: Run) -> None:
    data = bytes(1 << 20)

    async def main() -> ringmain.Saver:
        saver = ringmain.save("127.0.0.1:0", listen=True)
        with contextlib.suppress(LookupError):
            async with saver:
                with peers.connect(saver.port):
                    await saver.write(data)
                    raise LookupError
        return saver

    tracemalloc.start()
    try:
        saver = run(main())
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < len(data) // 2
        del saver
    finally:
        tracemalloc.stop()
