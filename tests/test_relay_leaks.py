"""Passages that break leave nothing behind: no descriptor, and no cycle that waits for the collector to free one."""

import asyncio
import contextlib
import gc
import socket
import ssl
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peers
import pytest
from conftest import Certificates, open_descriptors
from streams import fill, server_at

import ringmain
from ringmain.flow.passage import Passage
from ringmain.net.link import Link

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PASSAGES = 50


def wait_for_the_end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16):
            pass


def the_client_resets(client: socket.socket, server: socket.socket) -> None:
    peers.close_with_reset(client)
    wait_for_the_end(server)


def the_server_resets(client: socket.socket, server: socket.socket) -> None:
    peers.close_with_reset(server)
    wait_for_the_end(client)


def the_server_resets_what_waits_for_it(client: socket.socket, server: socket.socket) -> None:
    fill(client, lambda: peers.unread(server) > 0)
    the_server_resets(client, server)


def the_client_resets_after_its_end(client: socket.socket, server: socket.socket) -> None:
    if isinstance(client, ssl.SSLSocket):
        client.settimeout(0)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.unwrap()
    else:
        client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    peers.close_with_reset(client)

    def hears() -> bool:
        try:
            server.send(b"x")
        except OSError:
            return True
        return False

    peers.eventually(hears, "the reset")


def the_stream_is_cut_off(client: socket.socket, server: socket.socket) -> None:
    socket.socket.shutdown(client, socket.SHUT_WR)  # without close_notify
    wait_for_the_end(server)
    wait_for_the_end(client)


def a_record_is_bad(client: socket.socket, server: socket.socket) -> None:
    socket.socket.send(client, b"\x17\x03\x03\x00\x20" + bytes(32))
    wait_for_the_end(server)


def nothing_moves(client: socket.socket, server: socket.socket) -> None:
    wait_for_the_end(client)
    wait_for_the_end(server)


WAYS = [
    ("kernel", the_client_resets),
    ("kernel", the_server_resets),
    ("kernel", the_server_resets_what_waits_for_it),
    ("kernel", the_client_resets_after_its_end),
    ("kernel", nothing_moves),
    ("block", the_client_resets),
    ("block", the_server_resets_what_waits_for_it),
    ("tls", the_client_resets),
    ("tls", the_server_resets),
    ("tls", the_client_resets_after_its_end),
    ("tls", the_stream_is_cut_off),
    ("tls", a_record_is_bad),
    ("tls", nothing_moves),
]


@pytest.mark.parametrize(("path", "way"), WAYS, ids=[f"{path}: {way.__name__}".replace("_", " ") for path, way in WAYS])
def test_broken_passages_leave_no_descriptor_and_no_cycle(
    certificates: Certificates, run: Run, path: str, way: Callable[[socket.socket, socket.socket], None]
) -> None:
    options: dict[str, Any] = {"idle_timeout": 0.05 if way is nothing_moves else 30.0}
    if path == "tls":
        options["source_tls"] = ringmain.TlsSettings(certfile=str(certificates.server))

    def break_one(listener: socket.socket, port: int) -> None:
        try:
            client = peers.connect_tls(port, certificates.ca) if path == "tls" else peers.connect(port)
        except ConnectionResetError:
            assert way is nothing_moves  # its time may be over before it has connected
            listener.accept()[0].close()
            return
        with client:
            server, _ = listener.accept()
            server.settimeout(peers.TIMEOUT)
            with server:
                if way is not nothing_moves:  # its time may be over before a byte has come
                    client.sendall(b"x")
                    assert server.recv(1) == b"x"
                way(client, server)

    async def main(listener: socket.socket, pool: ThreadPoolExecutor) -> None:
        source = f"{'tcps' if path == 'tls' else 'tcp'}://127.0.0.1:0"
        passages: list[weakref.ref[Passage]] = []
        verdicts: list[str] = []
        destination = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        async with ringmain.relay(source, destination, **options) as relayer:
            begin = relayer._passage_between

            def begin_observed(ends: tuple[Link, Link]) -> Passage:
                passage = begin(ends)
                passages.append(weakref.ref(passage))
                return passage

            relayer._passage_between = begin_observed  # type: ignore[method-assign]
            relayer.on_end = lambda outcome: verdicts.append(outcome.verdict)
            serving = asyncio.ensure_future(relayer.serve("block" if path == "tls" else path))
            loop = asyncio.get_running_loop()
            counts = []
            for number in range(PASSAGES):
                await loop.run_in_executor(pool, break_one, listener, relayer.port)
                await asyncio.to_thread(peers.eventually, lambda count=number: len(verdicts) > count, "the end")
                if number in (0, PASSAGES - 1):
                    await asyncio.to_thread(peers.eventually, lambda: passages[-1]() is None, "no passage")
                    counts.append(len(open_descriptors()))
            # The thread of pumps lets go of what is its own a moment after its last pump is over.
            fewer = "no more descriptors than after the first passage"
            await asyncio.to_thread(peers.eventually, lambda: len(open_descriptors()) <= counts[0], fewer)
            assert not any(passage() for passage in passages)
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving

    gc.collect()
    gc.disable()
    try:
        with server_at() as listener, ThreadPoolExecutor(1) as pool:
            run(main(listener, pool))
    finally:
        gc.enable()
