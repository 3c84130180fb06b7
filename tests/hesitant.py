"""A pytest plugin, for `make stress`: what tests do with their sockets comes late now and then.

On a busy machine a test may lose the processor between any two calls, and what it talks to has gone on meanwhile: it
has reset the connection between a test's send and its shutdown, say. A pause before a call makes that frequent.
"""

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

_chance = random.Random()
_left = 0.0


def _hesitant(call: Callable[..., Any]) -> Callable[..., Any]:
    def late(*arguments: Any, **keywords: Any) -> Any:
        global _left
        if _left > 0 and _chance.random() < LIKELIHOOD:
            pause = min(_left, _chance.random() * LONGEST)
            _left -= pause
            time.sleep(pause)
        return call(*arguments, **keywords)

    return late


def pytest_configure(config: pytest.Config) -> None:
    for name in CALLS:
        setattr(socket.socket, name, _hesitant(getattr(socket.socket, name)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    global _left
    _left = ALLOWANCE
    _chance.seed(f"{item.config.getoption('randomly_seed', 0)} {item.nodeid}")
