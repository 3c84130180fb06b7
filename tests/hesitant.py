"""A pytest plugin, for `make stress`: what tests do with their sockets comes late now and then.

On a busy machine a test may lose the processor between any two calls, and what it talks to has gone on meanwhile: it
has reset the connection between a test's send and its shutdown, say, or while the test still connects. A pause before a
call, and one at the end of a connect, make that frequent.
"""

import errno
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

CALLS = ("connect", "accept", "send", "sendall", "recv", "recv_into", "shutdown", "close")
LIKELIHOOD = 0.3
LONGEST = 0.2  # seconds
ALLOWANCE = 1.0  # seconds for a test in all, so that none takes long that sends much

TCP_CLOSE = 7  # <netinet/tcp.h>

_chance = random.Random()
_left = 0.0


def _pause() -> None:
    global _left
    if _left > 0 and _chance.random() < LIKELIHOOD:
        pause = min(_left, _chance.random() * LONGEST)
        _left -= pause
        time.sleep(pause)


def _hesitant(call: Callable[..., Any]) -> Callable[..., Any]:
    def late(*arguments: Any, **keywords: Any) -> Any:
        _pause()
        return call(*arguments, **keywords)

    return late


def _connect(sock: socket.socket, *address: Any, _connect: Callable[..., None] = socket.socket.connect) -> None:
    _connect(sock, *address)
    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.gettimeout() != 0:
        _pause()
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")  # as connect(2) would have


def pytest_configure(config: pytest.Config) -> None:
    setattr(socket.socket, "connect", _connect)  # noqa: B010 - as the others
    for name in CALLS:
        setattr(socket.socket, name, _hesitant(getattr(socket.socket, name)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    global _left
    _left = ALLOWANCE
    _chance.seed(f"{item.config.getoption('randomly_seed', 0)} {item.nodeid}")
