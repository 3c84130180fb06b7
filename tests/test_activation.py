"""Sockets that a service manager hands over: by systemd's own systemd-socket-activate, and with what may be wrong."""

import fcntl
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates

import ringmain

Run = Callable[[Any], Any]
DATA = peers.payload(3_000_000)
# What a service manager does: the descriptors become 3, 4 ..., and the process that has them is told so.
HAND_OVER = 'at=3; for fd in $FDS; do eval "exec $at<&$fd"; at=$((at+1)); done; LISTEN_PID=$$ exec "$@"'


def start(bench: peers.Bench, sockets: list[Any], command: list[str], names: str = "in:out") -> peers.Program:
    """Start a command with descriptors that are handed over."""
    fds = [fcntl.fcntl(sock, fcntl.F_DUPFD, 20) for sock in sockets]  # out of the way of 3 and 4
    given = {"FDS": " ".join(map(str, fds)), "LISTEN_FDNAMES": names, "LISTEN_FDS": str(len(fds))}
    try:
        return bench.start(["bash", "-c", HAND_OVER, "sh", *command], pass_fds=fds, env={**os.environ, **given})
    finally:
        for fd in fds:
            os.close(fd)


def handed(bench: peers.Bench, sockets: list[Any], *arguments: Any, names: str = "in:out") -> peers.Program:
    """Start ringmain with them."""
    return start(bench, sockets, [*peers.RINGMAIN, *map(str, arguments)], names)


@pytest.mark.parametrize("endpoint", ["tcp://fd:in", "fd:3"])
def test_a_socket_is_found_by_its_name_and_by_its_number(bench: peers.Bench, endpoint: str) -> None:
    output = bench.folder / "output"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = handed(bench, [listener], "load", "-o", "-v", "--output", output, endpoint)
        with peers.connect(listener.getsockname()[1]) as client:
            client.sendall(DATA)
        assert program.wait() == 0, program.stderr
    assert peers.sha256(output) == peers.sha256(DATA)
    assert (
        f"listening on tcp://127.0.0.1:{listener.getsockname()[1] if listener.fileno() > 0 else ''}" in program.stderr
    )


def test_all_sockets_of_one_name_are_listened_at(bench: peers.Bench, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    output = bench.folder / "output"
    with socket.create_server(("127.0.0.1", 0)) as one, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        handed(bench, [one, other], "load", "--output", output, "tcp://fd:in", names="in:in")
        with peers.connect(one.getsockname()[1]) as client:
            client.sendall(b"12345")
        peers.eventually(lambda: output.exists() and output.stat().st_size == 5)
        with peers.dial_unix(path) as client:
            client.sendall(b"67890")
        peers.eventually(lambda: output.stat().st_size == 10)
    assert output.read_bytes() == b"1234567890"
    assert path.exists()  # it is not ours


def test_save_and_both_ends_of_a_relay_listen_at_them(bench: peers.Bench, certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        save = handed(bench, [one], "save", "--listen-once", "--input", bench.file(DATA), "tcp://fd:in")
        with peers.connect(one.getsockname()[1]) as client:
            assert peers.sha256(peers.read_all(client)) == peers.sha256(DATA)
        assert save.wait() == 0, save.stderr
        tls = ["--source-certfile", certificates.server]
        relay = handed(bench, [one, other], "relay", "-l", "-o", *tls, "tcps://fd:in", "tcp://fd:out")
        with (
            peers.connect_tls(one.getsockname()[1], certificates.ca) as source,
            peers.connect(other.getsockname()[1]) as destination,
        ):
            destination.sendall(DATA)
            destination.shutdown(socket.SHUT_WR)
            assert peers.sha256(peers.read_all(source)) == peers.sha256(DATA)
            source.unwrap()
            assert destination.recv(1) == b""
        assert relay.wait() == 0, relay.stderr


def test_those_who_knock_meanwhile_wait_and_whoever_listens_next_has_them(bench: peers.Bench) -> None:
    """The filter that keeps others away would stay at the socket of a process that is killed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        first = handed(bench, [listener], "load", "-v", "tcp://fd:in")
        with peers.connect(port) as client:
            client.sendall(b"1")
            first.says("other clients wait connected")
            with peers.connect(port) as another:
                another.sendall(b"12345")
                another.shutdown(socket.SHUT_WR)
                first.process.kill()
                first.wait()
                output = bench.folder / "output"
                second = handed(bench, [listener], "load", "-o", "--output", output, "tcp://fd:in")
                assert second.wait() == 0, second.stderr
                assert output.read_bytes() == b"12345"


def test_a_server_of_python_is_opened_with_them_again_and_again(bench: peers.Bench) -> None:
    program = """
import asyncio, ringmain
async def echo(connection):
    async for block in connection:
        await connection.write(block)
    server.stop()
async def main():
    global server
    for _ in range(2):
        async with ringmain.serve("tcp://fd:in", echo) as server:
            await server.serve()
asyncio.run(main())
"""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = start(bench, [listener], [peers.RINGMAIN[0], "-P", "-c", program])
        for _ in range(2):
            with peers.connect(listener.getsockname()[1]) as client:
                client.sendall(b"12345")
                client.shutdown(socket.SHUT_WR)
                assert peers.read_all(client) == b"12345"
        assert server.wait() == 0, server.stderr


def test_systemd_starts_it_with_the_first_client_who_is_served(bench: peers.Bench, tmp_path: Path) -> None:
    activate, output, path = peers.need_systemd("systemd-socket-activate"), bench.folder / "output", tmp_path / "socket"
    bench.start([activate, "-l", str(path), "--fdname=in", *peers.RINGMAIN, "load", "-o", "-O", str(output), "fd:in"])
    with peers.dial_unix(path) as client:
        client.sendall(DATA)
    peers.eventually(lambda: output.exists() and output.stat().st_size == len(DATA))
    assert peers.sha256(output) == peers.sha256(DATA)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["load", "tcp://fd:other"],
            45,
            "no socket of this name was passed in; choose one of fd:3 (fd:in), fd:4 (fd:out)",
        ),
        (["load", "tcp://fd:5"], 45, "no socket of this name"),
        (["load", "tcp://fd:in"], 45, "descriptor 3 is not a listening stream socket; the socket unit needs"),
        (["load", "tcp://fd:out"], 45, "descriptor 4 is not a socket"),
        (["bench", "--server", "tcp://fd:in"], 2, "no sockets of systemd"),
        (["load", "--connect", "tcp://fd:in"], 2, "is for listening; listen there"),
        (["save", "tcp://fd:in"], 2, "is for listening; listen there"),
        (["load", "--reuse-port", "tcp://fd:in"], 2, "--reuse-port with tcp://fd:in"),
        (["load", "--socket-mode", "660", "tcp://fd:in"], 2, "--socket-mode with tcp://fd:in"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(bench: peers.Bench, arguments: list[str], code: int, words: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, bench.file(b"").open() as file:
        datagrams.bind(("127.0.0.1", 0))
        program = handed(bench, [datagrams, file], *arguments)
        assert program.wait() == code
    assert words in program.stderr
    assert len(program.stderr.splitlines()) == 1


@pytest.mark.parametrize("given", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "many"}])
def test_without_a_service_manager_it_is_said_what_to_do(bench: peers.Bench, given: dict[str, str]) -> None:
    program = bench.ringmain("load", "tcp://fd:in", env={**os.environ, **given})
    assert program.wait() == 45
    assert "start it by a systemd socket unit, or give HOST:PORT" in program.stderr
    assert len(program.stderr.splitlines()) == 1


def test_a_host_of_that_name_is_told_by_a_dot_at_its_end() -> None:
    assert ringmain.load("tcp://fd.:3").endpoint.handed_over is False


def test_metrics_are_told_at_one_of_them(bench: peers.Bench) -> None:
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        handed(bench, [one, other], "load", "--metrics", "fd:out", "tcp://fd:in")
        with peers.connect(other.getsockname()[1]) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"\nringmain_connections_total 0.0\n" in peers.read_all(client)


def test_a_client_of_ipv4_is_called_so_where_the_socket_is_for_ipv6_too(bench: peers.Bench, tmp_path: Path) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        options = ["-o", "--allow", "127.0.0.0/8", "--stats-file", tmp_path / "stats", "--output", tmp_path / "{peer}"]
        program = handed(bench, [listener], "load", *options, "tcp://fd:in")
        with peers.connect(listener.getsockname()[1]) as client:
            peer = client.getsockname()
            client.sendall(b"12345")
        assert program.wait() == 0, program.stderr
    assert (tmp_path / f"127.0.0.1_{peer[1]}").read_bytes() == b"12345"
    assert json.loads((tmp_path / "stats").read_text())["peer"] == f"127.0.0.1:{peer[1]}"


def test_what_no_unix_socket_has_may_be_left_to_the_others(bench: peers.Bench, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "socket"))
        other.listen()
        program = handed(bench, [one, other], "load", "--allow", "127.0.0.0/8", "tcp://fd:in", names="in:in")
        assert program.wait() == 2
    assert "it has no meaning for a UNIX socket; leave --allow out, or that socket" in program.stderr
