"""What servers say to the clients of `ringmain bench`, true or not: one line of error each."""

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from measuring import checked, line_of, measured, patience, rest_of
from streams import server_at

from ringmain.bench import plan
from ringmain.bench.client import measure
from ringmain.bench.meter import FIGURES
from ringmain.bench.plan import Plan
from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError, TimedOutError
from ringmain.settings import Settings

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
