"""Load in several processes: everything once, in whichever file, whoever dies, and one gate for all."""

import contextlib
import json
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from crews import Crew, all_ended, stopped, until_acknowledged


def lines_of(client: int, count: int) -> list[bytes]:
    return [b"%d %d %s\n" % (client, number, b"x" * (number * 37 % 3000)) for number in range(count)]


def is_over(sock: socket.socket) -> bool:
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_each_process_serves_as_many_and_every_record_is_written_once_and_in_order(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, tls: bool
) -> None:
    options = ["--tls", "--certfile", certificates.server] if tls else []
    crew = Crew(bench, "--stats-file", tmp_path / "stats", *options)
    sent = {client: lines_of(client, 200) for client in range(20)}
    with contextlib.ExitStack() as stack:
        socks = []
        for client in sent:
            connect = peers.connect_tls(crew.port, certificates.ca) if tls else peers.connect(crew.port)
            socks.append(stack.enter_context(connect))
            socks[-1].sendall(sent[client][0])
        peers.eventually(lambda: len(crew.lines()) == 20, "a line of each")
        assert [len(crew.lines(file)) for file in crew.files] == [10, 10]
        for client, sock in enumerate(socks):
            sock.sendall(b"".join(sent[client][1:]))
            if isinstance(sock, ssl.SSLSocket):
                sock.unwrap()
    peers.eventually(lambda: len(crew.lines()) == 20 * 200, "all lines")
    stats = tmp_path / "stats"
    peers.eventually(lambda: stats.exists() and stats.read_bytes().count(b"\n") == 20, "a row of each")
    crew.program.signal(signal.SIGTERM)
    assert crew.program.wait() == 143
    for client, lines in sent.items():
        assert [line for line in crew.lines() if line.startswith(b"%d " % client)] == lines
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    sizes = sorted(sum(map(len, lines)) for lines in sent.values())
    assert sorted(row["bytes"] for row in rows) == sizes
    assert {(row["verdict"], row["refused"]) for row in rows} == {("ended", 0)}
    assert crew.program.stderr.count("\n") == 1  # where it listens


def test_a_process_that_is_killed_is_told_of_and_replaced_and_what_it_wrote_stays(bench: peers.Bench) -> None:
    stats = bench.folder / "stats"
    crew = Crew(bench, "--stats-file", stats)
    with contextlib.ExitStack() as stack:
        socks = [crew.greet(stack, f"early {number}") for number in range(4)]
        names = ["{}:{}".format(*sock.getsockname()) for sock in (socks[0], socks[2])]
        before = crew.lines(crew.files[0])
        assert len(before) == 2
        worker = crew.worker_of(crew.files[0])
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        crew.program.says("process 1 was ended by SIGKILL; lost with it: 2 connections")
        peers.eventually(lambda: stats.exists() and stats.read_bytes().count(b"\n") == 2, "a row of each")
        rows = [json.loads(line) for line in stats.read_text().splitlines()]
        assert [(row["peer"], row["verdict"], row["bytes"]) for row in rows] == [
            (name, "process died", None) for name in names
        ]
        assert rows[0]["error"] == f"load from {names[0]}: process 1 was ended by SIGKILL"
        for sock in (socks[0], socks[2]):
            assert is_over(sock)
        number = 0
        while len(crew.lines(crew.files[0])) == 2:  # those who come before the new process is there go to the other one
            with contextlib.ExitStack() as visit:  # which gives its place back
                crew.greet(visit, f"later {number}")
            number += 1
        socks[1].sendall(b"the other one goes on\n")
        peers.eventually(lambda: b"the other one goes on\n" in crew.lines(crew.files[1]), "the other one's line")
    assert crew.lines(crew.files[0])[:2] == before
    assert crew.worker_of(crew.files[0]) not in (None, worker)
    crew.program.signal(signal.SIGTERM)
    assert crew.program.wait() == 143


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_ends_all_and_what_was_acknowledged_is_written(bench: peers.Bench, number: int) -> None:
    crew = Crew(bench)
    workers = crew.workers()
    sent = {client: lines_of(client, 300) for client in range(6)}
    with contextlib.ExitStack() as stack:
        for lines in sent.values():
            sock = stack.enter_context(peers.connect(crew.port))
            sock.sendall(b"".join(lines))
            until_acknowledged(sock)
        peers.eventually(
            lambda: {line.split()[0] for line in crew.lines()} == {b"%d" % it for it in sent}, "some of each"
        )
        crew.program.signal(number)
        assert crew.program.wait() == 128 + number
    all_ended(workers)
    assert sorted(crew.lines()) == sorted(line for lines in sent.values() for line in lines)


def test_a_service_manager_may_signal_every_process(bench: peers.Bench) -> None:
    crew = Crew(bench)
    workers = crew.workers()
    assert {os.getsid(pid) for pid in workers} == set(workers)  # a terminal signals none of them
    with contextlib.ExitStack() as stack:
        for number in range(4):
            crew.greet(stack, f"client {number}").sendall(b"more\n")
        for pid in [*workers, crew.program.process.pid, *workers]:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by the second time
                os.kill(pid, signal.SIGTERM)
        assert crew.program.wait() == 143
    all_ended(workers)
    assert "was ended" not in crew.program.stderr


def test_a_second_signal_ends_all_at_once(bench: peers.Bench) -> None:
    crew = Crew(bench)
    workers = crew.workers()
    with peers.connect(crew.port) as sock, stopped(workers[0]):
        sock.sendall(b"hello\n")
        crew.program.signal(signal.SIGTERM)
        # The one that stands still keeps the run from ending.
        peers.eventually(lambda: len(crew.workers()) == 1, "the end of the other process")
        crew.program.signal(signal.SIGTERM)
        assert crew.program.wait() == 143
        all_ended(workers)


def test_the_processes_end_when_their_parent_is_killed_and_write_what_was_acknowledged(bench: peers.Bench) -> None:
    crew = Crew(bench)
    workers = crew.workers()
    lines = lines_of(1, 1000)
    with contextlib.ExitStack() as stack:
        crew.greet(stack, "hello")
        sock = crew.greet(stack, "me too")
        sock.sendall(b"".join(lines))
        until_acknowledged(sock)
        crew.program.signal(signal.SIGKILL)
        all_ended(workers)
    assert sorted(crew.lines()) == sorted([b"hello\n", b"me too\n", *lines])


def test_all_processes_together_serve_so_many_connections_and_refuse_others(bench: peers.Bench) -> None:
    crew = Crew(bench, "--gate", "refuse", connections=3)
    with contextlib.ExitStack() as stack:
        socks = [crew.greet(stack, f"client {number}") for number in range(3)]
        assert peers.is_reset(crew.port)
        socks[1].close()
        peers.eventually(lambda: _is_served(crew), "a place for another client")


def _connects(port: int) -> bool:
    try:
        peers.connect(port, timeout=0.5).close()
    except TimeoutError:
        return False
    return True


def _is_served(crew: Crew) -> bool:
    with contextlib.suppress(OSError), peers.connect(crew.port) as sock:
        sock.sendall(b"at last\n")
        sock.shutdown(socket.SHUT_WR)
        sock.recv(100)
    return b"at last\n" in crew.lines()


@pytest.mark.parametrize("kind", ["hold", "queue"])
def test_who_comes_when_all_processes_are_full_is_served_once_somebody_leaves(bench: peers.Bench, kind: str) -> None:
    crew = Crew(bench, "--gate", kind, connections=2)
    with contextlib.ExitStack() as stack:
        socks = [crew.greet(stack, f"client {number}") for number in range(2)]
        with peers.connect(crew.port) as patient:
            patient.sendall(b"at last\n")
            until_acknowledged(patient)
            socks[0].sendall(b"still here\n")
            peers.eventually(lambda: b"still here\n" in crew.lines(), "a line of who is served")
            assert b"at last\n" not in crew.lines()
            if kind == "hold":
                peers.eventually(lambda: not _connects(crew.port), "the filter")
            socks[0].close()
            peers.eventually(lambda: b"at last\n" in crew.lines(), "a line of who waited")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_silent_client_makes_room_once_another_waits_and_one_that_has_begun_does_not(
    bench: peers.Bench, certificates: Certificates, tls: bool
) -> None:
    options = ["--tls", "--certfile", certificates.server] if tls else []
    crew = Crew(bench, "--gate", "queue", "--handshake-timeout", "4s", *options, connections=2)

    def connect() -> Any:
        return peers.connect_tls(crew.port, certificates.ca) if tls else peers.connect(crew.port)

    with connect() as busy, connect() as silent:
        busy.sendall(b"busy\n")
        peers.eventually(lambda: b"busy\n" in crew.lines(), "the line of the one that has begun")
        with connect() as patient:
            patient.sendall(b"at last\n")
            peers.eventually(lambda: b"at last\n" in crew.lines(), "the line of the one that waited")
        with pytest.raises(ConnectionResetError):
            socket.socket.recv(silent, 100)
        busy.sendall(b"still here\n")
        peers.eventually(lambda: b"still here\n" in crew.lines(), "another line of it")
    crew.program.says("it sent nothing for 4 s while another client waited")
    assert crew.program.stderr.count("while another client waited") == 1


def test_progress_is_that_of_all_processes(bench: peers.Bench) -> None:
    crew = Crew(bench, "--progress")
    with contextlib.ExitStack() as stack:
        for text in ("hello", "world"):
            crew.greet(stack, text)
        crew.program.says("2 connected  12 B")


def test_clients_that_begin_no_handshake_take_no_places(bench: peers.Bench, certificates: Certificates) -> None:
    options = ["--tls", "--certfile", certificates.server, "--gate", "queue", "--handshake-timeout", "1h"]
    crew = Crew(bench, *options, connections=2)
    with contextlib.ExitStack() as stack:
        for said in (b"", b"\x16", b"\x16\x03\x01"):
            stack.enter_context(peers.connect(crew.port)).sendall(said)
        for text in (b"one\n", b"two\n"):
            stack.enter_context(peers.connect_tls(crew.port, certificates.ca)).sendall(text)
        peers.eventually(lambda: sorted(crew.lines()) == [b"one\n", b"two\n"], "both lines")


def test_a_client_that_begins_no_handshake_has_a_row(bench: peers.Bench, certificates: Certificates) -> None:
    """It never got as far as one of the processes."""
    stats, options = bench.folder / "stats", ["--tls", "--certfile", certificates.server, "--handshake-timeout", "0.5s"]
    crew = Crew(bench, "--stats-file", stats, *options)
    with peers.connect(crew.port) as stranger:
        peers.eventually(lambda: stats.exists() and stats.read_text(), "a row")
        row = json.loads(stats.read_text())
        assert row["peer"] == "{}:{}".format(*stranger.getsockname())
    assert (row["verdict"], row["bytes"], row["refused"]) == ("handshake failed", 0, 0)
    assert "not done within 0.5 s" in row["error"]


def test_a_failed_handshake_gives_its_place_back(bench: peers.Bench, certificates: Certificates) -> None:
    crew = Crew(bench, "--tls", "--certfile", certificates.server, "--gate", "queue", connections=2)
    for _ in range(3):
        with peers.connect(crew.port) as stranger:
            stranger.sendall(b"no TLS at all, whatever it is\n")
            with contextlib.suppress(ConnectionResetError):
                peers.read_all(stranger)
    with peers.connect_tls(crew.port, certificates.ca) as one, peers.connect_tls(crew.port, certificates.ca) as two:
        one.sendall(b"one\n")
        two.sendall(b"two\n")
        peers.eventually(lambda: sorted(crew.lines()) == [b"one\n", b"two\n"], "both lines")


def test_a_reader_that_leaves_ends_the_run_as_it_does_with_one_process(bench: peers.Bench, tmp_path: Path) -> None:
    readers = []
    for number in (1, 2):
        os.mkfifo(tmp_path / f"out-{number}")
        readers.append(os.open(tmp_path / f"out-{number}", os.O_RDONLY | os.O_NONBLOCK))
    try:
        crew = Crew(bench)
        workers = crew.workers()
        os.close(readers.pop())
        assert crew.program.wait() == 0
        all_ended(workers)
    finally:
        for fd in readers:
            os.close(fd)
