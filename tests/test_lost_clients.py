"""What a client that is lost costs the next one: no byte, and none comes twice."""

import asyncio
import socket

import peers
import pytest
from conftest import Certificates, Run
from streams import settled, slow_client

import ringmain
from ringmain import errors


def test_a_client_lost_while_the_rest_drains_costs_the_next_one_no_byte_and_gives_it_none_twice(run: Run) -> None:
    data = peers.payload(300_000)

    async def main() -> tuple[int, bytes]:
        async def clients(port: int) -> tuple[int, bytes]:
            first = slow_client(port)
            had = await settled(first)
            peers.close_with_reset(first)
            with peers.connect(port) as second:
                return had, await asyncio.to_thread(peers.read_all, second)

        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            visiting = asyncio.ensure_future(clients(saver.port))
            await saver.write(data)
        return await visiting

    had, got = run(main())
    assert peers.sha256(data[:had] + got) == peers.sha256(data)


def test_what_a_lost_client_never_got_outlives_a_write_that_was_given_up(run: Run) -> None:
    data = peers.payload(40_000)

    async def main() -> tuple[int, bytes]:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            first = slow_client(saver.port)
            await saver.wait_for_peer()
            await saver.write(data)
            had = await settled(first)
            peers.close_with_reset(first)
            await asyncio.sleep(0.1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await saver.write(b"given up")
            second = peers.connect(saver.port)
            reading = asyncio.ensure_future(asyncio.to_thread(peers.read_all, second))
            await saver.write(b"after")
            await saver.end_connection()
            with second:
                return had, await reading

    had, got = run(main())
    assert data[:had] + got == data + b"after"


def test_a_client_that_is_broken_off_amid_small_writes_leaves_the_next_one_just_the_rest(run: Run) -> None:
    data = peers.payload(400_000)

    async def main() -> tuple[int, int, bytes]:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            first = slow_client(saver.port)
            await saver.wait_for_peer()
            outflow = saver._clients.outflows[0]
            outflow.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            sent = 0
            while not outflow.counters.stalls:  # a part of what was gathered has gone out, and the rest waits
                for _ in range(6):  # go out together
                    await saver.write(data[sent : sent + 10_000])
                    sent += 10_000
                await asyncio.sleep(0)
            had = await settled(first)
            await saver.break_off(at_once=True)
            first.close()
            with peers.connect(saver.port) as second:
                reading = asyncio.ensure_future(asyncio.to_thread(peers.read_all, second))
                await saver.wait_for_peer()
                await saver.end_connection()
                return sent, had, await reading

    sent, had, got = run(main())
    assert data[had:sent] == got


def test_breaking_a_client_off_while_another_task_writes_gives_the_next_one_nothing_twice(run: Run) -> None:
    data = peers.payload(12_000_000)

    async def main() -> tuple[int, bytes]:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            first = slow_client(saver.port)
            writing = asyncio.ensure_future(saver.write(data))
            await asyncio.to_thread(peers.eventually, lambda: saver.counters is not None and saver.counters.stalls)
            had = await settled(first)
            assert not writing.done()
            await saver.break_off(at_once=True)
            first.close()
            with peers.connect(saver.port) as second:
                reading = asyncio.ensure_future(asyncio.to_thread(peers.read_all, second))
                await writing
                await saver.end_connection()
                return had, await reading

    had, got = run(main())
    assert peers.sha256(data[:had] + got) == peers.sha256(data)


@pytest.mark.parametrize("more", [b"", b"more"], ids=["then-left", "then-more"])
def test_a_client_that_resets_before_it_got_anything_costs_the_one_that_counts_no_byte(run: Run, more: bytes) -> None:
    def visit(port: int) -> bytes:
        with peers.connect(port) as client:
            return peers.read_all(client)

    async def main() -> bytes:
        async with ringmain.save("127.0.0.1:0", listen_once=True) as saver:
            first = peers.connect(saver.port)
            await saver.wait_for_peer()
            sock = saver._clients.outflows[0].link.sock
            peers.close_with_reset(first)
            peers.eventually(lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\7")
            await saver.write(b"small;")  # gathered, before the loop has heard of the reset
            await asyncio.sleep(0.05)
            reading = asyncio.ensure_future(asyncio.to_thread(visit, saver.port))
            await saver.write(more)
        return await reading

    assert run(main()) == b"small;" + more


def test_when_the_client_that_counts_is_lost_no_other_gets_what_follows(run: Run) -> None:
    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen_once=True) as saver:
            first = peers.connect(saver.port)
            await saver.write(b"one;")
            assert await asyncio.to_thread(first.recv, 10) == b"one;"
            peers.close_with_reset(first)
            with peers.connect(saver.port):
                for _ in range(2):
                    with pytest.raises(errors.SendError, match="reset by peer"):
                        while True:
                            await saver.wait_for_peer()
                            await asyncio.sleep(0.01)
                with pytest.raises(errors.SendError, match="reset by peer"):
                    await saver.write(b"two;")

    run(main())


def test_a_tls_client_that_timed_out_leaves_the_next_one_just_the_rest(run: Run, certificates: Certificates) -> None:
    data = peers.payload(8_000_000)

    async def main() -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        options = {"listen": True, "idle_timeout": 3.0, "certfile": str(certificates.server)}
        async with ringmain.save("tcps://127.0.0.1:0", **options) as saver:
            taken: list[int] = []
            saver.on_end = lambda outcome: taken.append(outcome.size)

            def visit() -> bytes:
                with peers.connect_tls(saver.port, certificates.ca):
                    peers.eventually(lambda: taken, "the time-out of a client that reads nothing")
                with peers.connect_tls(saver.port, certificates.ca) as second:
                    return peers.read_all(second)

            visiting = loop.run_in_executor(None, visit)
            await saver.write(data)
        return taken[0], await visiting

    taken, got = run(main())
    assert peers.sha256(got) == peers.sha256(data[taken:])
