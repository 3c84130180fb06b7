"""`ringmain relay --max-connections`: what the command adds, and what a process may run out of."""

import contextlib
import json
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from crossing import cores
from streams import server_at


def ask(client: socket.socket, server: socket.socket, data: bytes) -> None:
    """Send there, and the same back."""
    for one, other in ((client, server), (server, client)):
        one.sendall(data)
        assert other.recv(len(data), socket.MSG_WAITALL) == data


@contextlib.contextmanager
def passages(listener: socket.socket, port: int, count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Yield both ends of so many passages, each with a byte through it there and back."""
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(count):
            client = stack.enter_context(peers.connect(port))
            server = stack.enter_context(listener.accept()[0])
            server.settimeout(peers.TIMEOUT)
            ask(client, server, b"x")
            pairs.append((client, server))
        yield pairs


def test_a_thousand_passages_hold_with_a_thread_a_core(bench: peers.Bench) -> None:
    """The command raises the limit on descriptors by itself."""
    count = 1000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 8 * count + 64:
        pytest.skip("the limit on descriptors is too low here")
    with server_at() as listener:
        there = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(there, "--max-connections", count)
        idle = relay.fd_count()
        threads = Path(f"/proc/{relay.process.pid}/task")
        with passages(listener, port, count) as pairs:
            names = [(thread / "comm").read_text() for thread in threads.iterdir()]
            assert sum(name.startswith("ringmain-pump") for name in names) <= cores()
            assert len(names) <= cores() + 16  # those of the loop's that look names up
            assert relay.fd_count() < idle + 2 * count + 150
            for number, (client, server) in enumerate(reversed(pairs)):
                ask(client, server, b"%d" % number)
        peers.eventually(lambda: relay.fd_count() <= idle + 4, "as few descriptors as before")
        assert "Traceback" not in relay.stderr


def test_each_passage_has_a_row_and_all_of_them_one_line_of_progress(bench: peers.Bench) -> None:
    stats = bench.folder / "stats"
    with server_at() as listener:
        there = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(there, "--max-connections", 3, "--progress", "--stats-file", stats)
        with passages(listener, port, 3) as pairs:
            for client, server in pairs:
                ask(client, server, bytes(1023))
            relay.says("3 connected  there 3.00 KiB at")
            relay.says("back 3.00 KiB at")
        peers.eventually(lambda: stats.exists() and stats.read_text().count("\n") == 3, "three rows")
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    assert [(row["source"]["bytes"], row["destination"]["bytes"]) for row in rows] == [(1024, 1024)] * 3
    assert len({row["source"]["peer"] for row in rows}) == 3


def test_a_signal_ends_all_of_them_with_a_reset(bench: peers.Bench) -> None:
    with server_at() as listener:
        there = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(there, "--max-connections", 20)
        with passages(listener, port, 20) as pairs:
            for client, server in pairs:
                client.sendall(b"on its way")
                assert server.recv(10, socket.MSG_WAITALL) == b"on its way"
            relay.signal(signal.SIGTERM)
            assert all(peers.ends_in_reset(end) for pair in pairs for end in pair)
            assert relay.wait() == 143
        assert relay.stderr.count("\n") == 1  # where it listens


def test_a_client_for_whom_there_is_no_descriptor_is_reset_and_the_others_go_on(bench: peers.Bench) -> None:
    with server_at() as listener:
        there = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(there, "--max-connections", 50, "--gate", "queue")
        with passages(listener, port, 3) as pairs, contextlib.ExitStack() as stack:
            allow(relay, relay.fd_count() + 2)
            while "too many open files" not in relay.stderr:
                with contextlib.suppress(ConnectionResetError):  # it may be faster than connect
                    stack.enter_context(peers.connect(port))
            for client, server in pairs:
                assert peers.sha256(exchange_with(client, server)) == peers.sha256(peers.payload(300_000))
            allow(relay, 1000)
            stack.close()
            with peers.connect(port) as client:
                client.sendall(b"served again")
                while not served(listener, b"served again"):
                    pass
        assert "Traceback" not in relay.stderr


def allow(relay: peers.Program, descriptors: int) -> None:
    """Set the limit of a process that runs."""
    _, hard = resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, (descriptors, hard))


def served(listener: socket.socket, data: bytes) -> bool:
    """Tell whether who comes next, one of those before perhaps, has this to say."""
    server, _ = listener.accept()
    with server, contextlib.suppress(ConnectionResetError):
        server.settimeout(peers.TIMEOUT)
        return server.recv(len(data), socket.MSG_WAITALL) == data
    return False


def exchange_with(client: socket.socket, server: socket.socket) -> bytes:
    """Send from a client to its end, and return what the server got."""
    data = peers.payload(300_000)
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    got = peers.read_all(server)
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    return got


def test_with_a_file_it_does_as_load_or_save_does(bench: peers.Bench) -> None:
    port_file, sink = bench.folder / "port", bench.folder / "sink"
    options = ("--max-connections", 2, "--port-file", port_file)
    bench.ringmain("relay", *options, "tcp://127.0.0.1:0", sink)
    port = peers.eventually(lambda: port_file.exists() and int(port_file.read_text()))
    with peers.connect(port) as one, peers.connect(port) as other:
        one.sendall(b"a line\n")
        other.sendall(b"another\n")
        peers.eventually(lambda: sink.exists() and sink.stat().st_size == 15, "both lines")
    source, port_file = bench.file(b"for both"), bench.folder / "other port"
    options = ("-l", "--max-connections", 2, "--port-file", port_file)
    bench.ringmain("relay", *options, source, "tcp://127.0.0.1:0")
    port = peers.eventually(lambda: port_file.exists() and int(port_file.read_text()))
    with peers.connect(port) as one, peers.connect(port) as other:
        assert peers.read_all(one) == peers.read_all(other) == b"for both"
    refused = bench.ringmain("relay", "--max-connections", 2, "-", "tcp://127.0.0.1:1")
    assert refused.wait() == 2
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["-o", "-c"])
def test_many_of_what_there_is_but_one_is_refused_in_one_line(bench: peers.Bench, option: str) -> None:
    relay = bench.ringmain("relay", "--max-connections", 2, option, "tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
    assert relay.wait() == 2
    assert "there is only one connection" in relay.stderr
    assert relay.stderr.count("\n") == 1
