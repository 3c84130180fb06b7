"""Relay: both ways, each direction with an end of its own, whatever the ends are."""

import asyncio
import gc
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
from conftest import FORGOTTEN
from relays import ANSWER, DATA, PATHS, Pair, pair
from streams import echo, exchange, flood, read, sending, server_at

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.mark.parametrize("path", PATHS)
def test_bytes_go_both_ways_and_each_end_is_passed_on_alone(bench: peers.Bench, path: str) -> None:
    stats = bench.folder / "stats"
    with pair(bench, "-o", "--path", path, "--stats-file", stats) as it:
        with sending(it.client, DATA):
            assert peers.sha256(read(it.server, len(DATA))) == peers.sha256(DATA)
        it.client.shutdown(socket.SHUT_WR)
        assert it.server.recv(1) == b""
        with sending(it.server, ANSWER):  # the other direction goes on
            assert peers.sha256(read(it.client, len(ANSWER))) == peers.sha256(ANSWER)
        it.server.shutdown(socket.SHUT_WR)
        assert it.client.recv(1) == b""
        assert it.relay.wait() == 0
        assert it.relay.stderr == f"listening on tcp://127.0.0.1:{it.port}\n"
    row = json.loads(stats.read_text())
    assert (row["source"]["bytes"], row["destination"]["bytes"]) == (len(DATA), len(ANSWER))
    assert (row["source"]["state"], row["destination"]["state"], row["verdict"]) == ("ended", "ended", "ended")


@pytest.mark.parametrize("path", PATHS)
def test_the_server_may_end_first(bench: peers.Bench, path: str) -> None:
    with pair(bench, "-o", "--path", path) as it:
        it.server.sendall(ANSWER[:100_000])
        it.server.shutdown(socket.SHUT_WR)
        assert peers.read_all(it.client) == ANSWER[:100_000]
        with sending(it.client, DATA):
            assert peers.sha256(read(it.server, len(DATA))) == peers.sha256(DATA)
        it.client.close()
        assert it.server.recv(1) == b""
        assert it.relay.wait() == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_slow_side_stalls_only_its_own_direction_in_bounded_memory(bench: peers.Bench, path: str) -> None:
    with pair(bench, "--path", path) as it:
        end = flood(it.client)
        try:
            peers.eventually(lambda: peers.unread(it.server) > 0)
            with sending(it.server, ANSWER):
                assert peers.sha256(read(it.client, len(ANSWER))) == peers.sha256(ANSWER)
            peers.eventually(lambda: _stands_still(it), "a standstill")
            assert it.relay.memory() < 96 << 20
        finally:
            end()


def _stands_still(it: Pair) -> bool:
    before = peers.unread(it.server)
    return not any(peers.unread(it.server) != before for _ in range(50))


def test_one_client_after_another_is_served_and_none_is_mixed(bench: peers.Bench) -> None:
    with echo() as there:
        relay, port = bench.relaying(f"tcp://127.0.0.1:{there}", "--gate", "queue")
        for seed in range(5):
            data = peers.payload(100_000, seed)
            with peers.connect(port) as sock:
                assert exchange(sock, data) == data
        assert relay.stderr.count("\n") == 1  # where it listens


def test_both_ends_may_listen_or_connect(bench: peers.Bench) -> None:
    first = bench.folder / "ports"
    listening = bench.ringmain("relay", "-l", "-o", "--port-file", first, "tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    ports = peers.eventually(lambda: first.exists() and [int(line) for line in first.read_text().split()])
    assert listening.stderr.splitlines() == [f"listening on tcp://127.0.0.1:{port}" for port in ports]
    with server_at() as listener:
        ends = [f"tcp://127.0.0.1:{port}" for port in (ports[0], listener.getsockname()[1])]
        connecting = bench.ringmain("relay", "-c", *ends)
        server, _ = listener.accept()
        with server, peers.connect(ports[1]) as client:
            with sending(client, DATA):
                assert peers.sha256(read(server, len(DATA))) == peers.sha256(DATA)
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
    assert (connecting.wait(), listening.wait()) == (0, 0)


def test_where_only_the_destination_listens_each_of_its_clients_gets_a_source(bench: peers.Bench) -> None:
    with echo() as there:
        port_file = bench.folder / "port"
        ends = [f"tcp://127.0.0.1:{there}", "tcp://127.0.0.1:0"]
        bench.ringmain("relay", "-c", "-l", "--port-file", port_file, *ends)
        port = peers.eventually(lambda: port_file.exists() and int(port_file.read_text()))
        for seed in range(3):
            data = peers.payload(50_000, seed)
            with peers.connect(port) as sock:
                assert exchange(sock, data) == data


@pytest.mark.parametrize("path", PATHS)
def test_both_ends_may_be_ipv6(bench: peers.Bench, path: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        listener.settimeout(peers.TIMEOUT)
        stats, there = bench.folder / "stats", listener.getsockname()[1]
        options = ("-o", "--path", path, "--stats-file", stats)
        relay, port = bench.relaying(f"tcp://[::1]:{there}", *options, host="[::1]")
        with peers.connect(port, "::1") as client:
            server, _ = listener.accept()
            server.settimeout(peers.TIMEOUT)
            with server:
                for sender, receiver, data in ((client, server, DATA), (server, client, ANSWER)):
                    with sending(sender, data):
                        assert peers.sha256(read(receiver, len(data))) == peers.sha256(data)
                    sender.shutdown(socket.SHUT_WR)
                    assert receiver.recv(1) == b""
            assert relay.wait() == 0, relay.stderr
    row = json.loads(stats.read_text())
    assert row["destination"]["peer"] == f"[::1]:{there}"
    assert row["source"]["peer"].startswith("[::1]:")


@pytest.mark.parametrize("path", PATHS)
def test_one_way_drops_what_the_destination_answers(bench: peers.Bench, path: str) -> None:
    with pair(bench, "-o", "--one-way", "--path", path) as it:
        it.server.sendall(ANSWER)
        with sending(it.client, DATA):
            assert peers.sha256(read(it.server, len(DATA))) == peers.sha256(DATA)
        it.server.shutdown(socket.SHUT_WR)
        it.client.sendall(b"more")
        assert read(it.server, 4) == b"more"
        it.client.shutdown(socket.SHUT_WR)
        assert it.server.recv(1) == b""
        assert it.client.recv(1) == b""
        assert it.relay.wait() == 0


@pytest.mark.parametrize("kind", ["file", "fifo", "-"])
def test_an_end_may_be_a_file_as_for_load_and_save(bench: peers.Bench, kind: str) -> None:
    source, sink = bench.folder / "source", bench.folder / "sink"
    if kind == "fifo":
        os.mkfifo(source)
        os.mkfifo(sink)
    elif kind == "file":
        source.write_bytes(DATA)
    port_file = bench.folder / "port"
    names = ["-", "-"] if kind == "-" else [str(source), str(sink)]
    pipes = {"stdout": subprocess.PIPE} if kind == "-" else {}
    loader = bench.ringmain("relay", "-o", "--port-file", port_file, "tcp://127.0.0.1:0", names[1], **pipes)
    reader = loader.process.stdout if kind == "-" else open(sink, "rb") if kind == "fifo" else None  # noqa: SIM115, PTH123
    port = peers.eventually(lambda: port_file.exists() and int(port_file.read_text()))
    stdin = {"stdin": subprocess.PIPE} if kind == "-" else {}
    saver = bench.ringmain("relay", names[0], f"tcp://127.0.0.1:{port}", **stdin)
    writer = saver.process.stdin if kind == "-" else open(source, "wb") if kind == "fifo" else None  # noqa: SIM115, PTH123
    if writer is not None:
        assert reader is not None
        with sending(writer, DATA):
            got = read(reader, len(DATA))
        writer.close()
        got += reader.read()
        reader.close()
    assert (saver.wait(), loader.wait()) == (0, 0), saver.stderr + loader.stderr
    assert peers.sha256(sink if kind == "file" else got) == peers.sha256(DATA)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-", "-"], "neither end is a connection"),
        (["-", "tcp://127.0.0.1:1", "-c"], "SOURCE is a file"),
        (["tcp://127.0.0.1:1", "./x", "-l"], "DESTINATION is a file"),
        (["tcp://127.0.0.1:1", "./x", "--send-proxy", "v1"], "it needs two connections"),
        (["-", "tcp://127.0.0.1:1", "-o"], "there is nothing to listen at"),
        (["tcp://127.0.0.1:1", "non sense"], "not understood"),
        (["tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "-c", "-o"], "it needs a listener"),
        (["tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "-c", "--accept-proxy"], "only clients send PROXY headers"),
        (["tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "-l", "--send-proxy", "v2"], "only servers expect PROXY headers"),
        (["tcps://127.0.0.1:1", "tcp://127.0.0.1:2"], "it needs a certificate"),
        (["tcps://127.0.0.1:1", "tcp://127.0.0.1:2"], "give --source-certfile, a PEM file"),
        (["tcps://127.0.0.1:0", "/dev/null"], "give --source-certfile, a PEM file"),
        (["-c", "tcps://127.0.0.1:1", "tcp://127.0.0.1:2", "--path", "kernel"], "TLS is encrypted"),
    ],
)
def test_arguments_that_make_no_sense_get_one_line(bench: peers.Bench, arguments: list[str], words: str) -> None:
    relay = bench.ringmain("relay", *arguments)
    assert relay.wait() == 2
    assert words in relay.stderr
    assert relay.stderr.count("\n") == 1


def test_tls_options_of_a_plain_end_are_named(bench: peers.Bench) -> None:
    relay, _ = bench.relaying("tcp://127.0.0.1:1", "--source-certfile", "x", "--destination-insecure")
    relay.says("--source-certfile: ignored without a tcps:// endpoint")
    relay.says("--destination-insecure: ignored without a tcps:// endpoint")


def test_progress_shows_both_directions(bench: peers.Bench) -> None:
    with pair(bench, "--progress") as it:
        it.client.sendall(DATA[:3000])
        it.server.sendall(DATA[:2000])
        assert len(read(it.server, 3000) + read(it.client, 2000)) == 5000
        it.relay.says("there 2.93 KiB at")
        it.relay.says("back 1.95 KiB at")


def test_a_relay_in_a_program_can_be_awaited_and_cancelled(run: Run) -> None:
    async def main() -> None:
        with echo() as there:
            async with ringmain.relay("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{there}") as relayer:
                assert relayer.addresses == [f"127.0.0.1:{relayer.port}"]
                serving = asyncio.ensure_future(relayer.serve())
                for seed in range(3):
                    data = peers.payload(200_000, seed)
                    reader, writer = await asyncio.open_connection("127.0.0.1", relayer.port)
                    writer.write(data)
                    writer.write_eof()
                    assert peers.sha256(await reader.read()) == peers.sha256(data)
                    writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", relayer.port)
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                assert [counters.bytes_in for counters in relayer.counters] == [1, 1]
                serving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await serving
                with pytest.raises(ConnectionResetError):
                    await reader.readexactly(1)
                writer.close()
        with pytest.raises(ringmain.ConnectError):
            await ringmain.relay("tcp://127.0.0.1:1", "tcp://127.0.0.1:1", connect=True)

    run(main())


def test_a_relay_works_without_an_event_loop() -> None:
    got = []

    def ask(port: int) -> None:
        with peers.connect(port) as sock:
            got.append(exchange(sock, DATA))

    with echo() as there, ringmain.relay("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{there}", listen_once=True) as relayer:
        thread = threading.Thread(target=ask, args=[relayer.port])
        thread.start()
        relayer.serve()
        thread.join(peers.TIMEOUT)
    assert peers.sha256(got[0]) == peers.sha256(DATA)


@FORGOTTEN
def test_a_forgotten_relay_is_closed(run: Run) -> None:
    async def main() -> int:
        relayer = await ringmain.relay("tcp://127.0.0.1:0", "tcp://127.0.0.1:1").__aenter__()
        return relayer.port

    port = run(main())
    gc.collect()
    with pytest.raises(ConnectionRefusedError):
        peers.connect(port)
