"""What the tests of `ringmain bench` share: a server, clients whose JSON is held against the schema, and strangers."""

import contextlib
import json
import socket
import subprocess
from importlib.resources import files
from typing import Any

import jsonschema
import peers
import pytest

from ringmain.bench import client, plan, server
from ringmain.bench.plan import Plan
from ringmain.bench.wire import CONTROL

HELLO = b"ringmain bench 2 "
GOOD = Plan(seconds=None, size=1 << 20).message()
SCHEMA = json.loads(files("ringmain.bench").joinpath("schema.json").read_text())


def measured(*arguments: Any, code: int = 0, **run: Any) -> dict[str, Any]:
    """Run `ringmain bench ... --json` to its exit code; return what it printed, which the schema allows."""
    command = [*peers.RINGMAIN, "bench", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **run)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    return checked(done.stdout, code)


def checked(text: str, code: int = 0) -> dict[str, Any]:
    """Return what was printed, which the schema allows, and which tells of an error where the exit code does."""
    result: dict[str, Any] = json.loads(text)
    jsonschema.validate(result, SCHEMA)
    assert ("error" in result) == (code not in (0, 1, 75))
    return result


def serving(bench: peers.Bench, *arguments: Any, scheme: str = "tcp") -> str:
    """Start a server; return its endpoint."""
    _, port = bench.serving_measurements(*arguments, scheme=scheme)
    return f"{scheme}://127.0.0.1:{port}"


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


def patience(monkeypatch: pytest.MonkeyPatch, seconds: float, *modules: Any) -> None:
    """Set how long these, all by default, wait: plan for the whole of a measurement, the others for its steps."""
    for module in modules or (plan, client, server):
        monkeypatch.setattr(module, "PATIENCE", seconds)
