"""`receive_buffer=`: what the kernel keeps of a connection, set before that has begun."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
import witness
from conforming import Net, coming

import ringmain

Run = Callable[[Any], Any]
SIZE = 50_000  # half of what the kernel would choose is 64 KiB as a rule


def buffer_of(sock: socket.socket) -> int:
    """Return what the kernel was asked for, which it doubles."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


@pytest.mark.parametrize("most", [1, 2])
def test_those_who_connect_have_it(run: Run, net: Net, most: int, caplog: pytest.LogCaptureFixture) -> None:
    data = peers.payload(2_000_000)

    async def main() -> bytes:
        got = b""
        options: dict[str, Any] = {"receive_buffer": SIZE, "max_connections": most, **net.listening}
        async with ringmain.load(net.url(), **options) as loader, coming(net, loader.port, data):
            stream = await anext(loader.connections())
            assert buffer_of(stream.inflow.link.sock) == SIZE
            async for block in stream:
                with block:
                    got += block
        return got

    assert peers.sha256(run(main())) == peers.sha256(data)
    assert caplog.text == ""


def test_one_that_is_dialled_has_it(run: Run, net: Net, caplog: pytest.LogCaptureFixture) -> None:
    data = peers.payload(2_000_000)

    async def main() -> bytes:
        async with witness.serving(net.server(), data, 0) as (port, _):
            options: dict[str, Any] = {"receive_buffer": SIZE, **net.dialling}
            async with ringmain.load(net.url(port), connect=True, **options) as loader:
                stream = await anext(loader.connections())
                assert buffer_of(stream.inflow.link.sock) == SIZE
                return b"".join([bytes(block) async for block in stream])

    assert peers.sha256(run(main())) == peers.sha256(data)
    assert caplog.text == ""


def test_less_than_was_asked_for_is_one_warning(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    most = int(Path("/proc/sys/net/core/rmem_max").read_text())

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", receive_buffer=1 << 40, max_connections=2) as loader:
            waiting = anext(loader.connections())
            with peers.connect(loader.port):
                await waiting

    with caplog.at_level(logging.WARNING, "ringmain"):
        run(main())
    [record] = caplog.records
    told = f"receive_buffer={1 << 40}: the kernel gives {most} bytes at most; raise net.core.rmem_max"
    assert record.getMessage() == told


def test_the_command_has_the_option(bench: peers.Bench, tmp_path: Path) -> None:
    options = ["-o", "-O", tmp_path / "got", "--receive-buffer", "1T"]
    loader, port = bench.listening("load", *options)
    peers.send_in_thread(port, b"bytes").join()
    assert loader.wait() == 0
    assert loader.stderr.count("--receive-buffer 1099511627776: the kernel gives") == 1
    assert (tmp_path / "got").read_bytes() == b"bytes"


def test_nothing_is_no_size() -> None:
    with pytest.raises(ringmain.UsageError, match="receive_buffer=0: not a number of bytes; give at least 1"):
        ringmain.load("127.0.0.1:0", receive_buffer=0)
