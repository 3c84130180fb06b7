"""A signal ends the command in every state, and a second one at once."""

import signal
import socket
import subprocess
import time
from pathlib import Path

import peers
import pytest
from conftest import Certificates


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", ["load", "save"])
@pytest.mark.parametrize(
    "state", ["waiting", "handshaking", "idle", "moving", "stalled", "draining", "connecting", "retrying"]
)
def test_a_signal_ends_every_state(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, state: str, verb: str, number: int
) -> None:
    options: list[object] = ["--tls", "--certfile", certificates.server] if state == "handshaking" else []
    if state == "connecting":
        with peers.full_backlog() as port:
            connect = ["-c"] if verb == "load" else []
            program = bench.ringmain(verb, *connect, f"127.0.0.1:{port}", "--connect-timeout", "30s")
            peers.eventually(lambda: peers.is_connecting(port), "a connect under way")
            program.signal(number)
            assert program.wait() == 128 + number, program.stderr
            assert program.stderr == ""
        return
    if state == "retrying":
        connect = ["-c"] if verb == "load" else []
        program = bench.ringmain(verb, *connect, "-v", "--retry", "forever", f"127.0.0.1:{peers.free_port()}")
        program.says("trying again")
        program.signal(number)
        assert program.wait() == 128 + number, program.stderr
        return
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    if verb == "save" and state in ("moving", "stalled"):
        options += ["-I", "/dev/zero"]
    if verb == "save" and state == "draining":  # all of it fits into our kernel's buffer, not into the peer's
        options += ["-o", "-I", bench.file(b"x" * 3_000_000)]
    program, port = bench.listening(verb, *(["-l"] if verb == "save" else []), *options, "-v", **pipes)
    sock = None if state == "waiting" else peers.connect(port)
    if state in ("idle", "moving", "stalled", "draining"):
        program.says("connected")
    if state == "draining" and verb == "load":  # the end has come, and the reader takes nothing
        sock.sendall(b"x" * 1_500_000)
        sock.shutdown(socket.SHUT_WR)
    if state == "moving" and verb == "load":
        sock.sendall(b"x" * 100)
        peers.eventually(lambda: peers.unread_at(port) == 0, "the reading of what was sent")
    if state == "stalled" and verb == "load":
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            while True:
                sock.sendall(b"x" * (1 << 20))
    if state == "moving" and verb == "save":
        assert sock.recv(1 << 20)
    if state in ("handshaking", "stalled", "draining"):
        time.sleep(0.3)
    program.signal(number)
    assert program.wait() == 128 + number, program.stderr
    assert "Traceback" not in program.stderr
    if verb == "load" and state == "moving":
        assert program.process.stdout.read() == b"x" * 100
    if sock is not None:
        sock.close()


def test_a_second_signal_ends_at_once(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "--path", "block", stdout=subprocess.PIPE)
    with peers.connect(port) as sock:
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            while True:
                sock.sendall(b"x" * (1 << 20))
        loader.signal(signal.SIGINT)
        time.sleep(0.2)
        assert loader.process.poll() is None  # still trying to write what was received
        loader.signal(signal.SIGINT)
        started = time.monotonic()
        assert loader.wait() == 130
        assert time.monotonic() - started < 1.5


def test_a_signal_closes_tls_properly(bench: peers.Bench, certificates: Certificates) -> None:
    for verb in ("load", "save"):
        listen = ["-l"] if verb == "save" else []
        program, port = bench.listening(
            verb, *listen, "--tls", "--certfile", certificates.server, "-v", stdin=subprocess.PIPE
        )
        with peers.connect_tls(port, certificates.ca) as sock:
            program.says("connected")
            program.signal(signal.SIGTERM)
            assert sock.recv(1) == b""  # close_notify: without it this raises SSLEOFError
        assert program.wait() == 143
