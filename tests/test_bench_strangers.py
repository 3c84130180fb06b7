"""What strangers say to `ringmain bench --server`: one line each, and it goes on."""

import contextlib
import json
import random
import re
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from measuring import GOOD, HELLO, asked, checked, introduced, line_of, measured, rest_of

from ringmain.bench import server
from ringmain.bench.wire import CONTROL
from ringmain.cli import log_handler

FLEEING = struct.pack("ii", 1, 0)


def children(program: peers.Program) -> list[str]:
    pid = program.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def check_log(program: peers.Program) -> None:
    """Hold that each line of a server's log is one of ours."""
    assert program.process.poll() is None, program.stderr
    for line in program.stderr.splitlines():
        assert re.match(r"(ringmain: |listening on )", line), program.stderr
        assert line.isprintable()


def check_serves(port: int, *options: Any) -> None:
    """Hold that the next client is served, as soon as the last one's end was noticed."""

    def served() -> bool:
        command = [*peers.RINGMAIN, "bench", f"127.0.0.1:{port}", "-n", "1M", "--json", *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        result = checked(done.stdout, done.returncode)
        assert "end" in result or "busy" in result["error"], result
        return "end" in result

    peers.eventually(served, "a measurement")


PLANS: dict[str, bytes] = {
    "a number of 401 digits": json.dumps({**GOOD, "size": 10**400}).encode(),
    "a number of 5,000 digits": b'{"size": 1' + b"0" * 5000 + b"}",
    "seconds of 401 digits": json.dumps({**GOOD, "size": None, "seconds": 10**400}).encode(),
    "a rate of 401 digits": json.dumps({**GOOD, "rate": 10**400}).encode(),
    "minus so many": json.dumps({**GOOD, "parallel": -(10**400)}).encode(),
    "NaN": json.dumps({**GOOD, "omit": float("nan")}).encode(),
    "Infinity": json.dumps({**GOOD, "size": None, "seconds": float("inf")}).encode(),
    "1e999": json.dumps({**GOOD, "omit": 0.5}).replace("0.5", "1e999").encode(),
    "nested lists": b"[" * 60_000,
    "nested objects": b'{"a":' * 10_000,
    "no end": b"x" * (1 << 17),
    "no text": b"\xff\xfe\x00\xd8",
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "half a surrogate": json.dumps({**GOOD, "through": "\ud800"}).encode(),
    "an escape": json.dumps({**GOOD, "through": "\x1b[31m"}).encode(),
    "a list for a number": json.dumps({**GOOD, "parallel": [1]}).encode(),
    "a list for a word": json.dumps({**GOOD, "engine": ["ringmain"]}).encode(),
    "long messages of processes": json.dumps(
        {**GOOD, "parallel": 4, "processes": True, "message_size": 64 << 20}
    ).encode(),
    "128 processes": json.dumps({**GOOD, "parallel": 128, "processes": True}).encode(),
    "null": b"null",
    "an empty line": b"",
}


def test_each_plan_that_makes_no_sense_is_answered_and_logged_in_a_line(bench: peers.Bench) -> None:
    for number, (name, text) in enumerate(PLANS.items()):
        if number % log_handler.MOST == 0:  # a server tells of no more a minute
            program, port = bench.serving_measurements()
        logged = len(program.stderr.splitlines())
        with introduced(port) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(text + b"\n")
            answer = rest_of(sock)
        # Where more was sent than it reads, a reset may have overtaken the answer.
        lines = answer.splitlines()
        assert len(lines) == 1 or (not lines and len(text) > 1 << 16), (name, answer)
        assert all(json.loads(line).keys() == {"error"} and len(line) < 400 for line in lines), (name, answer)
        peers.eventually(
            lambda program=program, logged=logged: len(program.stderr.splitlines()) > logged, f"a line about {name}"
        )
        assert len(program.stderr.splitlines()) == logged + 1, program.stderr
        check_log(program)
    check_serves(port)


def mutated(chance: random.Random, text: bytes) -> bytes:
    """Return bytes of which some are others, gone, twice, or numbers out of all proportion."""
    data = bytearray(text)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(data):
            data[at] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.randint(1, 8)]
        elif kind == 2:
            data[at:at] = chance.randbytes(chance.randint(1, 8))
        elif kind == 3:
            data[at:at] = data[at : at + chance.randint(1, 40)]
        else:
            number = chance.choice(
                [b"-1", b"0", b"1e308", b"1e999", b"9" * 400, b"NaN", b"true", b"null", b"{}", b'""']
            )
            data = bytearray(re.sub(rb"(?<=: )[0-9.]+", number, bytes(data), count=chance.randint(1, 3)))
    return bytes(data)


def pester(chance: random.Random, port: int, connect: Callable[[int], socket.socket]) -> bytes:
    """Say something to a server that makes little sense; return its answer."""
    plan = json.dumps({**GOOD, "size": 4096, "parallel": chance.choice([1, 1, 2])}).encode() + b"\n"
    with connect(port) as sock, contextlib.ExitStack() as stack, contextlib.suppress(ConnectionError):
        kind = chance.randrange(6)
        if kind == 0:
            sock.sendall(chance.randbytes(chance.choice([1, 50, 51, 5000])))
        elif kind == 1:
            sock.sendall(mutated(chance, HELLO + CONTROL.encode() + b"\n"))
        elif kind in (2, 3):
            sock.sendall(HELLO + CONTROL.encode() + b"\n" + mutated(chance, plan))
        else:  # as far as the streams, with words that are out of place
            sock.sendall(HELLO + CONTROL.encode() + b"\n" + plan)
            token = json.loads(line_of(sock)).get("token", CONTROL)
            stream = stack.enter_context(introduced(port, token))
            stream.sendall(chance.randbytes(chance.choice([0, 1, 4096, 70_000])))
            sock.sendall(chance.choice([b"", b'{"go": true}\n', b"{}\n" * 100, mutated(chance, b'{"go": true}\n')]))
            if chance.randrange(2):
                peers.close_with_reset(stream)
        if chance.randrange(3) == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, FLEEING)
            return b""
        peers.send_no_more(sock)
        return rest_of(sock)
    return b""


@pytest.mark.parametrize("seed", range(4))
def test_a_server_outlives_what_strangers_say(bench: peers.Bench, seed: int) -> None:
    chance = random.Random(seed)
    program, port = bench.serving_measurements("--handshake-timeout", "2s")
    check_serves(port)
    descriptors, memory = program.fd_count(), program.memory("VmRSS")
    for _ in range(60):
        for line in pester(chance, port, peers.connect).splitlines():
            assert isinstance(json.loads(line), dict)
    check_log(program)
    check_serves(port)
    peers.eventually(lambda: program.fd_count() <= descriptors, "its descriptors")
    assert children(program) == []
    assert program.memory("VmRSS") < memory + (32 << 20)


def test_a_tls_server_outlives_what_strangers_say(bench: peers.Bench, certificates: Certificates) -> None:
    options = ("--certfile", certificates.server, "--handshake-timeout", "2s")
    program, port = bench.serving_measurements(*options, scheme="tcps")
    trust = ("--tls", "--cafile", certificates.ca, "--server-name", "localhost")
    check_serves(port, *trust)
    descriptors = program.fd_count()
    chance = random.Random(5)
    control = HELLO + CONTROL.encode() + b"\n"
    for number in range(40):
        with peers.connect(port) as sock, contextlib.suppress(ConnectionError):
            # A record that claims to be a ClientHello, or none at all.
            sock.sendall(control + (b"\x16\x03\x01" if number % 2 else b"") + chance.randbytes(chance.randint(0, 300)))
            peers.send_no_more(sock)
            rest_of(sock)
    check_log(program)
    check_serves(port, *trust)
    peers.eventually(lambda: program.fd_count() <= descriptors, "its descriptors")


def test_a_server_keeps_no_more_connections_than_it_has_use_for(bench: peers.Bench) -> None:
    program, port = bench.serving_measurements("--handshake-timeout", "60s")
    check_serves(port)
    descriptors = program.fd_count()
    with contextlib.ExitStack() as stack:
        for _ in range(3 * server.MOST_IN_DOUBT):
            stack.enter_context(peers.connect(port))
        check_serves(port)  # who means it is served among those who say nothing
        assert program.fd_count() <= descriptors + server.MOST_IN_DOUBT
    peers.eventually(lambda: program.fd_count() <= descriptors, "its descriptors")
    check_log(program)


def test_no_more_streams_are_kept_than_were_announced(bench: peers.Bench) -> None:
    program, port = bench.serving_measurements()
    with contextlib.ExitStack() as stack:
        control, token = asked(port)
        stack.enter_context(control)
        stream = stack.enter_context(introduced(port, token))
        assert b"ready" in line_of(control)
        descriptors = program.fd_count()
        for _ in range(100):
            with introduced(port, token) as more:
                assert rest_of(more) == b""  # it is turned away, not kept
        assert program.fd_count() <= descriptors
        control.sendall(b'{"go": true}\n')
        stream.sendall(bytes(GOOD["size"]))
        peers.send_no_more(stream)
        assert json.loads(line_of(control))["side"]["totals"] == [GOOD["size"]]  # that goes on meanwhile
    check_log(program)
    check_serves(port)


def test_long_messages_of_many_streams_are_kept_once(bench: peers.Bench) -> None:
    program, port = bench.serving_measurements()
    check_serves(port, "-R")
    before = program.memory()
    result = measured(f"127.0.0.1:{port}", "-R", "-n", "256M", "-P", 4, "-l", "64M")
    assert result["end"]["sum_sent"]["bytes"] == 256 << 20
    assert program.memory() < before + (100 << 20)


def test_more_processes_than_a_server_starts_are_refused_in_a_line(bench: peers.Bench) -> None:
    program, port = bench.serving_measurements()
    most = server.most_processes()
    error = measured(f"127.0.0.1:{port}", "-n", "1M", "-P", most + 1, "--processes", code=56)["error"]
    assert f"{most + 1} processes: " in error
    assert children(program) == []
    check_serves(port)
