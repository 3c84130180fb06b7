"""What the tests of the feeds share: their libraries, and a peer that sends."""

import contextlib
import gc
import importlib
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest

import ringmain

MANY: Any = {"max_connections": 8, "block_size": 4096, "ring_size": 65536}
LINES: Any = {"delimiter": b"\n", "block_size": 4096, "ring_size": 65536}


def library(name: str) -> Any:
    """Return a library that a feed needs; without it skip the module, or under CI fail."""
    known = name in sys.modules
    try:
        module = importlib.import_module(name)
        if not known:
            gc.freeze()  # every test has the collector run twice, which need not walk all of Pandas each time
        return module
    except ImportError:
        without = Path(sys.prefix, "testing-without.txt")  # what `make test` found no wheel of, for this Python
        if os.environ.get("CI") == "true" and not (without.exists() and name in without.read_text().split()):
            raise
        pytest.skip(f"{name} is not installed; `make test` installs it", allow_module_level=True)


def schema() -> Any:
    """Return what `numbered` lines are to Arrow."""
    pa = library("pyarrow")
    return pa.schema({"a": pa.int64(), "b": pa.string(), "c": pa.list_(pa.int64())})


def event() -> Any:
    """Return what they are to msgspec."""
    return library("msgspec").defstruct("Event", [("a", int), ("b", str), ("c", list[int | None])])


def send(port: int, *parts: bytes, reset: bool = False) -> threading.Thread:
    """Send each part over a connection of its own, one after another; the last ends in a reset if asked to."""

    def work() -> None:
        for part in parts:
            sock = peers.connect(port)
            try:
                sock.sendall(part)
            except OSError:  # left by who had enough of it
                sock.close()
                continue
            if reset and part is parts[-1]:
                peers.close_with_reset(sock)
            sock.close()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@contextlib.contextmanager
def senders(port: int, *parts: bytes) -> Iterator[list[int]]:
    """Send each part over a connection of its own, in pieces and all at the same time; yield their ports."""
    socks = [peers.connect(port) for _ in parts]

    def work(index: int) -> None:
        chance, view = random.Random(index), memoryview(parts[index])
        with contextlib.suppress(OSError):  # left by who had enough of it
            while len(view):
                size = chance.choice([1, 100, 5000, 20_000])
                socks[index].sendall(view[:size])
                view = view[size:]
            peers.send_no_more(socks[index])

    threads = [threading.Thread(target=work, args=[index]) for index in range(len(parts))]
    ports = [sock.getsockname()[1] for sock in socks]
    for thread in threads:
        thread.start()
    try:
        yield ports
    finally:
        for sock in socks:
            sock.close()
        for thread in threads:
            thread.join(peers.TIMEOUT)


def all_given_back(loader: ringmain.Loader) -> None:
    """Wait until no thread of a feed that was left holds a block any more."""
    peers.eventually(lambda: loader.ring.lent == 0, "all blocks given back")


def numbered(count: int, start: int = 0) -> bytes:
    """Return lines of JSON that differ."""
    return b"".join(b'{"a":%d,"b":"text %d","c":[%d,null]}\n' % (n, n * n, n % 7) for n in range(start, start + count))
