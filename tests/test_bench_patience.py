"""How long `ringmain bench --server` waits for a client that is slow, stands still or is gone."""

import asyncio
import contextlib
import json
import threading
from typing import Any

import peers
import pytest
from measuring import asked, introduced, line_of, patience, rest_of

from ringmain.bench import plan, server
from ringmain.bench.client import measure
from ringmain.bench.meter import joined_interval
from ringmain.bench.plan import Plan
from ringmain.bench.server import Server
from ringmain.bench.streams import _Intervals
from ringmain.bench.wire import numbered
from ringmain.endpoint import Endpoint
from ringmain.settings import Settings


@contextlib.asynccontextmanager
async def served(**settings: Any) -> Any:
    """Yield a server in this process, whose limits a test can change."""
    async with Server(Endpoint("127.0.0.1", "0"), Settings(**settings), listen_once=False) as it:
        serving = asyncio.ensure_future(it.serve())
        try:
            yield it
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def trickle(port: int, stop: threading.Event) -> bytes:
    """Send as little as keeps a stream alive, for ever; return the server's last line."""
    control, token = asked(port, size=None, seconds=0.001)
    with control, introduced(port, token) as stream:
        answer = line_of(control)
        if b"ready" not in answer:  # the time was over already
            return answer
        with contextlib.suppress(ConnectionError):
            control.sendall(b'{"go": true}\n')
            while not stop.wait(0.01):
                stream.sendall(b"x")
        return rest_of(control)


def test_a_measurement_lasts_no_longer_than_its_plan_and_the_servers_patience(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(monkeypatch, 4.0, plan)  # in which its stream has to come, too

    async def main() -> None:
        stop = threading.Event()
        async with served() as it:
            trickling = asyncio.ensure_future(asyncio.to_thread(trickle, it.port, stop))
            try:
                async with asyncio.timeout(peers.TIMEOUT):
                    answer = await asyncio.shield(trickling)
            finally:
                stop.set()
        assert "takes longer than the 4.001 s that its plan allows" in json.loads(answer)["error"]

    run(main())


def test_a_client_that_stands_still_makes_room_for_the_next(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STANDSTILL", 0.0)

    async def main() -> None:
        async with served() as it:
            control, token = await asyncio.to_thread(asked, it.port)
            with control, await asyncio.to_thread(introduced, it.port, token):
                assert b"ready" in await asyncio.to_thread(line_of, control)
                endpoint = Endpoint("127.0.0.1", str(it.port))
                assert (
                    sum((await measure(endpoint, Settings(), Plan(seconds=None, size=4096))).remote["totals"]) == 4096
                )
                assert "another client came" in json.loads(await asyncio.to_thread(rest_of, control))["error"]

    run(main())


@pytest.mark.parametrize("streams", [0, 1, 2])
def test_a_client_that_leaves_makes_room_at_once(run: Any, monkeypatch: pytest.MonkeyPatch, streams: int) -> None:
    patience(monkeypatch, 3600.0)

    async def main() -> None:
        async with served() as it:
            control, token = await asyncio.to_thread(asked, it.port, parallel=2)
            kept = [await asyncio.to_thread(introduced, it.port, numbered(token, at)) for at in range(streams)]
            control.close()
            await asyncio.to_thread(peers.eventually, lambda: it._present is None, "room for another")
            for sock in kept:
                with sock:
                    assert await asyncio.to_thread(rest_of, sock) in (b"", b'{"ready": true}\n')

    run(main())


@pytest.mark.parametrize("reverse", [False, True], ids=["the client's", "the server's"])
@pytest.mark.parametrize("engine", ["ringmain", "reference"])
def test_a_pause_of_days_between_two_messages_can_be_broken_off(run: Any, engine: Any, reverse: bool) -> None:
    slow = Plan(seconds=80_000, message_size=1 << 20, rate=1, engine=engine, reverse=reverse)
    through = Plan(seconds=80_000, message_size=1 << 20, rate=1, through="pipe")

    async def main() -> None:
        async with served() as it:
            for plan in (slow, through):
                moving = asyncio.Event()
                endpoint = Endpoint("127.0.0.1", str(it.port))
                task = asyncio.ensure_future(measure(endpoint, Settings(), plan, lambda _, it=moving: it.set()))
                await moving.wait()
                await asyncio.sleep(0.1)  # into the pause, or not: either way it ends
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await asyncio.to_thread(peers.eventually, lambda it=it: it._present is None, "the server's end")

    run(main())


def test_intervals_go_on_when_one_of_several_processes_has_ended() -> None:
    told: list[dict[str, Any]] = []
    intervals = _Intervals([1, 1], told.append)
    one = {"start": 0.0, "end": 1.0, "omitted": False, "sizes": [5]}
    intervals.add(0, one)
    assert told == []
    intervals.add(1, one)
    intervals.add(0, {**one, "sizes": [7]})
    intervals.end(1)
    intervals.add(0, one)
    assert [it["sizes"] for it in told] == [[5, 5], [7, 0], [5, 0]]
    assert told[0] == joined_interval([one, one])
