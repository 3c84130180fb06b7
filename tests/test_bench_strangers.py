"""What strangers say to `ringmain bench --server`, and servers to its clients: one line each, and it goes on."""

import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from measuring import checked, measured
from streams import server_at

from ringmain.bench import client, plan, server
from ringmain.bench.client import measure
from ringmain.bench.meter import FIGURES, joined_interval
from ringmain.bench.plan import Plan
from ringmain.bench.server import Server
from ringmain.bench.streams import _Intervals
from ringmain.bench.wire import CONTROL, numbered
from ringmain.cli import log_handler
from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError, TimedOutError
from ringmain.settings import Settings

HELLO = b"ringmain bench 2 "
GOOD = {**Plan(seconds=None, size=1 << 20).message()}
FLEEING = struct.pack("ii", 1, 0)


def introduced(port: int, token: str = CONTROL) -> socket.socket:
    """Connect and say what the connection is for."""
    sock = peers.connect(port)
    sock.sendall(HELLO + token.encode() + b"\n")
    return sock


def asked(port: int, **changed: Any) -> tuple[socket.socket, str]:
    """Ask for a measurement; return the connection and the token."""
    sock = introduced(port)
    sock.sendall(json.dumps({**GOOD, **changed}).encode() + b"\n")
    return sock, json.loads(line_of(sock))["token"]


def line_of(sock: socket.socket) -> bytes:
    """Read one line, and not a byte more."""
    line = b""
    while not line.endswith(b"\n"):
        piece = sock.recv(1)
        assert piece, line
        line += piece
    return line


def rest_of(sock: socket.socket) -> bytes:
    """Read to the end, however it comes."""
    chunks = []
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(1 << 16):
            chunks.append(chunk)
    return b"".join(chunks)


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


def patience(monkeypatch: pytest.MonkeyPatch, seconds: float, *modules: Any) -> None:
    """Set how long these, all by default, wait: plan for the whole of a measurement, the others for its steps."""
    for module in modules or (plan, client, server):
        monkeypatch.setattr(module, "PATIENCE", seconds)


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


# What a server says instead of its token, and whether that is a whole line.
ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "raw bytes": bytes(range(256)) + b"\n",
    "no line": b"x" * (1 << 20),
    "a list": b"[1]\n",
    "a number of 5,000 digits": b'{"token": 1' + b"0" * 5000 + b"}\n",
    "nested": b'{"token": ' + b"[" * 50_000 + b"\n",
    "a token that is a number": b'{"token": 5}\n',
    "a token that is too short": b'{"token": "ab"}\n',
    "a token of line ends": json.dumps({"token": "\n" * 32}).encode() + b"\n",
    "NaN": b'{"token": NaN}\n',
    "a reason with escapes": json.dumps({"error": "\x1b[2J\x07\n\nringmain: all is well\r\u202e" * 9}).encode() + b"\n",
    "a reason with half a surrogate": b'{"error": "\\ud800"}\n',
    "a long reason": json.dumps({"error": "why " * 10_000}).encode() + b"\n",
    "a reason that is none": b'{"error": [[], {}, null]}\n',
    "something else": b'{"side": {}}\n',
}


@contextlib.contextmanager
def answering(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one client on a thread; yield the endpoint."""

    def run() -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(ConnectionError):
            serve(sock)
            peers.send_no_more(sock)
            rest_of(sock)

    with server_at() as listener:
        thread = threading.Thread(target=run)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(peers.TIMEOUT)


def refused(endpoint: str, *options: Any) -> str:
    """Run a client that fails; return its one line, which is in its JSON too."""
    command = [*peers.RINGMAIN, "bench", endpoint, "-n", "1M", "--json", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 56, (done.returncode, done.stderr)
    [line] = done.stderr.splitlines()
    assert line.isprintable()
    assert len(line) < 600
    assert line == f"ringmain: {checked(done.stdout, 56)['error']}"
    return line


@pytest.mark.parametrize("answer", ANSWERS)
def test_whatever_a_server_answers_a_client_says_one_line(answer: str) -> None:
    def serve(sock: socket.socket) -> None:
        line_of(sock)
        line_of(sock)
        sock.sendall(ANSWERS[answer])

    with answering(serve) as endpoint:
        assert refused(endpoint).startswith(f"ringmain: bench with {endpoint}: ")


SIDE = {
    **dict.fromkeys(FIGURES, 1),
    "sizes": [1 << 20],
    "totals": [1 << 20],
}
SIDES: dict[str, Any] = {
    "null": None,
    "a list": [],
    "nothing": {},
    "one figure too few": {name: value for name, value in SIDE.items() if name != "stalls"},
    "NaN": {**SIDE, "seconds": float("nan")},
    "Infinity": {**SIDE, "user": float("inf")},
    "below zero": {**SIDE, "system": -1},
    "a number of 401 digits": {**SIDE, "stalled_seconds": 10**400},
    "a text": {**SIDE, "user": "1"},
    "a truth": {**SIDE, "reads": True},
    "half a read": {**SIDE, "reads": 0.5},
    "no sizes": {**SIDE, "sizes": []},
    "too many sizes": {**SIDE, "sizes": [1, 2], "totals": [1, 2]},
    "sizes of texts": {**SIDE, "sizes": ["1"]},
    "sizes of lists": {**SIDE, "totals": [[1 << 20]]},
    "other sizes": {**SIDE, "totals": [1]},
    "sizes of 401 digits": {**SIDE, "sizes": [10**400]},
    "what the kernel tells of two streams": {**SIDE, "tcp": [None, None]},
    "what it tells, as an object": {**SIDE, "tcp": {"0": None}},
    "a list for what it tells of a stream": {**SIDE, "tcp": [[]]},
    "retransmits below zero": {**SIDE, "tcp": [{"retransmits": -1, "max_snd_cwnd": 1}]},
    "retransmits of 401 digits": {**SIDE, "tcp": [{"retransmits": 10**400, "max_snd_cwnd": 1}]},
    "a truth for a window": {**SIDE, "tcp": [{"retransmits": 1, "max_snd_cwnd": True}]},
    "a figure of its own": {**SIDE, "tcp": [{"retransmits": 1, "max_snd_cwnd": 1, "secret": 1}]},
    "one round trip of three": {**SIDE, "tcp": [{"retransmits": 1, "max_snd_cwnd": 1, "mean_rtt": 1}]},
    "a congestion control with escapes": {**SIDE, "congestion": "\x1b[2J"},
    "a congestion control that is a number": {**SIDE, "congestion": 5},
    "a congestion control of a line": {**SIDE, "congestion": "x" * 17},
}


def lying(side: Any) -> Callable[[socket.socket, socket.socket], None]:
    def serve(control: socket.socket, listener: socket.socket) -> None:
        line_of(control)
        line_of(control)
        control.sendall(b'{"token": "%s"}\n' % (b"a" * 32))
        stream, _ = listener.accept()
        with stream:
            line_of(stream)
            control.sendall(b'{"ready": true}\n')
            line_of(control)
            assert len(rest_of(stream)) == 1 << 20
        control.sendall(json.dumps({"side": side}).encode() + b"\n")

    return serve


@contextlib.contextmanager
def measuring(serve: Callable[[socket.socket, socket.socket], None]) -> Iterator[str]:
    """Measure with one client on a thread; yield the endpoint."""

    def run() -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(ConnectionError):
            serve(sock, listener)
            rest_of(sock)

    with server_at() as listener:
        thread = threading.Thread(target=run)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(peers.TIMEOUT)


@pytest.mark.parametrize("side", SIDES)
def test_figures_that_cannot_be_reckoned_with_are_an_error_of_one_line(side: str) -> None:
    with measuring(lying(SIDES[side])) as endpoint:
        refused(endpoint)


def test_the_largest_figures_that_a_server_may_tell_make_valid_json() -> None:
    most = (1 << 62) - 1
    side = {**dict.fromkeys(FIGURES, most), "seconds": 0, "sizes": [most], "totals": [1 << 20]}
    with measuring(lying(side)) as endpoint:
        result = measured(endpoint, "-n", "1M")
    assert result["end"]["remote"]["bytes"] == most


def test_a_server_that_sends_for_ever_is_given_up(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    patience(monkeypatch, 1.0, plan)

    def serve(control: socket.socket, listener: socket.socket) -> None:
        line_of(control)
        line_of(control)
        control.sendall(b'{"token": "%s"}\n' % (b"a" * 32))
        stream, _ = listener.accept()
        with stream:
            line_of(stream)
            control.sendall(b'{"ready": true}\n')
            line_of(control)
            while True:  # until it is closed under it
                stream.sendall(bytes(1000))

    async def main() -> None:
        with measuring(serve) as endpoint, pytest.raises(TimedOutError, match=r"takes longer than the 1\.1 s"):
            await measure(Endpoint.parse(endpoint), Settings(), Plan(seconds=0.1, reverse=True))

    run(main())


def test_a_silent_server_is_given_up(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    patience(monkeypatch, 0.3)

    async def main() -> None:
        with server_at() as listener, pytest.raises(RingmainError, match="it said nothing"):
            await measure(Endpoint("127.0.0.1", str(listener.getsockname()[1])), Settings(), Plan())

    run(main())
