"""Leaving what receives: properly, or by an exception, which the peer must not take for a proper end."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates

import ringmain

Run = Callable[[Any], Any]


class Sender:
    """A peer that sends one line and waits for what becomes of the connection, in a thread."""

    def __init__(self, certificate: Path | None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._certificate = certificate
        self._end = ""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> str:
        """Wait for the end, and return it: "proper" or "reset"."""
        self._thread.join(peers.TIMEOUT)
        assert not self._thread.is_alive()
        return self._end

    def _run(self) -> None:
        sock, _ = self._listener.accept()
        self._listener.close()
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.num_tickets = 0
            context.load_cert_chain(self._certificate)
            sock = context.wrap_socket(sock, server_side=True)
        with sock:
            sock.sendall(b"one line\n")
            try:
                while socket.socket.recv(sock, 1000):  # by the plain one: a close_notify is not what is looked for
                    pass
            except ConnectionResetError:
                self._end = "reset"
            else:
                self._end = "proper"


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def sender(request: pytest.FixtureRequest, certificates: Certificates) -> tuple[Sender, dict[str, Any]]:
    options: dict[str, Any] = {"tls": True, "cafile": str(certificates.ca)} if request.param else {}
    return Sender(certificates.server if request.param else None), options


class Mishap(Exception):  # noqa: N818
    """What goes wrong in a consumer."""


@pytest.mark.parametrize("mishap", [None, Mishap, asyncio.CancelledError, KeyboardInterrupt])
def test_a_loader_left_by_an_exception_resets_the_peer(
    run: Run, sender: tuple[Sender, dict[str, Any]], mishap: type[BaseException] | None
) -> None:
    peer, options = sender

    async def main() -> None:
        async with ringmain.load(f"127.0.0.1:{peer.port}", connect=True, **options) as loader:
            assert bytes(await anext(loader)) == b"one line\n"
            if mishap is not None:
                raise mishap

    if mishap is None:
        run(main())
    else:
        with pytest.raises(mishap):
            run(main())
    assert peer.end() == ("proper" if mishap is None else "reset")


@pytest.mark.parametrize("mishap", [False, True], ids=["well", "by an exception"])
def test_a_plain_with_left_by_an_exception_resets_the_peer(sender: tuple[Sender, dict[str, Any]], mishap: bool) -> None:
    peer, options = sender
    try:
        with ringmain.load(f"127.0.0.1:{peer.port}", connect=True, **options) as loader:
            assert bytes(next(loader)) == b"one line\n"
            if mishap:
                raise Mishap
    except Mishap:
        assert mishap
    assert peer.end() == ("reset" if mishap else "proper")


@pytest.mark.parametrize("mishap", [False, True], ids=["well", "by an exception"])
def test_a_file_left_by_an_exception_resets_the_peer(sender: tuple[Sender, dict[str, Any]], mishap: bool) -> None:
    peer, options = sender
    try:
        with ringmain.open(f"127.0.0.1:{peer.port}", **options) as file:
            assert file.readline() == b"one line\n"
            if mishap:
                raise Mishap
    except Mishap:
        assert mishap
    assert file.closed
    assert peer.end() == ("reset" if mishap else "proper")


def test_a_file_that_was_closed_before_the_exception_has_ended_properly(sender: tuple[Sender, dict[str, Any]]) -> None:
    peer, options = sender
    with pytest.raises(Mishap), ringmain.open(f"127.0.0.1:{peer.port}", **options) as file:
        file.readline()
        file.close()
        raise Mishap
    assert peer.end() == "proper"


def test_a_handshake_cancelled_while_it_says_why_it_failed_leaves_no_socket(run: Run) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"tcps://127.0.0.1:{listener.getsockname()[1]}"
            dialling = asyncio.ensure_future(ringmain.load(url, connect=True).__aenter__())
            sock, _ = await asyncio.to_thread(listener.accept)
            with sock:
                sock.sendall(b"220 no TLS here\r\n")
                # Our alert comes before its FIN, which tells that the farewell has begun: it waits for ours now.
                await asyncio.to_thread(peers.read_all, sock)
                dialling.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await dialling

    run(main())
