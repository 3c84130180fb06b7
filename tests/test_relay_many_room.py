"""A relay of many for which there is little room: threads, descriptors, a client whose task never began."""

import asyncio
import errno
import os

import peers
import pytest
from conftest import Certificates, Run, open_descriptors
from crossing import ask, cores, crossing, flood, pump_threads, stands_still, until

from ringmain.flow.serving import Serving
from ringmain.net.watched import Watched


def test_a_thread_a_core_is_enough_for_any_number_of_passages(run: Run, certificates: Certificates) -> None:
    async def main() -> None:
        before = len(open_descriptors())
        async with crossing(certificates, "kernel", 300) as it:
            pairs = await it.pairs(300)
            assert 1 <= pump_threads() <= cores()
            # Both peers' own sockets and the relay's, a few pipes of each thread, but none of each passage.
            assert len(open_descriptors()) < before + 4 * 300 + 150
            for client, server in reversed(pairs):
                await ask(client, server, b"after a while")
            await asyncio.gather(*(end.exchange(b"") for pair in pairs for end in pair))
            await until(lambda: len(it.outcomes) == 300)
            await until(lambda: pump_threads() == 0)
        await until(lambda: len(open_descriptors()) <= before)

    run(main())


def test_a_client_that_there_is_no_room_to_watch_is_reset_and_the_others_go_on(
    run: Run, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        async with crossing(certificates, "block", 3, one_way=True) as it:
            first = await it.pair()
            await first[0].send(b"there, ")
            await first[1].read_to_end(7)
            with monkeypatch.context() as context:
                context.setattr(Watched, "watch_readable", refuse)
                for end in await it.pair():
                    await end.read_to_end()
                    assert end.end == "reset"
                    end.sock.close()
            last = await it.pair()
            await last[0].send(b"there, ")
            for client, server in (first, last):
                await client.send(b"and still there")
                await server.read_to_end(22)
                assert server.received == b"there, and still there"
                client.reset()
                server.reset()

    run(main())
    assert f"cannot be served: {os.strerror(errno.ENOSPC).lower()}" in caplog.text


@pytest.mark.parametrize("at_first", [0, 1], ids=["from the beginning", "in the middle"])
def test_without_descriptors_for_pipes_bytes_go_on_by_blocks_where_they_were(
    run: Run, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, at_first: int
) -> None:
    """One passage has the only pipe, full of what its server does not read: the other gets none any more."""
    pipe2, pipes = os.pipe2, []

    def few(flags: int) -> tuple[int, int]:
        if len(pipes) == at_first:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        pipes.append(pipe2(flags))
        return pipes[-1]

    monkeypatch.setattr(os, "pipe2", few)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})

    async def main() -> None:
        async with crossing(certificates, "auto", 2) as it:
            stalled, good = await it.pairs(2)
            flooding = asyncio.ensure_future(flood(stalled[0]))
            await until(lambda: peers.unread(stalled[1].sock) > 0)
            await until(lambda: stands_still(stalled[1].sock))
            assert len(pipes) == at_first
            there, back = peers.payload(2_000_000, 1), peers.payload(2_000_000, 2)
            await asyncio.gather(good[0].exchange(there, 1 + len(back)), good[1].exchange(back, 1 + len(there)))
            assert peers.sha256(bytes(good[1].received[1:])) == peers.sha256(there)
            assert peers.sha256(bytes(good[0].received[1:])) == peers.sha256(back)
            await until(lambda: len(it.outcomes) == 1)
            assert (it.outcomes[0].verdict, it.outcomes[0].source.size) == ("ended", 1 + len(there))
            await until(lambda: pump_threads() == at_first)
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            for end in stalled:
                end.reset()

    run(main())


def test_a_client_whose_task_is_cancelled_before_it_begins_is_dismissed(run: Run) -> None:
    async def main() -> None:
        serving, begun, dismissed = Serving(), [], []

        async def work() -> None:
            begun.append(True)

        serving.begin(work(), lambda: dismissed.append(True))
        await serving.break_off()
        assert (begun, dismissed) == ([], [True])

    run(main())
