"""`ringmain.save` and `ringmain.relay` into a log, from Python; and how a consumer hears of the end of a connection."""

import asyncio
import gc
import socket
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import peers
import pytest
from brokers import Broker
from conftest import FORGOTTEN, Certificates
from publishing import lines, read_log, send

import ringmain
from ringmain import errors
from ringmain.outcome import Outcome, RelayOutcome

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_what_python_writes_is_stored_as_whole_records_and_all_of_it_once_left(run: Run, broker: Broker) -> None:
    data = lines(1_000_000)
    ended: list[Outcome] = []

    async def work() -> None:
        async with ringmain.save(broker.url("events"), peer="python") as saver:
            saver.on_end = ended.append
            buffer = bytearray(150_001)
            for at in range(0, len(data) - 1, 150_001):
                part = data[at : min(at + 150_001, len(data) - 1)]
                buffer[: len(part)] = part
                await saver.write(memoryview(buffer)[: len(part)])  # which is changed afterwards
            assert saver.fullness <= 1

    run(work())
    (connection,) = read_log(broker).connections.values()
    assert peers.sha256(connection.data) == peers.sha256(data)  # its last record was completed
    assert (connection.peer, connection.verdicts) == ("python", [("ended", len(data))])
    assert all(message.endswith(b"\n") and len(message) <= 256 << 10 for message in connection.messages)
    assert [(it.verdict, it.size, it.error) for it in ended] == [("ended", len(data), None)]


def test_a_plain_with_does_the_same(broker: Broker) -> None:
    with ringmain.save(broker.url("events"), framing="length:4be", peer="") as saver:
        saver.write(b"\0\0\0\3abc\0\0")
        saver.write(b"\0\1x")
        assert "connected" in repr(saver)
    (connection,) = read_log(broker).connections.values()
    assert connection.messages == [b"\0\0\0\3abc", b"\0\0\0\1x"]
    assert connection.peer == socket.gethostname()


def test_a_frame_that_is_cut_off_is_no_proper_end(broker: Broker) -> None:
    with (
        pytest.raises(errors.TruncatedError),
        ringmain.save(broker.url("events"), framing="length:1be", peer="") as saver,
    ):
        saver.write(b"\3abc\5de")
    (connection,) = read_log(broker).connections.values()
    assert (connection.data, connection.verdicts) == (b"\3abc", [("stopped", 4)])


def test_left_by_an_exception_nothing_tells_of_an_end(broker: Broker) -> None:
    with pytest.raises(KeyError), ringmain.save(broker.url("events"), peer="") as saver:
        saver.write(b"one\ntw")
        raise KeyError("the caller's")
    assert all(it.verdicts == [] and it.data == b"one\n" for it in read_log(broker).connections.values())


def test_a_write_that_is_cut_off_is_no_proper_end(run: Run, broker: Broker) -> None:
    async def work() -> None:
        with pytest.raises(errors.SendError, match="an earlier write was cut off"):
            async with ringmain.save(broker.url("events"), message_size=10_000, max_in_flight=10_000, peer="") as saver:
                broker.pause()
                writing = asyncio.ensure_future(saver.write(lines(1_000_000)))
                await asyncio.sleep(0.1)
                writing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await writing
                with pytest.raises(errors.SendError):
                    await saver.write(b"more\n")
                broker.resume()

    run(work())


def test_a_record_that_no_message_holds_is_named(broker: Broker) -> None:
    with (
        pytest.raises(errors.SendError),
        ringmain.save(broker.url("events"), peer="python") as saver,
        pytest.raises(errors.RecordTooLongError, match="raise the server's max_payload"),
    ):
        saver.write(bytes(2_000_000))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"listen": True}, "keyword 'listen'"),
        ({"max_in_flight": 10}, "max_in_flight=10"),
        ({"message_size": 0}, "message_size=0"),
        ({"framing": "nul", "delimiter": b";"}, "framing"),
    ],
)
def test_keywords_that_make_no_sense_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.UsageError, match=words):
        ringmain.save("nats://127.0.0.1:1/events", **options)


@FORGOTTEN
def test_a_forgotten_saver_closes_its_connection(broker: Broker) -> None:
    saver = ringmain.save(broker.url("events"), peer="")
    saver.__enter__()
    peers.eventually(lambda: peers.established(broker.port) == 2, "a connection")
    gone = weakref.ref(saver)
    del saver
    peers.eventually(lambda: gc.collect() >= 0 and gone() is None, "the collector")
    peers.eventually(lambda: peers.established(broker.port) == 0, "a closed connection")


def test_a_relay_serves_until_it_is_stopped(run: Run, broker: Broker) -> None:
    data = lines(500_000)
    ended: list[RelayOutcome] = []

    async def work() -> None:
        relayer = ringmain.relay("tcp://127.0.0.1:0", broker.url("events"), delimiter=b"", max_connections=3)
        async with relayer:
            relayer.on_end = ended.append
            serving = asyncio.ensure_future(relayer.serve())
            await asyncio.gather(*(asyncio.to_thread(send, relayer.port, data) for _ in range(3)))
            assert f"tcp://127.0.0.1:{relayer.port}" in repr(relayer)
            assert relayer.stop() is False
            await serving

    run(work())
    assert [it.data == data for it in read_log(broker).connections.values()] == [True] * 3
    assert [it.verdict for it in ended] == ["ended"] * 3


def test_leaving_a_relay_while_it_serves_resets_its_clients(run: Run, broker: Broker) -> None:
    def talk(port: int) -> bool:
        with peers.connect(port) as client:
            client.sendall(b"a line\n")
            return peers.ends_in_reset(client)

    async def work() -> None:
        async with ringmain.relay("tcp://127.0.0.1:0", broker.url("events"), delimiter=b"") as relayer:
            serving = asyncio.ensure_future(relayer.serve())
            talking = asyncio.ensure_future(asyncio.to_thread(talk, relayer.port))
            await asyncio.to_thread(peers.eventually, lambda: relayer.moved == (7, 7), "a line in the stream")
        await serving
        assert await talking

    run(work())


def test_a_plain_relay_ends_after_its_one_client(bench: peers.Bench, broker: Broker) -> None:
    with ringmain.relay("tcp://127.0.0.1:0", broker.url("events"), delimiter=b"", listen_once=True) as relayer:
        sender = bench.ringmain("save", "--input", bench.file(b"a line\n"), f"tcp://127.0.0.1:{relayer.port}")
        relayer.serve()
        assert sender.wait() == 0
    (connection,) = read_log(broker).connections.values()
    assert (connection.data, connection.verdicts) == (b"a line\n", [("ended", 7)])


def test_tagged_tells_how_a_connection_has_ended(broker: Broker) -> None:
    with ringmain.save(broker.url("events"), peer="python") as saver:
        saver.write(b"a line\n")
    broker.publish("events", b"", b"", headers=[{"Ringmain-Connection": "c", "Ringmain-Verdict": "\u202eended"}, {}])
    with ringmain.load(broker.url("EVENTS"), consumer="told", until_sequence=4) as loader:
        told = [(bytes(block), tag.peer, tag.offset, tag.verdict, tag.size) for tag, block in loader.tagged()]
    assert told == [(b"a line\n", "python", 0, "", 0), (b"", "python", 7, "ended", 7)]
    with ringmain.load(broker.url("EVENTS"), consumer="untold", until_sequence=4) as loader:
        assert [bytes(block) for block in loader] == [b"a line\n"]


@pytest.mark.parametrize("verb", ["load", "save"])
def test_who_is_cancelled_while_it_takes_leave_still_tells_what_became_of_it(
    run: Run, broker: Broker, verb: str
) -> None:
    broker.publish("events", b"a line\n")
    ended: list[Outcome] = []
    leavers: list[Any] = []

    async def leave() -> None:
        if verb == "load":
            async with ringmain.load(broker.url("EVENTS"), consumer="c") as loader:
                leavers.append(loader)
                loader.on_end = ended.append
                assert bytes(await anext(loader)) == b"a line\n"
                broker.pause()
        else:
            async with ringmain.save(broker.url("events"), peer="") as saver:
                leavers.append(saver)
                saver.on_end = ended.append
                await saver.write(b"a line\n")
                broker.pause()

    async def work() -> None:
        leaving = asyncio.ensure_future(leave())
        await asyncio.wait([leaving], timeout=1)
        assert not leaving.done()
        assert leavers[0].served == 1  # or its bytes were in no total meanwhile
        leaving.cancel()
        await asyncio.wait([leaving], timeout=0.1)
        broker.resume()
        with pytest.raises(asyncio.CancelledError):
            await leaving

    run(work())
    assert [it.counters.bytes_in for it in ended] == [7]
    assert ended[0].counters.ended > 0
    assert leavers[0].served == 0


@pytest.mark.parametrize("verb", ["relay", "save"])
def test_files_for_the_servers_are_read_again_when_python_says_so(
    bench: peers.Bench, broker: Broker, certificates: Certificates, verb: str
) -> None:
    authorities = bench.file(Path(certificates.ca).read_bytes(), "authorities.pem")
    tls = ringmain.TlsSettings(cafile=str(authorities))
    url = broker.url("events")
    it: Any = (
        ringmain.relay("tcp://127.0.0.1:0", url, destination_tls=tls, delimiter=b"")
        if verb == "relay"
        else ringmain.save(url, cafile=str(authorities), peer="")
    )
    it.publisher.papers.read()
    it.reload_certificates()
    authorities.write_bytes(b"garbage")
    with pytest.raises(errors.CaFileError):
        it.reload_certificates()
